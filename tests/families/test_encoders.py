"""Encoders and encoder-decoders against transformers: outputs, folders both ways, losses, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmlab.checkpoints.hf import load_hf, save_hf
from llmlab.errors import InputError
from llmlab.families import mapping
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture

from .references import BERT, REFERENCES, reference, transformers
from .sides import TOLERANCE, difference, opened, texts

NAMES = [name for name, configs in REFERENCES.items() if "as" in configs[0]]
CASES = [pytest.param(name, config, id=f"{name}-{i}") for name in NAMES for i, config in enumerate(REFERENCES[name])]


def plain_names(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefix that a model saved alone lacks."""
    prefix = mapping.family(name).PREFIX
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


def test_the_families_are_there() -> None:
    assert set(NAMES) == {"bert", "roberta", "albert", "xlnet", "t5", "mt5"}


@pytest.mark.parametrize(("name", "config"), CASES)
def test_outputs_equal_the_reference(name: str, config: dict[str, Any]) -> None:
    """And each tensor leaves as it came; only duplicates of tied ones are not written."""
    theirs = reference(name, config)
    ours = opened(name, theirs)
    assert difference(theirs, ours) < TOLERANCE
    family = mapping.family(name)
    again = plain_names(name, mapping.to_hf(family, ours.architecture, ours.state_dict()))
    expected = plain_names(name, theirs.state_dict())
    tied = [getattr(family, "HEAD", mapping.HEAD), *getattr(family, "TIED", ())] if ours.architecture.tied else []
    dropped = (*family.IGNORED, *tied, "nothing")
    assert set(again) == {key for key in expected if not key.endswith(dropped)}
    assert all(torch.equal(tensor, expected[key]) for key, tensor in again.items())


@pytest.mark.parametrize(("name", "config"), CASES)
def test_a_folder_is_read_and_written(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    """What the reference saved we open, and what we save it opens with its own class, each with equal outputs."""
    theirs = reference(name, config)
    theirs.save_pretrained(tmp_path / "theirs")
    bundle = load_hf(tmp_path / "theirs")
    assert difference(theirs, bundle.model) < TOLERANCE
    save_hf(tmp_path / "ours", bundle)
    assert load_hf(tmp_path / "ours").architecture == bundle.architecture
    kind = type(theirs) if name != "mt5" else transformers.T5ForConditionalGeneration
    back, told = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(told.values()), told
    assert difference(back.eval(), bundle.model) < TOLERANCE


@pytest.mark.parametrize(("name", "config"), CASES)
def test_config_there_and_back(name: str, config: dict[str, Any]) -> None:
    family, theirs = mapping.family(name), reference(name, config)

    def read(config: dict[str, Any]) -> tuple[Architecture, int]:
        whole: tuple[Architecture, int] = family.read_config(mapping.settled(family, config, theirs.state_dict()))
        return whole

    architecture, vocab_size = read(theirs.config.to_dict())
    written = mapping.written(family, architecture, vocab_size)
    assert family.read_config(written) == (architecture, vocab_size)
    assert read(transformers.AutoConfig.for_model(**written).to_dict()) == (architecture, vocab_size)
    leaves_as = mapping.family_of(architecture).MODEL_TYPE
    assert leaves_as == ("t5" if name == "mt5" else name)  # which compute the same: the one published first


@pytest.mark.parametrize("name", NAMES)
def test_missing_unknown_and_misshapen_tensors_are_errors(name: str) -> None:
    family = mapping.family(name)
    theirs = reference(name, REFERENCES[name][0])
    ours = opened(name, theirs)
    good = dict(theirs.state_dict())
    first = family.names(ours.architecture)[1].theirs
    with pytest.raises(InputError, match=f"{first}: this tensor is missing"):
        mapping.from_hf(family, ours, {key: value for key, value in good.items() if key != first})
    with pytest.raises(InputError, match="surprise: unknown tensor"):
        mapping.from_hf(family, ours, good | {"surprise": torch.zeros(1)})
    with pytest.raises(InputError, match="has shape"):
        mapping.from_hf(family, ours, good | {first: torch.cat([good[first]] * 2)})


# ---------------------------------------------------------------- losses

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


# ---------------------------------------------------------------- folders as they are


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
        ("bert", "position_embedding_type", "relative_key", 'embedding_type: "relative_key" is not built'),
        ("bert", "is_decoder", True, "is_decoder: true is not built"),
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
        ("xlnet", "bi_data", True, "bi_data: true is not built"),
        ("xlnet", "ff_activation", "mish", "ff_activation: unknown value 'mish'"),
        ("t5", "feed_forward_proj", "gated-mish", "feed_forward_proj: unknown value 'gated-mish'"),
        ("mt5", "is_encoder_decoder", False, "is_encoder_decoder: false is not built"),
    ],
)
def test_unknown_switches_name_their_field(name: str, field: str, value: Any, message: str) -> None:
    config = reference(name, REFERENCES[name][0]).config.to_dict() | {field: value}
    with pytest.raises(InputError, match=message):
        mapping.family(name).read_config(config)
