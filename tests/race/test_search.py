"""A search finds a planted optimum, spends the steps it says, and goes on after a stop as if there had been none."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import InputError, Stopped
from llmlab.race.arms import changed
from llmlab.race.axes import Choice, Law, Span, Whole, read_over, told, trials
from llmlab.race.halving import Rung, rungs, steps_of
from llmlab.race.search import search
from llmlab.race.search_table import table
from llmlab.run import Run, run
from llmlab.training import loop

LR = "pretrain.training.optimizer.lr"
HOPELESS = [1e-6, 1e-5, 0.01, 30.0]  # the third is the planted optimum
CLOCKS = ("seconds", "out", "made")


def figures(answer: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps({name: value for name, value in answer.items() if name not in CLOCKS})))


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The optimizer steps that were made."""
    made: list[int] = []
    plain = loop._Loop.update

    def update(self: Any) -> bool:
        made.append(self.step)
        return plain(self)

    monkeypatch.setattr(loop._Loop, "update", update)
    return made


def test_a_grid_finds_the_planted_rate(tiny_recipe: Run, tmp_path: Path, updates: list[int]) -> None:
    answer = search(tiny_recipe, {LR: Choice(HOPELESS)}, tmp_path / "out", seeds=2)
    assert json.loads((tmp_path / "out" / "search.json").read_text()) == answer
    best = answer["best"]
    assert best["values"] == {LR: 0.01}
    assert best["fresh"]["seeds"] == [1, 2]
    assert best["fresh"]["mean"] == pytest.approx(sum(best["fresh"]["by_seed"]) / 2)
    assert best["flattered_by"] == pytest.approx(best["fresh"]["mean"] - best["found"])
    assert answer["trials"][0]["values"] == {LR: 0.01}
    found = [trial["rungs"][-1]["value"] for trial in answer["trials"]]
    assert found == sorted(found)
    assert len(updates) == 4 * 6 + 2 * 6 == answer["budget"]["search_steps"] + answer["budget"]["fresh_steps"]
    assert best["overrides"] in table(answer)
    assert "report this" in table(answer)
    for trial in answer["trials"]:
        assert (tmp_path / "out" / trial["run"] / "recipe.yaml").is_file()


