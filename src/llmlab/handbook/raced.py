"""Trained evidence: arms that are run once, kept one by one, and shipped as one small record a race.

A question names the races it reads and takes its figures from their records. A record is current while every setting
that it knew still has the value it had, and settings that came later hold their defaults: a commit does not void hours
of compute, a changed setting does. Arms are recipes (`Race`), or what no recipe describes (`trials.Trial`).
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmlab.errors import LlmlabError, unknown
from llmlab.handbook import races
from llmlab.handbook.question import HERE, Figures, Text

if TYPE_CHECKING:
    from llmlab.race.arms import Arm

SHIPPED = HERE / "records"


@dataclass(frozen=True, kw_only=True)
class Trained(ABC):
    """Arms that are trained once a seed: `arms` has the settings of each by its name, `common` those of all of them.

    Races whose figures their question shows in tables of its own are not `listed` arm by arm below it.
    Raise `version` when an arm computes something else although its settings are the same.
    """

    name: str
    title: Text
    arms: Mapping[str, Mapping[str, Any]]
    measures: tuple[str, ...]
    common: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 5
    first: int = 0  # of the seeds: raised where a race is run afresh, lives of its own beside those seen before
    version: int = 1
    listed: bool = True

    @abstractmethod
    def check(self) -> None:
        """Everything that can be known before any work. InputError or LlmlabError naming arm, setting or measure."""

    @abstractmethod
    def train(self, out: Path, seeds: int | None = None, quiet: bool = False) -> dict[str, Any]:
        """Run what is new in the folder `out` and answer the record. `Stopped` after saving."""

    @abstractmethod
    def stale(self, record: Mapping[str, Any]) -> str | None:
        """Why a record does not speak of these arms any more; None while it does."""

    def numbers(self, seeds: int | None = None) -> list[int]:
        """The seeds themselves, in order."""
        return list(range(self.first, self.first + (seeds or self.seeds)))

    def recorded(
        self, seeds: Sequence[int], rows: Mapping[str, Mapping[str, Sequence[float | str]]], seconds: float, **how: Any
    ) -> dict[str, Any]:
        """The record, ready for JSON: `rows[measure][arm]` holds one figure a seed, or why there is none."""
        from llmlab.runtime import cpu_flags, versions

        return {
            "name": self.name,
            "version": self.version,
            "seeds": list(seeds),
            **how,
            "rows": {
                measure: {arm: [short(value) for value in values] for arm, values in row.items()}
                for measure, row in rows.items()
            },
            "seconds": round(seconds, 1),
            "date": datetime.now(UTC).date().isoformat(),
            "versions": versions(),
            "cpu": cpu_flags(),
        }


@dataclass(frozen=True, kw_only=True)
class Race(Trained):
    """Arms of one preset, each with the recipe fields that it sets."""

    preset: str
    equal: str = "tokens"

    def made(self) -> list[Arm]:
        """The arms as whole recipes. InputError naming the field that is wrong."""
        from llmlab.race.arms import Arm, changed
        from llmlab.run import read_recipe

        base = changed(read_recipe(self.preset), self.common)
        return [Arm(name, changed(base, values), values) for name, values in self.arms.items()]

    def check(self) -> None:
        from llmlab.evaluation.measures import read_measures
        from llmlab.race.arms import check

        check(self.made(), self.numbers(), read_measures(self.measures))

    def train(self, out: Path, seeds: int | None = None, quiet: bool = False) -> dict[str, Any]:
        from llmlab.evaluation.measures import VERSION, read_measures
        from llmlab.race.compare import race as run_arms

        arms = self.made()
        numbers = self.numbers(seeds)
        found = run_arms(arms, numbers, out, read_measures(self.measures), equal=self.equal, quiet=quiet)
        rows: dict[str, dict[str, list[float | str]]] = {measure: {} for measure in self.measures}
        seconds = 0.0
        for arm in found["arms"]:
            for told in arm["measures"]:
                values = [told.get("reason") if value is None else value for value in told["by_seed"]]
                rows[told["measure"]][arm["name"]] = values
            for folder in arm["runs"].values():
                manifests = sorted((out / folder).glob("*/manifest.json"))
                own = [path for path in manifests if not path.parent.is_symlink()]
                seconds += sum(json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in own)
        base = _flat(arms[0].content)
        return self.recorded(
            numbers,
            rows,
            seconds,
            measure_version=VERSION,
            equal=self.equal,
            recipe=base,
            arms={arm.name: _changes(base, _flat(arm.content)) for arm in arms},
        )

    def stale(self, record: Mapping[str, Any]) -> str | None:
        from llmlab.evaluation.measures import VERSION

        if (record["version"], record["measure_version"]) != (self.version, VERSION):
            return "its version is another"
        arms = {arm.name: arm for arm in self.made()}
        if missing := [name for name in arms if name not in record["arms"]]:
            return f"arm {missing[0]} was never run"
        for name, arm in arms.items():
            changes = record["arms"][name]
            was = {path: value for path, value in record["recipe"].items() if path not in changes["gone"]}
            was |= changes["set"]
            now = _flat(arm.content)
            for path, value in was.items():
                if path not in now or now[path] != value:
                    return f"arm {name}: {path} was {value!r} and is {now.get(path)!r}"
            given = _flat(arm.recipe.model_dump(mode="json", exclude_defaults=True))
            if new := [path for path in now if path not in was and path in given]:
                return f"arm {name}: {new[0]} is set and was not known"
        return None


class Difference(NamedTuple):
    """a minus b over seeds, paired, with its 95 % interval."""

    mean: float
    low: float
    high: float


class Told:
    """The record of a race, asked for its figures."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = record

    def values(self, arm: str, measure: str) -> list[float]:
        """One figure a seed. LlmlabError where the arm has none: ask `fails` first."""
        row = self._row(arm, measure)
        if any(isinstance(value, str) for value in row):
            raise LlmlabError(f"race {self.record['name']}: {arm} has no {measure}: {self.fails(arm, measure)}")
        return [float(value) for value in row]

    def mean(self, arm: str, measure: str) -> float:
        row = self.values(arm, measure)
        return sum(row) / len(row)

    def fails(self, arm: str, measure: str) -> str | None:
        """Why the arm has no such figure, None where it has."""
        return next((value for value in self._row(arm, measure) if isinstance(value, str)), None)

    def difference(self, a: str, b: str, measure: str, other: str | None = None) -> Difference:
        """`measure` of a minus that of b (minus `other` of b where it is given), seed by seed."""
        from llmlab.evaluation import statistics

        pairs = zip(self.values(a, measure), self.values(b, other or measure), strict=True)
        found = statistics.mean([mine - theirs for mine, theirs in pairs], 0.95)
        low, high = found.interval
        assert low is not None
        assert high is not None
        return Difference(found.value, low, high)

    def bounds(self, name: str, a: str, b: str, measure: str, other: str | None = None) -> Figures:
        """That difference as figures: `name` its mean, `name_lower` and `name_upper` the ends of its interval."""
        found = self.difference(a, b, measure, other)
        return {name: found.mean, f"{name}_lower": found.low, f"{name}_upper": found.high}

    def grown(self, arm: str, times: int, than: int = 1) -> Figures:
        """What an arm's loss gained from `than` to `times` the trained length, the same tokens scored."""
        name = f"{arm.replace(', ', '_')}_{times}x_minus_{than}x"
        return self.bounds(name, arm, arm, f"bits_per_byte@{times}x", f"bits_per_byte@{than}x")

    def _row(self, arm: str, measure: str) -> Sequence[float | str]:
        for what, name, known in (("measure", measure, self.record["rows"]), ("arm", arm, self.record["arms"])):
            if name not in known:
                raise unknown(f"race {self.record['name']}: {what}", name, list(known))
        row: Sequence[float | str] = self.record["rows"][measure][arm]
        return row


