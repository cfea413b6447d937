"""Every writer has each step once, whatever happened in between, and none can harm a training."""

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from llmlab.errors import InputError
from llmlab.meters.meter import Meter
from llmlab.meters.writers import Jsonl, Outside, TensorBoard, Wandb, Writer, require
from llmlab.recipe import parse
from llmlab.run import Run, run
from llmlab.stages import Session

tensorboard = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs llmlab[tracking]")


def lives(writer: Any, folder: Path) -> None:
    """Steps 1 to 4; killed after a checkpoint of 2, so 3 and 4 come again; then back to 4 and on to 6."""
    first = writer(folder)
    first.rewind(-1)
    for step in (1, 2, 3, 4):
        first.write(step, {"loss": 10.0 - step, "norm": 1.0})
    first.close()
    second = writer(folder)
    second.rewind(2)
    for step in (3, 4, 5):
        second.write(step, {"loss": 10.0 - step, "norm": 1.0})
    second.rewind(4)
    for step in (5, 6):
        second.write(step, {"loss": 10.0 - step, "norm": 1.0})
    second.close()


EXPECTED = [(step, 10.0 - step) for step in range(1, 7)]


def test_jsonl_has_each_step_once(tmp_path: Path) -> None:
    lives(Jsonl, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == EXPECTED


@tensorboard
@pytest.mark.filterwarnings("ignore")  # of what TensorBoard imports
def test_tensorboard_has_each_step_once(tmp_path: Path) -> None:
    """As TensorBoard itself reads the folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lives(TensorBoard, tmp_path)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == EXPECTED
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3


class FakeWandb(types.ModuleType):
    """Records what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, Any]] = []
        self.told: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **given: Any) -> Any:
        self.started.append(given)
        return self

    def log(self, row: dict[str, float], step: int) -> None:
        assert not self.told or step > self.told[-1][0]  # wandb drops what is not
        self.told.append((step, row))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    fake.__spec__ = importlib.util.spec_from_loader("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return fake


def test_wandb_goes_on_in_one_run_and_hears_no_step_twice(tmp_path: Path, wandb: FakeWandb) -> None:
    folder = tmp_path / "demo" / "pretrain"
    folder.mkdir(parents=True)
    lives(Wandb, folder)
    assert [(step, row["loss"]) for step, row in wandb.told] == EXPECTED
    first, second = wandb.started
    assert first == second
    assert first["id"] == json.loads((folder / "wandb.json").read_text())["id"]
    assert (first["resume"], first["mode"], first["group"], first["dir"]) == ("allow", "offline", "demo", str(folder))
    assert wandb.finished == 2


def test_wandb_is_sent_where_the_user_says_so(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    Wandb(tmp_path).rewind(-1)
    assert wandb.started[0]["mode"] == "online"


class Broken(Writer):
    def __init__(self, after: int) -> None:
        self.left, self.told = after, 0

    def rewind(self, step: int) -> None:
        self._next()

    def write(self, step: int, figures: Any) -> None:
        self._next()

    def close(self) -> None:
        self._next()

    def _next(self) -> None:
        self.told += 1
        self.left -= 1
        if self.left < 0:
            raise OSError("connection\nlost")


def test_a_writer_that_fails_is_dropped_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    inside = Broken(2)
    writer = Outside("board", inside)
    writer.rewind(-1)
    for step in range(1, 5):
        writer.write(step, {"loss": 1.0})
    writer.close()
    assert inside.told == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["board keeps no figures from here on (OSError: connection lost); figures.jsonl has them all"]


def test_a_training_with_writers_that_fail_is_the_same(
    tiny_run: Run, tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one in which they work: the same weights, the same rows."""
    for name, track in (("without", ()), ("works", ("wandb",)), ("fails", ("wandb",))):
        if name == "fails":
            monkeypatch.setattr(wandb, "log", lambda row, step: 1 / 0)
        run(tiny_run.model_copy(update={"track": track}), tmp_path / name, quiet=True)
    files = [(tmp_path / name / "pretrain" / "model" / "model.safetensors").read_bytes() for name in
             ("without", "works", "fails")]  # fmt: skip
    assert files[0] == files[1] == files[2]
    rows = [json.loads(line) for line in (tmp_path / "works" / "pretrain" / "figures.jsonl").read_text().splitlines()]
    assert [(row.pop("step"), row) for row in rows] == wandb.told
    assert (tmp_path / "works" / "pretrain" / "wandb.json").is_file()


def test_what_is_not_installed_is_named_before_any_work(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, extra in (("tensorboard", "tracking"), ("wandb", "wandb")):
        with pytest.raises(InputError, match=rf"track: {name} is not installed \(pip install 'llmlab\[{extra}\]'"):
            require([name])
        with pytest.raises(InputError, match=f"{name} is not installed"):
            run(tiny_run.model_copy(update={"track": (name,)}), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_nothing_is_asked_of_writers_that_were_not_chosen(tmp_path: Path, wandb: FakeWandb) -> None:
    meter = Session().meter(tmp_path, "stage", 2)
    meter.rewind(-1)
    meter.step(1, {"loss": 1.0})
    meter.close()
    assert [path.name for path in tmp_path.iterdir()] == ["figures.jsonl"]
    assert wandb.started == []


def test_an_unknown_tracker_is_refused(tiny_run: Run) -> None:
    with pytest.raises(InputError, match="allowed: tensorboard, wandb"):
        parse(Run, tiny_run.model_dump() | {"track": ["mlflow"]})


def test_a_meter_hands_rows_on_and_leaves_empty_ones_out(tmp_path: Path) -> None:
    meter = Meter(tmp_path, "stage", 3, quiet=True)
    meter.rewind(-1)
    for step, row in ((1, {}), (2, {"loss": 0.5}), (3, {})):
        meter.step(step, row)
    meter.close()
    assert (tmp_path / "figures.jsonl").read_text() == '{"step": 2, "loss": 0.5}\n'
