"""A training on two processes is that of one: gradients, curves, weights, checkpoints, and what is refused.

Two processes are started once and do many checks (`two_ranks.py`); only what kills them needs others.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llmlab.errors import InputError
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.training.parallel.kinds import DDP, FSDP, TensorParallel, Zero1
from llmlab.training.parallel.memory import bytes_a_rank
from llmlab.training.parallel.ranks import owners
from llmlab.training.state import Checkpoints

SCRIPT = Path(__file__).with_name("two_ranks.py")
WAYS, KINDS = ("ddp", "zero1", "fsdp", "tensor"), ("plain", "rich")
SIGNAL = -signal.SIGKILL


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def live(folder: Path, jobs: Sequence[Sequence[Any]], ranks: int = 2, code: int = 0) -> list[dict[str, Any]]:
    """What each of the processes told; `code` is how they, or one of them, are to end."""
    folder.mkdir(exist_ok=True)
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), json.dumps(jobs)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)},
            stderr=subprocess.PIPE,
        )
        for rank in range(ranks)
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in processes]
    codes = {process.returncode for process in processes}
    assert (code in codes) if code else (codes == {0}), "\n".join(errors)
    if code:
        return []
    return [json.loads((folder / f"{rank}-of-{ranks}.json").read_text()) for rank in range(ranks)]


JOBS = [["gradients"], ["looks"], ["curves"], ["muon"], ["bytes"]]
CUT = [["stopped", way, f"cut-{way}", 3] for way in WAYS]  # two ranks, then one, then two again
RULES = ("zero1", "fsdp")  # each with what `two_ranks.py` calls its rule
MERGED = [["merged", way, way, f"merged-{way}", 20] for way in RULES]
FULL = [["full", way, f"full-{way}"] for way in ("ddp", "fsdp")]
Told = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[Told]:
    return live(folder, [*JOBS, ["errors"], *FULL, *CUT, *MERGED])


@pytest.fixture(scope="module")
def one(folder: Path, two: list[Told]) -> Told:
    """One process: the same, the unbroken run of what was cut, and a while of it."""
    going_on = [["stopped", "ddp", f"cut-{way}", 2] for way in WAYS]
    going_on += [["merged", way, way, f"merged-{way}", 2] for way in RULES]
    unbroken = [["stopped", "ddp", "unbroken", 0], *(["merged", way, way, f"unbroken-{way}", 0] for way in RULES)]
    return live(folder, [*JOBS, *unbroken, *going_on], ranks=1)[0]


@pytest.fixture(scope="module")
def again(folder: Path, one: Told) -> Path:
    """Two processes again: to the end what one went on with, and what was killed; and what nothing befell."""
    live(folder, [["dies", "fsdp", "killed"]], code=SIGNAL)
    assert [path.name for path in (folder / "killed" / "checkpoints").glob("step-*")] == ["step-000002"]
    jobs = [["stopped", way, f"cut-{way}", 0] for way in WAYS]
    jobs += [["merged", way, way, f"merged-{way}", 0] for way in RULES]
    live(folder, [*jobs, ["stopped", "fsdp", "killed", 0], ["stopped", "fsdp", "whole", 0]])
    return folder


def tensor(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def furthest(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((tensor(ours[name]) - tensor(theirs[name])).abs().max()) for name in ours)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_the_first_step(one: Told, two: list[Told], way: str, kind: str) -> None:
    """In float64, clipped, dropout included, with unequal shares: the ranks' parts make one process's gradient."""
    whole = dict(one["['gradients']"][f"alone {kind}"])
    parts = [dict(told["['gradients']"][f"{way} {kind}"]) for told in two]
    for figure in ("norm", "loss"):
        expected = whole.pop(figure)[0]
        assert [part.pop(figure)[0] for part in parts] == pytest.approx([expected] * 2, abs=1e-10)
    made = {name: sum(tensor(part[name]) for part in parts if name in part) for name in whole}
    assert all(part.keys() <= whole.keys() for part in parts)
    assert max(float((torch.as_tensor(made[name]) - tensor(whole[name])).abs().max()) for name in whole) < 1e-10
    assert max(float(tensor(values).abs().max()) for values in whole.values()) > 1e-3  # there is something to compare


def curve(out: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (out / "figures.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in ("step", "loss", "gradient_norm", "score") if name in row} for row in rows]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_curves_and_figures(one: Told, two: list[Told], folder: Path, way: str, kind: str) -> None:
    ours, theirs = curve(folder / f"{way}-{kind}"), curve(folder / f"alone-{kind}")
    assert len(ours) == len(theirs) == 7
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-5)
    lone = one["['curves']"][f"alone {kind}"]["figures"]
    for told in two:
        figures = told["['curves']"][f"{way} {kind}"]["figures"]
        assert {name: figures[name] for name in ("steps", "tokens", "kept_step", "empty_steps")} == {
            name: lone[name] for name in ("steps", "tokens", "kept_step", "empty_steps")
        }


@pytest.mark.parametrize("way", WAYS)
def test_every_rank_ends_with_the_whole_model(one: Told, two: list[Told], way: str) -> None:
    weights = [told["['curves']"][f"{way} plain"]["weights"] for told in two]
    assert weights[0] == weights[1]
    assert furthest(weights[0], one["['curves']"]["alone plain"]["weights"]) < 1e-5


def test_a_step_after_answers_were_drawn(one: Told, two: list[Told]) -> None:
    """PPO draws in inference mode before it trains: what fsdp puts together then must be writable later."""
    for told in two:
        assert told["['looks']"] == pytest.approx(dict.fromkeys(WAYS, one["['looks']"]["alone"]), rel=1e-5)


def test_an_optimizer_that_needs_whole_matrices(one: Told, two: list[Told]) -> None:
    told = two[0]["['muon']"]
    for way in ("ddp", "zero1"):
        assert furthest(told[way], one["['muon']"]["alone"]) < 1e-5
    for way in ("fsdp", "tensor"):
        assert f"{way} cuts matrices, which muon needs whole" in told[way]


def test_bytes_a_rank_are_those_of_zero(one: Told, two: list[Told]) -> None:
    """Rajbhandari et al. 2020: ddp keeps all, stage 1 a share of the optimizer's state, stage 3 of everything."""
    whole = one["['bytes']"]["alone"]
    shares = {"ddp": (1, 1, 1), "zero1": (1, 1, 2), "fsdp": (2, 2, 2)}
    for told in two:
        for way, parts in shares.items():
            for (kind, bytes_), part in zip(told["['bytes']"][way].items(), parts, strict=True):
                assert bytes_ == pytest.approx(whole[kind] / part, rel=0.01), f"{kind} of {way}"
        cut = told["['bytes']"]["tensor"]  # all but embedding, head and norms
        assert whole["parameters"] / 2 < cut["parameters"] < whole["parameters"] * 0.6
    model = parse(Architecture, {"layers": 2, "dim": 32, "context": 8, "tied": False})
    with torch.device("meta"):
        shapes = Transformer(model, 13)
    for way, section in (("ddp", DDP()), ("zero1", Zero1()), ("fsdp", FSDP()), ("tensor", TensorParallel())):
        assert bytes_a_rank(shapes, section, 2) == two[0]["['bytes']"][way], way
    for way in ("zero1", "fsdp"):
        together = sum(told["['bytes']"][way]["optimizer"] for told in two)
        assert together == whole["optimizer"]


