"""How an answer is searched for, by name, where it is more than drawing one token after another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated

from llmlab.inference.beam import Beam
from llmlab.inference.best_of import BestOf
from llmlab.inference.constrain import Guide
from llmlab.inference.contrastive import Contrastive
from llmlab.inference.front import Front
from llmlab.inference.hypothesis import Hypothesis
from llmlab.inference.sampling import Sampling
from llmlab.inference.text import Bytes, TextStream, text_of
from llmlab.recipe import KINDS

Search = Annotated[Beam | Contrastive | BestOf, *KINDS]


@dataclass(frozen=True)
class Found(Hypothesis):
    """A hypothesis as text: the ids up to the stop text, if one of them ended it."""

    text: str


def found(
    search: Search,
    front: Front,
    prompt: Sequence[int],
    sampling: Sampling,
    stop_ids: Collection[int],
    tokenizer: Bytes,
    start: bool = False,
    guide: Guide | None = None,
) -> list[Found]:
    """What a search finds for one prompt, best first. A text that says one of `sampling.stop` is at an end with it.
    `start` as in `TextStream`; `guide` follows `sampling.constraint`."""
    watch = TextStream(tokenizer, sampling.stop, start) if sampling.stop else None
    (hypotheses,) = search.find(front, [prompt], sampling, stop_ids, [sampling.seed], watch, guide)
    return [
        Found(one.ids, one.score, one.finish_reason, text_of(tokenizer, one.ids, sampling.stop, start))
        for one in hypotheses
    ]
