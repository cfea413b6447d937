"""What question 14 makes of its races: who is faster and by how much, how far each is from its roofline, and the tables
that show it.

Names of figures: `prefill` is reading a prompt, `decode` a new token for each text; what ends in ", 8 texts" is of
eight at once. Ratios are milliseconds over milliseconds: above 1, the first is the slower.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from llmlab.evaluation import statistics
from llmlab.handbook.precisions import METHODS
from llmlab.handbook.question import Figures, Table, Text
from llmlab.handbook.raced import Told
from llmlab.handbook.races.precision_speed import RACE
from llmlab.handbook.roofline import Roofline, Work, decode_work, prefill_work, weight_bytes
from llmlab.handbook.smollm2_shape import SMOLLM2, VOCABULARY

KINDS = ("bf16", "int8", "int4")  # of the native step, widest first
TIMED = (*METHODS, *(f"native {kind}" for kind in KINDS))
ONE, EIGHT = RACE.arms
PHASES = ("prefill", "decode")
SITUATIONS = tuple((phase, arm) for arm in (ONE, EIGHT) for phase in PHASES)
INTEGERS = {"W8A16": "w8a16", "W8A8": "w8a8", "LLM.int8()": "split"}
HALVES = ("fp16", "bf16")
RATIOS = {
    "fp16_over_fp32": ("fp16", "fp32"),
    "fp32_over_bf16": ("fp32", "bf16"),
    "fp16_over_w8a8": ("fp16", "W8A8"),
    "bf16_over_w8a8": ("bf16", "W8A8"),
    "split_over_w8a8": ("LLM.int8()", "W8A8"),
    **{f"{short}_over_{half}": (name, half) for name, short in INTEGERS.items() for half in HALVES},
    "bf16_over_int8": ("native bf16", "native int8"),
    "int8_over_bf16": ("native int8", "native bf16"),
    "int8_over_int4": ("native int8", "native int4"),
}
# Whose products a method multiplies with, by the arms of the race `speed`. fp16 is widened to fp32 on the way.
ARITHMETIC = {"fp32": "fp32", "fp16": "fp32", "bf16": "bf16", "W8A16": "bf16", "W4A16": "bf16", "native bf16": "bf16"}


def raced(told: Mapping[str, Told]) -> Figures:
    speed, loss = told["precision_speed"], told["precision_loss"]
    out: Figures = {}
    for phase, arm in SITUATIONS:
        for name, (a, b) in RATIOS.items():
            out |= _compared(speed, arm, phase, name, a, b)
    measures = [f"{part}{phase} {m}" for part in ("layer ", "") for phase in PHASES for m in METHODS]
    measures += [f"{phase} native {kind}" for phase in PHASES for kind in KINDS]
    measures += [*(f"megabytes {m}" for m in METHODS), "outlier columns", "bandwidth"]
    for arm in (ONE, EIGHT):
        out |= {f"{arm}: {m}": speed.mean(arm, m) for m in measures if speed.fails(arm, m) is None}
    for name in ("", "planted "):
        base = f"{name}fp32"
        out[f"loss {base}"] = loss.mean("trained", base)
        for method in METHODS[1:]:
            out |= loss.bounds(f"cost {name}{method}", "trained", "trained", f"{name}{method}", base)
    out |= loss.bounds("split_worth", "trained", "trained", "planted W8A8", "planted LLM.int8()")
    out |= loss.bounds("int4_beyond_int8", "trained", "trained", "W4A16", "W8A16")
    return out | _told_apart(out) | _rooflines(out, told["speed"]) | _fused(speed) | _row_products(out)


def named(phase: str, ratio: str, arm: str) -> str:
    """What a ratio's figure is called."""
    return f"{phase}_{ratio}" if arm == ONE else f"{phase}_{ratio}, {arm}"