def test_what_one_rank_raises_all_raise(two: list[Told]) -> None:
    for told in two:
        errors = told["['errors']"]
        assert errors["all"] == "here: is wrong (make it right)"
        assert errors["small"].startswith("micro_batch: world size larger than the batch: 1 micro-batches a step")
        for way in WAYS:
            assert errors[f"nan {way}"].startswith("step 1: the loss is nan in micro-batch ")
    assert two[0]["['errors']"] == two[1]["['errors']"]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_full_disk_of_one_rank(two: list[Told], folder: Path, way: str) -> None:
    """It is the last rank's: with ddp that one writes nothing."""
    lines = [told[str(["full", way, f"full-{way}"])] for told in two]
    names = sorted(path.name for path in (folder / f"full-{way}" / "checkpoints").iterdir())
    if way == "ddp":
        assert lines == ["no error"] * 2
        assert names == ["step-000004", "step-000006"]
    else:
        assert lines[0] == lines[1]
        assert "no space left on the disk (the checkpoint of step 2 is whole" in lines[0]
        assert names == ["step-000002"]


# ---------------------------------------------------------------- going on


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_then_one_then_two(again: Path, way: str) -> None:
    """Stopped after step 3 by two, by one after a step more, and ended by two: the curve of one that was not stopped;
    the files are what each number of ranks writes."""
    first = json.loads((again / "cut-ddp.json").read_text())
    unbroken = json.loads((again / "unbroken.json").read_text())
    ended = json.loads((again / f"cut-{way}.json").read_text())
    assert furthest(ended, unbroken) < 2e-5
    assert furthest(ended, first) < 2e-5
    for mine, other in zip(curve(again / f"cut-{way}"), curve(again / "unbroken"), strict=True):
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-5)
    names = {path.name for path in (again / f"cut-{way}" / "checkpoints" / "step-000006").iterdir()}
    pieces = {f"weights-{rank}-of-2.safetensors" for rank in range(2)} | {"weights.json"}
    assert pieces <= names if way != "ddp" else "weights.safetensors" in names


