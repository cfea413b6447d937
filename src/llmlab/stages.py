"""Stages pass artefacts through folders: skipped when nothing changed, redone when a section did, resumed when cut.

A stage's key is the hash of the sections it reads, the keys of its parents and the content of the user's files.
`started.json` names the key an attempt works under, `manifest.json` is written last and makes the stage finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llmlab.errors import InputError, Stopped
from llmlab.meters.meter import Meter, Unheard
from llmlab.recipe import Section
from llmlab.region import give_back
from llmlab.runtime import PeakMemory, StopFlag, atomic_json, file_hash, remove_leftovers, versions
from llmlab.world import World

Figures = dict[str, Any]

# Raised whenever a stage would write something else from the same sections; it voids finished stages of older runs.
LAYOUT = 1
STARTED = "started.json"


@dataclass(frozen=True)
class Session:
    """What every stage is handed beside its section: where it computes, from which seed, who may stop it."""

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype | None = None  # of autocast; None is plain float32
    stop: StopFlag = field(default_factory=StopFlag)
    quiet: bool = True
    fuse: bool = True  # whether training may take fused kernels
    track: tuple[str, ...] = ()  # who is given the figures, beside figures.jsonl
    until: int | None = None  # the optimizer step after which a training pauses
    world: World = field(default_factory=World)
    parallel: Section | None = None  # the recipe's; what it means is training's to say

    @property
    def kernels(self) -> bool:
        """Whether it does: they compute in bfloat16, on the CPU, with whole weights."""
        return self.apart and self.fuse and self.dtype == torch.bfloat16 and self.device.type == "cpu"

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in `dtype`, everything else in float32."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def meter(self, folder: Path, name: str, total: int) -> Meter | Unheard:
        """Of the first rank; the others' takes everything and says nothing."""
        return Meter(folder, name, total, self.quiet, self.track) if self.world.first else Unheard()

    @property
    def apart(self) -> bool:
        """Whether each rank can go through the model on its own."""
        return self.world.alone or getattr(self.parallel, "kind", "ddp") in ("ddp", "zero1")

    def asked_to_stop(self) -> bool:
        """Whether any rank was; all ask at the same place."""
        return self.world.any(self.stop.requested)


@dataclass(frozen=True)
class Stage:
    """One step of the life: `work(out, session)` writes below `out` and returns its figures."""

    name: str
    key: Mapping[str, Any]  # the sections it reads, resolved
    parents: tuple[str, ...]
    files: Sequence[Path]  # the user's own files that it reads
    work: Callable[[Path, Session], Figures]
    draws: bool = True  # whether it depends on the seed, the device and the dtype; runs of all seeds share it otherwise
    trains: bool = False  # whether all ranks take part; else the first works and the others wait


def manifest(folder: Path) -> dict[str, Any] | None:
    """What a finished stage wrote last, None while it is not finished."""
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def run_stages(stages: Sequence[Stage], root: Path, session: Session, say: Callable[[str], None]) -> list[Figures]:
    """Run what is not finished, in order. Each answer: name, seconds, peak_bytes, steps, resumed_from_step, figures.
    All ranks walk through together; the first one reads and writes what tells where they are."""
    session.world.told(partial(_refuse_other_files, stages, root))
    keys: dict[str, str] = {}
    answers = []
    for stage in stages:
        folder = root / stage.name
        files = session.world.told(partial(_hashes, stage))
        key = keys[stage.name] = _key(stage, files, keys, session)
        done = session.world.told(partial(manifest, folder))
        if done is not None and done["key"] == key:
            say(f"{stage.name}: done before")
        elif session.asked_to_stop():
            raise Stopped(f"stopped before {stage.name}; what is finished is kept")
        else:
            done = _run(stage, folder, key, files, session, say)
        answers.append(
            {name: done[name] for name in ("name", "seconds", "peak_bytes", "steps", "resumed_from_step", "figures")}
        )
    return answers