def _compared(race: Told, arm: str, phase: str, name: str, a: str, b: str) -> Figures:
    """Milliseconds of a over those of b, by repetition: mean and 95 % interval; nothing where either was not timed."""
    first, second = f"{phase} {a}", f"{phase} {b}"
    if race.fails(arm, first) is not None or race.fails(arm, second) is not None:
        return {}
    pairs = zip(race.values(arm, first), race.values(arm, second), strict=True)
    found = statistics.mean([x / y for x, y in pairs])
    told = named(phase, name, arm)
    return {told: found.value, f"{told}_lower": found.low, f"{told}_upper": found.high}


def _told_apart(f: Mapping[str, float]) -> Figures:
    """Of all comparisons of an int8 method with fp16 or bf16, how many it wins and loses, the interval without 1."""
    names = [
        name
        for (phase, arm), short, half in itertools.product(SITUATIONS, INTEGERS.values(), HALVES)
        if (name := named(phase, f"{short}_over_{half}", arm)) in f
    ]
    return {
        "compared": float(len(names)),
        "int8_faster": float(sum(f[f"{name}_upper"] < 1 for name in names)),
        "int8_slower": float(sum(f[f"{name}_lower"] > 1 for name in names)),
    }


# ---------------------------------------------------------------- beside the roofline


def _work(method: str, megabytes: float, phase: str, arm: str) -> Work:
    """What a method moves and does. Cache and activations of all but fp32 are two bytes wide."""
    rows, prompt, new = (int(RACE.arms[arm].get(name, RACE.common.get(name))) for name in ("rows", "prompt", "new"))
    cached = 4 if method == "fp32" else 2
    kind = method.removeprefix("native ") if method.startswith("native") else "fp32"
    work = (
        prefill_work(SMOLLM2, VOCABULARY, kind, rows, prompt, cached)
        if phase == "prefill"
        else decode_work(SMOLLM2, VOCABULARY, kind, rows, prompt + new // 2, cached)
    )
    if method.startswith("native"):
        return work
    # Integer methods hold the table of vectors in bf16 beside a head of integers, and read a row of it.
    table = 0 if method in ("fp32", "fp16", "bf16") else 2 * VOCABULARY * SMOLLM2.dim
    return Work(work.bytes - weight_bytes(SMOLLM2, VOCABULARY, "fp32") + 1e6 * megabytes - table, work.flops)


def _rooflines(f: Mapping[str, float], ceilings: Told) -> Figures:
    """`<arm>: roofline prefill fp32` and the like: milliseconds over the least that the ceilings allow. Bandwidth is of
    the race itself, arithmetic of the race `speed`."""
    peaks = {kind: 1e9 * ceilings.mean(kind, "gigaflops/s") for kind in ("fp32", "bf16", "int8")}
    out: Figures = {}
    for (phase, arm), method in itertools.product(SITUATIONS, TIMED):
        if (took := f.get(f"{arm}: {phase} {method}")) is not None:
            machine = Roofline(1e9 * f[f"{arm}: bandwidth"], peaks[ARITHMETIC.get(method, "int8")])
            work = _work(method, f.get(f"{arm}: megabytes {method}", 0.0), phase, arm)
            out[f"{arm}: roofline {phase} {method}"] = took / 1e3 / machine.seconds(work.bytes, work.flops)
    return out


def _fused(race: Told) -> Figures:
    """Of the native step's new token for one text: time over what its bytes need at the measured bandwidth, and bytes
    a second; nothing where it could not be timed."""
    if any(race.fails(ONE, f"decode native {kind}") is not None for kind in KINDS):
        return {}
    bandwidth = race.mean(ONE, "bandwidth") * 1e9
    out: Figures = {}
    for kind in KINDS:
        work, took = _work(f"native {kind}", 0.0, "decode", ONE), race.mean(ONE, f"decode native {kind}")
        out[f"roofline_{kind}"] = took / 1e3 / (work.bytes / bandwidth)
        out[f"gigabytes_per_second_{kind}"] = work.bytes / took / 1e6
    moved = [out[f"gigabytes_per_second_{kind}"] for kind in KINDS]
    return {
        **out,
        "roofline_worst": max(out[f"roofline_{kind}"] for kind in KINDS),
        "bytes_spread": max(moved) / min(moved),
    }


def _row_products(f: Mapping[str, float]) -> Figures:
    """Gigabytes a second of PyTorch's product of one row by a layer of SmolLM2, in half precision."""
    outputs, inputs = SMOLLM2.feedforward.hidden_width(SMOLLM2.dim), SMOLLM2.dim
    return {f"row_gigabytes {half}": 2 * outputs * inputs / f[f"{ONE}: layer decode {half}"] / 1e3 for half in HALVES}


# ---------------------------------------------------------------- shown


def tables(f: Mapping[str, float]) -> list[Table]:
    return [_times(f), _beats(f), _losses(f)] if "loss fp32" in f else []


def _times(f: Mapping[str, float]) -> Table:
    def timed(phase: str, arm: str, method: str) -> str:
        took, beside = f.get(f"{arm}: {phase} {method}"), f.get(f"{arm}: roofline {phase} {method}")
        return "–" if took is None else f"{took:,.{int(took < 100)}f} ({beside:.2f})"

    def megabytes(method: str) -> str:
        held = f.get(f"{ONE}: megabytes {method}")
        return "–" if held is None else f"{held:,.0f}"

    return Table(
        Text(
            "SmolLM2 on one thread: milliseconds, in brackets the time over the roofline's",
            "SmolLM2 单线程：毫秒，括号内为用时比屋顶线",
        ),
        (
            Text("method", "方法"),
            Text("reading 256", "读入 256"),
            Text("a token", "写一个词元"),
            Text("reading 8 x 64", "读入 8 x 64"),
            Text("a token each", "各写一个"),
            "MB",
        ),
        tuple((m, *(timed(phase, arm, m) for phase, arm in SITUATIONS), megabytes(m)) for m in TIMED),
    )


def _beats(f: Mapping[str, float]) -> Table:
    def ratio(name: str) -> str:
        return f"{f[name]:.2f} [{f[f'{name}_lower']:.2f}, {f[f'{name}_upper']:.2f}]" if name in f else "–"

    pairs = [(f"{m} / {half}", f"{short}_over_{half}") for half in HALVES for m, short in INTEGERS.items()]
    pairs.append(("native int8 / bf16", "int8_over_bf16"))
    return Table(
        Text(
            "When int8 beats fp16: time over time with its 95 % interval, below 1 int8 is faster",
            "int8 何时胜过 fp16：用时之比及其 95% 区间，小于 1 则 int8 更快",
        ),
        (
            Text("int8 / half", "int8 / 半精度"),
            Text("reading 256", "读入 256"),
            Text("a token", "写一个词元"),
            Text("reading 8 x 64", "读入 8 x 64"),
            Text("a token each", "各写一个"),
        ),
        tuple((said, *(ratio(named(phase, short, arm)) for phase, arm in SITUATIONS)) for said, short in pairs),
    )


def _losses(f: Mapping[str, float]) -> Table:
    def costs(name: str) -> list[str]:
        return [f"{round(f[f'cost {name}{m}'], 4) + 0.0:+.4f}" for m in METHODS[1:]]  # + 0.0: no minus before a zero

    return Table(
        Text(
            f"Bits a byte beyond fp32's {f['loss fp32']:.3f}, models trained here",
            f"每字节比特数比 fp32 的 {f['loss fp32']:.3f} 多出多少，此处训练的模型",
        ),
        (Text("model", "模型"), *METHODS[1:]),
        (
            (Text("as trained", "原样"), *costs("")),
            (Text("with outliers planted", "植入离群列"), *costs("planted ")),
        ),
    )
