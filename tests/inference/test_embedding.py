"""One vector a text: held against plain arithmetic on each text alone, and on real weights against transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import llmlab
from llmlab.inference import embedding
from llmlab.inference.embedding import embed
from llmlab.model.places import Places
from llmlab.model.pooling import Pooling
from llmlab.model.transformer import Architecture
from llmlab.recipe import parse

SMALL: dict[str, Any] = {"layers": 2, "dim": 16, "context": 32, "initial_std": 0.3, "position": "learned"}
MODELS = {
    "encoder": parse(Architecture, {**SMALL, "mask": "bidirectional", "head": "none"}).build(40),
    "decoder": parse(Architecture, SMALL).build(40),
    "both": parse(Architecture, {**SMALL, "position": "t5", "encoder_layers": 1}).build(40),
}
POOLINGS = [Pooling(), Pooling(kind="first"), Pooling(normalised=False), Pooling(kind="first", normalised=False)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pooling", POOLINGS, ids=lambda p: f"{p.kind}-{p.normalised}")
@given(texts=st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=12), max_size=7), budget=st.integers(1, 40))
@settings(deadline=None, max_examples=12)
@torch.no_grad()
def test_vectors_are_those_of_each_text_alone(name: str, pooling: Pooling, texts: list[list[int]], budget: int) -> None:
    model = MODELS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "BATCH_TOKENS", budget)
        got = embed(model, texts, pooling)
    assert got.shape == (len(texts), 16)
    assert got.dtype == torch.float32
    for row, text in zip(got, texts, strict=True):
        ids, at = torch.tensor([text]), Places.causal(1, len(text))
        if name == "both":
            states = model.encode(ids, at).states[0]
        else:
            states = model.hidden(ids, at.bidirectional() if name == "encoder" else at)[0]
        vector = states.mean(0) if pooling.kind == "mean" else states[0]
        vector = vector / vector.norm() if pooling.normalised else vector
        assert (row - vector).abs().max() < 1e-5


@torch.no_grad()
def test_pooling_reads_either_padding_side() -> None:
    hidden = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    flipped = hidden.clone()
    flipped[1, 2:], flipped[1, :2] = hidden[1, :3], 100.0
    for pooling in POOLINGS:
        right, left = (Places.of_lengths([5, 3], 5, side) for side in ("right", "left"))
        assert torch.allclose(pooling(hidden, right), pooling(flipped, left))


# ---------------------------------------------------------------- real weights

ALIKE = [
    ("A man is eating food.", "Someone is having a meal."),
    ("The stock market fell sharply today.", "Shares dropped on Wall Street."),
    ("How do I reset my password?", "I forgot my login and want a new one."),
    ("Whales are the largest animals in the sea.", "No creature of the ocean is bigger than a whale."),
]


@torch.no_grad()
def test_minilm_equals_transformers_and_tells_paraphrases(minilm: Path) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")
    lm = llmlab.load(minilm)
    assert lm.bundle.pooling == Pooling(max_tokens=256)
    texts = [text for pair in ALIKE for text in pair] + ["", "word " * 400]
    vectors = lm.embed(texts)
    assert vectors.shape == (10, 384)
    assert (vectors.norm(dim=1) - 1).abs().max() < 1e-5

    theirs = transformers.BertModel.from_pretrained(minilm).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    assert batch["attention_mask"].sum(1).max() == 256
    weights = batch["attention_mask"][..., None].float()
    mean = (theirs(**batch).last_hidden_state * weights).sum(1) / weights.sum(1)
    assert (vectors - F.normalize(mean, dim=1)).abs().max() < 1e-5

    cosines = vectors[:8] @ vectors[:8].T
    same = torch.stack([cosines[2 * i, 2 * i + 1] for i in range(4)])
    other = torch.stack([cosines[i, j] for i in range(8) for j in range(8) if i // 2 != j // 2])
    assert same.min() > other.max() + 0.1
