"""A life that is killed again and again ends in the same bytes as one that was not."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmlab.errors import InputError
from llmlab.run import read_recipe, run, stages

QUICK = [
    "pretrain.training.steps=30",
    "text.held_out=0.01",
    "tokenizer.vocab_size=400",
    "evaluate.tasks=[samples]",
    "quantize.documents=2",
]


def start(out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llmlab", "run", "smoke", *QUICK, *more, "--out", str(out), "--json", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def finish(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer


def weights(out: Path) -> dict[str, bytes]:
    """Every weight file that a stage leaves, checkpoints on the way aside."""
    files = (path for path in out.rglob("*.safetensors") if "checkpoints" not in path.parts)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    return out, finish(start(out))


def last_step(folder: Path) -> int:
    """The last step that the figures of a stage tell of."""
    lines = (folder / "figures.jsonl").read_text().splitlines() if (folder / "figures.jsonl").exists() else []
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return max(steps, default=0)


def test_killed_three_times_and_resumed_is_bit_for_bit(unbroken: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    whole, answer = unbroken
    assert [stage["name"] for stage in answer["stages"]] == [
        "text", "tokenizer", "pretrain", "sft", "reward", "dpo", "ppo", "quantize", "evaluate"
    ]  # fmt: skip
    out, chance = tmp_path / "killed", random.Random(0)
    reached = {}
    for stage in ("pretrain", "sft", "ppo"):
        process = start(out, "--resume")
        deadline = time.monotonic() + 120
        while not list((out / stage / "checkpoints").glob("step-*")):
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(chance.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if not (out / stage / "manifest.json").exists():
            reached[stage] = last_step(out / stage)
    resumed = {stage["name"]: stage["resumed_from_step"] for stage in finish(start(out, "--resume"))["stages"]}
    assert reached, "every kill came too late to cut a stage"
    recipe = read_recipe("smoke", QUICK)
    for stage, step in reached.items():
        assert resumed[stage] > 0
        assert step - resumed[stage] <= getattr(recipe, stage).training.checkpoint_every
    assert weights(out) == weights(whole)
    assert not list(out.rglob("*.tmp"))


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    process = start(out)
    while last_step(out / "pretrain") < 5:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(err.decode().splitlines()) == 1
    assert "--resume" in err.decode()
    assert list((out / "pretrain" / "checkpoints").glob("step-*"))


def test_a_finished_run_is_not_redone_and_a_changed_section_is(
    unbroken: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Only `quantize` and what follows reads the quantize section."""
    import shutil

    whole, answer = unbroken
    out = tmp_path / "copy"
    shutil.copytree(whole, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert finish(start(out, "--resume"))["stages"] == answer["stages"]
    finish(start(out, "quantize.kinds=[int4]", "--resume"))
    assert (out / "quantize.old-1").is_dir()
    changed = {path.relative_to(out).parts[0] for path in out.rglob("*.safetensors") if path not in before}
    assert changed <= {"quantize", "quantize.old-1"}
    assert (out / "report.html").stat().st_size > 10_000


def test_existing_folders_and_second_processes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        run(read_recipe("smoke"), tmp_path / "there", quiet=True)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["thesis.txt"]


def test_stages_follow_the_recipe(tmp_path: Path) -> None:
    names = [stage.name for stage in stages(read_recipe("smoke", ["ppo=null", "reward=null"]), tmp_path)]
    assert names == ["text", "tokenizer", "pretrain", "sft", "dpo", "quantize", "evaluate"]
    adapt = {stage.name: stage for stage in stages(read_recipe("adapt-smollm2"), tmp_path)}
    assert list(adapt) == ["sft", "reward", "ppo", "evaluate"]
    assert adapt["ppo"].parents == ("sft", "reward")


@pytest.mark.parametrize("preset", ["demo", "scratch-zh"])
def test_presets_live_for_two_steps(preset: str, tmp_path: Path) -> None:
    """Every stage of the shipped recipes; adapt-smollm2 has tests/test_adapt.py."""
    training = [f"{stage}.training.steps=2" for stage in ("pretrain", "sft", "reward", "dpo", "ppo")]
    sizes = ["sft.watched=8", "sft.max_new_tokens=8", "reward.watched=8", "dpo.watched=8", "ppo.measured=4"]
    rolling = ["ppo.rolling.answers=4", "ppo.sampling.max_new_tokens=4", "ppo.rolling.minibatches=1", "model.dim=64"]
    cheap = ["text.held_out=0.005", "quantize.documents=1", "evaluate.tasks=[samples]", "tokenizer.vocab_size=600"]
    whole = read_recipe(preset).model_dump(mode="json")
    for stage in ("sft", "reward", "dpo", "ppo"):
        few = [source | ({"n": 300} if "n" in source else {}) for source in whole[stage]["data"]]
        cheap.append(f"{stage}.data={json.dumps(few)}")
    recipe = read_recipe(preset, training + sizes + rolling + cheap)
    done = run(recipe, tmp_path / "run", quiet=True)
    assert [stage["name"] for stage in done["stages"]][-1] == "evaluate"
    assert all(stage["steps"] == 2 for stage in done["stages"][2:7])


def test_a_full_disk_names_the_run_and_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("llmlab.run.run_stages", full)
    with pytest.raises(InputError, match=r"no space left on the disk .*--resume") as caught:
        run(read_recipe("smoke"), tmp_path / "r", quiet=True)
    assert caught.value.place == str(tmp_path / "r")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_loses_text_is_refused_before_any_work():
    with pytest.raises(InputError, match="a wordpiece tokenizer does not keep the text"):
        read_recipe("smoke", ["tokenizer=wordpiece"])
    assert read_recipe("smoke", ["tokenizer=unigram"]).tokenizer.vocab_size == 512


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            ["pretrain.objective=masked"],
            r"model\.mask: causal cannot go with the objective masked \(use bidirectional\)",
        ),
        (["pretrain.objective=spans"], r"model\.encoder_layers: 0 cannot go with the objective spans"),
        (["pretrain.objective=masked", "model.mask=bidirectional"], r"sft needs a model that goes on with a text"),
        (
            [
                "pretrain.objective=masked",
                "model.mask=bidirectional",
                "sft=null",
                "reward=null",
                "dpo=null",
                "ppo=null",
            ],
            r"quantize needs a model that goes on with a text, which masked does not train",
        ),
        (["pretrain.objective=maskd"], r"unknown kind 'maskd' \(did you mean 'masked'\?"),
        (["model.mask=bidirectional"], r"bidirectional cannot go with the objective causal"),
        (["pretrain.length=4096"], r"pretrain\.length: 4096 is beyond the model's context of 128"),
    ],
)
def test_an_objective_is_checked_before_any_work(changes: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_recipe("smoke", changes)


def test_an_objective_gets_its_tokens(tmp_path: Path) -> None:
    """From text to its figure: the tokenizer of the run has the tokens, after all others; asking what this model does
    not train is refused by the task's name."""
    short = ["sft=null", "reward=null", "dpo=null", "ppo=null", "quantize=null", "pretrain.training.steps=3"]
    masked = ["pretrain.objective=masked", "model.mask=bidirectional", "tokenizer.vocab_size=300", "dtype=fp32"]
    with pytest.raises(InputError, match=r"evaluate\.tasks: bits_per_byte asks for the next token.*\[held_out\]"):
        read_recipe("smoke", [*short, *masked])
    recipe = read_recipe("smoke", [*short, *masked, "evaluate.tasks=[held_out]"])
    tokenizer = next(stage for stage in stages(recipe, tmp_path) if stage.name == "tokenizer")
    assert tokenizer.key["special"] == ("[MASK]",)
    assert "special" not in next(s for s in stages(read_recipe("smoke"), tmp_path) if s.name == "tokenizer").key
    answer = run(recipe, tmp_path / "out", quiet=True)
    made = json.loads((tmp_path / "out" / "pretrain" / "model" / "config.json").read_text())
    assert made["vocab_size"] == 301
    evaluated = next(stage for stage in answer["stages"] if stage["name"] == "evaluate")["figures"]["policies"]
    assert [row["metric"] for row in evaluated["pretrain"]] == ["masked_accuracy", "masked_cross_entropy"]
