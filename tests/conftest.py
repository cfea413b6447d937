"""Fixtures that every folder shares. Data outside the repository is optional; CI refuses to skip where it is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest
import torch

from llmlab.model.attention import AttentionPart
from llmlab.model.feedforward import FeedForwardPart
from llmlab.model.norms import Norm
from llmlab.model.positions import Position

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


POSITIONS, NORMS = members(Position), members(Norm)
FEEDFORWARDS, ATTENTIONS = members(FeedForwardPart), members(AttentionPart)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    unions = {"position": POSITIONS, "norm": NORMS, "feedforward": FEEDFORWARDS, "attention": ATTENTIONS}
    for name, kinds in unions.items():
        if f"{name}_kind" in metafunc.fixturenames:
            metafunc.parametrize(f"{name}_kind", kinds, ids=lambda kind: kind.model_fields["kind"].default)
