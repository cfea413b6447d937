"""Prediction against measurement: every preset and ten random recipes, each in a process of its own.

    python benchmarks/plan.py [--only smoke,random-3] [--json]

Memory is to be within 10 % of what the stage's process held at most, time within 25 % of what it took (targets.md). The
plan is made before the run and sees nothing of it; random recipes have widths, depths, batches, optimizers, norms and
attentions that no calibration saw. Writes results/plan.json; recipes whose weights are not pulled are left out by name.
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
from llmlab.planner.plan import plan
from llmlab.run import presets, read_recipe
from llmlab.runtime import atomic_json, cpu_name, versions

RESULT = Path(__file__).parent / "results" / "plan.json"
MEMORY, TIME = 0.10, 0.25
RANDOM = 10


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
        stages.append(
            {
                "name": stage["name"],
                "memory": foreseen.peak_bytes / stage["peak_bytes"],
                "time": foreseen.seconds / max(stage["seconds"], 1e-3),
                "predicted_bytes": foreseen.peak_bytes,
                "measured_bytes": stage["peak_bytes"],
                "predicted_seconds": foreseen.seconds,
                "measured_seconds": stage["seconds"],
            }
        )
    predicted, measured = (sum(stage[f"{kind}_seconds"] for stage in stages) for kind in ("predicted", "measured"))
    highest = [max(stage[f"{kind}_bytes"] for stage in stages) for kind in ("predicted", "measured")]
    return {"recipe": name, "memory": highest[0] / highest[1], "time": predicted / measured, "stages": stages}


def shown(row: dict[str, Any]) -> str:
    lines = [f"{row['recipe']:<16} {'memory':>8} {'time':>8}   predicted / measured"]
    for stage in [*row["stages"], {"name": "in all", "memory": row["memory"], "time": row["time"]}]:
        late = abs(stage["memory"] - 1) > MEMORY or abs(stage["time"] - 1) > TIME
        lines.append(f"  {stage['name']:<14} {stage['memory']:8.3f} {stage['time']:8.3f}{'   off' if late else ''}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", default="", help="names, with commas: presets, and random-0 to random-9")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    recipes = {name: (name, list[str]()) for name in presets()}
    recipes |= {f"random-{number}": ("smoke", random_recipe(number)) for number in range(RANDOM)}
    wanted = [name for name in options.only.split(",") if name] or list(recipes)
    rows, left_out = [], dict[str, str]()
    for name in wanted:
        try:
            rows.append(compared(name, *recipes[name]))
        except InputError as error:
            left_out[name] = str(error)
            print(f"{name}: left out: {error}", flush=True)
            continue
        print(shown(rows[-1]), flush=True)
    result = {
        "name": "plan",
        "bounds": {"memory": MEMORY, "time": TIME},
        "within": {
            "memory": sum(abs(row["memory"] - 1) <= MEMORY for row in rows),
            "time": sum(abs(row["time"] - 1) <= TIME for row in rows),
        },
        "recipes": len(rows),
        "median": {kind: statistics.median(row[kind] for row in rows) for kind in ("memory", "time")} if rows else {},
        "rows": rows,
        "left_out": left_out,
        "versions": versions(),
        "cpu": cpu_name(),
    }  # fmt: skip
    if not options.only:
        atomic_json(RESULT, result)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
