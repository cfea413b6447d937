"""Runs listed and compared from their folders, whole, half and broken ones; nothing is written into them."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from llmlab.errors import InputError
from llmlab.evaluation.runs import differences, figures_beside, find_runs, in_order, labels, read_row, recipe_hash
from llmlab.evaluation.runs_page import page
from llmlab.evaluation.runs_table import comparison, listing

HOSTILE = '<script>alert("x")</script>'


def make(
    folder: Path,
    name: str = "demo",
    seed: int = 0,
    lr: float = 0.01,
    bits: float = 2.0,
    stages: tuple[str, ...] = ("text", "tokenizer", "pretrain", "sft"),
) -> Path:
    """A run's folder as `llmlab run` leaves it, as far as a listing reads it."""
    folder.mkdir(parents=True)
    recipe = {
        "name": name, "seed": seed, "device": "auto", "text": {"held_out": 0.1}, "tokenizer": {"vocab_size": 300},
        "model": {"layers": 2}, "pretrain": {"training": {"steps": 40, "optimizer": {"kind": "adamw", "lr": lr}}},
        "sft": {"training": {"steps": 20}}, "dpo": None,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for stage in stages:
        (folder / stage).mkdir()
        (folder / stage / "started.json").write_text('{"key": "k", "seconds": 1.0}')
        figures = {"steps": 40, "held_out": {f"held_out_{stage}": bits}, "held_out_n_interval": [1, 2]}
        manifest = {"name": stage, "key": "k", "seconds": 2.5, "peak_bytes": 1, "steps": 40, "figures": figures}
        (folder / stage / "manifest.json").write_text(json.dumps(manifest))
        if stage in ("pretrain", "sft"):
            rows = [{"step": step, "loss": bits + 1 / step} for step in range(1, 41)]
            (folder / stage / "figures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def unfinished(folder: Path) -> Path:
    make(folder, "half", stages=("text", "tokenizer", "pretrain"))
    (folder / "pretrain" / "manifest.json").unlink()
    with (folder / "pretrain" / "figures.jsonl").open("a") as file:
        file.write('{"step": 41, "lo')  # killed while it wrote
    return folder


def without_recipe(folder: Path) -> Path:
    make(folder, "none")
    (folder / "recipe.yaml").unlink()
    return folder


def broken_recipe(folder: Path) -> Path:
    make(folder, "garbled")
    (folder / "recipe.yaml").write_bytes(b"\xff\xfe: [")
    return folder


def broken_manifest(folder: Path) -> Path:
    make(folder, "cut")
    (folder / "pretrain" / "manifest.json").write_text('{"name": "pre')
    return folder


def diverged(folder: Path) -> Path:
    make(folder, "wild", stages=("text", "tokenizer"))
    (folder / "diverged.json").write_text("{}")
    return folder


def only_begun(folder: Path) -> Path:
    return make(folder, "begun", stages=())


def manifest_alone(folder: Path) -> Path:
    """Of a stage that was never begun, and a recipe that says nothing."""
    (folder / "pretrain").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("name: alone")
    (folder / "pretrain" / "manifest.json").write_text("{cut")
    return folder


def nothing_to_do(folder: Path) -> Path:
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: nothing")
    return folder


STATES: list[tuple[Callable[[Path], Path], str]] = [
    (make, "finished"),
    (unfinished, "pretrain at step 40 of 40"),
    (only_begun, "text not begun"),
    (diverged, "diverged"),
    (without_recipe, "broken: recipe.yaml is missing"),
    (broken_recipe, "broken: recipe.yaml cannot be read"),
    (broken_manifest, "broken: pretrain/manifest.json cannot be read"),
    (manifest_alone, "broken: pretrain/manifest.json cannot be read"),
    (nothing_to_do, "broken: recipe.yaml has no stage"),
]


@pytest.mark.parametrize(("build", "state"), STATES, ids=[build.__name__ for build, _ in STATES])
def test_every_state_is_told_and_nothing_is_written(tmp_path: Path, build: Callable[[Path], Path], state: str) -> None:
    folder = build(tmp_path / "run")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    row = read_row(folder)
    assert row.state == state
    assert row.bytes == sum(len(content) for _, content in before.values())
    other = read_row(make(tmp_path / "other"))
    for text in (listing([row, other]), comparison([row, other]), page([row, other])):
        assert state in text
    assert json.loads(json.dumps(row.json()))["state"] == state
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    assert after == before


def test_a_whole_run_in_a_row(tmp_path: Path) -> None:
    row = read_row(make(tmp_path / "a", bits=1.5)).json()
    assert row["stages"] == ["text", "tokenizer", "pretrain", "sft"]
    assert row["seconds"] == 10.0
    assert row["figures"] == {f"{stage}.held_out_{stage}": 1.5 for stage in row["stages"]}
    assert (row["name"], row["seed"]) == ("demo", 0)
    assert row["date"]


def test_runs_are_found_below_and_named_once(tmp_path: Path) -> None:
    for path in ("a", "races/r/arms/1234", "races/r/arms/5678", "too/deep/for/a/run"):
        make(tmp_path / path)
    make(tmp_path / "races/r/data/1234", stages=("text", "tokenizer"))
    (tmp_path / "races/r/data/1234/recipe.yaml").unlink()  # what the arms share
    (tmp_path / "link").symlink_to(tmp_path / "a")
    found = [str(path.relative_to(tmp_path)) for path in find_runs([tmp_path, tmp_path / "a"])]
    assert found == ["a"]  # three folders down is a race's arm, four is too far
    found = [str(path.relative_to(tmp_path)) for path in find_runs([tmp_path / "races", tmp_path / "a"])]
    assert found == ["races/r/arms/1234", "races/r/arms/5678", "a"]
    with pytest.raises(InputError, match="is no folder"):
        find_runs([tmp_path / "b"])


def test_equal_recipes_have_equal_hashes_whatever_their_seed(tmp_path: Path) -> None:
    a, b, c = (
        read_row(make(tmp_path / n, n, seed, lr)) for n, seed, lr in (("a", 0, 1.0), ("b", 1, 1.0), ("c", 0, 2.0))
    )
    assert a.recipe == b.recipe != c.recipe
    assert recipe_hash({}) == ""


def test_only_what_differs_is_compared(tmp_path: Path) -> None:
    rows = [read_row(make(tmp_path / name, name, lr=lr, bits=lr)) for name, lr in (("a", 0.1), ("b", 0.2))]
    assert differences(rows) == {"name": ["a", "b"], "pretrain.training.optimizer.lr": [0.1, 0.2]}
    assert figures_beside(rows)["pretrain.held_out_pretrain"] == [0.1, 0.2]
    half = read_row(unfinished(tmp_path / "half"))
    assert figures_beside([rows[0], half])["sft.held_out_sft"] == [0.1, None]
    assert labels(rows) == ["a", "b"]
    alike = [
        read_row(make(tmp_path / where / name, "same")) for where, name in (("x", "one"), ("x", "two"), ("y", "one"))
    ]
    assert labels(alike[:2]) == ["one", "two"]
    assert labels(alike) == [str(row.folder) for row in alike]


def test_sorted_by_a_column_or_a_figure(tmp_path: Path) -> None:
    rows = [read_row(make(tmp_path / name, name, bits=bits)) for name, bits in (("b", 1.0), ("a", 3.0), ("c", 2.0))]
    rows.append(read_row(only_begun(tmp_path / "d")))
    os.utime(tmp_path / "a" / "sft" / "manifest.json", (1, 1))
    assert [row.record.name for row in in_order(rows, "name")] == ["a", "b", "begun", "c"]
    for by in ("held_out_sft", "sft.held_out_sft"):
        assert [row.record.name for row in in_order(rows, by)] == ["b", "c", "a", "begun"]
    with pytest.raises(InputError, match=r"--sort: unknown value 'held_out_stf'.*did you mean"):
        in_order(rows, "held_out_stf")


def test_the_page_draws_each_curve_once_for_all_and_escapes(tmp_path: Path) -> None:
    rows = [read_row(make(tmp_path / str(n), name, bits=n + 1.0)) for n, name in enumerate(("a", HOSTILE))]
    text = page(rows)
    assert HOSTILE not in text
    plots = [ElementTree.fromstring(part + "</svg>") for part in ("<svg" + p for p in text.split("<svg")[1:])
             for part in [part.split("</svg>")[0]]]  # fmt: skip
    assert len(plots) == 2  # the loss of pretrain and of sft
    for plot in plots:
        assert len([path for path in plot.iter("path") if "line" in path.get("class", "")]) == 2
    assert "2.000" in text


@pytest.mark.parametrize("count", [1, 6])
def test_one_run_and_many_make_a_page(tmp_path: Path, count: int) -> None:
    text = page([read_row(make(tmp_path / str(n), f"run{n}")) for n in range(count)])
    assert ("Not drawn: run4, run5" in text) == (count == 6)


# ---------------------------------------------------------------- the verb


def runs(*arguments: str) -> Any:
    from typer.testing import CliRunner

    from llmlab.cli.main import app

    return CliRunner().invoke(app, ["runs", *arguments], catch_exceptions=True)


def test_the_verb_lists_and_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "runs" / "a", "a", lr=0.1)
    make(tmp_path / "runs" / "b", "b", lr=0.2)
    listed = json.loads(runs("--json").stdout.splitlines()[-1])
    assert [row["name"] for row in listed["runs"]] == ["a", "b"]
    assert "differences" not in listed
    compared = json.loads(runs("runs/a", "runs/b", "--page", "both.html", "--json").stdout.splitlines()[-1])
    assert compared["differences"]["pretrain.training.optimizer.lr"] == [0.1, 0.2]
    assert (tmp_path / "both.html").read_text().startswith("<!doctype html>")
    assert "0.2" in runs("runs/a", "runs/b").stdout
    assert [row["name"] for row in json.loads(runs("--match", "runs/b", "--json").stdout)["runs"]] == ["b"]
    assert isinstance(runs("nowhere").exception, InputError)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["a", "b"]


def test_what_the_package_ships_is_there() -> None:
    spec = importlib.util.find_spec("llmlab.evaluation")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    assert (Path(spec.submodule_search_locations[0]) / "runs.html").is_file()
