"""Where a stage's rows of figures go: one interface, `figures.jsonl` always, TensorBoard and wandb where asked for.

A training that is resumed, or that a guard sends back, makes steps again. `rewind` says so, and no writer has a step
twice. What is outside the package is asked politely: it is imported only when it was chosen, wandb writes to the disk
(WANDB_MODE=online sends), and a writer that fails is dropped with a line to a person and harms no training.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import secrets
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from llmlab.errors import InputError

Row = Mapping[str, float | int]
Tracker = Literal["tensorboard", "wandb"]


class Writer(ABC):
    """Keeps the rows of one stage. Steps only grow, but for what `rewind` takes back."""

    @abstractmethod
    def rewind(self, step: int) -> None:
        """What comes next is of steps after `step`; rows of later steps that are there do not count. Called once
        before the first row (-1: nothing counts), and again where a training goes back."""

    @abstractmethod
    def write(self, step: int, figures: Row) -> None:
        """One row, not empty."""

    @abstractmethod
    def close(self) -> None:
        """Everything is on its way to the disk."""


class Jsonl(Writer):
    """`figures.jsonl`: a JSON object a row, with its `step`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "figures.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")

    def rewind(self, step: int) -> None:
        """A half-written last line goes too. Rows stand in the order of their steps, so the file is cut and nothing is
        written: a kill or a full disk costs no row that stays."""
        kept = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                row = json.loads(line)
            except ValueError:
                break
            if row["step"] > step or not line.endswith(b"\n"):
                break
            kept += len(line)
        os.truncate(self.path, kept)

    def write(self, step: int, figures: Row) -> None:
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard(Writer):
    """Event files in `tensorboard/`; a new one after each rewind, whose first event tells TensorBoard to purge what it
    has of later steps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._board: Any = None

    def rewind(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        purge = step + 1 if self._folder.is_dir() else None
        self._board = SummaryWriter(str(self._folder), purge_step=purge)

    def write(self, step: int, figures: Row) -> None:
        if self._board is None:
            self.rewind(step - 1)
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None


class Wandb(Writer):
    """A wandb run a stage, all stages of a run in one group. Its id and the last step that it was given are kept in
    `wandb.json`, so that a resumed stage goes on in the same run. wandb takes nothing back: steps that it has are not
    sent again. They are the same figures, but for times, and but for steps that a guard went back over."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._kept = folder, folder / "wandb.json"
        self._run: Any = None
        self._id, self._last = secrets.token_hex(8), -1

    def rewind(self, step: int) -> None:
        if self._run is not None:
            return
        if self._kept.is_file():
            kept = json.loads(self._kept.read_text(encoding="utf-8"))
            self._id, self._last = kept["id"], kept["step"]
        self._run = importlib.import_module("wandb").init(
            project="llmlab",
            group=self._folder.resolve().parent.name,
            name=f"{self._folder.resolve().parent.name}/{self._folder.name}",
            id=self._id,
            resume="allow",
            dir=str(self._folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
        )

    def write(self, step: int, figures: Row) -> None:
        if self._run is None:
            self.rewind(step - 1)
        if step <= self._last:
            return
        self._run.log(dict(figures), step=step)
        self._last = step
        work = self._kept.with_suffix(".new")
        work.write_text(json.dumps({"id": self._id, "step": step}), encoding="utf-8")
        work.replace(self._kept)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None


class Outside(Writer):
    """A writer that may fail: at its first failure it is left alone, and one line says so."""

    def __init__(self, name: str, inside: Writer) -> None:
        self._name, self._inside = name, inside
        self._failed = False

    def rewind(self, step: int) -> None:
        self._try("rewind", step)

    def write(self, step: int, figures: Row) -> None:
        self._try("write", step, figures)

    def close(self) -> None:
        self._try("close")

    def _try(self, what: str, *given: Any) -> None:
        if self._failed:
            return
        try:
            getattr(self._inside, what)(*given)
        except Exception as error:
            self._failed = True
            told = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"{self._name} keeps no figures from here on ({told}); figures.jsonl has them all", file=sys.stderr)


TRACKERS: Mapping[str, Callable[[Path], Writer]] = {"tensorboard": TensorBoard, "wandb": Wandb}
EXTRAS = {"tensorboard": "tracking", "wandb": "wandb"}


def require(names: Sequence[str]) -> None:
    """InputError, naming the extra, where a writer's package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError("track", f"{name} is not installed", f"pip install 'llmlab[{EXTRAS[name]}]'")


def writers(folder: Path, names: Sequence[str]) -> list[Writer]:
    """Those of a stage's folder: figures.jsonl, then what was chosen."""
    return [Jsonl(folder), *(Outside(name, TRACKERS[name](folder)) for name in names)]
