"""Prediction against measurement: every preset, every row of the ledger and ten random recipes, each run in a process.

    python benchmarks/plan.py [--only "smoke;random-3;lora"] [--json]

Memory is to be within 10 % of what the run's process held at most, time within 25 % of what it took (targets.md). The
plan is made before the run and sees nothing of it; random recipes have widths, depths, batches, optimizers, norms and
attentions that no calibration saw. Presets run shortened, as `SHORT` says, and are planned so; rows of the ledger are
changes to a model whose tensors outweigh the interpreter. results/plan.json keeps a row a recipe, and a run replaces
the rows of the recipes it ran; recipes whose weights are not pulled are left out by name.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from llmlab.errors import InputError
from llmlab.handbook.training_rows import LEDGER, Row
from llmlab.planner.plan import plan
from llmlab.run import presets, read_recipe
from llmlab.runtime import atomic_json, cpu_name, versions

RESULT = Path(__file__).parent / "results" / "plan.json"
MEMORY, TIME = 0.10, 0.25
RANDOM = 10
# Every stage of a preset lives, and in minutes.
SHORT = {"pretrain": 80, "sft": 40, "reward": 30, "dpo": 12, "ppo": 12}
SHORT_OF_A_BASE = {"pretrain": 3, "sft": 10, "reward": 10, "dpo": 5, "ppo": 8}
LEDGER_MODEL = (
    "model.layers=4", "model.dim=256", "model.context=256", "tokenizer.vocab_size=4096", "dtype=fp32",
    "pretrain.training.optimizer=adamw", "pretrain.batch_size=8", "pretrain.micro_batch=8",
    "reward=null", "dpo=null", "ppo=null", "quantize=null", "evaluate=null",
)  # fmt: skip


def shortened(name: str) -> list[str]:
    """Assignments that leave a preset's stages fewer steps."""
    recipe = read_recipe(name)
    short = SHORT if recipe.base is None else SHORT_OF_A_BASE
    stages = {stage: getattr(recipe, stage).training.steps for stage in short if getattr(recipe, stage) is not None}
    fewer = [f"{stage}.training.steps={short[stage]}" for stage, steps in stages.items() if steps > short[stage]]
    asked = name == "adapt-smollm2"  # 200 exercises to each of its three models are minutes
    return [*fewer, *(["evaluate.tasks=[samples, {kind: exercises, limit: 16}]"] if asked else [])]


def ledger_recipe(row: Row) -> list[str]:
    """Assignments that make `smoke` a recipe with this row's method."""
    scratch = row.group == "scratch"
    steps = ["pretrain.training.steps=20", "sft=null"] if scratch else ["pretrain.training.steps=2"]
    return [*LEDGER_MODEL, *steps, *row.diff]


