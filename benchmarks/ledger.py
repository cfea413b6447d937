"""The ledger of training memory: for each method bytes foretold and counted, the change in loss, the change in time.

`ratios` are foretold over counted bytes, one pair a shape of model; there is no peer. `rows` has each method's diff of
the recipe, its bytes by cause, its peak and resident memory over the first row's, its held-out loss less the first
row's (mean of paired differences over seeds, and a 95 % interval), and its time a step over the first row's. Resident
memory is what a process of its own rose by while it trained.

    python benchmarks/ledger.py [--json] [--seeds 5] [--steps 100] [--rows NAME ...]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

import torch
from paired import report

from llmlab.evaluation.statistics import mean
from llmlab.handbook.training_ledger import V, counted, learner, loss_of, predicted, setup, take_steps
from llmlab.handbook.training_rows import BY_NAME, Row
from llmlab.runtime import PeakMemory, generator, resident_bytes

VERSIONS = ("llmlab", "torch")
TIMED = 5  # steps
LARGE = {"dim": 256, "layers": 4, "context": 128}  # for resident memory and time: the tensors outweigh the process


def shapes(seed: int) -> list[dict[str, int]]:
    """Sizes of the recipe's model: its own, one with more weights than activations, three at random."""
    noise = generator(seed, "ledger", "shapes")

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=noise))

    drawn = [{"dim": 32 * pick(1, 5), "layers": pick(2, 6), "context": pick(8, 100)} for _ in range(3)]
    return [{}, {"dim": 256, "context": 16}, *drawn]


def alone(row: Row) -> dict[str, float]:
    """Resident memory and seconds a step of a row, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", row.name], capture_output=True, text=True, check=True
    )  # fmt: skip
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def one(row: Row) -> None:
    """What `alone` asks for."""
    made = setup(row, LARGE)
    model = learner(made.architecture.build(V, 0), made, 0)
    take_steps(learner(setup(row).architecture.build(V, 0), setup(row), 0), setup(row), 1, 0)  # imports, thread pools
    before = resident_bytes()
    with PeakMemory(0.005) as peak:
        take_steps(model, made, 2, 0)
    began = time.perf_counter()
    take_steps(model, made, TIMED, 0)
    seconds = (time.perf_counter() - began) / TIMED
    print(json.dumps({"resident_bytes": peak.bytes - before, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows", nargs="*", default=list(BY_NAME), choices=list(BY_NAME), metavar="NAME")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(BY_NAME[given.one])
    else:
        ledger([BY_NAME[name] for name in given.rows], given.seeds, given.steps)


def ledger(wanted: list[Row], seeds: int, steps: int) -> None:
    """Measure these rows and what they are held against, and report."""
    needed = {row.name: row for row in [*(BY_NAME[row.against] for row in wanted), *wanted]}
    claims: dict[str, dict[str, list[float]]] = {}
    losses: dict[str, list[float]] = {}
    for name, row in needed.items():
        made = [setup(row, changed) for changed in shapes(0)]
        claims[name] = {
            "ours": [float(predicted(m).peak) for m in made],
            "peer": [float(counted(m)) for m in made],
        }
        losses[name] = [loss_of(row, seed, steps) for seed in range(seeds)]
        print(f"{name}: {statistics.mean(losses[name]):.4f} nats a byte", file=sys.stderr, flush=True)
    lonely = {name: alone(row) for name, row in needed.items()}
    rows = [_row(row, claims, losses, lonely) for row in needed.values()]
    report("ledger", "bytes", claims, VERSIONS, {"steps": steps, "seeds": seeds, "rows": rows})


def _row(row: Row, claims: Any, losses: Any, lonely: Any) -> dict[str, Any]:
    """One line of the table."""
    against = row.against
    differences = [a - b for a, b in zip(losses[row.name], losses[against], strict=True)]
    interval = mean(differences)
    peaks = zip(claims[row.name]["peer"], claims[against]["peer"], strict=True)
    return {
        "name": row.name,
        "group": row.group,
        "diff": list(row.diff),
        "bytes": [asdict(predicted(setup(row, changed))) for changed in shapes(0)[:2]],
        "peak_over_first": [round(mine / first, 4) for mine, first in peaks],
        "loss": round(statistics.mean(losses[row.name]), 4),
        "loss_change": {"mean": round(interval.value, 4), "interval": interval.interval},
        "resident_over_first": round(lonely[row.name]["resident_bytes"] / lonely[against]["resident_bytes"], 3),
        "time_over_first": round(lonely[row.name]["seconds"] / lonely[against]["seconds"], 3),
    }


if __name__ == "__main__":
    main()
