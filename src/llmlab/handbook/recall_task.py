"""A task that only places solve: at every token, say which token stood a few back. The tokens are random, so nothing
but their places tells.

N rows, L tokens.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.model.attention import MultiHead
from llmlab.model.encoding import PositionPart
from llmlab.model.norms import RMSNorm
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.runtime import generator

VOCABULARY, BACK = 16, 3
CHANCE = math.log(VOCABULARY)  # nats
DIM, HEADS, LAYERS = 32, 2, 1
LENGTH = 48  # of a training row, at positions 0 to LENGTH - 1
ROWS, STEPS, RATE = 8, 200, 1e-2
SETTINGS = {"recall_task": [VOCABULARY, BACK, DIM, HEADS, LAYERS, LENGTH, ROWS, STEPS, RATE]}


def trained(position: PositionPart, seed: int, context: int = LENGTH) -> Transformer:
    """A causal model of ours that has learnt the task. `context` is how far a learnt table goes."""
    model = (
        Architecture(
            layers=LAYERS,
            dim=DIM,
            context=context,
            position=position,
            norm=RMSNorm(),
            attention=MultiHead(heads=HEADS),
        )
        .build(VOCABULARY, seed)
        .double()
    )  # so that no rounding, which differs by machine, grows into the figures
    source = generator(seed, "handbook", "recall task")
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    for _ in range(STEPS):
        ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=source)
        loss = F.cross_entropy(model(ids)[:, BACK:].flatten(0, 1), ids[:, :-BACK].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.eval()


def rows(count: int, length: int, seed: int) -> Tensor:
    """int64 [N, L] that no model was trained on."""
    return torch.randint(VOCABULARY, (count, length), generator=generator(seed, "handbook", "recall task", "test"))


@torch.no_grad()
def nats(model: Transformer, ids_NL: Tensor, start: int = 0) -> Tensor:
    """float64 [N, L - BACK]: the loss of every token that has one so far back, rows standing at `start` and up."""
    logits = model(ids_NL, Places.causal(len(ids_NL), ids_NL.shape[1], start=start))[:, BACK:]
    return F.cross_entropy(logits.double().transpose(1, 2), ids_NL[:, :-BACK], reduction="none")
