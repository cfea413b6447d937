"""Associative recall: pairs of a key and a value are told, then filler, then keys are asked for their values again
(Arora et al. 2023, Zoology, arXiv 2312.04927). Keys and values are drawn anew for each row, so nothing can be known
beforehand: what was told has to be kept, in keys and values that grow with the text or in a state that does not.

Unlike there a pair is one token, its value added to its key as the segment of a text is: what is asked for is keeping,
not finding out what belongs together, which takes attention a layer and small models most of their training.

N rows, L tokens, P pairs, Q questions.
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

KEYS, VALUES = 64, 16
FILLERS = 8
VOCABULARY = KEYS + FILLERS
QUESTIONS = 8  # a row, or as many as it has pairs
PAIRS, DISTANCES = (2, 4, 8, 16, 32, 64), (16, 64, 256)
NEAR, FEW = DISTANCES[0], 4  # pairs are varied at this distance, distances with so many pairs
GRID = tuple(dict.fromkeys([*((pairs, NEAR) for pairs in PAIRS), *((FEW, far) for far in DISTANCES)]))
MEASURES = tuple(f"accuracy, {pairs} pairs, distance {distance}" for pairs, distance in GRID)
EASY = 3  # cells that come first: short rows of few pairs, with which looking up is learnt sooner
DIM, LAYERS, HEADS = 64, 2, 2
TESTED = 64  # rows of each cell of the grid


class Asked(NamedTuple):
    """int64 ids and values [N, L] with L = P + distance + Q, value 0 where none is told; the answers [N, Q], which are
    read at the last Q tokens, each a key without its value."""

    ids_NL: Tensor
    values_NL: Tensor
    answers_NQ: Tensor


def rows(count: int, pairs: int, distance: int, source: torch.Generator) -> Asked:
    keys_NP = torch.rand(count, KEYS, generator=source).argsort(1)[:, :pairs]
    values_NP = torch.randint(VALUES, (count, pairs), generator=source)
    filler = KEYS + torch.randint(FILLERS, (count, distance), generator=source)
    asked_NQ = torch.rand(count, pairs, generator=source).argsort(1)[:, :QUESTIONS]
    ids_NL = torch.cat([keys_NP, filler, keys_NP.gather(1, asked_NQ)], 1)
    values_NL = torch.zeros_like(ids_NL)
    values_NL[:, :pairs] = 1 + values_NP
    return Asked(ids_NL, values_NL, values_NP.gather(1, asked_NQ))


def answered(model: Transformer, row: Asked) -> Tensor:
    """Logits [N, Q, V] where the questions stand; the first VALUES of them are the values'."""
    at = replace(Places.causal(*row.ids_NL.shape), segment=row.values_NL)
    return model.logits(model.hidden(row.ids_NL, at)[:, -row.answers_NQ.shape[1] :])


def built(mixer: Mapping[str, Any], seed: int) -> Transformer:
    """Two blocks. The feed-forward of a recurrent net is narrower by what its gates hold more than attention's four
    matrices, so that both have as many parameters: 12 D^2 a block."""
    recurrent = mixer["kind"] == "lstm"
    told = {
        "layers": LAYERS,
        "dim": DIM,
        "context": 1024,
        "position": "none" if recurrent else "rope",
        "attention": mixer,
        "embedding": {"segments": VALUES + 1},
        "tied": False,
        "feedforward": {"kind": "gelu", "width": DIM * 3 // 2 if recurrent else 4 * DIM},
    }
    return parse(Architecture, told).build(VOCABULARY, seed)


def run(settings: Mapping[str, Any], seed: int) -> Figures:
    """One model, trained on every cell of the grid in turn, and its accuracy in each."""
    model = built(settings["mixer"], seed)
    source = generator(seed, "handbook", "stored pairs")

    def loss(step: int) -> Tensor:
        cells = GRID[:EASY] if step < settings["easy"] else GRID
        row = rows(settings["rows"], *cells[step % len(cells)], source)
        return F.cross_entropy(answered(model, row).flatten(0, 1), row.answers_NQ.flatten())

    fit(model, loss, settings["steps"], settings["rate"], settings["adamw_rate"])
    found = {"parameters": float(sum(parameter.numel() for parameter in model.parameters()))}
    with torch.no_grad():
        for name, (pairs, distance) in zip(MEASURES, GRID, strict=True):
            asked = rows(TESTED, pairs, distance, generator(seed, "handbook", "stored pairs", "test", pairs, distance))
            said_NQ = answered(model, asked).argmax(-1)
            found[name] = float((said_NQ == asked.answers_NQ).float().mean())
    return found
