"""A whole life on two processes: the figures of one, cut anywhere and resumed, refused in one line.

The resume matrix is every stage x {1, 2} ranks x {a stop at a random step, kill -9 during a save}. A corner of it runs
with the suite; all of it with LLMLAB_FULL=1 (twenty cases, two starts each).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llmlab.errors import InputError
from llmlab.run import check_ranks, read_recipe
from llmlab.world import World

CUT = Path(__file__).with_name("cut.py")
STAGES = ("pretrain", "sft", "reward", "dpo", "ppo")
EVERY = {"pretrain": 3, "sft": 2, "reward": 2, "dpo": 2, "ppo": 3}  # steps between checkpoints
STEPS = 8
# Two micro-batches a step: what two ranks add up is what one process does, in the same order.
QUICK = [
    *("text.held_out=0.01", "tokenizer.vocab_size=400", "quantize=null", "evaluate=null", "dtype=fp32"),
    *(f"{stage}.training.{name}={value}" for stage in STAGES for name, value in (("steps", STEPS), ("log_every", 1))),
    *(f"{stage}.training.evaluate_every=4" for stage in STAGES),
    *(f"{stage}.training.checkpoint_every={every}" for stage, every in EVERY.items()),
    *(f"{stage}.watched=8" for stage in ("sft", "reward", "dpo")),
    *(f"{stage}.batch_size=8" for stage in ("pretrain", "sft", "reward", "dpo")),
    *(f"{stage}.micro_batch=4" for stage in ("pretrain", "sft", "reward", "dpo")),
    *("ppo.rolling.answers=8", "ppo.rolling.micro_batch=2", "ppo.measured=8", "ppo.sampling.max_new_tokens=8"),
    "sft.max_new_tokens=4",
]


class Ended(NamedTuple):
    codes: list[int]
    answer: dict[str, Any]
    errors: list[str]  # lines of all ranks


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def live(out: Path, ranks: int, *more: str, cut: Sequence[str] = (), quick: Sequence[str] = QUICK) -> Ended:
    """`llmlab run smoke` on so many processes, as torchrun would start them."""
    port = free_port()
    start = [str(CUT), *cut] if cut else ["-m", "llmlab"]
    command = [sys.executable, *start, "run", "smoke", *quick, *more, "--out", str(out), "--json", "--quiet"]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    told = {rank: {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)} for rank in range(ranks)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, env={**common, **told[rank]}, **pipes) for rank in range(ranks)]
    said = [process.communicate(timeout=300) for process in processes]
    codes = [process.returncode for process in processes]
    printed = said[0][0].splitlines()
    errors = [line for _, err in said for line in err.decode().splitlines()]
    return Ended(codes, json.loads(printed[-1]) if printed else {}, errors)


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The unbroken life on one process and on two."""
    folder = tmp_path_factory.mktemp("lives")
    for ranks in (1, 2):
        ended = live(folder / str(ranks), ranks)
        assert ended.codes == [0] * ranks, "\n".join(ended.errors)
    return {ranks: folder / str(ranks) for ranks in (1, 2)}