def random_recipe(number: int) -> list[str]:
    """Assignments that make `smoke` another recipe: pretraining and, mostly, SFT."""
    draw = random.Random(f"plan {number}")
    heads = draw.choice([2, 4, 6, 8])
    dim = heads * draw.choice([16, 24, 32, 40, 64])
    kind = draw.choice(["mha", "gqa", "mqa"])
    attention = f"{{kind: {kind}, heads: {heads}" + (f", kv_heads: {heads // 2}}}" if kind == "gqa" else "}")
    batch = draw.choice([8, 12, 16, 32])
    micro = draw.choice([batch, batch // 2, batch // 4])
    return [
        f"model.layers={draw.randint(1, 8)}", f"model.dim={dim}",
        f"model.context={draw.choice([96, 128, 192, 256, 384])}",
        f"model.attention={attention}", f"model.norm={draw.choice(['rmsnorm', 'layernorm'])}",
        f"model.feedforward={draw.choice(['swiglu', 'gelu', 'geglu', 'relu'])}",
        f"tokenizer.vocab_size={draw.choice([512, 1024, 2048, 4096])}",
        f"pretrain.batch_size={batch}", f"pretrain.micro_batch={micro}",
        f"pretrain.training.optimizer={draw.choice(['adamw', 'muon'])}", "pretrain.training.steps=40",
        f"dtype={draw.choice(['bf16', 'fp32'])}",
        *("reward=null", "dpo=null", "ppo=null", "quantize=null", "evaluate=null"),
        *(["sft=null"] if draw.random() < 0.4 else ["sft.training.steps=30"]),
    ]  # fmt: skip


def recipes() -> dict[str, tuple[str, list[str]]]:
    """By name: the preset and what is changed in it."""
    found = {name: (name, shortened(name)) for name in presets()}
    found |= {row.name: ("smoke", ledger_recipe(row)) for row in LEDGER}
    return found | {f"random-{number}": ("smoke", random_recipe(number)) for number in range(RANDOM)}


def compared(name: str, preset: str, assignments: list[str]) -> dict[str, Any]:
    """Plan, then run, one recipe."""
    planned = {stage.name: stage for stage in plan(read_recipe(preset, assignments)).stages}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "llmlab", "run", preset, *assignments, "--out", f"{folder}/run"]
        done = subprocess.run([*command, "--quiet", "--no-plan", "--json"], capture_output=True, text=True)
    if done.returncode:
        raise InputError(name, done.stderr.strip().splitlines()[-1])
    stages = []
    for stage in json.loads(done.stdout.splitlines()[-1])["stages"]:
        foreseen = planned[stage["name"]]
        assert foreseen.seconds is not None
        stages.append(
            {
                "name": stage["name"],
                "memory": foreseen.peak_bytes / stage["peak_bytes"],
                "time": foreseen.seconds / max(stage["seconds"], 1e-3),
                "predicted_bytes": foreseen.peak_bytes,
                "measured_bytes": stage["peak_bytes"],
                "predicted_seconds": foreseen.seconds,
                "measured_seconds": stage["seconds"],
                "by_cause": foreseen.by_cause,
            }
        )
    predicted, measured = (sum(stage[f"{kind}_seconds"] for stage in stages) for kind in ("predicted", "measured"))
    highest = [max(stage[f"{kind}_bytes"] for stage in stages) for kind in ("predicted", "measured")]
    return {"recipe": name, "memory": highest[0] / highest[1], "time": predicted / measured, "stages": stages}


def within(rows: list[dict[str, Any]]) -> dict[str, list[int]]:
    """How many of how many are within their bound."""
    bounds = {"memory": MEMORY, "time": TIME}
    return {kind: [sum(abs(row[kind] - 1) <= bound for row in rows), len(rows)] for kind, bound in bounds.items()}


def shown(row: dict[str, Any]) -> str:
    lines = [f"{row['recipe']:<24} {'memory':>8} {'time':>8}   predicted / measured"]
    for stage in [*row["stages"], {"name": "in all", "memory": row["memory"], "time": row["time"]}]:
        late = abs(stage["memory"] - 1) > MEMORY or abs(stage["time"] - 1) > TIME
        seconds = f"{stage['measured_seconds']:8.2f} s" if "measured_seconds" in stage else ""
        lines.append(f"  {stage['name']:<22} {stage['memory']:8.3f} {stage['time']:8.3f}{seconds}{'   off' * late}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", default="", help="names, with semicolons: presets, rows of the ledger, random-0 ...")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    every = recipes()
    kept = {row["recipe"]: row for row in json.loads(RESULT.read_text())["rows"]} if RESULT.exists() else {}
    left_out = dict[str, str]()
    wanted = [name for name in options.only.split(";") if name] or list(every)
    if strange := [name for name in wanted if name not in every]:
        parser.error(f"no recipe is called {strange[0]!r} (there are {', '.join(every)})")
    for name in wanted:
        try:
            kept[name] = compared(name, *every[name])
        except InputError as error:
            left_out[name] = str(error)
            print(f"{name}: left out: {error}", flush=True)
            continue
        print(shown(kept[name]), flush=True)
        atomic_json(RESULT, summary([kept[name] for name in every if name in kept], left_out))
    result = summary([kept[name] for name in every if name in kept], left_out)
    print(json.dumps(result) if options.json else f"within the bounds: {result['within']}")


def summary(rows: list[dict[str, Any]], left_out: dict[str, str]) -> dict[str, Any]:
    """What results/plan.json holds."""
    return {
        "name": "plan",
        "bounds": {"memory": MEMORY, "time": TIME},
        "within": within(rows),
        "stages_within": within([stage for row in rows for stage in row["stages"]]),
        "median": {kind: statistics.median(row[kind] for row in rows) for kind in ("memory", "time")} if rows else {},
        "rows": rows,
        "left_out": left_out,
        "versions": versions(),
        "cpu": cpu_name(),
    }


if __name__ == "__main__":
    main()
