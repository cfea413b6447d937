"""BERT and its kin: losses, folders as the hub has them, and configs that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from llmlab.checkpoints.hf import load_hf, save_hf
from llmlab.errors import InputError
from llmlab.families import mapping
from llmlab.model.places import Places

from .references import BERT, REFERENCES, opened, reference, texts, transformers

PADDED = Places.of_lengths([9, 4, 7], 9).bidirectional()


@pytest.mark.parametrize("name", ["bert", "roberta", "albert"])
@torch.no_grad()
def test_loss_of_masked_tokens(name: str) -> None:
    theirs = reference(name, REFERENCES[name][1 if name != "roberta" else 0])
    ids = texts()
    chosen = PADDED.real & (torch.arange(9) % 3 == 1)
    labels = torch.where(chosen, ids, -100)
    masked = torch.where(chosen, 3, ids)
    expected = theirs(masked, attention_mask=PADDED.real.long(), labels=labels).loss
    got = F.cross_entropy(opened(name, theirs)(masked, PADDED).flatten(0, 1), labels.flatten())
    assert abs(got - expected) < 1e-5


@pytest.mark.parametrize(("name", "label"), [("bert", "next_sentence_label"), ("albert", "sentence_order_label")])
@torch.no_grad()
def test_loss_of_tokens_and_pairs(name: str, label: str) -> None:
    theirs = reference(name, REFERENCES[name][0])
    ours, ids, pairs = opened(name, theirs), texts(), torch.tensor([0, 1, 1])
    at = Places(PADDED.position, PADDED.order, PADDED.document, torch.arange(9).expand(3, -1) // 5)
    labels = torch.where(at.real, ids.flip(1), -100)
    expected = theirs(
        ids, attention_mask=at.real.long(), token_type_ids=at.segment, labels=labels, **{label: pairs}
    ).loss
    hidden = ours.hidden(ids, at)
    tokens = F.cross_entropy(ours.logits(hidden).flatten(0, 1), labels.flatten())
    assert ours.pooler is not None
    assert abs(tokens + F.cross_entropy(ours.pooler(hidden), pairs) - expected) < 1e-5


def test_roberta_counts_positions_as_the_reference_does_by_itself() -> None:
    theirs = reference("roberta", REFERENCES["roberta"][0])
    ids, at = texts(), PADDED
    with torch.no_grad():
        expected = theirs(torch.where(at.real, ids, 1), attention_mask=at.real.long()).logits
        got = opened("roberta", theirs)(ids, at)
    assert (got - expected)[at.real].abs().max() < 1e-4


def test_hub_folders_with_old_names_buffers_and_more_heads_than_their_class(tmp_path: Path) -> None:
    """As bert-base-uncased lies on the hub: gamma and beta, a buffer of positions, the heads of pretraining under the
    class of masked tokens."""
    theirs = reference("bert", REFERENCES["bert"][0])
    theirs.save_pretrained(tmp_path)
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        stem, _, part = name.rpartition("LayerNorm.")
        old[stem + names["LayerNorm." + part] if stem else name] = tensor
    assert any(name.endswith("gamma") for name in old)
    save_file(old | {"bert.embeddings.position_ids": torch.arange(40)[None]}, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    bundle = load_hf(tmp_path)
    assert bundle.architecture.pooled == 2
    with torch.no_grad():
        assert (bundle.model(texts()) - theirs(texts()).prediction_logits).abs().max() < 1e-4


def test_a_trunk_with_and_without_its_pooler(tmp_path: Path) -> None:
    theirs = reference("bert", {"as": "BertModel", **BERT})
    bare = transformers.BertModel(theirs.config, add_pooling_layer=False).eval()
    for model, pooled in ((theirs, 0), (bare, None)):
        model.save_pretrained(tmp_path / "theirs")
        bundle = load_hf(tmp_path / "theirs")
        assert (bundle.architecture.head.kind, bundle.architecture.pooled) == ("none", pooled)
        save_hf(tmp_path / "ours", bundle)
        back = load_hf(tmp_path / "ours")
        assert back.architecture == bundle.architecture
        with pytest.raises(InputError, match=r"model\.head: this model has no head"):
            back.model(texts())


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("bert", "hidden_act", "gelo", "config.json: hidden_act: unknown value 'gelo' .did you mean 'gelu'"),
        ("bert", "position_embedding_type", "relative_key", "position_embedding_type: relative_key is not built"),
        ("bert", "is_decoder", True, "is_decoder: True is not built"),
        (
            "bert",
            "architectures",
            ["BertForQuestionAnswering"],
            "architectures: unknown value 'BertForQuestionAnswering'",
        ),
        ("roberta", "pad_token_id", None, "pad_token_id: is None"),
        ("albert", "inner_group_num", 2, "inner_group_num: 2 is not built"),
        ("albert", "num_hidden_groups", 3, "num_hidden_groups: 3 is not built"),
        ("xlnet", "attn_type", "tri", "attn_type: unknown value 'tri'"),
        ("xlnet", "bi_data", True, "bi_data: True is not built"),
        ("xlnet", "ff_activation", "mish", "ff_activation: unknown value 'mish'"),
        ("t5", "feed_forward_proj", "gated-mish", "feed_forward_proj: unknown value 'gated-mish'"),
        ("mt5", "is_encoder_decoder", False, "is_encoder_decoder: False is not built"),
    ],
)
def test_unknown_switches_name_their_field(name: str, field: str, value: Any, message: str) -> None:
    config = reference(name, REFERENCES[name][0]).config.to_dict() | {field: value}
    with pytest.raises(InputError, match=message):
        mapping.family(name).read_config(config)
