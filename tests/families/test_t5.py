"""T5: its loss, its cache, and a text padded on either side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llmlab.errors import InputError
from llmlab.inference.cache import DenseCache
from llmlab.model.places import Places

from .references import REFERENCES, reference
from .sides import opened, texts

ANSWERS = texts().flip(1)[:, :6]
CASES = [(name, config) for name in ("t5", "mt5") for config in REFERENCES[name]]


@pytest.mark.parametrize(("name", "config"), CASES)
@torch.no_grad()
def test_loss(name: str, config: dict[str, Any]) -> None:
    theirs = reference(name, config)
    ours, at = opened(name, theirs), Places.of_lengths([9, 4, 7], 9)
    labels = torch.where(Places.of_lengths([3, 6, 2], 6).real, ANSWERS, -100)
    expected = theirs(texts(), attention_mask=at.real.long(), labels=labels).loss
    started = torch.cat([torch.zeros(3, 1, dtype=torch.long), labels.clamp(min=0)[:, :-1]], 1)
    got = F.cross_entropy(ours(started, memory=ours.encode(texts(), at)).flatten(0, 1), labels.flatten())
    assert abs(got - expected) < 1e-5


@pytest.mark.parametrize(("name", "config"), CASES)
@torch.no_grad()
def test_cached_answers_equal_whole_ones(name: str, config: dict[str, Any]) -> None:
    ours = opened(name, reference(name, config))
    at, after = Places.of_lengths([9, 4, 7], 9, "left"), Places.causal(3, 6)
    whole = ours(ANSWERS, after, memory=ours.encode(texts(), at))
    memory, cache = ours.encode(texts(), at, keep=True), DenseCache(6)
    pieces = [
        ours(ANSWERS[:, cut], after[:, cut], cache, memory=memory) for cut in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    assert len(memory.kept or ()) == ours.architecture.layers
    assert (torch.cat(pieces, 1) - whole).abs().max() < 1e-5


def test_a_decoder_without_its_text_is_refused() -> None:
    ours = opened("t5", reference("t5", REFERENCES["t5"][0]))
    with pytest.raises(InputError, match="memory: is missing"):
        ours(ANSWERS)