def _key(stage: Stage, files: Sequence[list[str]], keys: Mapping[str, str], session: Session) -> str:
    content = {
        "layout": LAYOUT,
        **({"seed": session.seed, "dtype": str(session.dtype), "device": session.device.type} if stage.draws else {}),
        **({} if session.fuse or not stage.draws else {"kernels": "plain"}),
        "sections": stage.key,
        "parents": {name: keys[name] for name in stage.parents if name in keys},
        "files": files,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hashes(stage: Stage) -> list[list[str]]:
    """Name and hash of each file of the user's that it reads."""
    return [[path.name, _hash(path)] for path in stage.files]


def _hash(path: Path) -> str:
    if not path.is_file():
        raise InputError(str(path), "no such file")
    return file_hash(path)


def _changed(before: Sequence[list[str]] | None, after: Sequence[list[str]]) -> str:
    """What is told of files that differ from those of the older attempt; empty where none does."""
    if before is None or list(before) == list(after):
        return ""
    old, new = {tuple(entry) for entry in before}, {tuple(entry) for entry in after}
    names = sorted({name for name, _ in old ^ new})
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more files' if len(names) > 3 else ''} changed"


def _refuse_other_files(stages: Sequence[Stage], root: Path) -> None:
    """InputError where a training was cut, and a file changed from which it or a stage before it was made: its steps
    would be lost to a slip."""
    behind: dict[str, set[str]] = {}
    for stage in stages:
        behind[stage.name] = {stage.name}.union(*(behind.get(parent, set()) for parent in stage.parents))
    for cut in stages:
        folder = root / cut.name
        if manifest(folder) is not None or not (steps := sorted(folder.glob("checkpoints/step-*"))):
            continue
        for stage in stages:
            attempt = _attempt(root / stage.name) if stage.name in behind[cut.name] else None
            if attempt is not None and (why := _changed(attempt.get("files"), _hashes(stage))):
                made = f"{why} since {cut.name} was stopped after step {int(steps[-1].name[5:])}"
                hint = f"put the old content back; or start anew with another --out, or without {folder}"
                raise InputError(stage.name, made, hint)


def _attempt(folder: Path) -> dict[str, Any] | None:
    """What an attempt began with, None where there was none."""
    started = folder / STARTED
    return json.loads(started.read_text(encoding="utf-8")) if started.is_file() else None


def _run(
    stage: Stage, folder: Path, key: str, files: Sequence[list[str]], session: Session, say: Callable[[str], None]
) -> dict[str, Any]:
    world = session.world
    before = world.told(partial(_begun, stage.name, folder, key, files, say))
    begin = time.monotonic()
    give_back()
    with PeakMemory() as peak:
        try:
            work = partial(stage.work, folder, session)
            figures = work() if stage.trains else world.told(work)
        finally:
            if world.first:
                with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
                    spent = before + time.monotonic() - begin
                    atomic_json(folder / STARTED, {"key": key, "seconds": spent, "files": files})
    done = {
        "name": stage.name,
        "key": key,
        "seconds": round(before + time.monotonic() - begin, 3),
        "peak_bytes": peak.bytes,
        "steps": figures.get("steps", 0),
        "resumed_from_step": figures.get("resumed_from_step", 0),
        "figures": figures,
        "versions": versions(),
    }
    world.told(partial(atomic_json, folder / "manifest.json", done))
    return done


def _begun(name: str, folder: Path, key: str, files: Sequence[list[str]], say: Callable[[str], None]) -> float:
    """The folder of an attempt that works under `key`: a new one, or one that is gone on with; seconds spent in it."""
    attempt = _attempt(folder)
    if attempt is not None and attempt["key"] != key:
        aside = next(p for n in range(1, 10_000) if not (p := folder.with_name(f"{folder.name}.old-{n}")).exists())
        folder.rename(aside)
        why = _changed(attempt.get("files"), files) or "its settings changed"
        say(f"{name}: {why}; the old one is kept as {aside.name}")
        attempt = None
    if attempt is None:
        shutil.rmtree(folder, ignore_errors=True)  # killed before started.json: nothing in it counts
        folder.mkdir(parents=True)
        atomic_json(folder / STARTED, {"key": key, "seconds": 0.0, "files": files})
        attempt = {"seconds": 0.0}
    else:
        say(f"{name}: going on")
    remove_leftovers(folder)
    return float(attempt["seconds"])
