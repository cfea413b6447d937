"""A real model read past its length: the loss of every thousand tokens of one text, and of the same tokens when the
reading began later, so that none stands past the trained length.

T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.checkpoints.where import open_model
from llmlab.evaluation.rescaled import rescaled
from llmlab.inference.cache import DenseCache
from llmlab.model.places import Places
from llmlab.model.transformer import Transformer
from llmlab.runtime import derive

MODEL, TRAINED = "smollm2", 8192
TOKENS, BIN, CHUNK = 12_288, 1024, 512  # read, a bin of the profile, read at a time
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
    ids = torch.tensor(bundle.tokenizer.encode(text_of(seed))[: TOKENS + 1])
    start: int = settings["start"]
    loss_T = torch.zeros(TOKENS)
    for first, hidden_BTD in _hidden(model, ids[None, :TOKENS], start, whole=way == "dynamic"):
        answers_T = ids[first + 1 : first + CHUNK + 1]
        loss_T[first : first + CHUNK] = F.cross_entropy(model.logits(hidden_BTD)[0], answers_T, reduction="none")
    mean_by_bin = loss_T.view(-1, BIN).mean(1).tolist()
    return {
        name: mean if place * BIN >= start else "is not read"
        for place, (name, mean) in enumerate(zip(BINS, mean_by_bin, strict=True))
    }


def _hidden(model: Transformer, ids_BT: Tensor, start: int, whole: bool) -> Iterator[tuple[int, Tensor]]:
    """Hidden states by chunk, each with the place of its first token. Angles that follow the length of the text turn
    every key anew as it grows, so such a text is read `whole`, in one pass without a cache."""
    if whole:
        hidden_BTD = model.hidden(ids_BT[:, start:], Places.causal(1, TOKENS - start))
        for first in range(start, TOKENS, CHUNK):
            yield first, hidden_BTD[:, first - start : first - start + CHUNK]
        return
    cache = DenseCache(TOKENS - start)
    for first in range(start, TOKENS, CHUNK):
        at = Places.causal(1, CHUNK, start=first - start)
        yield first, model.hidden(ids_BT[:, first : first + CHUNK], at, cache)
