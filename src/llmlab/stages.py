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
from pathlib import Path
from typing import Any

import torch

from llmlab.errors import InputError, Stopped
from llmlab.meters import Meter
from llmlab.runtime import PeakMemory, StopFlag, atomic_json, file_hash, give_back, remove_leftovers, versions

Figures = dict[str, Any]

# Raised whenever a stage would write something else from the same sections; it voids finished stages of older runs.
LAYOUT = 1


@dataclass(frozen=True)
class Session:
    """What every stage is handed beside its section: where it computes, from which seed, who may stop it."""

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype | None = None  # of autocast; None is plain float32
    stop: StopFlag = field(default_factory=StopFlag)
    quiet: bool = True

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in `dtype`, everything else in float32."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def meter(self, folder: Path, name: str, total: int) -> Meter:
        return Meter(folder, name, total, self.quiet)


@dataclass(frozen=True)
class Stage:
    """One step of the life: `work(out, session)` writes below `out` and returns its figures."""

    name: str
    key: Mapping[str, Any]  # the sections it reads, resolved
    parents: tuple[str, ...]
    files: Sequence[Path]  # the user's own files that it reads
    work: Callable[[Path, Session], Figures]
    draws: bool = True  # whether it depends on the seed, the device and the dtype; runs of all seeds share it otherwise


def manifest(folder: Path) -> dict[str, Any] | None:
    """What a finished stage wrote last, None while it is not finished."""
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def run_stages(stages: Sequence[Stage], root: Path, session: Session, say: Callable[[str], None]) -> list[Figures]:
    """Run what is not finished, in order. Each answer: name, seconds, peak_bytes, steps, resumed_from_step, figures."""
    keys: dict[str, str] = {}
    answers = []
    for stage in stages:
        folder = root / stage.name
        key = keys[stage.name] = _key(stage, keys, session)
        done = manifest(folder)
        if done is not None and done["key"] == key:
            say(f"{stage.name}: done before")
        elif session.stop.requested:
            raise Stopped(f"stopped before {stage.name}; what is finished is kept")
        else:
            done = _run(stage, folder, key, session, say)
        answers.append(
            {name: done[name] for name in ("name", "seconds", "peak_bytes", "steps", "resumed_from_step", "figures")}
        )
    return answers


def _key(stage: Stage, keys: Mapping[str, str], session: Session) -> str:
    content = {
        "layout": LAYOUT,
        **({"seed": session.seed, "dtype": str(session.dtype), "device": session.device.type} if stage.draws else {}),
        "sections": stage.key,
        "parents": {name: keys[name] for name in stage.parents if name in keys},
        "files": [[path.name, _hash(path)] for path in stage.files],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash(path: Path) -> str:
    if not path.is_file():
        raise InputError(str(path), "no such file")
    return file_hash(path)


def _run(stage: Stage, folder: Path, key: str, session: Session, say: Callable[[str], None]) -> dict[str, Any]:
    started = folder / "started.json"
    attempt = json.loads(started.read_text(encoding="utf-8")) if started.is_file() else None
    if attempt is not None and attempt["key"] != key:
        aside = next(p for n in range(1, 10_000) if not (p := folder.with_name(f"{folder.name}.old-{n}")).exists())
        folder.rename(aside)
        say(f"{stage.name}: its settings changed; the old one is kept as {aside.name}")
        attempt = None
    if attempt is None:
        shutil.rmtree(folder, ignore_errors=True)  # killed before started.json: nothing in it counts
        folder.mkdir(parents=True)
        atomic_json(started, {"key": key, "seconds": 0.0})
        attempt = {"seconds": 0.0}
    else:
        say(f"{stage.name}: going on")
    remove_leftovers(folder)
    begin = time.monotonic()
    give_back()
    with PeakMemory() as peak:
        try:
            figures = stage.work(folder, session)
        finally:
            with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
                atomic_json(started, {"key": key, "seconds": attempt["seconds"] + time.monotonic() - begin})
    done = {
        "name": stage.name,
        "key": key,
        "seconds": round(attempt["seconds"] + time.monotonic() - begin, 3),
        "peak_bytes": peak.bytes,
        "steps": figures.get("steps", 0),
        "resumed_from_step": figures.get("resumed_from_step", 0),
        "figures": figures,
        "versions": versions(),
    }
    atomic_json(folder / "manifest.json", done)
    return done
