"""Arms that no recipe describes: a task made for one question, small models trained on it by a function of its own."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab.errors import LlmlabError, Stopped
from llmlab.handbook.raced import Trained

Settings = Mapping[str, Any]
Life = Mapping[str, float | str]


@dataclass(frozen=True, kw_only=True)
class Trial(Trained):
    """`run(settings, seed)` answers a figure for every measure, or in words why there is none.

    It is a pure function of both: its randomness comes from `runtime.generator(seed, purpose)`, and it computes on one
    thread. The settings are the arm's with those common to all, plain JSON values.
    """

    run: Callable[[Settings, int], Life]

    def check(self) -> None:
        for name in self.arms:
            settings = self._settings(name)
            if json.loads(json.dumps(settings)) != settings:
                raise LlmlabError(f"trial {self.name}: the settings of {name} are not plain JSON values")
        if len({json.dumps(self._settings(name), sort_keys=True) for name in self.arms}) < len(self.arms):
            raise LlmlabError(f"trial {self.name}: two arms have the same settings")

    def train(self, out: Path, seeds: int | None = None, quiet: bool = False) -> dict[str, Any]:
        from llmlab.runtime import interruptible, lock, make_deterministic, threads

        self.check()
        make_deterministic()
        numbers = self.numbers(seeds)
        lives: dict[tuple[str, int], dict[str, Any]] = {}
        with lock(out), interruptible() as stop, threads(1):
            for seed in numbers:
                for name in self.arms:
                    if stop.requested:
                        raise Stopped(f"stopped before {name}, seed {seed}; what is finished is kept in {out}")
                    life = lives[name, seed] = self._life(name, seed, out)
                    if not quiet:
                        told = ", ".join(f"{measure} {life['figures'][measure]}" for measure in self.measures[:3])
                        print(f"{name}, seed {seed}: {told}, {life['seconds']:.0f} s", file=sys.stderr)
        rows = {
            measure: {name: [lives[name, seed]["figures"][measure] for seed in numbers] for name in self.arms}
            for measure in self.measures
        }
        seconds = sum(life["seconds"] for life in lives.values())
        return self.recorded(numbers, rows, seconds, arms={name: self._settings(name) for name in self.arms})

    def stale(self, record: Mapping[str, Any]) -> str | None:
        if record["version"] != self.version:
            return "its version is another"
        for name in self.arms:
            if name not in record["arms"]:
                return f"arm {name} was never run"
            was, now = record["arms"][name], self._settings(name)
            for key in {**was, **now}:
                if was.get(key) != now.get(key):
                    return f"arm {name}: {key} was {was.get(key)!r} and is {now.get(key)!r}"
        return None

    def _settings(self, name: str) -> dict[str, Any]:
        return {**self.common, **self.arms[name]}

    def _life(self, name: str, seed: int, out: Path) -> dict[str, Any]:
        """One arm at one seed: read where it is kept, else run and kept. LlmlabError for a figure that is none."""
        from llmlab.runtime import atomic_json

        settings = self._settings(name)
        content = json.dumps([self.name, self.version, settings, seed], sort_keys=True)
        path = out / "arms" / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"
        if path.is_file():
            kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if set(kept["figures"]) == set(self.measures):
                return kept
        begin = time.perf_counter()
        figures = dict(self.run(settings, seed))
        if set(figures) != set(self.measures):
            wrong = sorted(set(figures) ^ set(self.measures))
            raise LlmlabError(f"trial {self.name}: {name}, seed {seed}: measures and figures differ in {wrong}")
        for measure, value in figures.items():
            if not isinstance(value, str) and not math.isfinite(value):
                raise LlmlabError(f"trial {self.name}: {name}, seed {seed}: {measure} is {value}")
        life = {"arm": name, "seed": seed, "figures": figures, "seconds": round(time.perf_counter() - begin, 3)}
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_json(path, life)
        return life
