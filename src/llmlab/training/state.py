"""Checkpoints of an unfinished training: whole or not there, the newest that can be read wins.

checkpoints/step-000100/weights.safetensors     trained parameters, by name
                        optimizer.safetensors   moments and counters, by parameter name
                        batches.safetensors     what the batches hold: buffers, rollouts, generators
                        state.json              the step, and everything small
best/step-000080/weights.safetensors            the best weights that a kept checkpoint speaks of

Where ranks hold parts of them, weights and optimizer lie in pieces (`parallel/shards.py`); any number of ranks reads
what any other wrote.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from llmlab.data.state import State
from llmlab.errors import InputError
from llmlab.runtime import atomic_folder, atomic_json, atomic_safetensors, disk_full, remove_leftovers
from llmlab.training.parallel.ranks import Alone, Ranks
from llmlab.training.parallel.shards import read_tensors, write_tensors
from llmlab.world import World

BROKEN = (FileNotFoundError, ValueError, KeyError, SafetensorError)  # how a file that is not whole shows


@dataclass(frozen=True)
class Saved:
    """One checkpoint as it was read. `values` is the loop's own, JSON; `batches` what `Batches.load` takes."""

    step: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    batches: State
    values: dict[str, Any]


class Checkpoints:
    """The checkpoints below `out`, of which the newest `keep` stay. One that is no multiple of `every` was written to
    stop, and goes with the next: a run that was stopped leaves the files that an unbroken one does.

    All ranks call every method together; what one raises, all raise."""

    def __init__(self, out: Path, keep: int, every: int = 1, ranks: Ranks | None = None) -> None:
        self.folder, self.best, self._keep, self._every = out / "checkpoints", out / "best", keep, every
        self._ranks = ranks or Alone(nn.Module())
        self._world = self._ranks.world
        for folder in (self.folder, self.best):
            self._world.told(partial(remove_leftovers, folder))

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return self._world.told(partial(steps_in, self.folder))

    def save(self, saved: Saved) -> None:
        """Written beside, synced, renamed; only then do older ones go."""
        with _folder_of_all(self._world, self._path(saved.step)) as work:
            write_tensors(work, "weights", saved.weights, self._ranks)
            write_tensors(work, "optimizer", saved.optimizer, self._ranks)
            self._world.told(partial(_write_rest, work, saved))
        self._world.told(self._drop)

    def newest(self) -> Saved | None:
        """The newest checkpoint that can be read; what cannot be read is removed. None where there is none."""
        for step in reversed(self.steps()):
            saved = _read(self._path(step))
            if not self._world.any(saved is None):
                return saved
            self._world.told(partial(shutil.rmtree, self._path(step)))
        return None

    def last_of_its_own(self) -> Saved | None:
        """The newest that was not written to stop, so the same one whether a training was stopped or not."""
        for step in reversed([step for step in self.steps() if step % self._every == 0]):
            saved = _read(self._path(step))
            if not self._world.any(saved is None):
                return saved
        return None

    def forget_after(self, step: int) -> None:
        """Remove what is of later steps: these come again, and otherwise."""
        self._world.told(partial(self._forget_after, step))

    def _forget_after(self, step: int) -> None:
        for folder in (self.folder, self.best):
            for path in folder.glob("step-*"):
                if int(path.name.removeprefix("step-")) > step:
                    shutil.rmtree(path)

    def save_best(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Under a name of its own: the best of the last checkpoint stays until a checkpoint speaks of this one."""
        path = self._path(step, self.best)
        # It may be there, from an attempt that was cut after it.
        self._world.told(partial(shutil.rmtree, path, ignore_errors=True))
        with _folder_of_all(self._world, path) as work:
            write_tensors(work, "weights", weights, self._ranks)

    def load_best(self, step: int) -> Mapping[str, Tensor]:
        return read_tensors(self._path(step, self.best), "weights")

    def _drop(self) -> None:
        """Checkpoints that are not to stay, and best weights that none of the others speaks of."""
        *earlier, last = steps_in(self.folder)
        stay = [*(step for step in earlier if step % self._every == 0), last][-self._keep :]
        for step in {*earlier} - {*stay}:
            shutil.rmtree(self._path(step))
        self._drop_outdone()

    def _drop_outdone(self) -> None:
        """Best weights older than what the oldest kept checkpoint calls its best."""
        state = json.loads((self._path(steps_in(self.folder)[0]) / "state.json").read_text(encoding="utf-8"))
        best = state["values"].get("best")
        for path in self.best.glob("step-*"):
            if best is not None and path.name < self._path(best["step"]).name:
                shutil.rmtree(path)

    def _path(self, step: int, folder: Path | None = None) -> Path:
        return (folder or self.folder) / f"step-{step:06d}"


def steps_in(folder: Path) -> list[int]:
    """Steps that have a checkpoint in this folder, oldest first."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


@contextmanager
def _folder_of_all(world: World, path: Path) -> Iterator[Path]:
    """An atomic folder that all ranks write in: the first makes and renames it. What is raised inside is raised on all
    ranks, and then nothing at `path` has changed."""
    with ExitStack() as stack:
        yield world.told(lambda: stack.enter_context(atomic_folder(path)))
        world.told(stack.close)


def _write_rest(work: Path, saved: Saved) -> None:
    atomic_safetensors(work / "batches.safetensors", saved.batches.tensors)
    atomic_json(work / "state.json", {"step": saved.step, "values": saved.values, "batches": saved.batches.values})


def _read(path: Path) -> Saved | None:
    """A checkpoint; None where it cannot be read."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return Saved(
            step=state["step"],
            weights=read_tensors(path, "weights"),
            optimizer=read_tensors(path, "optimizer"),
            batches=State(_copies(load_file(path / "batches.safetensors")), state["batches"]),
            values=state["values"],
        )
    except BROKEN:
        return None


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In torch's own memory: a mapped file's alignment is arbitrary, and the last bit of a product may depend on it."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


@contextmanager
def clear_when_full(out: Path) -> Iterator[None]:
    """A full disk is one clear line. What was saved before is untouched: writes go beside and are renamed."""
    try:
        yield
    except OSError as error:
        if not disk_full(error):
            raise
        steps = steps_in(out / "checkpoints")
        kept = f"the checkpoint of step {steps[-1]} is whole" if steps else "there was no checkpoint yet"
        raise InputError(
            str(out), "no space left on the disk", f"{kept}; free some space and go on with --resume"
        ) from None
