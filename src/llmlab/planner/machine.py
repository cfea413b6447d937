"""How fast this machine is and what a run takes here before it computes anything: measured once, kept in the cache.

Nothing of any recipe is measured. Reference steps of three widths run with every operation timed by itself
(`calibrate.py`), and products of many shapes besides; a planned operation takes what the nearest of those took, scaled
by its own size.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError

from llmlab.errors import LlmlabError
from llmlab.model import kernels
from llmlab.planner.work import Work
from llmlab.recipe import Section
from llmlab.region import REGION
from llmlab.runtime import atomic_json, cache_folder, cpu_name, instruction_sets

VERSION = 6  # raised whenever something else is measured
NEIGHBOURS = 4


class Product(Section):
    """A product or an attention that was timed. `sizes` as in `Work`."""

    name: str
    sizes: tuple[int, ...]
    flops: float = Field(gt=0)
    seconds: float = Field(gt=0)


class Moved(Section):
    """Any other operation: bytes it moved, and seconds."""

    bytes: int = Field(ge=0)
    seconds: float = Field(gt=0)


class Machine(Section):
    """What was measured, and the key under which that holds."""

    key: dict[str, Any]
    bare_bytes: int = Field(gt=0, description="resident memory after the imports of a run and one small step")
    import_bytes: int = Field(gt=0, description="the same before any step")
    text_bytes: int = Field(ge=0, description="what the text stage takes beside its text")
    primitive_bytes: float = Field(ge=0, description="what each shape of a bf16 product costs, once")
    kernels_most: int = Field(ge=0, description="what all of them cost together, since few are kept")
    called_seconds: float = Field(ge=0, description="beside the kernel of an operation that a module asked for")
    beside_seconds: float = Field(ge=0, description="beside the kernel of any other operation")
    stage_seconds: float = Field(ge=0, description="of a stage that does nothing")
    row_seconds: float = Field(ge=0, description="of a conversation: written with its template and encoded")
    token_seconds: float = Field(ge=0, description="beside the model for a token of a row that is generated")
    row_bytes: float = Field(ge=0, description="of a conversation made ready, and what is left of it afterwards")
    write_rate: float = Field(gt=0, description="bytes a second, written and synced")
    write_seconds: float = Field(ge=0, description="of a file, whatever its size")
    text_rate: float = Field(gt=0, description="bytes of text a second: cleaned, checked for duplicates, written")
    encode_rate: float = Field(gt=0, description="bytes of text a second: encoded and written")
    train_rate: float = Field(gt=0, description="bytes of text a second: a tokenizer trained on them")
    baseline_rate: float = Field(gt=0, description="bytes of text a second: compressed and counted as a baseline")
    products: tuple[Product, ...]
    moved: dict[str, tuple[Moved, ...]]

    @property
    def timed(self) -> bool:
        """Whether seconds are known, or memory alone."""
        return bool(self.products)

    def kernels(self, shapes: int) -> int:
        """Bytes that kernels of so many shapes of bf16 products hold."""
        return min(round(shapes * self.primitive_bytes), self.kernels_most)

    def seconds(self, works: Iterable[Work]) -> float:
        """Of these operations, one after the other, with what lies between them; 0 where nothing is known of time."""
        if not self.timed:
            return 0.0
        known = self._known
        total = 0.0
        for work in works:
            if work not in known:
                known[work] = self._product(work) if work.sizes else self._other(work)
            total += known[work] + (self.called_seconds if work.called else self.beside_seconds)
        return total

    @cached_property
    def _known(self) -> dict[Work, float]:
        return {}

    @cached_property
    def _by_name(self) -> dict[str, list[Product]]:
        names: dict[str, list[Product]] = {}
        for product in self.products:
            names.setdefault(product.name, []).append(product)
        return names

    def _product(self, work: Work) -> float:
        """By the rate of the nearest shapes that were timed, the nearer the more."""
        family, _, dtype = work.name.partition(":")
        timed = self._by_name.get(work.name) or self._by_name.get(f"{family}:fp32") or self._by_name["mm:fp32"]
        slower = 2.0 if dtype == "fp64" else 1.0
        places = [math.log(max(size, 1)) for size in work.sizes]
        near = sorted((_distance(places, product.sizes), product.flops / product.seconds) for product in timed)
        weights = [(1 / (distance + 1e-3) ** 2, math.log(rate)) for distance, rate in near[:NEIGHBOURS]]
        rate = math.exp(sum(w * r for w, r in weights) / sum(w for w, _ in weights))
        return slower * max(work.flops, 1.0) / rate

    def _other(self, work: Work) -> float:
        """By the same operation at the sizes that were timed, and beyond them as elementwise ones go on; by those
        where it was not timed at all."""
        common, timed = self.moved["mul"], self.moved.get(work.name)
        if timed is None:
            return interpolated(common, work.bytes)
        size = min(max(work.bytes, timed[0].bytes), timed[-1].bytes)
        beyond = interpolated(common, work.bytes) / interpolated(common, size)
        return interpolated(timed, size) * beyond

    # ------------------------------------------------------------ where it is kept

    @staticmethod
    def known() -> Machine:
        """As recorded for this machine, else measured now (20 seconds) and recorded."""
        key = this_machine()
        path = file_of(key)
        if (found := _recorded(path, key)) is not None:
            return found
        found = Machine(key=key, **_measured())
        with contextlib.suppress(OSError):  # a cache that cannot be written is no reason not to plan
            atomic_json(path, found.model_dump(mode="json"))
        return found

    @staticmethod
    def at_hand() -> Machine:
        """As recorded, else what this very process takes, measured in it in a moment; then nothing is known of time."""
        key = this_machine()
        if (found := _recorded(file_of(key), key)) is not None:
            return found
        from llmlab.planner.calibrate import memory

        costs = ("called_seconds", "beside_seconds", "token_seconds", "write_seconds", "stage_seconds", "row_seconds")
        figures: dict[str, Any] = dict.fromkeys(costs, 0.0)
        figures["row_bytes"] = 1500.0
        figures |= dict.fromkeys(("write_rate", "text_rate", "encode_rate", "train_rate", "baseline_rate"), 1.0)
        return Machine(key=key, products=(), moved={}, **figures, **memory(shapes=8))


def interpolated(timed: Sequence[Moved], size: int) -> float:
    """Seconds of an operation that moves `size` bytes: between two timed sizes on a straight line of logarithms; below
    the smallest as that one, beyond the largest by its rate."""
    first, last = timed[0], timed[-1]
    if size <= first.bytes or (len(timed) == 1 and size <= last.bytes):
        return first.seconds
    if size >= last.bytes:
        return last.seconds * size / max(last.bytes, 1)
    low, high = next((a, b) for a, b in pairwise(timed) if a.bytes <= size <= b.bytes)
    if low.bytes <= 0 or low.bytes == high.bytes:
        return high.seconds
    share = math.log(size / low.bytes) / math.log(high.bytes / low.bytes)
    return math.exp((1 - share) * math.log(low.seconds) + share * math.log(high.seconds))


def _distance(places: Sequence[float], sizes: Sequence[int]) -> float:
    return sum((a - math.log(max(b, 1))) ** 2 for a, b in zip(places, sizes, strict=True))


def this_machine() -> dict[str, Any]:
    """What a measurement depends on."""
    return {
        "version": VERSION,
        "cpu": cpu_name(),
        "instruction_sets": hashlib.sha256(" ".join(sorted(instruction_sets())).encode()).hexdigest()[:16],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "kernels": kernels.available() or kernels.KERNELS.identity,
        "region": REGION.available() or "of its own",
    }


def file_of(key: Mapping[str, Any]) -> Path:
    """Where the measurement under this key is kept."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "planner" / f"machine-{name}.json"


def _recorded(path: Path, key: dict[str, Any]) -> Machine | None:
    try:
        found = Machine.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.key == key else None


def _measured() -> dict[str, Any]:
    """In a process of its own: what is resident there is what a run's process has."""
    work = "import llmlab.run; from llmlab.planner.calibrate import main; main()"
    command = [sys.executable, "-c", work, str(torch.get_num_threads())]
    as_run = {"GOMP_SPINCOUNT": "1000"} | os.environ  # as the command line has it
    done = subprocess.run(command, capture_output=True, text=True, env=as_run)
    if done.returncode != 0:
        raise LlmlabError(f"this machine could not be measured: {done.stderr.strip()[-400:]}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures
