"""A run's folder with believable figures, for the report: every stage, every file that the report reads."""

import json
import math
import random
from pathlib import Path

HOSTILE = '<script>alert("x")</script><img src=http://evil.example/a.png onerror=alert(1)> & </p>]]>'

RECIPE = """\
name: demo
seed: 7
device: auto
text: {sources: [{kind: bundled, name: moby_dick}], held_out: 0.05}
tokenizer: {kind: bpe, vocab_size: 4096}
model: {layers: 6, dim: 192, context: 256, position: {kind: rope, base: 10000.0}}
pretrain: {batch: 16, training: {steps: 400, optimizer: {kind: muon, lr: 0.02}}}
sft: {training: {steps: 300}}
"""

SAMPLES = [
    ("Spell the word whale.", "the whale, and the whale, and the whale", "w h a l e", "w h a l e", "w h a l e"),
    ("Which is larger, 17 or 42?", "", "42", "42", "42"),
    (
        "Tell me about the sea.",
        "of the sea, and the\nship was",
        "The sea is a great water.",
        HOSTILE,
        "The sea is wide 🐋 海",
    ),
]


def write(root: Path, stages: tuple[str, ...] = ()) -> Path:
    """Write the folder; with `stages`, only those."""
    chance = random.Random(0)
    root.mkdir(parents=True, exist_ok=True)
    (root / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    for name, build in STAGES.items():
        if stages and name not in stages:
            continue
        figures, rows, seconds, peak = build(chance)
        folder = root / name
        folder.mkdir(exist_ok=True)
        manifest = {
            "name": name, "key": "0" * 64, "seconds": seconds, "peak_bytes": peak,
            "steps": figures.get("steps", 0), "resumed_from_step": figures.get("resumed_from_step", 0),
            "figures": figures,
        }  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        if rows:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "figures.jsonl").write_text(lines, encoding="utf-8")
        if name == "text":
            (folder / "funnel.json").write_text(json.dumps({"section": {}, **figures}), encoding="utf-8")
    return root


def _text(chance):
    steps, left, size = [], 412, 1_215_235
    for name, documents, bytes_ in (
        ("normalised", 0, 11_020), ("too short", 9, 1_204), ("too many symbols", 3, 3_180),
        ("exact duplicates", 2, 7_700),
    ):  # fmt: skip
        steps.append({"name": name, "documents_in": left, "documents_out": left - documents, "bytes_in": size})
        steps[-1]["changed"] = 0 if documents else 77
        left, size = left - documents, size - bytes_
        steps[-1]["bytes_out"] = size
    figures = {
        "reading": {"files": 1, "rows": 412, "skipped_rows": 1, "examples": ["moby_dick:12: broken"]},
        "rules": steps,
        "train": {"documents": left - 20, "bytes": size - 59_604},
        "held_out": {"documents": 20, "bytes": 59_604},
    }
    return figures, [], 0.9, 310_000_000


def _tokenizer(chance):
    return (
        {"vocab_size": 4096, "train_tokens": 301_440, "train_bytes_per_token": 3.79, "held_out_bytes_per_token": 3.71},
        [],
        2.2,
        402_000_000,
    )


