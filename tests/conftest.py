"""Fixtures that every folder shares. Data outside the repository is optional; CI refuses to skip where it is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import settings

from llmlab.data.pack import Isolated
from llmlab.errors import InputError
from llmlab.model.block import Wiring
from llmlab.model.feedforward import FeedForwardPart
from llmlab.model.masks import Mask
from llmlab.model.mixers import AttentionPart
from llmlab.model.norms import Norm
from llmlab.model.positions import Position
from llmlab.model.rotary import Scaling
from llmlab.model.transformer import Architecture
from llmlab.objectives.against import Against
from llmlab.objectives.kind import Kind
from llmlab.objectives.pretraining import PretrainObjective
from llmlab.recipe import parse
from llmlab.training.pretrain import Pretrain

# No test here is about time, and a busy machine is no failure.
settings.register_profile("llmlab", deadline=None)
settings.load_profile("llmlab")

# Planning takes seconds and a process; the tests of the planner ask for it.
os.environ.setdefault("LLMLAB_PLAN", "0")

SHARED = Path(os.environ.get("LLMLAB_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny models run faster on one thread, and two test processes do not fight over the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the repository; LLMLAB_SHARED names its parent where it lies elsewhere."""
    return _there(
        SHARED if SHARED.is_dir() else None, "needs the shared data folder beside the repository (LLMLAB_SHARED)"
    )


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, pulled once into the user's cache."""
    from llmlab.checkpoints.where import cached

    return _there(cached("smollm2"), "needs the SmolLM2 weights: llmlab pull smollm2")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, pulled once into the user's cache."""
    from llmlab.checkpoints.where import cached

    return _there(cached("minilm"), "needs the MiniLM weights: llmlab pull minilm")


def _there(path: Path | None, reason: str) -> Path:
    """CI sets LLMLAB_REQUIRE_DATA: what a public clone skips is a failure there."""
    if path is None and os.environ.get("LLMLAB_REQUIRE_DATA"):
        pytest.fail(reason)
    if path is None:
        pytest.skip(reason)
    return path


def members(union: object) -> list[type]:
    """The kinds of a closed union: new members join the tests that ask for them here."""
    return list(get_args(get_args(union)[0]))


POSITIONS, NORMS, SCALINGS, MASKS = members(Position), members(Norm), members(Scaling), members(Mask)
NEEDED: dict[str, dict[str, Any]] = {  # fields of a scaling that have no default
    "dynamic": {"trained": 64},
    "yarn": {"trained": 16},
    "logn": {"trained": 8},
    "llama3": {"trained": 16},
}
FEEDFORWARDS, ATTENTIONS, WIRINGS = members(FeedForwardPart), members(AttentionPart), members(Wiring)


@pytest.fixture(scope="session")
def suited() -> Callable[..., Architecture]:
    """suited(objective, **parts): a small architecture that has what an objective needs."""

    def find(objective: Kind, **parts: Any) -> Architecture:
        for suit in SUITS:
            model = parse(Architecture, {"layers": 2, "dim": 32, "context": 32} | suit | parts)
            try:
                objective.check(model, Isolated())
            except InputError:
                continue
            return model
        raise AssertionError(f"no architecture above goes with {objective}")

    return find


def kind(member: type) -> str:
    return str(member.model_fields["kind"].default)  # type: ignore[attr-defined]


# Settings beside the defaults of each kind that a test of all should see too.
POSITION_SETTINGS: list[dict[str, Any]] = [
    *({"kind": kind(member)} for member in POSITIONS),
    *({"kind": "rope", "scaling": {"kind": kind(member), **NEEDED.get(kind(member), {})}} for member in SCALINGS[1:]),
    {"kind": "rope", "fraction": 0.5},
    {"kind": "rope_interleaved", "fraction": 0.5},
    {"kind": "xl", "segments": True, "furthest": 4},
]
ATTENTION_SETTINGS: list[dict[str, Any]] = [
    *({"kind": kind(member)} for member in ATTENTIONS),
    {"kind": "mha", "window": 3},
    {"kind": "gqa", "window": 3, "sinks": 1, "norm": True, "bias": True, "scale": 1.0},
]


OBJECTIVE_SETTINGS: list[dict[str, Any]] = [
    *({"kind": kind(member)} for member in members(PretrainObjective)),
    {"kind": "prefix", "length": 3},
    {"kind": "masked", "span": 2.0, "masking": {"kind": "static", "copies": 2}},
    {"kind": "masked", "next_sentence": True},
    {"kind": "blanks", "rate": 0.3, "mean": 2.0},
    *({"kind": "causal", "against": {"kind": kind(member)}} for member in members(Against)[1:]),
]
# What an objective may need of an architecture, the plainest first; a new one that none of these suits says so itself.
SUITS: list[dict[str, Any]] = [
    {"mask": "causal"},
    {"mask": "prefix"},
    {"mask": "bidirectional"},
    {"mask": "bidirectional", "pooled": 2, "embedding": {"segments": 2}},
    {"mask": "bidirectional", "streams": 2},
    {"mask": "causal", "encoder_layers": 2, "position": "t5"},
]


def objective_of(settings: dict[str, Any]) -> Kind:
    return parse(Pretrain, {"objective": settings}).objective


def goes_with(position: dict[str, Any], attention: dict[str, Any]) -> bool:
    """What the parts declare of one another."""
    encoding = next(member for member in POSITIONS if kind(member) == position["kind"])
    mixer = next(member for member in ATTENTIONS if kind(member) == attention["kind"])
    return mixer().scores or not encoding.in_attention


PAIRS = [(position, attention) for position in POSITION_SETTINGS for attention in ATTENTION_SETTINGS]


def told(settings: dict[str, Any]) -> str:
    """A short name of settings."""
    return "-".join(told(value) if isinstance(value, dict) else str(value) for value in settings.values())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    unions = {
        "position": POSITIONS,
        "norm": NORMS,
        "feedforward": FEEDFORWARDS,
        "attention": ATTENTIONS,
        "wiring": WIRINGS,
        "mask": MASKS,
        "scaling": SCALINGS,
    }
    for name, kinds in unions.items():
        if f"{name}_kind" in metafunc.fixturenames:
            metafunc.parametrize(f"{name}_kind", kinds, ids=lambda kind: kind.model_fields["kind"].default)
    if "objective" in metafunc.fixturenames:
        metafunc.parametrize(
            "objective", [objective_of(one) for one in OBJECTIVE_SETTINGS], ids=map(told, OBJECTIVE_SETTINGS)
        )
    for name, fits in (("mixing", True), ("misfit", False)):
        if name in metafunc.fixturenames:
            pairs = [pair for pair in PAIRS if goes_with(*pair) == fits]
            metafunc.parametrize(name, pairs, ids=lambda pair: f"{told(pair[0])}+{told(pair[1])}")