# ---------------------------------------------------------------- definitions and records


def known() -> list[str]:
    """The races that there are, by file name."""
    return sorted(module.name for module in pkgutil.iter_modules(races.__path__))


def race(name: str) -> Trained:
    if name not in known():
        raise unknown("race", name, known())
    found: Trained = importlib.import_module(f"{races.__name__}.{name}").RACE
    return found


def save(record: Mapping[str, Any], folder: Path = SHIPPED) -> Path:
    """Write a record where `shipped` looks for it, one line a field."""
    from llmlab.runtime import atomic_text

    path = folder / f"race_{record['name']}.json"
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in record.items()]
    atomic_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
    return path


def shipped(name: str, folder: Path = SHIPPED) -> Told | None:
    """The record of a race, None where there is none."""
    path = folder / f"race_{name}.json"
    return Told(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _changes(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "set": {path: value for path, value in other.items() if path not in base or base[path] != value},
        "gone": [path for path in base if path not in other],
    }


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """{dotted path: plain value} of nested mappings."""
    if not isinstance(value, Mapping):
        return {path: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{path}.{key}" if path else str(key))
    return found


def short(value: float | str) -> float | str:
    """Six digits: far below what another seed changes."""
    return value if isinstance(value, str) else float(f"{value:.6g}")
