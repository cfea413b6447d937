"""Which path makes a model's texts here, and why: the native step, or PyTorch.

Before the native step is trusted with a kind of weights, one layer of the model's own widths with random weights goes
through it and through the plain path, on this CPU, and both must say the same up to the rounding of activations. That
is done once for a CPU, a torch, a source and a shape; the figures are kept in the cache and read from there afterwards.
Where a kernel differs, the machine lacks something, or the step does not compute the model, PyTorch does, and why is
told.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError

from llmlab.inference import fast, native, packing
from llmlab.inference.fast import FastModel, Read, quickened, unfit
from llmlab.inference.packing import TILE, Kind
from llmlab.inference.pages import PAGE
from llmlab.inference.stepper import Piece
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import Section
from llmlab.runtime import atomic_json, cache_folder, cpu_name, generator, instruction_sets

log = logging.getLogger(__name__)

# Of logits, against their standard deviation: the root of the mean squared difference, and the largest one. Activations
# are rounded to 8 bits a group (bf16 where weights are), which costs 0.02 and 0.1; a wrong kernel costs about 1.
TYPICAL, LARGEST = 0.04, 0.25
# Tokens a call: every way in which the step blocks rows has its turn (8, 4, 3, 2 and 1 at once).
CALLS = (40, 4, 3, 2, 1)
VOCABULARY = 16 * TILE


class Figures(Section):
    """How far the native step was from the plain path on this CPU, and the key under which that holds."""

    key: dict[str, Any]
    typical: float | None = Field(ge=0, description="null: no number came out")
    largest: float | None = Field(ge=0, description="null: no number came out")

    def wrong(self) -> str | None:
        """Why the step is not to be trusted, None where it is."""
        if self.typical is None or self.largest is None:
            return "the native step gives no numbers on this CPU"
        if self.typical <= TYPICAL and self.largest <= LARGEST:
            return None
        found, allowed = f"{self.typical:.3g} ({self.largest:.3g} at most)", f"{TYPICAL:g} ({LARGEST:g})"
        return f"the native step is off by {found} of the logits' spread on this CPU, where {allowed} is allowed"


@dataclass(frozen=True)
class Choice:
    """`model` is the native step where it was chosen; `reason` says in a few words why it was not."""

    model: FastModel | None
    reason: str | None
    figures: Figures | None = None

    def explain(self) -> list[str]:
        """Lines for a person."""
        lines = []
        if self.model is not None:
            lines.append(f"native step with {self.model.kind} weights, on {self.model.threads} threads")
        else:
            lines.append(f"PyTorch: {self.reason}")
        if (figures := self.figures) is not None and figures.typical is not None:
            kind, cpu = figures.key["kind"], figures.key["cpu"]
            lines += [
                f"held against PyTorch on this CPU ({cpu}), one layer of this model's widths, {kind} weights: differs "
                f"by {figures.typical:.2g} of the logits' spread, {figures.largest:.2g} at most "
                f"({TYPICAL:g} and {LARGEST:g} are allowed)",
                f"kept in {_file(figures.key)}; delete it to have it measured again",
            ]
        return [*lines, f"{native.SWITCH}=0 switches the native step off"]


def choose(model: Transformer, weights: str, read: Read | None = None) -> Choice:
    """The native step for a model, or a skeleton with `read` (as of `FastModel`), in `weights` of a kind or `auto`.

    Errors: InputError for weights that are not finite or beyond the scales.
    """
    reason = unfit(model) or native.available()
    if reason is not None:
        return Choice(None, reason)
    made = quickened(model, weights, read)
    figures = held(made.architecture, made.kind)
    if (reason := figures.wrong()) is not None:
        log.warning("%s: the plain path stays", reason)
        return Choice(None, reason, figures)
    return Choice(made, None, figures)


def held(architecture: Architecture, kind: Kind) -> Figures:
    """The native step against the plain path: as recorded for this machine, else measured now and recorded."""
    small = _one_layer(architecture)
    key = {
        "cpu": cpu_name(),
        "instruction_sets": _hash(" ".join(sorted(instruction_sets())).encode()),
        "torch": torch.__version__,
        "source": _hash(native.identity().encode(), *(Path(str(m.__file__)).read_bytes() for m in (fast, packing))),
        "architecture": small.model_dump(mode="json"),
        "kind": kind,
    }
    path = _file(key)
    if (known := _recorded(path, key)) is not None:
        return known
    found = Figures(key=key, **_measured(small, kind))
    with contextlib.suppress(OSError):  # a cache that cannot be written is no reason not to talk
        atomic_json(path, found.model_dump(mode="json"))
    return found


def _recorded(path: Path, key: dict[str, Any]) -> Figures | None:
    """What was measured before, None where nothing sound is there."""
    try:
        found = Figures.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.key == key else None


def _file(key: dict[str, Any]) -> Path:
    return cache_folder() / "native" / f"check-{_hash(json.dumps(key, sort_keys=True).encode())}.json"


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _one_layer(architecture: Architecture) -> Architecture:
    """One layer of the same widths, whose weights are large enough that it changes what passes through."""
    changes = {"layers": 1, "context": sum(CALLS), "initial_std": architecture.dim**-0.5, "dropout": 0.0}
    return architecture.model_copy(update=changes)


@torch.no_grad()
def _measured(architecture: Architecture, kind: Kind) -> dict[str, float | None]:
    draw = generator(0, "native check")
    model = architecture.build(VOCABULARY)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # gains of 1 and biases of 0 would hide what is done with them
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    made = FastModel(model, kind, -(-architecture.context // PAGE), torch.get_num_threads())
    ids = torch.randint(VOCABULARY, (architecture.context,), generator=draw)
    pages, parts, start = list(range(made.pages)), [], 0
    for count in CALLS:
        piece = Piece(ids[start : start + count].tolist(), start, pages)
        parts.append(made.step([piece], range(count)))
        start += count
    want = made.transformer()(ids[None])[0]
    off = (torch.cat(parts) - want).double() / float(want.std())
    figures = {"typical": float(off.square().mean().sqrt()), "largest": float(off.abs().max())}
    return {name: value if value < float("inf") else None for name, value in figures.items()}
