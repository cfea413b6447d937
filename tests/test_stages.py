"""Stages: finished ones are skipped, changed ones redone, cut ones go on, and the old is kept aside."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from llmlab.errors import InputError, Stopped
from llmlab.meters.meter import Meter
from llmlab.stages import Figures, Session, Stage, manifest, run_stages


class Life:
    """Two stages that note each time they work."""

    def __init__(self, root: Path) -> None:
        self.root, self.worked, self.said = root, [], []  # type: ignore[var-annotated]
        self.user_file = root.parent / "text.txt"
        self.user_file.write_text("one")
        self.cut = False

    def run(self, first: Any = 1, second: Any = 2, seed: int = 0) -> list[Figures]:
        def work(name: str) -> Any:
            def stage(out: Path, session: Session) -> Figures:
                found = (out / "half").exists()
                self.worked.append(name + ("+" if found else ""))
                (out / "half").touch()
                if self.cut and name == "second":
                    raise RuntimeError("cut")
                return {"steps": 3, "resumed_from_step": 2 if found else 0}

            return stage

        stages = [
            Stage("first", {"x": first}, (), [self.user_file], work("first")),
            Stage("second", {"y": second}, ("first",), [], work("second")),
        ]
        self.worked.clear()
        return run_stages(stages, self.root, Session(seed=seed), self.said.append)


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path / "run")


def test_same_inputs_are_skipped(life: Life) -> None:
    answers = life.run()
    assert life.worked == ["first", "second"]
    assert [set(answer) for answer in answers] == [
        {"name", "seconds", "peak_bytes", "steps", "resumed_from_step", "figures"}
    ] * 2
    assert life.run() == answers
    assert life.worked == []


def test_a_changed_section_redoes_from_there(life: Life) -> None:
    life.run()
    life.run(second=5)
    assert life.worked == ["second"]
    assert (life.root / "second.old-1" / "manifest.json").is_file()
    life.run(first=7, second=5)
    assert life.worked == ["first", "second"]


def test_a_changed_file_or_seed_redoes(life: Life) -> None:
    life.run()
    life.user_file.write_text("two")
    life.run()
    assert life.worked == ["first", "second"]
    assert "first: text.txt changed; the old one is kept as first.old-1" in life.said
    life.run(seed=1)
    assert life.worked == ["first", "second"]
    assert "first: its settings changed; the old one is kept as first.old-2" in life.said
    life.user_file.unlink()
    with pytest.raises(InputError, match="no such file"):
        life.run()


def test_a_cut_stage_goes_on(life: Life) -> None:
    life.cut = True
    with pytest.raises(RuntimeError):
        life.run()
    assert manifest(life.root / "second") is None
    life.cut = False
    answers = life.run()
    assert life.worked == ["second+"]
    assert answers[1]["resumed_from_step"] == 2


def test_a_file_that_changed_between_stop_and_resume_is_named_and_read_anew(life: Life) -> None:
    life.cut = True
    with pytest.raises(RuntimeError):
        life.run()
    life.user_file.write_text("other")
    life.cut = False
    answers = life.run()
    assert life.worked == ["first", "second"]
    assert answers[1]["resumed_from_step"] == 0
    assert "first: text.txt changed; the old one is kept as first.old-1" in life.said
    assert (life.root / "second.old-1" / "half").is_file()


def test_a_file_that_changed_while_a_training_was_cut_is_refused(life: Life) -> None:
    """Its steps are not lost to a slip: put back, it goes on; without the folder, it begins anew."""
    life.cut = True
    with pytest.raises(RuntimeError):
        life.run()
    steps = life.root / "second" / "checkpoints" / "step-000040"
    steps.mkdir(parents=True)
    life.user_file.write_text("other")
    life.cut = False
    with pytest.raises(InputError, match=r"first: text.txt changed since second was stopped after step 40 \(put"):
        life.run()
    assert life.worked == []
    assert steps.is_dir()
    life.user_file.write_text("one")
    life.run()
    assert life.worked == ["second+"]
    (life.root / "second" / "manifest.json").unlink()
    life.user_file.write_text("other")
    (life.root / "second").rename(life.root / "aside")
    life.run()
    assert life.worked == ["first", "second"]


def test_a_stage_killed_before_it_began_starts_anew(life: Life) -> None:
    (life.root / "first").mkdir(parents=True)
    (life.root / "first" / "half").touch()
    life.run()
    assert life.worked == ["first", "second"]


def test_meter_rewinds_to_a_step(tmp_path: Path) -> None:
    meter = Meter(tmp_path, "x", 10, quiet=True)
    for step in range(1, 6):
        meter.step(step, {"loss": step / 2})
    meter.close()
    with (tmp_path / "figures.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # what a kill leaves
    again = Meter(tmp_path, "x", 10, quiet=True)
    again.rewind(3)
    again.step(4, {"loss": 0.5})
    again.step(5, {})
    again.close()
    rows = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[3]["loss"] == 0.5


def test_rewinding_writes_nothing_so_a_full_disk_costs_no_row(tmp_path: Path) -> None:
    meter = Meter(tmp_path, "x", 10, quiet=True)
    for step in range(1, 6):
        meter.step(step, {"loss": step / 2})
    rows = (tmp_path / "figures.jsonl").read_bytes().splitlines(keepends=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))  # no file may be written beyond its first byte
    try:
        meter.rewind(3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    meter.close()
    assert (tmp_path / "figures.jsonl").read_bytes() == b"".join(rows[:3])


def test_a_stop_between_stages_begins_none(life: Life) -> None:
    session = Session()

    def ask(out: Path, session: Session) -> Figures:
        session.stop.requested = True
        return {}

    stages = [Stage("first", {}, (), [], ask), Stage("second", {}, ("first",), [], ask)]
    with pytest.raises(Stopped, match="before second"):
        run_stages(stages, life.root, session, life.said.append)
    assert manifest(life.root / "first") is not None
    assert not (life.root / "second").exists()


def test_a_manifest_says_what_it_was_made_with(life: Life) -> None:
    life.run()
    done = manifest(life.root / "first")
    assert done is not None
    assert done["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert {"python", "llmlab"} <= set(done["versions"])


def test_a_stage_that_draws_nothing_is_shared_by_all_seeds(life: Life) -> None:
    def once(seed: int, draws: bool) -> str:
        run_stages([Stage("x", {}, (), [], lambda out, session: {}, draws)], life.root, Session(seed=seed), print)
        return str((manifest(life.root / "x") or {})["key"])

    assert once(0, False) == once(1, False)
    assert once(0, True) != once(1, True)
