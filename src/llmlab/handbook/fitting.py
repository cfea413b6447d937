"""How the small models of trials learn: Muon for matrices and AdamW for the rest, a short rise of the rate and a
straight way down, the rows drawn as they are needed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from llmlab.training.muon import Muon

WARM = 0.05  # share of the steps in which the rates rise


def fit(model: nn.Module, loss: Callable[[int], Tensor], steps: int, rate: float, adamw_rate: float) -> None:
    """Train in place: `loss(step)` draws rows and answers a mean. The rates fall to zero at the end."""
    optimizer = Muon(lr=rate, adamw_lr=adamw_rate, weight_decay=0.01).build(model)
    rising = max(1, round(WARM * steps))
    model.train()
    for step in range(steps):
        optimizer.set_scale(min((step + 1) / rising, (steps - step) / max(1, steps - rising)))
        optimizer.zero_grad()
        loss(step).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
