"""A run that was cut anywhere and resumed is the unbroken run, bit for bit."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llmlab.data.batch import Batch
from llmlab.data.state import State
from llmlab.errors import InputError, Stopped
from llmlab.stages import Session
from llmlab.training.state import Checkpoints, Saved

Equal = Callable[[dict[str, Tensor], dict[str, Tensor]], bool]
STEPS = 9  # of three rows each out of seven: almost four epochs, edges in the middle of steps
TIMES = {"seconds", "tokens", "learnt_tokens", "tokens_per_second", "learnt_tokens_per_second"}
OPTIMIZERS: list[Any] = [
    "adamw",
    {"kind": "adamw", "moments": "bf16"},
    "muon",
    {"kind": "adamw8bit", "smallest": 300},
    "adafactor",
    "lion",
    {"kind": "galore", "rank": 5, "refresh": 4},
    {"kind": "sgd", "momentum": 0.9},
]


def probe(model: nn.Module) -> Mapping[str, float]:
    """Goes down and up again, by the weights alone."""
    return {"score": abs(float(model.get_parameter("final_norm.weight").mean()) - 1.002)}


def curve(out: Path) -> list[dict[str, float]]:
    """Every row without what depends on time."""
    rows = [json.loads(line) for line in (out / "figures.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def run(lab: Any, out: Path, rows: Any = None, **options: Any) -> dict[str, Any]:
    given = {"dropout": 0.2, "log_every": 2, "probe": probe, "best": "score", "steps": STEPS} | options
    return lab.train(out, rows, **given)  # type: ignore[no-any-return]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_stopped_at_every_step(lab: Any, equal: Equal, tmp_path: Path, optimizer: Any) -> None:
    """Weights, moments, cursor, learning rates, losses, the rows in their order, and the best (traps 36 to 40, 45)."""
    unbroken, whole = lab.Rows(), lab.model(dropout=0.2)
    expected = run(lab, tmp_path / "unbroken", unbroken, optimizer=optimizer, model=whole)
    out, log = tmp_path / "stopped", []
    for step in range(STEPS):
        session = Session()

        class Asking(lab.Rows):  # type: ignore[misc, name-defined]
            def next(self, model: Any) -> list[Batch]:
                session.stop.requested = True  # noqa: B023
                return super().next(model)  # type: ignore[no-any-return]

        rows = Asking()
        try:
            figures = run(lab, out, rows, optimizer=optimizer, session=session)
        except Stopped:
            assert step < STEPS - 1
        log += rows.log
    assert log == unbroken.log
    assert figures == expected | {"resumed_from_step": STEPS - 1}
    assert curve(out) == curve(tmp_path / "unbroken")
    assert equal(lab.weights(out), lab.weights(tmp_path / "unbroken"))


def test_stopped_while_the_step_is_in_the_backward_pass(lab: Any, equal: Equal, tmp_path: Path) -> None:
    """And where blocks compute twice; what computes twice may change between the two."""
    inside = {"clip": None, "in_backward": True, "optimizer": "adamw"}
    run(lab, tmp_path / "unbroken", lab.Rows((3,)), **inside, activation_checkpointing="full")

    class Asking(lab.Rows):  # type: ignore[misc, name-defined]
        def next(self, model: Any) -> list[Batch]:
            session.stop.requested = len(self.log) == 3
            return super().next(model)  # type: ignore[no-any-return]

    session = Session()
    with pytest.raises(Stopped, match="after step 4"):
        run(lab, tmp_path / "cut", Asking((3,)), **inside, activation_checkpointing="full", session=session)
    assert run(lab, tmp_path / "cut", lab.Rows((3,)), **inside)["resumed_from_step"] == 4
    assert equal(lab.weights(tmp_path / "cut"), lab.weights(tmp_path / "unbroken"))


@pytest.mark.parametrize("dies_at", range(1, STEPS + 1))
def test_died_in_any_step(lab: Any, equal: Equal, tmp_path: Path, dies_at: int) -> None:
    """Without saving first: at most `checkpoint_every` steps are run again, and no figure is there twice."""
    model = lab.model(dropout=0.2)
    expected = run(lab, tmp_path / "unbroken", optimizer="muon", model=model, checkpoint_every=3)

    class Dying(lab.Rows):  # type: ignore[misc, name-defined]
        def next(self, model: Any) -> list[Batch]:
            if len(self.log) == dies_at - 1:
                raise RuntimeError("power cut")
            return super().next(model)  # type: ignore[no-any-return]

    out, again = tmp_path / "cut", lab.model(dropout=0.2)
    with pytest.raises(RuntimeError, match="power cut"):
        run(lab, out, Dying(), optimizer="muon", checkpoint_every=3)
    figures = run(lab, out, model=again, optimizer="muon", checkpoint_every=3)
    assert figures["resumed_from_step"] == (dies_at - 1) // 3 * 3
    assert figures == expected | {"resumed_from_step": figures["resumed_from_step"]}
    assert curve(out) == curve(tmp_path / "unbroken")
    assert equal(lab.weights(out), lab.weights(tmp_path / "unbroken"))
    assert equal(again.state_dict(), model.state_dict())


def test_weight_files_are_equal_bytes(lab: Any, tmp_path: Path) -> None:
    session = Session()
    session.stop.requested = True
    run(lab, tmp_path / "a")
    with pytest.raises(Stopped):
        run(lab, tmp_path / "b", session=session)
    run(lab, tmp_path / "b")
    for path in (tmp_path / "a").rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_a_finished_training_is_not_run_again(lab: Any, equal: Equal, tmp_path: Path) -> None:
    first, second = lab.model(dropout=0.2), lab.model(dropout=0.2)
    figures = run(lab, tmp_path, model=first)
    rows = lab.Rows()
    assert run(lab, tmp_path, rows, model=second) == figures | {"resumed_from_step": STEPS}
    assert rows.log == []
    assert equal(first.state_dict(), second.state_dict())
    assert len(curve(tmp_path)) == len({row["step"] for row in curve(tmp_path)})


@pytest.mark.parametrize("change", [{"steps": STEPS + 1}, {"schedule": "cosine"}, {"optimizer": "muon"}, {"clip": 2.0}])
def test_another_horizon_or_rule_is_refused(lab: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    run(lab, tmp_path)
    before = lab.weights(tmp_path)
    with pytest.raises(InputError, match=f"its checkpoint has {next(iter(change))}"):
        run(lab, tmp_path, **change)
    assert before.keys() == lab.weights(tmp_path).keys()


def test_another_model_is_refused(lab: Any, tmp_path: Path) -> None:
    run(lab, tmp_path)
    with pytest.raises(InputError, match=r"differ in 'head.weight'"):
        run(lab, tmp_path, model=lab.model(tied=False))
    with pytest.raises(InputError, match="differ in the shape of"):
        run(lab, tmp_path, model=lab.model(feedforward={"kind": "swiglu", "width": 64}))


# ---------------------------------------------------------------- files


def saved(step: int) -> Saved:
    weights = {"w": torch.full((3,), float(step))}
    return Saved(step, weights, {"w:step": torch.tensor(1.0)}, State({}, {"taken": step}), {"best": None})


def test_the_newest_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 1000000):
        checkpoints.save(saved(step))
    assert checkpoints.steps() == [3, 1000000]
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 1000000
    assert newest.batches.values == {"taken": 1000000}
    assert torch.equal(newest.weights["w"], torch.full((3,), 1e6))


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-9]), Path.unlink])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, file: str, damage: Callable[[Path], object]
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(saved(1))
    checkpoints.save(saved(2))
    damage(tmp_path / "checkpoints" / "step-000002" / file)
    newest = Checkpoints(tmp_path, keep=2).newest()
    assert newest is not None
    assert newest.step == 1
    assert checkpoints.steps() == [1]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from llmlab.data.state import State
from llmlab.training.state import Checkpoints, Saved

checkpoints, call, left = Checkpoints(Path(sys.argv[1]), keep=2), sys.argv[2], int(sys.argv[3])
plain = getattr(os, call)

def dies(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*arguments)

checkpoints.save(Saved(1, {"w": torch.ones(3)}, {}, State({}, {}), {"best": None}))
setattr(os, call, dies)
checkpoints.save(Saved(2, {"w": torch.full((3,), 2.0)}, {}, State({}, {}), {"best": None}))
"""


