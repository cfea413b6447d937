"""A task that only order solves: does the mark A stand first and B last, or the other way round?

Between them stand the same fillers either way, so the two answers have the same bag of tokens: who sees only the bag
is right half of the time. A question token at the end is where the answer is read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.model.attention import MixerPart, MultiHead
from llmlab.model.encoding import PositionPart
from llmlab.model.masks import Bidirectional, Causal
from llmlab.model.norms import RMSNorm
from llmlab.model.transformer import Architecture
from llmlab.runtime import generator

FILLERS = 12
A, B, ASK = FILLERS, FILLERS + 1, FILLERS + 2
VOCABULARY = FILLERS + 3
LENGTH = 12  # of a row before its question
DIM, HEADS, LAYERS = 32, 2, 2
ROWS, STEPS, RATE = 32, 80, 5e-3
TESTED = 256  # rows, half of them the other half with A and B exchanged
SETTINGS = {"order_task": [FILLERS, LENGTH, DIM, HEADS, LAYERS, ROWS, STEPS, RATE, TESTED]}


def accuracy(name: str, seed: int, position: PositionPart, both_ways: bool, mixer: MixerPart | None = None) -> float:
    """Of a small model of ours trained on the task, on rows that it has not seen. `mixer` takes attention's place."""
    architecture = Architecture(
        layers=LAYERS,
        dim=DIM,
        context=LENGTH + 1,
        mask=Bidirectional() if both_ways else Causal(),
        position=position,
        norm=RMSNorm(),
        attention=mixer or MultiHead(heads=HEADS),
    )
    return trained(architecture.build(VOCABULARY, seed), name, seed)


def trained(model: nn.Module, name: str, seed: int) -> float:
    """The accuracy of a model [B, T] -> [B, T, V] after training: of A and B, the logit read last must be higher for
    the mark that came first."""
    model = model.double()  # so that no rounding, which differs by machine, grows into the figures
    source = generator(seed, "handbook", "order task", name)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.0)
    for _ in range(STEPS):
        ids, answer = _pairs(ROWS, source)
        loss = F.cross_entropy(model(ids)[:, -1, [A, B]], answer)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        ids, answer = _pairs(TESTED, generator(seed, "handbook", "order task", "test"))
        said = model(ids)[:, -1, [A, B]].argmax(-1)
    return float((said == answer).float().mean())


def _pairs(rows: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """ids [rows, LENGTH + 1] and which mark is first, [rows]: the second half of the rows is the first, exchanged."""
    middle = torch.randint(FILLERS, (rows // 2, LENGTH - 2), generator=source)
    first, last, ask = (torch.full((rows // 2, 1), mark) for mark in (A, B, ASK))
    ids = torch.cat([torch.cat([first, middle, last, ask], 1), torch.cat([last, middle, first, ask], 1)])
    return ids, torch.arange(rows) // (rows // 2)
