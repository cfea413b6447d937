"""What a model can do, found by doing it: go on with a text, hear both sides of a token, give a vector, answer a text
that its encoder read. What it refuses, it refuses by name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from llmlab.errors import InputError
from llmlab.handbook.measures import gap
from llmlab.inference.embedding import embed
from llmlab.inference.engine import generate
from llmlab.inference.sampling import Sampling
from llmlab.model.masks import Blank
from llmlab.model.places import Places
from llmlab.model.pooling import Pooling
from llmlab.model.transformer import Transformer

CELLS = ("generate", "fill", "embed", "seq2seq")
TOKENS = 9  # of the texts that models are tried on


def _tried(work: Callable[[], bool]) -> tuple[float, str]:
    """(1, "") where it works; (0, the field that is named) where it is refused."""
    try:
        return float(work()), ""
    except InputError as refusal:
        return 0.0, refusal.place


def abilities(model: Transformer) -> tuple[tuple[float, ...], list[str]]:
    """The cells of `CELLS`, each by doing it, and what the refusals name."""
    ids = model.prompted(torch.arange(TOKENS)[None] + 5)
    edited = ids.clone()
    edited[0, 2] = 50

    def generates() -> bool:
        if isinstance(model.architecture.mask, Blank):  # the engine counts one axis; so pass by pass
            grown = ids
            for _ in range(3):
                grown = torch.cat([grown, model(grown)[:, -1:].argmax(-1)], 1)
            return grown.shape[1] == TOKENS + 3
        return len(generate(model, ids.tolist(), Sampling(max_new_tokens=3, temperature=0.0), (), [0])[0].ids) == 3

    def fills() -> bool:
        """A token's states hear what stands after it; an encoder's do, where there is one."""

        def first(given: torch.Tensor) -> torch.Tensor:
            at = model.architecture.mask.places(given)
            states = model.hidden(given, at) if model.encoder is None else model.encode(given, at).states
            return states[0, 0]

        return gap(first(ids), first(edited)) > 0

    def embeds() -> bool:
        if isinstance(model.architecture.mask, Blank):
            rows = [model.hidden(given, model.architecture.mask.places(given)).mean(1) for given in (ids, edited)]
            vectors_ND = torch.cat(rows)
        else:
            vectors_ND = embed(model, [*ids.tolist(), *edited.tolist()], Pooling())
        return bool(vectors_ND.isfinite().all()) and gap(vectors_ND[0], vectors_ND[1]) > 0

    def answers() -> bool:
        memory = model.encode(ids, Places.causal(1, TOKENS))
        said = model.hidden(ids[:, :2], Places.causal(1, 2), memory=memory)
        other = model.hidden(ids[:, :2], Places.causal(1, 2), memory=model.encode(edited, Places.causal(1, TOKENS)))
        return gap(said, other) > 0

    cells, named = zip(*(_tried(work) for work in (generates, fills, embeds, answers)), strict=True)
    return cells, [place for place in named if place]
