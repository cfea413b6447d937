"""Figures out: a progress bar with rate and time left, `figures.jsonl`, and TensorBoard where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Meter:
    """One stage's figures. `rewind(step)` drops rows after `step`, so a resumed run has each step once."""

    def __init__(self, folder: Path, name: str, total: int, quiet: bool = False) -> None:
        self.path = folder / "figures.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = _tensorboard(folder)
        self._progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TaskProgressColumn(show_speed=True),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(file=sys.stderr),
            disable=quiet,
            transient=False,
        )
        self._task = self._progress.add_task(name, total=total, note="")
        self._progress.start()

    def rewind(self, step: int) -> None:
        """Keep the rows up to `step`; a half-written last line goes too. Rows stand in the order of their steps, so the
        file is cut and nothing is written: a kill or a full disk costs no row that stays."""
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
        self._progress.update(self._task, completed=step)

    def step(self, step: int, figures: Mapping[str, float | int]) -> None:
        """Note `step` (counted from 1) and, where there are any, its figures."""
        self._progress.update(self._task, completed=step)
        if not figures:
            return
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        self._progress.update(self._task, note=_note(figures))
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._progress.stop()
        self._file.close()
        if self._board is not None:
            self._board.close()


class Unheard:
    """The meter of a rank that leaves the telling to another."""

    def rewind(self, step: int) -> None: ...

    def step(self, step: int, figures: Mapping[str, float | int]) -> None: ...

    def close(self) -> None: ...


def _note(figures: Mapping[str, float | int]) -> str:
    shown = [name for name in ("loss", "held_out_bits_per_byte", "gold_reward", "tokens_per_second") if name in figures]
    return "  ".join(f"{name.replace('_', ' ')} {figures[name]:.4g}" for name in shown)


def _tensorboard(folder: Path) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))
