"""The race as a user meets it: a small one from end to end, kept arm by arm, stopped and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from llmlab.errors import InputError
from llmlab.evaluation.measures import MEASURES, read_measures
from llmlab.race.arms import Arm, changed
from llmlab.race.compare import compare, race
from llmlab.run import Run, read_recipe, run

LENGTHS = [f"bits_per_byte@{k}x" for k in (1, 2, 4, 8)]
CLOCKS = ("seconds", "trained", "out", "figure")
Answer = dict[str, Any]


def figures(answer: Answer) -> Answer:
    """What must be equal each time: everything but clocks and places."""
    text = json.dumps({name: value for name, value in answer.items() if name not in CLOCKS})
    return dict(json.loads(text))


@pytest.fixture(scope="session")
def raced(tiny_recipe: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    out = tmp_path_factory.mktemp("races") / "positions"
    vary = {"model.position": ["rope", "alibi", "learned"]}
    return out, compare(tiny_recipe, vary, 3, out, measures=["bits_per_byte", *LENGTHS])


def test_the_answer_has_what_others_rely_on(raced: tuple[Path, Answer]) -> None:
    out, answer = raced
    assert json.loads((out / "race.json").read_text()) == answer
    assert [arm["name"] for arm in answer["arms"]] == ["rope", "alibi", "learned"]
    assert answer["arms"][1]["values"] == {"model.position": "alibi"}
    assert len(answer["pairs"]) == 3 * 5
    assert answer["settings"]["seeds"] == [0, 1, 2]
    assert answer["trained"] == 9
    assert {"torch", "python"} <= set(answer["versions"])
    for arm in answer["arms"]:
        for row in arm["measures"]:
            if row["mean"] is not None:
                assert row["mean"] == pytest.approx(sum(row["by_seed"]) / 3)
                assert row["interval"][0] <= row["mean"] <= row["interval"][1]
    by_name = {arm["name"]: {row["measure"]: row for row in arm["measures"]} for arm in answer["arms"]}
    for pair in answer["pairs"]:
        a, b = (by_name[pair[side]][pair["measure"]]["mean"] for side in "ab")
        if pair["difference"] is not None:
            assert pair["difference"] == pytest.approx(a - b)


def test_learned_positions_fail_beyond_their_table(raced: tuple[Path, Answer]) -> None:
    _, answer = raced
    for pair in answer["pairs"]:
        beyond = pair["measure"] in LENGTHS[1:] and "learned" in (pair["a"], pair["b"])
        assert (pair["verdict"] == "fails") == beyond
        assert pair.get("fails", []) == (["learned"] if beyond else [])
    learned = answer["arms"][2]["measures"]
    assert [row["mean"] is None for row in learned] == [False, False, True, True, True]
    assert "past the learnt table of 8" in learned[2]["reason"]


def test_the_figure_is_a_picture_of_every_arm_and_pair(raced: tuple[Path, Answer]) -> None:
    out, answer = raced
    svg = ElementTree.parse(out / "race.svg")
    said = ["".join(text.itertext()) for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert answer["figure"] == str(out / "race.svg")
    assert {"rope", "alibi", "learned", "rope \N{MINUS SIGN} alibi", "learned fails", "8x"} <= set(said)
    assert any("past the learnt table" in text for text in said)


def test_an_arm_is_a_run_and_the_text_is_made_once(raced: tuple[Path, Answer], tiny_recipe: Run) -> None:
    """Other seeds read the same shards, and the same recipe run alone gives the same model, byte for byte."""
    out, answer = raced
    assert len(list((out / "data").iterdir())) == 1
    folder = out / answer["arms"][1]["runs"]["2"]
    assert (folder / "tokenizer").resolve().is_relative_to((out / "data").resolve())
    assert not list(folder.glob("*/checkpoints"))
    alone = changed(tiny_recipe, {"model.position": "alibi", "seed": 2})
    done = run(alone, out.with_name("alone"), quiet=True)
    weights = Path("pretrain", "model", "model.safetensors")
    assert (folder / weights).read_bytes() == (Path(done["out"]) / weights).read_bytes()
    again = run(read_recipe(str(folder / "recipe.yaml")), folder, resume=True, quiet=True)  # nothing is left to do
    assert [stage["name"] for stage in again["stages"]] == ["text", "tokenizer", "pretrain"]
    assert not list(folder.glob("*.old-*"))
    held = done["stages"][2]["figures"]["held_out"]["held_out_bits_per_byte"]
    assert answer["arms"][1]["measures"][0]["by_seed"][2] == pytest.approx(held, rel=1e-6)


def test_a_wider_race_runs_only_what_is_new(raced: tuple[Path, Answer], tiny_recipe: Run) -> None:
    out, answer = raced
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    wider = compare(tiny_recipe, {"model.position": ["alibi", "none"]}, 3, out, measures=["bits_per_byte", "loss"])
    assert wider["trained"] == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list((out / "data").iterdir())) == 1
    alibi = [next(arm for arm in one["arms"] if arm["name"] == "alibi") for one in (answer, wider)]
    assert alibi[0]["measures"][0] == alibi[1]["measures"][0]
    assert alibi[0]["runs"] == alibi[1]["runs"]
    more = compare(tiny_recipe, {"model.position": ["alibi", "none"]}, 4, out)
    assert more["trained"] == 2


def test_the_same_race_gives_the_same_numbers(raced: tuple[Path, Answer], tiny_recipe: Run, tmp_path: Path) -> None:
    _, answer = raced
    vary = {"model.position": ["rope", "alibi", "learned"]}
    other = compare(tiny_recipe, vary, 3, tmp_path / "other", measures=["bits_per_byte", *LENGTHS])
    assert figures(other) == figures(answer)


def test_costs_and_equal_budgets(tiny_recipe: Run, tmp_path: Path) -> None:
    costs = ["parameters", "seconds", "peak_bytes"]
    done = compare(tiny_recipe, {"model.layers": [1, 2]}, 2, tmp_path / "r", measures=costs, equal="flops")
    one, two = ({row["measure"]: row["mean"] for row in arm["measures"]} for arm in done["arms"])
    assert one["parameters"] < two["parameters"]
    assert min(one["seconds"], two["seconds"], one["peak_bytes"], two["peak_bytes"]) > 0
    assert done["arms"][0]["changed"] == []
    (change,) = done["arms"][1]["changed"]
    assert (change["path"], change["from"]) == ("pretrain.training.steps", 6)
    recipe = yaml.safe_load((tmp_path / "r" / done["arms"][1]["runs"]["0"] / "recipe.yaml").read_text())
    assert recipe["pretrain"]["training"]["steps"] == change["to"] < 6


def test_tokenizers_are_compared_by_bits_per_byte(tiny_recipe: Run, tmp_path: Path) -> None:
    done = compare(tiny_recipe, {"tokenizer.vocab_size": [262, 280]}, 2, tmp_path / "r")
    assert len(list((tmp_path / "r" / "data").iterdir())) == 2
    assert [pair["measure"] for pair in done["pairs"]] == ["bits_per_byte"]


def test_an_arm_that_diverges_fails_and_is_not_run_again(tiny_recipe: Run, tmp_path: Path) -> None:
    vary = {"pretrain.training.optimizer.lr": [0.01, 1e38]}
    done = compare(tiny_recipe, vary, 2, tmp_path / "r")
    assert done["pairs"][0]["verdict"] == "fails"
    assert done["pairs"][0]["fails"] == ["lr=1e+38"]
    assert "diverged at step" in done["arms"][1]["measures"][0]["reason"]
    again = compare(tiny_recipe, vary, 2, tmp_path / "r")
    assert again["trained"] == 0
    assert figures(again) == figures(done)


def test_new_text_is_trained_on_anew(tiny_recipe: Run, tmp_path: Path) -> None:
    """The arms' folders are named by the recipe, which only names the file: its content is in the stages' keys."""
    file = tmp_path / "own.txt"
    file.write_text("the whale is white. " * 600)
    recipe = changed(tiny_recipe, {"text.sources": [{"kind": "files", "path": str(file), "piece": 500}]})
    recipe = changed(recipe, {"text.dedup": False})
    file.write_text("".join(f"the whale {n} is white. " for n in range(600)))
    first = compare(recipe, {"model.layers": [1, 2]}, 2, tmp_path / "r")
    file.write_text("".join(f"the ship {n} is black and old. " for n in range(600)))
    second = compare(recipe, {"model.layers": [1, 2]}, 2, tmp_path / "r")
    assert [arm["measures"] for arm in first["arms"]] != [arm["measures"] for arm in second["arms"]]
    fresh = compare(recipe, {"model.layers": [1, 2]}, 2, tmp_path / "fresh")
    assert figures(second) == figures(fresh)


def test_text_too_short_for_the_longest_window_is_said_before_training(tiny_recipe: Run, tmp_path: Path) -> None:
    recipe = changed(tiny_recipe, {"model.context": 256})
    with pytest.raises(InputError, match="8 times the trained length are 2048"):
        compare(recipe, {"model.layers": [1, 2]}, 2, tmp_path / "r", measures=["bits_per_byte@1x"])
    assert not (tmp_path / "r" / "arms").exists()


def test_other_folders_are_left_alone(tiny_recipe: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    for out, says in ((tmp_path, "holds no race"), (tmp_path / "thesis.txt", "is a file")):
        with pytest.raises(InputError, match=says):
            compare(tiny_recipe, {"model.layers": [1, 2]}, 2, out)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "run").mkdir()
    for name in ("lock", "recipe.yaml"):
        (tmp_path / "run" / name).write_text("")
    with pytest.raises(InputError, match="holds a run, not a race"):
        compare(tiny_recipe, {"model.layers": [1, 2]}, 2, tmp_path / "run")


# ---------------------------------------------------------------- the command line


def command(recipe: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "llmlab", "compare", str(recipe), *more, "--out", str(out), "--json", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def test_stopped_then_killed_then_gone_on_with(tiny_recipe: Run, tmp_path: Path) -> None:
    long = changed(tiny_recipe, {"pretrain.training.steps": 60, "pretrain.training.checkpoint_every": 5})
    recipe, out, vary = (
        tmp_path / "long.yaml",
        tmp_path / "race",
        ["--vary", "model.position=rope,none", "--seeds", "2"],
    )
    recipe.write_text(yaml.safe_dump(long.model_dump(mode="json")))

    def checkpoints() -> int:
        return len(list(out.glob("arms/*/pretrain/checkpoints/step-*")))

    errors = b""
    for sent in (signal.SIGINT, signal.SIGKILL):
        process, deadline = command(recipe, out, *vary), time.monotonic() + 60
        finished = len(list(out.glob("arms/*/measured.json")))
        while len(list(out.glob("arms/*/measured.json"))) <= finished or not checkpoints():
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(sent)
        errors += process.communicate()[1]
        assert process.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    assert b"the same command goes on" in errors
    assert len(errors.splitlines()) == 1
    stdout, stderr = command(recipe, out, *vary).communicate()
    assert not stderr
    answer = json.loads(stdout.splitlines()[-1])
    assert 1 <= answer["trained"] <= 2
    vary_ = {"model.position": ["rope", "none"]}
    assert figures(compare(long, vary_, 2, tmp_path / "unbroken")) == figures(answer)


def test_the_command_refuses_in_one_line(tiny_recipe: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe.model_dump(mode="json")))
    process = command(recipe, tmp_path / "race", "--vary", "model.position=rope,rotary")
    out, err = process.communicate()
    assert (process.returncode, out, len(err.splitlines())) == (2, b"", 1)
    assert b"unknown kind 'rotary'" in err
    assert not (tmp_path / "race").exists()


def test_the_preset_names_its_measures_and_may_be_run_alone() -> None:
    recipe = read_recipe("race-positions")
    assert recipe.compare is not None
    assert list(recipe.compare.measures) == LENGTHS
    assert recipe.model is not None
    assert recipe.model.context == 128
    for bad in ("bits", "bits_per_byte@3x"):
        with pytest.raises(InputError, match=r"recipe\.compare\.measures"):
            read_recipe("race-positions", [f"compare.measures=[{bad}]"])
    assert {"held_out", "length", "cost"} <= {measure.family for measure in MEASURES.values()}


def test_arms_of_other_objectives_get_the_special_tokens_that_they_need(tiny_recipe: Run, tmp_path: Path) -> None:
    """A vocabulary is shared by the arms that have the same one."""
    made = [
        Arm("causal", tiny_recipe),
        Arm("other", changed(tiny_recipe, {"model.position": "alibi"})),
        Arm("masked", changed(tiny_recipe, {"model.mask": "bidirectional", "pretrain.objective": "masked"})),
    ]
    measures = read_measures(("bits_per_byte", "masked_accuracy", "onward_bits_per_byte"))
    done = race(made, [0, 1], tmp_path / "r", measures)
    folders = [tmp_path / "r" / arm["runs"]["0"] for arm in done["arms"]]
    assert len({(folder / "tokenizer").resolve() for folder in folders}) == 2
    assert not list((tmp_path / "r").rglob("*.old-*"))
    told = {arm["name"]: {one["measure"]: one["by_seed"] for one in arm["measures"]} for arm in done["arms"]}
    assert None in told["masked"]["bits_per_byte"]
    assert None in told["causal"]["masked_accuracy"]
    for arm in told.values():
        assert all(0 < value < 10 for value in arm["onward_bits_per_byte"])
