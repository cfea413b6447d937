"""A tiny life for the loop: a two-layer model, rows of a toy language, batches that log which rows they gave."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llmlab.data.batch import IGNORE, Batch
from llmlab.data.order import ShuffledOrder
from llmlab.data.state import State
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture
from llmlab.objectives.language import NextToken
from llmlab.stages import Figures, Session
from llmlab.training.loop import Training, train

V, ROWS, LENGTH = 13, 7, 8


class Rows:
    """Shuffled rows of 7, `size` a step cut at `cuts`, with random masks; `log` holds the rows that were given."""

    def __init__(self, cuts: tuple[int, ...] = (2, 1), seed: int = 0, empty: bool = False) -> None:
        noise = torch.Generator().manual_seed(7)
        self.ids = torch.randint(V, (ROWS, LENGTH), generator=noise)
        self.targets = (self.ids * 3 + 1) % V
        lengths = torch.tensor([0, 1, 3, 8, 5, 2, 7])  # an all-masked row among them
        self.targets[torch.arange(LENGTH) >= lengths[:, None]] = IGNORE
        if empty:
            self.targets[:] = IGNORE
        self.order, self.cuts = ShuffledOrder(ROWS, seed, "rows"), cuts
        self.log: list[list[int]] = []

    def next(self, model: Any) -> list[Batch]:
        rows = self.order.take(sum(self.cuts))
        self.log.append(rows)
        return [self._batch(part) for part in torch.tensor(rows).split(list(self.cuts))]

    def _batch(self, rows: Tensor) -> Batch:
        return Batch(self.ids[rows], self.targets[rows], Places.causal(len(rows), LENGTH))

    def state(self) -> State:
        return self.order.state()

    def load(self, state: State) -> None:
        self.order.load(state)


class Lab:
    """What the tests of this folder build from."""

    Rows = Rows

    @staticmethod
    def model(dropout: float = 0.0, seed: int = 1, **fields: Any) -> nn.Module:
        return Architecture(layers=2, dim=16, context=LENGTH, dropout=dropout, initial_std=0.2, **fields).build(V, seed)

    @staticmethod
    def settings(**fields: Any) -> Training:
        given = {"steps": 9, "log_every": 1, "evaluate_every": 4, "checkpoint_every": 2, "optimizer": "adamw"} | fields
        return Training.model_validate(given)

    @classmethod
    def train(cls, out: Path, rows: Rows | None = None, *, model: nn.Module | None = None, **options: Any) -> Figures:
        """Train a fresh model unless given one; options are those of `train`, the rest settings."""
        loop = {name: options.pop(name) for name in ("probe", "best") if name in options}
        objective, session = options.pop("objective", NextToken()), options.pop("session", Session())
        fresh = cls.model(options.pop("dropout", 0.0))
        net = fresh if model is None else model
        return train(net, objective, rows or Rows(), cls.settings(**options), out, session, **loop)

    @staticmethod
    def weights(out: Path) -> dict[str, Tensor]:
        """Everything in the newest checkpoint, by file and name."""
        newest = max((out / "checkpoints").glob("step-*"))
        return {
            f"{file.stem}/{name}": tensor
            for file in sorted(newest.glob("*.safetensors"))
            for name, tensor in load_file(file).items()
        }


@pytest.fixture
def lab() -> type[Lab]:
    return Lab


@pytest.fixture
def equal() -> Callable[[dict[str, Tensor], dict[str, Tensor]], bool]:
    """Bitwise equality of named tensors."""

    def check(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    return check
