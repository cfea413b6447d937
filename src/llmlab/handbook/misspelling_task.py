"""A small labelled task, learnt from a few labels by a model that has read and by one that has not: is this passage as
it was printed, or were neighbouring letters exchanged in it?

N rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.handbook.fitting import fit
from llmlab.handbook.little_model import DIM, LENGTH, VOCABULARY, architecture, book, passages, pretrained
from llmlab.handbook.question import Figures
from llmlab.model.transformer import Transformer
from llmlab.runtime import generator

LABELS = (50, 200, 1000)
EXCHANGED = 20  # pairs of letters of a spoilt passage
TESTED = 512  # passages of the part of the book that nothing is trained on
MEASURES = tuple(f"accuracy, {labels} labels" for labels in LABELS)


def examples(text: Tensor, count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """int64 passages [N, T], and whether each is spoilt [N]: every second one is."""
    row_NT = passages(text, count, LENGTH, source)
    letter_NT = ((row_NT | 32) >= ord("a")) & ((row_NT | 32) <= ord("z"))
    differs_NT = row_NT[:, :-1] != row_NT[:, 1:]
    chance_NT = torch.rand(count, LENGTH - 1, generator=source) * (letter_NT[:, :-1] & letter_NT[:, 1:] & differs_NT)
    spoilt_N = torch.arange(count) % 2
    for row in spoilt_N.nonzero()[:, 0].tolist():
        for place in chance_NT[row].topk(EXCHANGED).indices.tolist():
            row_NT[row, [place, place + 1]] = row_NT[row, [place + 1, place]]
    return row_NT, spoilt_N


class Judge(nn.Module):
    """Two classes read off the mean of the last hidden states."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model
        self.classes = nn.Linear(DIM, 2)
        nn.init.zeros_(self.classes.weight)
        nn.init.zeros_(self.classes.bias)

    def forward(self, row_NT: Tensor) -> Tensor:
        hidden_NTD = self.model.hidden(row_NT, self.model.architecture.mask.places(row_NT))
        classes: Tensor = self.classes(hidden_NTD.mean(1))
        return classes


def run(settings: Mapping[str, Any], seed: int) -> Figures:
    """Accuracy after fine-tuning all weights on so many labels, the model pretrained or not."""
    text, held = book()
    start = pretrained(settings, seed) if settings["pretrained"] else architecture().build(VOCABULARY, seed)
    row_NT, spoilt_N = examples(text, max(LABELS), generator(seed, "handbook", "labels"))
    test_NT, test_N = examples(held, TESTED, generator(seed, "handbook", "labels", "test"))
    found: Figures = {}
    for labels, measure in zip(LABELS, MEASURES, strict=True):
        judge = Judge(architecture().build(VOCABULARY, seed))
        judge.model.load_state_dict(start.state_dict())
        source = generator(seed, "handbook", "labels", "order", labels)

        def loss(step: int, judge: Judge = judge, source: torch.Generator = source, labels: int = labels) -> Tensor:
            chosen = torch.randint(labels, (settings["tune_rows"],), generator=source)
            return F.cross_entropy(judge(row_NT[chosen]), spoilt_N[chosen])

        fit(judge, loss, settings["tune_steps"], settings["tune_rate"], settings["tune_adamw_rate"])
        with torch.no_grad():
            found[measure] = float((judge(test_NT).argmax(-1) == test_N).float().mean())
    return found
