"""What a plan says, what it depends on, and what a run does with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmlab.errors import InputError
from llmlab.planner import foresee
from llmlab.planner.fit import fit, read_size
from llmlab.planner.machine import Machine, file_of, this_machine
from llmlab.planner.page import page
from llmlab.planner.plan import Plan, plan
from llmlab.run import Run, changes, read_recipe, run
from llmlab.runtime import atomic_json

SHORT = ["reward=null", "dpo=null", "ppo=null", "quantize=null", "evaluate=null"]


@pytest.fixture
def recipe() -> Run:
    return read_recipe("smoke", [*SHORT, "model.layers=1"])


@pytest.fixture
def planned(recipe: Run, machine: Machine) -> Plan:
    return plan(recipe, machine)


def test_the_contract(planned: Plan) -> None:
    told = json.loads(json.dumps(planned.json()))
    assert {"parameters", "peak_bytes", "seconds", "stages", "flops"} <= told.keys()
    assert [stage["name"] for stage in told["stages"]] == ["text", "tokenizer", "pretrain", "sft"]
    for stage in told["stages"]:
        assert {"name", "peak_bytes", "seconds", "by_cause"} <= stage.keys()
        assert sum(stage["by_cause"].values()) == stage["peak_bytes"] > 0
        assert stage["seconds"] > 0
    assert told["peak_bytes"] == max(stage["peak_bytes"] for stage in told["stages"])
    assert told["seconds"] == pytest.approx(sum(stage["seconds"] for stage in told["stages"]), abs=0.01)


def test_parameters_are_the_models(planned: Plan, recipe: Run) -> None:
    assert recipe.model is not None
    assert planned.parameters == sum(p.numel() for p in recipe.model.build(512).parameters())


def test_a_page_names_every_stage(planned: Plan) -> None:
    text = page(planned)
    assert all(stage.name in text for stage in planned.stages)


@pytest.mark.parametrize("preset", ["smoke"])
def test_every_stage_of_a_life_is_planned(preset: str, machine: Machine) -> None:
    whole = read_recipe(preset, ["model.layers=1", "model.dim=32"])
    names = [stage.name for stage in plan(whole, machine).stages]
    assert names == ["text", "tokenizer", "pretrain", "sft", "reward", "dpo", "ppo", "quantize", "evaluate"]


def test_more_takes_more(recipe: Run, machine: Machine, planned: Plan) -> None:
    change = changes(recipe)
    wider = plan(change(["pretrain.batch_size=64", "pretrain.micro_batch=64"]), machine)
    longer = plan(change(["pretrain.training.steps=120"]), machine)
    split = plan(change(["pretrain.batch_size=64", "pretrain.micro_batch=4"]), machine)
    before, *others = (found.stages[2] for found in (planned, wider, longer, split))
    seconds, *of_others = (stage.seconds or 0.0 for stage in (before, *others))
    assert others[0].peak_bytes > before.peak_bytes
    assert of_others[0] > 2 * seconds > 0
    assert others[1].peak_bytes == before.peak_bytes
    assert of_others[1] > 1.5 * seconds
    assert others[2].peak_bytes < others[0].peak_bytes  # the same rows, some at a time


def test_an_earlier_run_changes_nothing(recipe: Run, machine: Machine, planned: Plan, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / recipe.name / "pretrain"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"seconds": 1e6, "peak_bytes": 1 << 50}))
    assert plan(recipe, machine).json() == planned.json()


def test_fit_proposes_smaller_micro_batches_first(recipe: Run, machine: Machine, planned: Plan) -> None:
    # Activations so large that they decide, and a budget between the whole batch and a part of it.
    large = changes(recipe)(["pretrain.batch_size=512", "pretrain.micro_batch=512"])
    before = plan(large, machine)
    budget = (before.peak_bytes + planned.peak_bytes) // 2
    found = fit(changes(large), budget, machine)
    assert found.fits
    assert [one.partition("=")[0] for one in found.assignments] == ["pretrain.micro_batch"]
    assert found.after.peak_bytes <= budget < found.before.peak_bytes
    assert plan(changes(large)(found.assignments), machine).peak_bytes == found.after.peak_bytes


def recorded(machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this machine had been measured so."""
    monkeypatch.setenv("LLMLAB_HOME", str(folder / "cache"))
    key = this_machine()
    atomic_json(file_of(key), machine.model_copy(update={"key": key}).model_dump(mode="json"))


def test_a_run_that_cannot_fit_is_refused_with_what_would(recipe: Run, machine: Machine, planned: Plan, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    recorded(machine, tmp_path, monkeypatch)
    large = changes(recipe)(["pretrain.batch_size=512", "pretrain.micro_batch=512"])
    budget = (plan(large, machine).peak_bytes + planned.peak_bytes) // 2
    with pytest.raises(InputError) as refusal:
        run(large, tmp_path / "run", quiet=True, planned=True, memory=budget)
    line = str(refusal.value)
    assert "pretrain" in line
    assert "fits in" in line
    assert "pretrain.micro_batch=" in line
    assert not (tmp_path / "run" / "text").exists()


def test_the_prediction_lies_beside_the_run(recipe: Run, machine: Machine, planned: Plan, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    recorded(machine, tmp_path, monkeypatch)
    short = changes(recipe)(["pretrain.training.steps=2", "sft=null"])
    done = run(short, tmp_path / "run", quiet=True, planned=True)
    kept = json.loads((tmp_path / "run" / foresee.NAME).read_text())
    assert [stage["name"] for stage in kept["stages"]] == [stage["name"] for stage in done["stages"]]
    assert "Predicted" in Path(done["report"]).read_text()


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4e9), ("4 GiB", 2**32), ("512mib", 2**29), ("1e9", 1e9), ("2g", 2**31)]
)
def test_sizes(text: str, size: float) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "4XB", "nan"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(InputError, match="no size of memory"):
        read_size(text)