@pytest.mark.parametrize("way", RULES)
def test_habits_and_rules_on_two_ranks_then_one_then_two(one: Told, again: Path, way: str) -> None:
    """The average of the weights, a guard that goes back, blocks computed twice, and Adam in 8 bits with zero1."""
    unbroken = one[str(["merged", way, way, f"unbroken-{way}", 0])]
    assert unbroken["roll_backs"]
    told = json.loads((again / "0-of-2.json").read_text())[str(["merged", way, way, f"merged-{way}", 0])]
    assert [(event["step"], event["rolled_back_to"]) for event in told["events"]] == [
        (event["step"], event["rolled_back_to"]) for event in unbroken["events"]
    ]
    ended, whole = (json.loads((again / f"{name}-{way}.json").read_text()) for name in ("merged", "unbroken"))
    assert furthest(ended, whole) < 2e-5


def test_killed_in_the_middle_of_a_sharded_save(again: Path) -> None:
    """One rank, by kill -9: the last good checkpoint loads, and the end is bit for bit that of two ranks which nothing
    befell."""
    assert (again / "killed.json").read_text() == (again / "whole.json").read_text()
    assert curve(again / "killed") == curve(again / "whole")
    files = list((again / "whole" / "checkpoints").rglob("*.safetensors"))
    assert len(files) == 2 * 5  # two checkpoints: weights and optimizer of each rank, and the batches
    for file in files:
        assert file.read_bytes() == (again / "killed" / file.relative_to(again / "whole")).read_bytes()
    assert not list((again / "killed").rglob("*.tmp"))


@pytest.mark.parametrize("way", ["fsdp of tensor", "replicas of tensor"])
@pytest.mark.skipif("LLMLAB_FULL" not in os.environ, reason="four processes: LLMLAB_FULL=1")
def test_two_by_two_ranks(one: Told, tmp_path: Path, way: str) -> None:
    """Linears cut across two, and that across two more, or twice over: gradients in float64, curves in float32."""
    told = live(tmp_path, [["gradients", way], ["curves", way]], ranks=4)
    for kind in KINDS:
        whole = one["['gradients']"][f"alone {kind}"]
        parts = [rank[str(["gradients", way])][f"{way} {kind}"] for rank in told]
        for name in whole:
            mine = sum(tensor(part[name]) for part in parts if name in part)
            if name in ("norm", "loss"):
                mine = mine / 4
            assert float((torch.as_tensor(mine) - tensor(whole[name])).abs().max()) < 1e-10
        weights = told[0][str(["curves", way])][f"{way} {kind}"]["weights"]
        assert furthest(weights, one["['curves']"][f"alone {kind}"]["weights"]) < 2e-5


def test_a_piece_that_is_missing_or_cut_gives_way_to_the_checkpoint_before(again: Path) -> None:
    out = again / "whole"
    newest = Checkpoints(out, keep=2).newest()
    assert newest is not None
    assert newest.step == 6
    stored = [load_file(file) for file in (out / "checkpoints" / "step-000006").glob("weights-*")]
    assert sum(tensor.numel() for part in stored for tensor in part.values()) == sum(
        tensor.numel() for tensor in newest.weights.values()
    )
    index = out / "checkpoints" / "step-000006" / "weights.json"
    entries = json.loads(index.read_text())
    entries["embedding.weight"]["pieces"].pop()
    index.write_text(json.dumps(entries))
    before = Checkpoints(out, keep=2).newest()
    assert before is not None
    assert before.step == 4


# ---------------------------------------------------------------- arithmetic


def test_shares_are_even() -> None:
    sizes = {"a": 100, "b": 60, "c": 50, "d": 30, "e": 1}
    assert owners(sizes, 2) == {"a": 0, "b": 1, "c": 1, "d": 0, "e": 1}
    with pytest.raises(InputError, match="2 are trained for 3 ranks"):
        owners({"a": 1, "b": 1}, 3)


def test_ranks_that_do_not_divide_are_refused() -> None:
    assert DDP().readers(6) == 6
    assert FSDP(tensor=2).readers(6) == 3
    assert TensorParallel().readers(6) == 1
    with pytest.raises(InputError, match="4 ranks do not divide the 6"):
        TensorParallel(size=4).readers(6)