@pytest.mark.parametrize(("call", "calls"), [("fsync", 3), ("rename", 0)])
def test_kill_9_during_a_save_leaves_the_last_good_one(tmp_path: Path, call: str, calls: int) -> None:
    """In the middle of writing, and with everything written but the last rename (trap 41)."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), call, str(calls)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    folder = tmp_path / "checkpoints"
    assert any(path.name.endswith(".tmp") for path in folder.iterdir())  # it did die half-way
    newest = Checkpoints(tmp_path, keep=2).newest()
    assert newest is not None
    assert newest.step == 1
    assert torch.equal(newest.weights["w"], torch.ones(3))
    assert [path.name for path in folder.iterdir()] == ["step-000001"]


def test_the_best_of_an_attempt_that_was_cut_is_written_anew(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    for value in (1.0, 2.0):
        checkpoints.save_best(4, {"w": torch.tensor(value)})
    assert checkpoints.load_best(4) == {"w": torch.tensor(2.0)}


def test_the_best_of_a_kept_checkpoint_stays(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, best in ((2, 2), (4, 2), (6, 6), (8, 6)):
        if step == best:
            checkpoints.save_best(best, {"w": torch.tensor(float(best))})
        whole = saved(step)
        checkpoints.save(Saved(step, whole.weights, whole.optimizer, whole.batches, {"best": {"step": best}}))
        names = sorted(path.name for path in (tmp_path / "best").iterdir())
        assert names == (["step-000002", "step-000006"] if step == 6 else [f"step-{best:06d}"])
    assert load_file(tmp_path / "best" / "step-000006" / "weights.safetensors")["w"] == 6.0