def _training(steps, first, last, chance, every=10, held=None):
    rows = []
    for step in range(0, steps + 1, every):
        at = step / steps
        row = {"step": step, "loss": last + (first - last) * math.exp(-5 * at) + chance.gauss(0, 0.03)}
        row |= {
            "accuracy": 0.6 * (1 - math.exp(-4 * at)),
            "learning_rate": 0.02 * min(1, 20 * at) * min(1, 5 * (1 - at)),
        }
        row |= {
            "gradient_norm": 0.7 + chance.random(),
            "tokens_per_second": 9100 + chance.gauss(0, 200),
            "seconds": 4.1,
        }
        if step == 0:
            row = {"step": 0}
        if held and step % (steps // 8 // every * every) == 0:
            row |= {name: end + (begin - end) * math.exp(-6 * at) for name, (begin, end) in held.items()}
        rows.append(row)
    return rows


def _pretrain(chance):
    rows = _training(400, 8.3, 3.4, chance, held={"held_out_bits_per_byte": (3.3, 1.94)})
    held = {"held_out_bits_per_byte": 1.9403}
    figures = {"steps": 400, "resumed_from_step": 0, "parameters": 3_616_128, "tokens": 1_638_400, "held_out": held}
    return figures, rows, 151.4, 1_710_000_000


def _sft(chance):
    rows = _training(300, 4.1, 0.4, chance, held={"held_out_loss": (4.0, 0.55), "held_out_exact_match": (0.0, 0.71)})
    return (
        {"steps": 300, "resumed_from_step": 100, "tokens": 912_000, "held_out": {"held_out_loss": 0.55}},
        rows,
        62.0,
        1_640_000_000,
    )


def _reward(chance):
    rows = _training(120, 0.7, 0.2, chance, held={"held_out_accuracy": (0.5, 0.87)})
    held = {"held_out_accuracy": {"value": 0.87, "interval": [0.82, 0.907], "n": 240}}
    return {"steps": 120, "held_out": held}, rows, 25.3, 1_500_000_000


def _dpo(chance):
    return (
        {"steps": 80},
        _training(80, 0.69, 0.31, chance, held={"held_out_accuracy": (0.5, 0.83)}),
        31.9,
        1_700_000_000,
    )


def _ppo(chance):
    rows = []
    for step in range(1, 121):
        at, row = (
            step / 120,
            {"step": step, "loss": 0.2 + chance.gauss(0, 0.05), "value_explained": 0.3 + 0.4 * step / 120},
        )
        if step % 4 == 1:
            row |= {
                "proxy_reward": -0.4 + 2.2 * at + chance.gauss(0, 0.1),
                "gold_reward": 0.42 + 0.3 * at + chance.gauss(0, 0.03),
            }
            row |= {
                "kl": 5.2 * at + chance.random() * 0.3,
                "repetition": 0.01 + 0.02 * at,
                "answer_tokens": 21 + 4 * at,
            }
        rows.append(row)
    figures = {"steps": 120, "beta": 0.05}
    for name, before, after, half in (
        ("gold_reward", 0.44, 0.71, 0.06), ("proxy_reward", -0.02, 1.71, 0.2), ("kl", 0.0, 5.2, 0.4),
        ("repetition", 0.011, 0.029, 0.01), ("answer_tokens", 21.2, 24.9, 1.1),
    ):  # fmt: skip
        sides = {"before": before, "after": after, "change": after - before}
        spread = {"before": half, "after": half, "change": half}
        figures |= {
            f"{name}_{side}": {"value": value, "interval": [value - spread[side], value + spread[side]], "n": 200}
            for side, value in sides.items()
        }
    return figures, rows, 88.8, 1_790_000_000


def _quantize(chance):
    weights = [
        {"kind": "fp32", "bytes": 14_464_512, "tokens_per_second": 412.0, "held_out_bits_per_byte": 1.9812},
        {"kind": "int8", "bytes": 3_721_030, "tokens_per_second": 517.0, "held_out_bits_per_byte": 1.9815,
         "verdict": "not told apart", "difference": 0.0003, "largest_error": 0.0021,
         "difference_interval": [-0.0002, 0.0009]},
        {"kind": "int4", "bytes": 2_360_014, "tokens_per_second": 498.0, "held_out_bits_per_byte": 2.0121,
         "difference": 0.0309, "difference_interval": [0.0262, 0.0361], "largest_error": 0.031, "verdict": "worse"},
    ]  # fmt: skip
    return {"weights": weights, "documents": 20}, [], 14.2, 900_000_000


def _evaluate(chance):
    table = {
        "pretrain": (1.9403, 0.0, 0.11, 0.61), "sft": (1.9812, 0.612, 0.44, 0.09),
        "dpo": (1.99, 0.634, 0.55, 0.08), "ppo": (1.9877, 0.668, 0.71, 0.11),
    }  # fmt: skip
    policies = {}
    for name, (bits, exact, gold, repeats) in table.items():
        policies[name] = [
            {"name": "held_out", "metric": "bits_per_byte", "value": bits,
             "interval": [bits - 0.03, bits + 0.03], "n": 20},
            {"name": "exercises", "metric": "exact_match", "value": exact,
             "interval": [max(0, exact - 0.06), min(1, exact + 0.06)], "n": 250},
            {"name": "exercises", "metric": "gold_reward", "value": gold,
             "interval": [gold - 0.05, gold + 0.05], "n": 250},
            {"name": "samples", "metric": "repetition", "value": repeats,
             "interval": [repeats - 0.05, repeats + 0.05], "n": 4},
        ]  # fmt: skip
    comparisons = [
        {"a": "pretrain", "b": "sft", "name": "exercises", "metric": "exact_match", "difference": 0.612,
         "interval": [0.55, 0.67], "verdict": "better", "n": 250},
        {"a": "sft", "b": "dpo", "name": "exercises", "metric": "exact_match", "difference": 0.022,
         "interval": [-0.03, 0.07], "verdict": "not told apart", "n": 250},
        {"a": "sft", "b": "ppo", "name": "exercises", "metric": "gold_reward", "difference": 0.27,
         "interval": [0.21, 0.33], "verdict": "better", "n": 250},
        {"a": "pretrain", "b": "sft", "name": "held_out", "metric": "bits_per_byte", "difference": 0.041,
         "interval": [0.03, 0.052], "verdict": "worse", "n": 20},
    ]  # fmt: skip
    samples = [{"prompt": prompt, "answers": dict(zip(table, said, strict=True))} for prompt, *said in SAMPLES]
    baselines = {"gzip": 3.21, "xz": 2.95, "xz_after_training_text": 2.43, "byte_6gram": 2.11}
    figures = {"policies": policies, "comparisons": comparisons, "samples": samples, "baselines": baselines}
    return figures, [], 33.0, 1_300_000_000


STAGES = {
    "text": _text, "tokenizer": _tokenizer, "pretrain": _pretrain, "sft": _sft, "reward": _reward, "dpo": _dpo,
    "ppo": _ppo, "quantize": _quantize, "evaluate": _evaluate,
}  # fmt: skip
