"""Encoders and encoder-decoders as their user sees them: folders of the reference opened by `load`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import llmlab
from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.native import save_model
from llmlab.errors import InputError
from llmlab.inference.sampling import Sampling
from llmlab.language_model import LanguageModel
from llmlab.model.pooling import Pooling
from llmlab.model.transformer import Architecture
from llmlab.recipe import parse
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, train_tokenizer

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="the reference implementation is a test dependency")

START = 30
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(BPE(vocab_size=260), iter(["a"]))


def bert(folder: Path, kind: str) -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.BertConfig(**SIZES, num_attention_heads=4)).eval()
    model.save_pretrained(folder)
    return model


def t5(folder: Path, vocab_size: int = 40) -> Any:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=vocab_size, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=START
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.decoder.block.named_parameters():  # lest the tied head say the start token again
            parameter.mul_(1.0 if "norm" in name else 9.0)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def test_bert_says_logits_and_does_not_continue(tmp_path: Path) -> None:
    theirs = bert(tmp_path, "BertForMaskedLM")
    lm = llmlab.load(tmp_path)
    assert (lm.logits(IDS) - theirs(IDS).logits).abs().max() < 1e-4
    for ask in (lambda: lm.generate("a"), lambda: lm.chat([{"role": "user", "content": "a"}]), lambda: lm.stream("a")):
        with pytest.raises(InputError, match="bidirectional: fills blanks, does not continue"):
            ask()
    with pytest.raises(InputError, match=r"decoder_ids: this model has no encoder"):
        lm.logits(IDS, decoder_ids=IDS)


def test_a_model_without_a_head_says_so(tmp_path: Path) -> None:
    bert(tmp_path, "BertModel")
    with pytest.raises(InputError, match=r"model\.head: this model has no head, so no logits"):
        llmlab.load(tmp_path).logits(IDS)


@torch.no_grad()
def test_t5_says_the_logits_of_an_answer(tmp_path: Path) -> None:
    theirs = t5(tmp_path)
    lm = llmlab.load(tmp_path)
    answer = torch.tensor([[0, 3, 4], [0, 5, 6]])
    got = lm.logits(IDS, decoder_ids=answer)
    assert got.shape == (2, 3, 40)
    assert (got - theirs(IDS, decoder_input_ids=answer).logits).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, r"decoder_ids: are missing \(.*at least \[\[30\]\]"),
        (torch.tensor([[0]]), "decoder_ids: have 1 rows"),
        (torch.tensor([[0], [99]]), "decoder_ids: 99 is outside the vocabulary of 40"),
        (torch.tensor([0, 0]), r"decoder_ids: are torch\.int64 of shape \[2\]"),
    ],
)
def test_answers_that_are_none_are_refused(tmp_path: Path, answer: Any, says: str) -> None:
    t5(tmp_path)
    with pytest.raises(InputError, match=says):
        llmlab.load(tmp_path).logits(IDS, decoder_ids=answer)


def test_t5_answers_a_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The text goes through the encoder, and what comes back is the decoder's alone, as transformers has it."""
    theirs = t5(tmp_path, tokenizer.vocab_size)
    tokenizer.save(tmp_path)
    lm = llmlab.load(tmp_path)
    ids = tokenizer.encode("ask me")
    assert lm.prompt("ask me") == ids  # this tokenizer puts nothing around a text
    reply = lm.reply(ids, Sampling(temperature=0.0, max_new_tokens=9))
    assert reply.read() == lm.generate("ask me", temperature=0, max_new_tokens=9)
    out = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=9, eos_token_id=sorted(lm.stop_ids))
    assert reply.ids == out[0, 1:].tolist()
    assert len(reply.ids) > 1


def test_embedding_asks_for_a_pooling_and_cuts_at_the_length(tmp_path: Path, tokenizer: Tokenizer) -> None:
    parts = {"layers": 1, "dim": 16, "context": 32, "mask": "bidirectional", "head": "none", "position": "learned"}
    architecture = parse(Architecture, parts)
    model = architecture.build(tokenizer.vocab_size)
    save_model(tmp_path / "m", model, tokenizer)
    lm = llmlab.load(tmp_path / "m")
    with pytest.raises(InputError, match="does not say how the tokens of a text become one vector"):
        lm.embed(["a"])
    with pytest.raises(InputError, match=r"texts: is one text, not a list"):
        lm.embed("a")
    with pytest.raises(InputError, match="text 2: is empty"):
        lm.embed(["a", ""], Pooling())
    assert lm.embed([], Pooling()).shape == (0, 16)
    short = LanguageModel(Bundle(model, tokenizer, architecture, "test", Pooling(max_tokens=5)))
    long = short.embed(["abcdefgh", "abcde"])
    assert torch.equal(long[0], long[1])
    assert not torch.equal(lm.embed(["abcdefgh"], Pooling()), long[:1])
    assert torch.isfinite(lm.embed(["a" * 100], Pooling())).all()  # never past the context
