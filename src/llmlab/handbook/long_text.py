"""A real model read past its length: the loss of every thousand tokens of one text, and of the same tokens when the
reading began later, so that none stands past the trained length."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llmlab.checkpoints.where import open_model
from llmlab.evaluation.reading import nats_by_token
from llmlab.evaluation.rescaled import rescaled
from llmlab.runtime import derive

MODEL, TRAINED = "smollm2", 8192
TOKENS, BIN = 12_288, 1024  # read, and of a bin of the profile
CHARACTERS = 6 * TOKENS  # of English, more than so many tokens
BINS = tuple(f"nats_{place}k" for place in range(1, TOKENS // BIN + 1))


def text_of(seed: int, count: int = CHARACTERS) -> str:
    """A stretch of Moby Dick, from a place that the seed chooses."""
    whole = (Path(__file__).parents[1] / "data" / "bundled" / "moby_dick.txt").read_text(encoding="utf-8")
    start = derive(seed, "handbook", "long text") % (len(whole) - count)
    return whole[start : start + count]


@torch.inference_mode()
def run(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    """An arm of the race: mean nats a token of each bin. `start` is the first token that is read, as position 0; `way`
    is how the model is read past its length (a method of `evaluation.rescaled`), None as it is."""
    bundle = open_model(MODEL)
    model = bundle.model.eval()
    if way := settings["way"]:
        model = rescaled(model, way, 2, TRAINED)
    assert bundle.tokenizer is not None
    ids = bundle.tokenizer.encode(text_of(seed))[: TOKENS + 1]
    start: int = settings["start"]
    mean_by_bin = nats_by_token(model, ids[start:]).view(-1, BIN).mean(1).tolist()
    unread = start // BIN
    return dict.fromkeys(BINS[:unread], "is not read") | dict(zip(BINS[unread:], mean_by_bin, strict=True))