def figures_of(stage: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((stage / "manifest.json").read_text())["figures"]
    return figures | {"resumed_from_step": 0}


def weights_of(stage: Path) -> dict[str, bytes]:
    files = [*stage.glob("model/*.safetensors"), *stage.glob("adapter/*.safetensors")]
    assert files
    return {file.name: file.read_bytes() for file in files}


def curve(stage: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (stage / "figures.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for key in value for number in numbers(value[key])]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_on_two_ranks_is_that_of_one(lives: dict[int, Path], stage: str) -> None:
    one, two = (lives[ranks] / stage for ranks in (1, 2))
    assert numbers(figures_of(two)) == pytest.approx(numbers(figures_of(one)), rel=1e-5, abs=1e-5)
    assert [row["step"] for row in curve(two)] == [row["step"] for row in curve(one)]
    for ours, theirs in zip(curve(two), curve(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}


# ---------------------------------------------------------------- the resume matrix


class Case(NamedTuple):
    stage: str
    ranks: int
    way: str


EVERYTHING = [Case(stage, ranks, way) for stage in STAGES for ranks in (1, 2) for way in ("stop", "kill")]
SOME = [Case("reward", 1, "kill")]  # two ranks are stopped and killed below, other stages of one in test_run.py


@pytest.mark.parametrize(
    "case", EVERYTHING if os.environ.get("LLMLAB_FULL") else SOME, ids=lambda c: "-".join(map(str, c))
)
def test_resumed_is_bit_for_bit(lives: dict[int, Path], tmp_path: Path, case: Case) -> None:
    whole, out, chance = lives[case.ranks], tmp_path / "cut", random.Random(str(case))
    later = STAGES[STAGES.index(case.stage) + 1 :]
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns(case.stage, *later, "lock"))
    without = [f"{stage}=null" for stage in later]
    every = EVERY[case.stage]
    if case.way == "stop":
        at = chance.randrange(1, STEPS)
        expected, code = at, 130
    else:
        at = chance.randrange(0, 6)
        expected, code = every, -signal.SIGKILL
    ended = live(out, case.ranks, *without, "--resume", cut=(case.way, str(at)))
    assert code in ended.codes, "\n".join(ended.errors)
    if case.way == "stop":
        assert ended.codes == [130] * case.ranks
        assert len(ended.errors) == 1
        assert "--resume" in ended.errors[0]
    ended = live(out, case.ranks, *without, "--resume")
    assert ended.codes == [0] * case.ranks, "\n".join(ended.errors)
    stage = next(stage for stage in ended.answer["stages"] if stage["name"] == case.stage)
    assert stage["resumed_from_step"] == expected
    assert weights_of(out / case.stage) == weights_of(whole / case.stage)
    assert figures_of(out / case.stage) == figures_of(whole / case.stage)
    assert curve(out / case.stage) == curve(whole / case.stage)
    assert not list(out.rglob("*.tmp"))


def test_stopped_and_then_started_again_by_torchrun(lives: dict[int, Path], tmp_path: Path) -> None:
    """PPO on two ranks: one is asked to stop and all save; then one is killed in the middle of a save, and torchrun
    starts all again. The end is as if nothing had been."""
    out = tmp_path / "restarted"
    shutil.copytree(lives[2], out, ignore=shutil.ignore_patterns("ppo", "lock"))
    ended = live(out, 2, "--resume", cut=("stop", "2"))
    assert ended.codes == [130, 130], "\n".join(ended.errors)
    assert len(ended.errors) == 1
    assert "stopped after step 2 of 8" in ended.errors[0]
    assert "Go on with: torchrun --nproc-per-node 2 -m llmlab run" in ended.errors[0]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1"]
    command += [
        f"--master-port={free_port()}",
        str(CUT),
        "kill",
        "2",
        "run",
        "smoke",
        *QUICK,
        "--out",
        str(out),
        "--resume",
        "--json",
        "--quiet",
    ]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr.decode()
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["stages"][-1]["resumed_from_step"] == EVERY["ppo"]
    assert weights_of(out / "ppo") == weights_of(lives[2] / "ppo")
    assert curve(out / "ppo") == curve(lives[2] / "ppo")


# ---------------------------------------------------------------- refused


def test_one_line_and_the_exit_code_on_all_ranks(tmp_path: Path) -> None:
    """Of a folder that is there, which the first rank alone looks at."""
    (tmp_path / "thesis.txt").write_text("precious")
    ended = live(tmp_path, 2)
    assert ended.codes == [2, 2]
    assert ended.errors == [
        f"llmlab: {tmp_path}: exists already (--resume goes on with it; --out names another folder)"
    ]


def test_what_these_ranks_cannot_do_is_refused_before_any_work() -> None:
    with pytest.raises(InputError, match=r"parallel: fsdp is for several .*torchrun --nproc-per-node 2 -m llmlab run"):
        check_ranks(read_recipe("smoke", ["parallel=fsdp"]), World())
    two, four = World(size=2), World(rank=1, size=4)
    with pytest.raises(
        InputError, match=r"pretrain.micro_batch: .* 16 at once of 16 rows .* \(lower micro_batch to 4\)"
    ):
        check_ranks(read_recipe("smoke"), four)
    alone = ["sft=null", "reward=null", "dpo=null", "ppo=null", "pretrain.training.optimizer=adamw"]
    check_ranks(read_recipe("smoke", ["parallel=tensor", *alone]), four)
    with pytest.raises(InputError, match="reward: tensor cuts plain linears, and this stage trains an adapter"):
        check_ranks(read_recipe("smoke", ["parallel=tensor", alone[-1]]), four)
    with pytest.raises(InputError, match=r"pretrain.training.optimizer: fsdp cuts matrices, which muon needs whole"):
        check_ranks(read_recipe("smoke", ["parallel=fsdp", "pretrain.micro_batch=8", *alone[:-1]]), two)
    prompt = [*alone[1:], "pretrain.micro_batch=8", "sft.micro_batch=8", "sft.adapter=prompt"]
    check_ranks(read_recipe("smoke", ["parallel=zero1", *prompt]), two)
    with pytest.raises(InputError, match=r"sft.adapter: fsdp .* what prompt trains .* \(use ddp, or prefix"):
        check_ranks(read_recipe("smoke", ["parallel=fsdp", *prompt]), two)
    inside = ["pretrain.training.clip=null", "pretrain.training.in_backward=true"]
    with pytest.raises(InputError, match=r"pretrain.training.in_backward: updates a weight before the other ranks"):
        check_ranks(read_recipe("smoke", [*alone, *inside, "pretrain.micro_batch=8"]), two)
    with pytest.raises(InputError, match=r"parallel.tensor: 3 ranks do not divide the 4"):
        check_ranks(read_recipe("smoke", ["parallel={kind: fsdp, tensor: 3}"]), four)
