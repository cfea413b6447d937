"""A planted spike is met as the guard says, by values and steps alone, and a stop in between changes nothing."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmlab.data.batch import IGNORE, Batch
from llmlab.data.state import State
from llmlab.errors import Diverged, InputError, Stopped
from llmlab.objectives.language import NextToken
from llmlab.objectives.objective import Terms
from llmlab.stages import Session
from llmlab.training.spikes import RollBack, Skip, Watch

Equal = Callable[[dict[str, Tensor], dict[str, Tensor]], bool]
STEPS, SPIKE = 20, 14  # the poisoned draw is the 14th
GUARD = {"window": 10, "deviations": 12.0}


def rows_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "figures.jsonl").read_text().splitlines()]


class Loud(NextToken):
    """The cross entropy of batches that are marked comes a hundred times as large, or as no number."""

    def __init__(self, factor: float = 100.0) -> None:
        super().__init__()
        self.factor = factor

    def __call__(self, model: Any, batch: Batch) -> Terms:
        terms = super().__call__(model, batch)
        factor = self.factor if getattr(batch, "loud", False) else 1.0
        return Terms({name: value * factor for name, value in terms.sums.items()}, terms.figures)


def poisoned(lab: Any, *draws: int, stop: Session | None = None, stop_at: int = 0) -> Any:
    """All rows a step; the draws with these numbers are loud. The number is in the state, as a cursor is. May ask to
    stop after one draw."""

    class Rows(lab.Rows):  # type: ignore[misc, name-defined]
        drawn = 0

        def next(self, model: Any) -> list[Batch]:
            batches = super().next(model)
            self.drawn += 1
            for batch in batches:
                object.__setattr__(batch, "loud", self.drawn in draws)
            if stop is not None:
                stop.stop.requested = self.drawn == stop_at
            return batches  # type: ignore[no-any-return]

        def state(self) -> State:
            state = super().state()
            return State(state.tensors, {"order": state.values, "drawn": self.drawn})

        def load(self, state: State) -> None:
            self.drawn = state.values["drawn"]
            super().load(State(state.tensors, state.values["order"]))

    return Rows((3, 4))


def run(lab: Any, out: Path, rows: Any, spikes: Any, factor: float = 100.0, **options: Any) -> Any:
    given = {"steps": STEPS, "checkpoint_every": 4, "objective": Loud(factor), "dropout": 0.1} | options
    return lab.train(out, rows, spikes=spikes, **given)


def test_without_a_spike_the_guard_changes_nothing(lab: Any, equal: Equal, tmp_path: Path) -> None:
    for name, guard in (("none", None), ("skip", {"kind": "skip"} | GUARD), ("back", {"kind": "roll_back"} | GUARD)):
        figures = run(lab, tmp_path / name, poisoned(lab), guard)
        assert equal(lab.weights(tmp_path / name), lab.weights(tmp_path / "none"))
    assert (figures["skipped_steps"], figures["roll_backs"], figures["events"]) == (0, 0, [])


@pytest.mark.parametrize("factor", [100.0, math.nan, math.inf])
def test_skip_leaves_the_weights_as_they_were(lab: Any, equal: Equal, tmp_path: Path, factor: float) -> None:
    """A training whose objective is silent at that draw has the same weights, since the step counts in both."""

    class Silent(Loud):
        def counts(self, batch: Batch) -> dict[str, float]:
            return {name: 0.0 if getattr(batch, "loud", False) else n for name, n in super().counts(batch).items()}

    figures = run(lab, tmp_path / "guarded", poisoned(lab, SPIKE), {"kind": "skip"} | GUARD, factor)
    run(lab, tmp_path / "silent", poisoned(lab, SPIKE), None, objective=Silent())
    assert equal(lab.weights(tmp_path / "guarded"), lab.weights(tmp_path / "silent"))
    assert figures["skipped_steps"] == 1
    (event,) = figures["events"]
    assert event["step"] == SPIKE
    row = next(row for row in rows_of(tmp_path / "guarded") if row["step"] == SPIKE)
    if math.isfinite(factor):
        assert row["spike_loss"] > row["spike_loss_limit"] > 0
    else:
        assert row["spike_not_finite"] == 1.0
    assert "loss" not in row  # of a step that learnt nothing
    assert all(math.isfinite(value) for row in rows_of(tmp_path / "guarded") for value in row.values())


@pytest.mark.parametrize("factor", [100.0, math.nan])
def test_roll_back_is_the_training_that_never_saw_those_batches(
    lab: Any, equal: Equal, tmp_path: Path, factor: float
) -> None:
    """Back to step 12, past draws 13 and 14: as if the draws after 12 had been 15, 16, ..."""

    class Without(type(poisoned(lab))):  # type: ignore[misc]
        def next(self, model: Any) -> list[Batch]:
            if self.drawn == 12:
                for _ in range(2):
                    super().next(model)
            return super().next(model)  # type: ignore[no-any-return]

    figures = run(lab, tmp_path / "guarded", poisoned(lab, SPIKE), {"kind": "roll_back"} | GUARD, factor)
    run(lab, tmp_path / "without", Without((3, 4)), None)
    assert equal(lab.weights(tmp_path / "guarded"), lab.weights(tmp_path / "without"))
    assert (figures["steps"], figures["roll_backs"], figures["passed_over_steps"]) == (STEPS, 1, 2)
    assert figures["events"][0]["rolled_back_to"] == 12
    assert [row["step"] for row in rows_of(tmp_path / "guarded")] == list(range(1, STEPS + 1))
    told = next(row for row in rows_of(tmp_path / "guarded") if row["step"] == 13)
    assert "spike_not_finite" in told or told["spike_loss"] > told["spike_loss_limit"]
    assert figures["tokens"] == STEPS * 7 * 8  # of the steps that count


@pytest.mark.parametrize("kind", ["skip", "roll_back"])
@pytest.mark.parametrize("draws", [(SPIKE,), (13, 15, 17)])
def test_stopped_after_every_draw_the_bytes_are_the_same(
    lab: Any, equal: Equal, tmp_path: Path, kind: str, draws: tuple[int, ...]
) -> None:
    """Also between spike and roll-back, and with checkpoints in between that were only written to stop."""
    guard, probe = {"kind": kind} | GUARD, lambda model: {"score": abs(float(model.final_norm.weight.mean()) - 1.003)}
    given = {"probe": probe, "best": "score", "evaluate_every": 3, "ema": {"decay": 0.9}}
    expected = run(lab, tmp_path / "unbroken", poisoned(lab, *draws), guard, **given)
    for stop_at in range(1, STEPS + len(draws)):
        session = Session()
        try:
            rows = poisoned(lab, *draws, stop=session, stop_at=stop_at)
            figures = run(lab, tmp_path / "stopped", rows, guard, session=session, **given)
        except Stopped:
            continue
    figures = run(lab, tmp_path / "stopped", poisoned(lab, *draws), guard, **given)
    assert figures == expected | {"resumed_from_step": figures["resumed_from_step"]}
    assert equal(lab.weights(tmp_path / "stopped"), lab.weights(tmp_path / "unbroken"))
    files = [sorted(p.relative_to(out) for p in out.rglob("*.safetensors")) for out in tmp_path.iterdir()]
    assert files[0] == files[1]


@pytest.mark.parametrize("dies_at", [13, 14, 15, 17])
def test_died_around_a_roll_back(lab: Any, equal: Equal, tmp_path: Path, dies_at: int) -> None:
    guard = {"kind": "roll_back"} | GUARD
    expected = run(lab, tmp_path / "unbroken", poisoned(lab, SPIKE), guard)

    class Dying(type(poisoned(lab, SPIKE))):  # type: ignore[misc]
        def next(self, model: Any) -> list[Batch]:
            batches = super().next(model)
            if self.drawn == dies_at:
                raise RuntimeError("power cut")
            return batches  # type: ignore[no-any-return]

    with pytest.raises(RuntimeError, match="power cut"):
        run(lab, tmp_path / "cut", Dying((3, 4)), guard)
    figures = run(lab, tmp_path / "cut", poisoned(lab, SPIKE), guard)
    assert figures == expected | {"resumed_from_step": 12}
    assert equal(lab.weights(tmp_path / "cut"), lab.weights(tmp_path / "unbroken"))


def test_too_many_end_the_training_by_name(lab: Any, tmp_path: Path) -> None:
    always = range(12, 60)
    with pytest.raises(
        Diverged, match=r"step 15: 4 spikes within 10 steps, the last one of loss .*spikes.most above 3"
    ):
        run(lab, tmp_path / "skip", poisoned(lab, *always), {"kind": "skip", "most": 3} | GUARD)
    with pytest.raises(Diverged, match=r"step 13: 3 spikes, each after a roll-back, .* not finite"):
        run(lab, tmp_path / "back", poisoned(lab, *range(13, 60)), {"kind": "roll_back", "most": 2} | GUARD, math.nan)
    assert (tmp_path / "back" / "checkpoints" / "step-000012").is_dir()


def test_before_the_first_checkpoint_roll_back_skips(lab: Any, tmp_path: Path) -> None:
    guard = {"kind": "roll_back"} | GUARD
    figures = run(lab, tmp_path, poisoned(lab, SPIKE), guard, checkpoint_every=100)
    assert (figures["skipped_steps"], figures["roll_backs"]) == (1, 0)


def test_a_checkpoint_to_go_back_to_must_stay(lab: Any) -> None:
    with pytest.raises(ValueError, match="roll_back needs keep of 2"):
        lab.settings(spikes="roll_back", keep=1)


def test_another_guard_is_refused_on_resume(lab: Any, tmp_path: Path) -> None:
    run(lab, tmp_path, poisoned(lab), "skip")
    with pytest.raises(InputError, match="its checkpoint has spikes"):
        run(lab, tmp_path, poisoned(lab), None)


# ---------------------------------------------------------------- the judgement


def test_the_limit_is_median_plus_deviations_of_the_window() -> None:
    watch, noise = Watch(Skip(window=50, deviations=4.0)), torch.Generator().manual_seed(0)
    values = torch.randn(50, generator=noise, dtype=torch.float64)
    for value in values.tolist():
        assert watch.spike({"loss": value}) == {}
    middle = values.quantile(0.5)
    limit = middle + 4.0 * 1.4826 * (values - middle).abs().quantile(0.5)
    found = watch.spike({"loss": float(limit) + 1e-9})
    assert found["spike_loss_limit"] == pytest.approx(float(limit))
    assert watch.spike({"loss": float(limit) - 1e-9}) == {}
    assert watch.spike({"loss": -1e9}) == {}  # downwards is none


def test_one_spike_does_not_blind_the_guard() -> None:
    """Spikes are not remembered; a mean and standard deviation would have been carried off by them."""
    watch = Watch(Skip(window=10, deviations=8.0))
    for number in range(10):
        watch.spike({"loss": 3.0 + 0.01 * (number % 3)})
    assert watch.spike({"loss": 300.0})
    assert watch.spike({"loss": 30.0})
    assert watch.spike({"loss": 3.02}) == {}


def test_quiet_until_the_window_is_full_but_for_what_is_not_finite() -> None:
    watch = Watch(RollBack(window=10))
    for value in (1.0, 1e6, 1.0, 2.0, 1.0):
        assert watch.spike({"loss": value}) == {}
    assert watch.spike({"loss": math.nan}) == {"spike_not_finite": 1.0}


def test_masked_rows_are_no_spike(lab: Any, tmp_path: Path) -> None:
    rows = lab.Rows((1,))
    rows.targets[1] = IGNORE
    figures = lab.train(tmp_path, rows, steps=21, spikes={"kind": "skip", "window": 10, "deviations": 1e6})
    assert figures["skipped_steps"] == 0
    assert figures["empty_steps"] > 0
