"""Records: what they hold, where they go, what their key depends on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmlab import runtime
from llmlab.errors import InputError, LlmlabError
from llmlab.handbook import runner
from llmlab.handbook.question import NUMBERS, Question, built, load
from llmlab.handbook.runner import SHIPPED, key, read, run_question, shipped
from llmlab.stages import Session


def test_a_run_writes_its_record_and_leaves_the_shipped_one_alone(tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in SHIPPED.iterdir()}
    record = run_question(50, Session(), tmp_path)
    assert {path: path.read_bytes() for path in SHIPPED.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["q50.json"]
    assert read(tmp_path, 50) == record == json.loads((tmp_path / "q50.json").read_text(encoding="utf-8"))
    assert record["tier"] == "M"  # its race took minutes
    assert record["verdict"] == "CORRECTED"
    assert {"python", "torch", "llmlab"} <= set(record["versions"])
    assert record["seconds"] >= 0
    assert record["date"][:2] == "20"
    assert isinstance(record["cpu"], list)


def test_a_fresh_run_goes_to_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMLAB_HOME", str(tmp_path))
    record = run_question(51, Session(seed=3))
    assert read(tmp_path / "handbook", 51) == record
    assert record["seed"] == 3


def test_the_key_depends_on_settings_seed_and_measure_and_on_nothing_else() -> None:
    question = load(50)
    assert key(question, 0) == key(question, 0)
    others = [
        key(question, 1),
        key(dataclasses.replace(question, settings={**question.settings, "points": 11}), 0),
        key(dataclasses.replace(question, measure=2), 0),
        key(load(51), 0),
    ]
    assert len({key(question, 0), *others}) == 5
    assert key(dataclasses.replace(question, papers=()), 0) == key(question, 0)


@pytest.mark.parametrize("number", [0, 55, 99])
def test_a_question_that_does_not_exist(number: int, tmp_path: Path) -> None:
    for ask in (lambda: run_question(number, Session(), tmp_path), lambda: shipped(number)):
        with pytest.raises(InputError, match="1 to 54"):
            ask()
    assert not list(tmp_path.iterdir())


def test_a_question_that_is_not_built(tmp_path: Path) -> None:
    missing = next(number for number in NUMBERS if number not in built())
    with pytest.raises(InputError, match="not built yet"):
        run_question(missing, Session(), tmp_path)
    assert shipped(missing) is None


def test_a_figure_that_is_no_number_is_an_error_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(number: int) -> Question:
        question = load(number)
        return dataclasses.replace(question, figures=lambda session: {**question.figures(session), "bad": float("nan")})

    monkeypatch.setattr(runner, "load", broken)
    with pytest.raises(LlmlabError, match="not a finite number: bad"):
        run_question(50, Session(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_formula_tier_computes_on_one_thread_and_gives_the_threads_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def spying(number: int) -> Question:
        question = load(number)

        def figures(session: Session) -> dict[str, float]:
            seen.append(torch.get_num_threads())
            return question.figures(session)

        return dataclasses.replace(question, figures=figures)

    monkeypatch.setattr(runner, "load", spying)
    torch.set_num_threads(2)
    run_question(50, Session(), tmp_path)
    assert seen == [1]
    assert torch.get_num_threads() == 2


def test_cpu_flags_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert runtime.cpu_flags() == []
