"""Checkpoints of an unfinished training: whole or not there, the newest that can be read wins.

checkpoints/step-000100/weights.safetensors     trained parameters, by name
                        optimizer.safetensors   moments and counters, by parameter name
                        batches.safetensors     what the batches hold: buffers, rollouts, generators
                        state.json              the step, and everything small
best/step-000080/weights.safetensors            the best weights that a kept checkpoint speaks of
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from llmlab.data.state import State
from llmlab.errors import InputError
from llmlab.runtime import atomic_folder, atomic_json, atomic_safetensors, disk_full, remove_leftovers

BROKEN = (FileNotFoundError, ValueError, KeyError, SafetensorError)  # how a file that is not whole shows


@dataclass(frozen=True)
class Saved:
    """One checkpoint as it was read. `values` is the loop's own, JSON; `batches` what `Batches.load` takes."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    batches: State
    values: dict[str, Any]


class Checkpoints:
    """The checkpoints below `out`, of which the newest `keep` stay. One that is no multiple of `every` was written to
    stop, and goes with the next: a run that was stopped leaves the files that an unbroken one does."""

    def __init__(self, out: Path, keep: int, every: int = 1) -> None:
        self.folder, self.best, self._keep, self._every = out / "checkpoints", out / "best", keep, every
        for folder in (self.folder, self.best):
            remove_leftovers(folder)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def save(self, saved: Saved) -> None:
        """Written beside, synced, renamed; only then do older ones go."""
        with atomic_folder(self._path(saved.step)) as work:
            atomic_safetensors(work / "weights.safetensors", saved.weights)
            atomic_safetensors(work / "optimizer.safetensors", saved.optimizer)
            atomic_safetensors(work / "batches.safetensors", saved.batches.tensors)
            atomic_json(
                work / "state.json", {"step": saved.step, "values": saved.values, "batches": saved.batches.values}
            )
        *earlier, last = self.steps()
        stay = [*(step for step in earlier if step % self._every == 0), last][-self._keep :]
        for step in {*earlier} - {*stay}:
            shutil.rmtree(self._path(step))
        self._drop_outdone()

    def newest(self) -> Saved | None:
        """The newest checkpoint that can be read; what cannot be read is removed. None where there is none."""
        for step in reversed(self.steps()):
            try:
                return self._read(self._path(step))
            except BROKEN:
                shutil.rmtree(self._path(step))
        return None

    def last_of_its_own(self) -> Saved | None:
        """The newest that was not written to stop, so the same one whether a training was stopped or not."""
        for step in reversed([step for step in self.steps() if step % self._every == 0]):
            with contextlib.suppress(*BROKEN):
                return self._read(self._path(step))
        return None

    def forget_after(self, step: int) -> None:
        """Remove what is of later steps: these come again, and otherwise."""
        for folder in (self.folder, self.best):
            for path in folder.glob("step-*"):
                if int(path.name.removeprefix("step-")) > step:
                    shutil.rmtree(path)

    def save_best(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Under a name of its own: the best of the last checkpoint stays until a checkpoint speaks of this one."""
        path = self._path(step, self.best)
        if path.exists():  # from an attempt that was cut after it
            shutil.rmtree(path)
        with atomic_folder(path) as work:
            atomic_safetensors(work / "weights.safetensors", weights)

    def load_best(self, step: int) -> dict[str, Tensor]:
        return load_file(self._path(step, self.best) / "weights.safetensors")

    def _drop_outdone(self) -> None:
        """Best weights older than what the oldest kept checkpoint calls its best."""
        state = json.loads((self._path(self.steps()[0]) / "state.json").read_text(encoding="utf-8"))
        best = state["values"].get("best")
        for path in self.best.glob("step-*"):
            if best is not None and path.name < self._path(best["step"]).name:
                shutil.rmtree(path)

    def _path(self, step: int, folder: Path | None = None) -> Path:
        return (folder or self.folder) / f"step-{step:06d}"

    def _read(self, path: Path) -> Saved:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return Saved(
            step=state["step"],
            weights=load_file(path / "weights.safetensors"),
            optimizer=load_file(path / "optimizer.safetensors"),
            batches=State(_copies(load_file(path / "batches.safetensors")), state["batches"]),
            values=state["values"],
        )


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In torch's own memory: a mapped file's alignment is arbitrary, and the last bit of a product may depend on it."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


@contextlib.contextmanager
def clear_when_full(out: Path) -> Iterator[None]:
    """A full disk is one clear line. What was saved before is untouched: writes go beside and are renamed."""
    try:
        yield
    except OSError as error:
        if not disk_full(error):
            raise
        steps = Checkpoints(out, keep=1).steps()
        kept = f"the checkpoint of step {steps[-1]} is whole" if steps else "there was no checkpoint yet"
        raise InputError(
            str(out), "no space left on the disk", f"{kept}; free some space and go on with --resume"
        ) from None
