"""One stage's figures: a progress bar with rate and time left for whoever watches, and a row to every writer."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from llmlab.meters.writers import writers


class Meter:
    """One stage's figures. `rewind(step)` drops rows after `step`, so a resumed run has each step once."""

    def __init__(self, folder: Path, name: str, total: int, quiet: bool = False, track: Sequence[str] = ()) -> None:
        self._writers = writers(folder, track)
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
        """Keep the rows up to `step`."""
        for writer in self._writers:
            writer.rewind(step)
        self._progress.update(self._task, completed=step)

    def step(self, step: int, figures: Mapping[str, float | int]) -> None:
        """Note `step` (counted from 1) and, where there are any, its figures."""
        self._progress.update(self._task, completed=step)
        if not figures:
            return
        for writer in self._writers:
            writer.write(step, figures)
        self._progress.update(self._task, note=_note(figures))

    def close(self) -> None:
        self._progress.stop()
        for writer in self._writers:
            writer.close()


class Unheard:
    """The meter of a rank that leaves the telling to another."""

    def rewind(self, step: int) -> None: ...

    def step(self, step: int, figures: Mapping[str, float | int]) -> None: ...

    def close(self) -> None: ...


def _note(figures: Mapping[str, float | int]) -> str:
    shown = [name for name in ("loss", "held_out_bits_per_byte", "gold_reward", "tokens_per_second") if name in figures]
    return "  ".join(f"{name.replace('_', ' ')} {figures[name]:.4g}" for name in shown)
