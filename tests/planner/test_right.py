"""A plan against what is measured, and what is extrapolated against what is watched whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmlab.planner import stages
from llmlab.planner.machine import Machine
from llmlab.planner.plan import Memo
from llmlab.planner.stages import Planner, Taken
from llmlab.run import Run, read_recipe

PRETRAINED = ["sft=null", "reward=null", "dpo=null", "ppo=null", "quantize=null", "evaluate=null"]
DEEP = ["model.layers=7", "model.dim=32", "model.context=96", "tokenizer.vocab_size=300"]


def taken(recipe: Run, machine: Machine, name: str) -> Taken:
    return Planner(Memo().material(recipe), machine, None).stage(name)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("pretrain", []),
        ("pretrain", ["pretrain.training.activation_checkpointing=full"]),
        ("sft", ["sft.adapter=lora"]),
    ],
)
def test_equal_blocks_are_extrapolated_to_what_all_of_them_take(
    name: str, more: list[str], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe("smoke", [*PRETRAINED[name == "sft" :], *DEEP, *more])
    found = taken(recipe, machine, name)
    monkeypatch.setattr(stages, "WHOLE", 100)
    whole = taken(recipe, machine, name)
    assert found.parameters == whole.parameters
    assert found.trained == whole.trained
    assert found.flops == pytest.approx(whole.flops, rel=1e-9)
    assert found.seconds == pytest.approx(whole.seconds, rel=1e-3)
    for some, all_ in zip(found.moments, whole.moments, strict=True):
        live, right = (one.bytes - one.by_cause.get("allocator", 0) for one in (some, all_))
        assert live == pytest.approx(right, abs=4096)
        for cause in ("weights", "gradients", "optimizer", "logits"):
            assert some.by_cause.get(cause, 0) == pytest.approx(all_.by_cause.get(cause, 0), abs=4096), cause


def test_memory_of_a_small_life_is_as_planned(tmp_path: Path) -> None:
    """Within 10 % of what the process holds at most; on a machine that was never measured."""
    short = ["pretrain.training.steps=4", "pretrain.training.evaluate_every=4", "model.dim=128", "model.context=256"]
    command = [
        sys.executable,
        "-m",
        "llmlab",
        "run",
        "smoke",
        "--plan",
        *PRETRAINED,
        *short,
        "--out",
        str(tmp_path / "run"),
    ]
    environment = os.environ | {"LLMLAB_HOME": str(tmp_path / "cache")}
    subprocess.run([*command, "--quiet"], check=True, capture_output=True, env=environment)
    planned = json.loads((tmp_path / "run" / "plan.json").read_text())
    for stage in planned["stages"]:
        measured = json.loads((tmp_path / "run" / stage["name"] / "manifest.json").read_text())["peak_bytes"]
        assert stage["peak_bytes"] == pytest.approx(measured, rel=0.1), stage
