"""Bits per byte against one forward pass, however the text is cut, padded or batched."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import InputError
from llmlab.evaluation import perplexity
from llmlab.evaluation.perplexity import Span, score_texts, span_nats, token_nats, windows
from llmlab.model.positions import Alibi, Learned, Rope
from llmlab.model.transformer import Architecture
from llmlab.tokenization.train import BPE, Unigram, WordPiece, train_tokenizer

CONTEXT, VOCAB = 16, 40


@pytest.fixture(params=[Rope(), Learned(), Alibi()], ids=lambda position: position.kind)
def model(request):
    built = Architecture(layers=2, dim=32, context=CONTEXT, position=request.param, initial_std=0.3, dropout=0.2).build(
        VOCAB
    )
    return built.train()


def draw(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def forward(model, ids: list[int]) -> torch.Tensor:
    """Nats of ids[1:] from one plain forward pass."""
    model.eval()
    with torch.no_grad():
        return F.cross_entropy(model(torch.tensor([ids[:-1]]))[0].double(), torch.tensor(ids[1:]), reduction="none")


def test_a_text_within_the_context_is_one_forward_pass(model):
    ids = draw(CONTEXT + 1)
    found = token_nats(model, ids)
    assert model.training, "the mode is given back"
    torch.testing.assert_close(found, forward(model, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 5, CONTEXT])
def test_a_longer_text_is_scored_as_a_loop_over_windows_would(model, stride):
    ids = draw(3 * CONTEXT + 5)
    found, end = token_nats(model, ids, stride), CONTEXT + 1
    expected = forward(model, ids[:end])
    while end < len(ids):
        new = min(stride, len(ids) - end)
        end += new
        expected = torch.cat([expected, forward(model, ids[end - CONTEXT - 1 : end])[-new:]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 20), st.data())
@settings(deadline=None, max_examples=300)
def test_windows_score_every_token_once_and_fit(first, length, context, data):
    stride = data.draw(st.integers(1, context))
    seen: list[int] = []
    for window in windows(0, length, first, context, stride):
        assert 0 <= window.start < window.first < window.end <= length
        assert window.end - window.start <= context + 1
        seen += range(window.first, window.end)
    assert seen == list(range(first, length))


def test_neighbours_padding_and_batch_size_change_nothing(model, monkeypatch):
    spans = [Span(draw(length, length), 1) for length in (2, 30, 7, 17, 3)]
    together = span_nats(model, spans)
    alone = np.concatenate([span_nats(model, [span]) for span in spans])
    monkeypatch.setattr(perplexity, "TOKENS", 20)
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    np.testing.assert_allclose(span_nats(model, spans), alone, rtol=1e-5)


def test_an_answer_is_scored_given_its_prompt(model):
    ids = draw(12)
    assert span_nats(model, [Span(ids, 8)])[0] == pytest.approx(float(forward(model, ids)[7:].sum()), rel=1e-5)
    assert span_nats(model, [Span(ids, 12)])[0] == 0


def test_a_prompt_longer_than_the_context_loses_its_start(model):
    ids = draw(40)
    expected = float(forward(model, ids[40 - CONTEXT - 1 :])[-4:].sum())
    assert span_nats(model, [Span(ids, 36)])[0] == pytest.approx(expected, rel=1e-5)


def test_an_impossible_stride_is_refused(model):
    with pytest.raises(InputError, match="stride: 17 is not between 1 and the context of 16"):
        token_nats(model, draw(40), 17)


class Bytes:
    """A tokenizer of bytes, with one special token behind them."""

    vocab_size, bos_id, eos_id, special_ids, spells_space = 257, None, 256, frozenset({256}), False

    def require_lossless(self, what):
        pass

    def encode_batch(self, texts):
        return [list(text.encode()) for text in texts]

    def token_bytes(self, token):
        return b"<end>" if token == 256 else bytes([token])


class Headless(Bytes):
    eos_id, special_ids, vocab_size = None, frozenset(), 256


def test_an_even_model_takes_eight_bits_a_byte():
    even = Architecture(layers=1, dim=32, context=8).build(256)
    torch.nn.init.zeros_(even.embedding.weight)
    found = score_texts(even, Headless(), ["hello", "汉字 and more, longer than the context"])
    assert found.bits_per_byte == pytest.approx(8.0, abs=1e-6)
    assert found.perplexity == pytest.approx(256, abs=1e-3)


def test_bits_per_byte_is_nats_over_bytes_behind_the_begin_token():
    model = Architecture(layers=1, dim=32, context=64, initial_std=0.5).build(257)
    texts = ["hello", "汉字"]
    found = score_texts(model, Bytes(), texts)
    nats = [float(forward(model, [256, *text.encode()]).sum()) for text in texts]
    np.testing.assert_allclose(found.nats, nats, rtol=1e-5)
    assert found.bytes.tolist() == found.tokens.tolist() == [5, 6]
    assert found.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / 11, rel=1e-5)
    interval = found.estimate(seed=0)
    assert interval.value == pytest.approx(found.bits_per_byte)
    assert interval.low <= interval.value <= interval.high


def test_without_a_begin_token_the_first_byte_is_given():
    model = Architecture(layers=1, dim=32, context=64, initial_std=0.5).build(256)
    found = score_texts(model, Headless(), ["hello"])
    assert found.bytes.tolist() == [4]
    assert found.nats[0] == pytest.approx(float(forward(model, list(b"hello")).sum()), rel=1e-5)
    with pytest.raises(InputError, match="nothing to foretell"):
        score_texts(model, Headless(), ["h", ""])


def test_bytes_are_those_of_the_text_whatever_the_tokenizer():
    texts = ["the whale", "  a ship\n", "\u9cb8"]
    for section in (BPE(vocab_size=270), Unigram(vocab_size=300)):
        tokenizer = train_tokenizer(section, iter(["the whale and the ship"] * 3))
        model = Architecture(layers=1, dim=32, context=64).build(tokenizer.vocab_size)
        assert score_texts(model, tokenizer, texts).bytes.tolist() == [len(text.encode()) for text in texts]


def test_a_tokenizer_that_loses_text_has_no_bits_per_byte():
    tokenizer = train_tokenizer(WordPiece(vocab_size=60), iter(["the whale and the ship"] * 3))
    with pytest.raises(InputError, match=r"tokenizer: its ids do not keep the text .*: no bits per byte"):
        score_texts(Architecture(layers=1, dim=32, context=64).build(60), tokenizer, ["the whale"])
