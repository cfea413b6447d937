"""A task whose instruction comes after the content: arrows between things are told in any order, then it is said from
which one to set out and how many arrows to follow, and there is read where one ends.

One attention layer follows one arrow. But content that is read both ways can shorten the paths before the instruction
comes: in each layer an arrow may look up the next one, wherever it stands, so that two layers follow three. Read from
left to right, an arrow knows only those told before it.

N rows, L tokens, A arrows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.handbook.fitting import fit
from llmlab.handbook.question import Figures
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.runtime import generator

ARROWS = 6
HOPS = (1, 2, 3)
VOCABULARY = ARROWS + len(HOPS)
LENGTH = ARROWS + 1  # of the prompt, which is the prefix of a prefix LM: the arrows, and what is asked of them
DIM, HEADS = 64, 4
TESTED = 256  # rows for each number of arrows to follow
MEASURES = tuple(f"accuracy, {hops} arrows" for hops in HOPS)


class Asked(NamedTuple):
    """int64 [N, L] ids, where an arrow ends or, last, how many to follow; starts [N, L], where it sets out, told as the
    segment of a text is; answers [N]."""

    ids_NL: Tensor
    starts_NL: Tensor
    answers_N: Tensor


def rows(hops_N: Tensor, source: torch.Generator) -> Asked:
    """A row for each number of arrows to follow."""
    count = len(hops_N)
    ends_NA = torch.rand(count, ARROWS, generator=source).argsort(1)  # each thing has one arrow, to any, itself too
    order_NA = torch.rand(count, ARROWS, generator=source).argsort(1)
    here_N1 = from_N1 = torch.randint(ARROWS, (count, 1), generator=source)
    for step in range(max(HOPS)):
        here_N1 = torch.where(hops_N[:, None] > step, ends_NA.gather(1, here_N1), here_N1)
    ids_NL = torch.cat([ends_NA.gather(1, order_NA), ARROWS + hops_N[:, None] - 1], 1)
    return Asked(ids_NL, torch.cat([order_NA, from_N1], 1), here_N1[:, 0])


def places(mask: str, starts_NL: Tensor) -> Places:
    """Causal, or the whole prompt as the prefix."""
    at = Places.causal(*starts_NL.shape)
    at = at.prefix([LENGTH] * len(starts_NL)) if mask == "prefix" else at
    return replace(at, segment=starts_NL)


def built(layers: int, mask: str, seed: int) -> Transformer:
    told = {
        "layers": layers,
        "dim": DIM,
        "context": LENGTH,
        "mask": mask,
        "attention": {"kind": "mha", "heads": HEADS},
        "feedforward": "gelu",
        "tied": False,
        "embedding": {"segments": ARROWS},
    }
    return parse(Architecture, told).build(VOCABULARY, seed)


def run(settings: Mapping[str, Any], seed: int) -> Figures:
    """One model, trained on the answers, and its accuracy on rows that it has not seen."""
    mask = settings["mask"]
    model = built(settings["layers"], mask, seed)
    source = generator(seed, "handbook", "instruction")

    def said(asked: Asked) -> Tensor:
        return model.logits(model.hidden(asked.ids_NL, places(mask, asked.starts_NL))[:, -1])

    def loss(step: int) -> Tensor:
        asked = rows(1 + torch.randint(len(HOPS), (settings["rows"],), generator=source), source)
        return F.cross_entropy(said(asked), asked.answers_N)

    fit(model, loss, settings["steps"], settings["rate"], settings["adamw_rate"])
    found: Figures = {}
    with torch.no_grad():
        for hops, measure in zip(HOPS, MEASURES, strict=True):
            asked = rows(torch.full((TESTED,), hops), generator(seed, "handbook", "instruction", "test", hops))
            found[measure] = float((said(asked).argmax(-1) == asked.answers_N).float().mean())
    return found