@pytest.fixture(scope="module")
def halved(tiny_recipe: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out, made = tmp_path_factory.mktemp("searches") / "halved", list[int]()
    plain = loop._Loop.update

    def update(self: Any) -> bool:
        made.append(self.step)
        return plain(self)

    with pytest.MonkeyPatch.context() as watched:
        watched.setattr(loop._Loop, "update", update)
        answer = search(tiny_recipe, {LR: Choice(HOPELESS)}, out, seeds=2, eta=2)
    return out, answer | {"made": len(made)}


def test_halving_finds_it_for_the_steps_that_it_says(halved: tuple[Path, dict[str, Any]]) -> None:
    """By hand, of 6 steps: four trials up to round(6 / 4), two up to 3, one up to 6."""
    _, answer = halved
    assert answer["rungs"] == [{"trials": 4, "steps": 2}, {"trials": 2, "steps": 3}, {"trials": 1, "steps": 6}]
    assert answer["budget"]["search_steps"] == 4 * 2 + 2 * 1 + 1 * 3 == answer["made"] - 2 * 6
    assert answer["best"]["values"] == {LR: 0.01}
    assert sorted(len(trial["rungs"]) for trial in answer["trials"]) == [1, 1, 2, 3]


def test_a_trial_that_paused_is_the_run_that_did_not(tiny_recipe: Run, tmp_path: Path) -> None:
    """Whatever its schedule; but for the best weights, which may be those of a pause's evaluation."""
    answer = search(tiny_recipe, {LR: Choice([1e-5, 0.01])}, tmp_path / "out", seeds=2, eta=2)
    folder = tmp_path / "out" / answer["trials"][0]["run"]
    done = run(changed(tiny_recipe, {LR: 0.01}), tmp_path / "alone", quiet=True)
    weights = Path("pretrain", "model", "model.safetensors")
    assert (folder / weights).read_bytes() == (tmp_path / "alone" / weights).read_bytes()
    figures = json.loads((folder / "pretrain" / "manifest.json").read_text())["figures"]
    assert figures["training"] == done["stages"][2]["figures"]["training"]
    assert figures["resumed_from_step"] == 3
    assert answer["trials"][0]["rungs"][-1]["value"] == pytest.approx(
        done["stages"][2]["figures"]["held_out"]["held_out_bits_per_byte"], rel=1e-6
    )


@pytest.mark.parametrize("dies_at", [3, 9, 15])  # in the first rung, in the second, in a fresh seed
def test_killed_and_gone_on_with_it_is_the_unbroken_one(
    tiny_recipe: Run, tmp_path: Path, halved: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    over = {LR: Choice(HOPELESS)}
    unbroken, expected = halved
    left, plain = [dies_at], loop._Loop.update

    def update(self: Any) -> bool:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("power cut")
        return plain(self)

    with monkeypatch.context() as cut:
        cut.setattr(loop._Loop, "update", update)
        with pytest.raises(RuntimeError, match="power cut"):
            search(tiny_recipe, over, tmp_path / "cut", seeds=2, eta=2)
    answer = search(tiny_recipe, over, tmp_path / "cut", seeds=2, eta=2)
    assert figures(answer) == figures(expected)
    for trial in expected["trials"]:
        ours, theirs = (root / trial["run"] / "pretrain" for root in (tmp_path / "cut", unbroken))
        files = sorted(path.relative_to(theirs) for path in theirs.rglob("*.safetensors"))
        assert files
        assert all((ours / file).read_bytes() == (theirs / file).read_bytes() for file in files)


def test_a_stop_is_a_stop_and_no_pause(tiny_recipe: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = loop._Loop.update

    def update(self: Any) -> bool:
        self.session.stop.requested = True
        return plain(self)

    with monkeypatch.context() as asked:
        asked.setattr(loop._Loop, "update", update)
        with pytest.raises(Stopped, match="the same command goes on"):
            search(tiny_recipe, {LR: Choice(HOPELESS)}, tmp_path, seeds=2, eta=2)
    assert search(tiny_recipe, {LR: Choice(HOPELESS)}, tmp_path, seeds=2, eta=2)["best"]["values"] == {LR: 0.01}


def test_what_was_done_is_not_done_again_and_a_search_may_grow(
    tiny_recipe: Run, tmp_path: Path, updates: list[int]
) -> None:
    over: dict[str, Law] = {LR: Span(1e-4, 1e-1, log=True)}
    first = search(tiny_recipe, over, tmp_path, count=2, seeds=2)
    made = len(updates)
    again = search(tiny_recipe, over, tmp_path, count=2, seeds=2)
    assert len(updates) == made
    assert figures(again) == figures(first)
    grown = search(tiny_recipe, over, tmp_path, count=3, seeds=2)
    values = [{trial["trial"]: trial["values"] for trial in one["trials"]} for one in (first, grown)]
    assert values[0].items() <= values[1].items()
    with pytest.raises(InputError, match="differs in eta"):
        search(tiny_recipe, over, tmp_path, count=3, seeds=2, eta=2)


def test_a_search_that_diverges_everywhere_says_so(tiny_recipe: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trial gave a figure; the first: diverged at step"):
        search(tiny_recipe, {LR: Choice([1e30, 1e35])}, tmp_path, seeds=2)


# ---------------------------------------------------------------- draws and rungs


@given(seed=st.integers(0, 99), trial=st.integers(0, 99))
def test_draws_lie_in_their_law_and_know_nothing_of_other_axes(seed: int, trial: int) -> None:
    laws = {"a": Span(1e-4, 1e-2, log=True), "b": Span(-1.0, 1.0), "c": Whole(2, 5), "d": Choice(["x", "y"])}
    drawn = {path: law.draw(seed, trial, path) for path, law in laws.items()}
    assert 1e-4 <= drawn["a"] <= 1e-2
    assert -1.0 <= drawn["b"] <= 1.0
    assert drawn["c"] in (2, 3, 4, 5)
    assert drawn["d"] in ("x", "y")
    assert drawn == {path: law.draw(seed, trial, path) for path, law in reversed(laws.items())}
    assert drawn["b"] != laws["b"].draw(seed, trial, "another")


def test_another_axis_changes_no_draw_and_more_trials_none_before() -> None:
    one = {"a": Span(0.0, 1.0)}
    narrow, wide = trials(one, 6, 3), trials(one | {"b": Whole(0, 1000)}, 9, 3)
    assert [values["a"] for values in narrow] == [values["a"] for values in wide[:6]]
    assert trials(one, 3, 3) == narrow[:3]
    assert trials(one, 6, 4) != narrow


def test_the_laws_are_as_named() -> None:
    for law, share in ((Span(1e-4, 1.0, log=True), lambda v: math.log(v / 1e-4) / math.log(1e4)),
                       (Span(2.0, 4.0), lambda v: (v - 2.0) / 2.0)):  # fmt: skip
        shares = sorted(share(law.draw(0, trial, "x")) for trial in range(2000))
        gap = max(abs((number + 0.5) / 2000 - value) for number, value in enumerate(shares))
        assert gap < 1.63 / math.sqrt(2000)  # Kolmogorov-Smirnov at 1 %


@settings(max_examples=200)
@given(count=st.integers(2, 100), eta=st.integers(2, 5), steps=st.integers(700, 5000))
def test_rungs_shrink_and_end_with_all_steps(count: int, eta: int, steps: int) -> None:
    if count < eta:
        with pytest.raises(InputError, match="cannot be divided"):
            rungs(count, steps, eta)
        return
    plan = rungs(count, steps, eta)
    assert (plan[0].trials, plan[-1].steps) == (count, steps)
    assert 1 <= plan[-1].trials < eta
    for before, after in itertools.pairwise(plan):
        assert after.trials in (before.trials // eta, (before.trials + 1) // eta)
        assert after.steps == pytest.approx(before.steps * eta, abs=eta)
    by_hand = 0
    for trial in range(count):
        by_hand += max(rung.steps for rung in plan if trial < rung.trials)
    assert steps_of(plan) == by_hand <= count * steps


def test_rungs_by_hand() -> None:
    assert rungs(9, 90, 3) == [Rung(9, 10), Rung(3, 30), Rung(1, 90)]
    assert steps_of(rungs(9, 90, 3)) == 9 * 10 + 3 * 20 + 1 * 60
    assert rungs(9, 90, None) == [Rung(9, 90)]


@pytest.mark.parametrize(
    ("over", "says"),
    [
        (["a"], "names no values"),
        ([], "names no field"),
        (["a=log(0,1)"], "has no logarithm"),
        (["a=uniform(2,1)"], "smaller end first"),
        (["a=int(1,2.5)"], "not both whole"),
        (["a=log(x,1)"], "no pair of numbers"),
        (["a=1", "a=2"], "is there twice"),
        (["seed=1,2"], "changes nothing"),
    ],
)
def test_bad_axes_are_named(over: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_over(over)


def test_axes_are_read_as_written() -> None:
    assert read_over(["a=log(1e-4,1e-2)", "b=1e-4,3", "c=int(1,3)", "d=rope,{kind: alibi}"]) == {
        "a": Span(1e-4, 1e-2, log=True),
        "b": Choice([1e-4, 3]),
        "c": Whole(1, 3),
        "d": Choice(["rope", {"kind": "alibi"}]),
    }
    assert told({"a": 1e-05, "d": {"kind": "alibi"}, "e": "rope"}) == "a=1.0e-05 d={kind: alibi} e=rope"


@pytest.mark.parametrize(
    ("over", "options", "says"),
    [
        ({"pretrain.training.stpes": Choice([1, 2])}, {}, "did you mean 'steps'"),
        ({"pretrain.training.steps": Choice([1, 2])}, {}, "equal steps"),
        ({LR: Span(0.1, 1.0)}, {}, "--trials: is missing"),
        ({LR: Choice([0.1, 0.2])}, {"count": 3}, "more than the 2 combinations"),
        ({LR: Span(0.1, 1.0)}, {"count": 0}, "--trials: 0 try nothing"),
        ({LR: Choice([0.1])}, {}, "leaves nothing to choose"),
        ({LR: Choice([0.1, 0.2])}, {"seeds": 1}, "gives no interval"),
        ({LR: Choice([0.1, 0.2])}, {"measure": "seconds"}, "says nothing of how good"),
        ({LR: Choice([0.1, 0.2])}, {"measure": "bits"}, "--measure: unknown value"),
        ({LR: Choice([0.1, 0.2])}, {"eta": 3}, "cannot be divided"),
        ({LR: Choice([0.1, 0.2])}, {"eta": 1}, "throws nothing away"),
        ({LR: Span(0.1, 1.0)}, {"count": 64, "eta": 2}, "leave none for the first rung"),
        ({"model.dim": Choice([16, 17])}, {}, "17"),
        ({"tokenizer.vocab_size": Choice([280, 290])}, {"measure": "loss"}, "differ in their tokenizer"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    tiny_recipe: Run, tmp_path: Path, over: dict[str, Law], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        search(tiny_recipe, over, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
