"""What question 30 makes of its races: losses and extractions by how often a text is met, the form of Muennighoff et
al. 2023 (arXiv 2305.16264) fitted to them, the sentences and the tables that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llmlab.evaluation import statistics
from llmlab.handbook.question import Figures, Table, Text
from llmlab.handbook.raced import Told
from llmlab.handbook.races.epochs import DROPPED, EPOCHS, FEWER

BITS, SEEN, CONTEXT = "bits per byte", "bits per byte, seen", "nats that context saves"
POINTS = 16
COPIES = (1, 2, 4, 8, 16, 32, 64)
TURNED = 0.02  # bits per byte that the held-out loss ends above its least
TRIED = np.geomspace(0.1, 1000, 800)  # values of R*
WHOLE = (*(f"{times} x" for times in EPOCHS), *(f"{times} x, dropout" for times in DROPPED), "1 % x 50", "every count")
ONCE = ("1 x", *(f"once, 1/{part}" for part in FEWER))


def worth(epochs: float, r_star: float) -> float:
    """D' / D = (1 + R* (1 - exp(-R / R*))) / epochs with R = epochs - 1: what tokens met so often are worth, as a share
    of as many that are met once."""
    return float((1 + r_star * (1 - np.exp(-(epochs - 1) / r_star))) / epochs)


def fitted(epochs: Sequence[int], loss: Sequence[float], share: Sequence[float], once: Sequence[float]) -> Figures:
    """R* whose effective tokens, looked up in the losses of text that is met once (a straight line between two of them,
    over the logarithm of the tokens), come nearest to the losses of these epochs; and the root of the mean square of
    what is left."""
    order = np.argsort(share)
    at, told = np.log(np.asarray(share)[order]), np.asarray(once)[order]

    def left(r_star: float) -> float:
        predicted = np.interp([np.log(worth(times, r_star)) for times in epochs], at, told)
        return float(np.sqrt(np.mean((predicted - np.asarray(loss)) ** 2)))

    errors = [left(r_star) for r_star in TRIED]
    return {"r_star": float(TRIED[int(np.argmin(errors))]), "fit_error": min(errors)}


def reached(curve: Sequence[float], target: float) -> float:
    """The share of the training after which a falling curve first meets a loss, on straight lines between its points;
    1 where it never does."""
    share = np.arange(1, len(curve) + 1) / len(curve)
    for place, value in enumerate(curve):
        if value <= target:
            if place == 0:
                return float(share[0])
            before = curve[place - 1]
            return float(share[place - 1] + (before - target) / (before - value) * (share[place] - share[place - 1]))
    return 1.0


def _epochs(told: Told) -> Figures:
    found: Figures = {"seeds": float(len(told.values("1 x", BITS)))}
    for arm in (*WHOLE, *ONCE[1:]):
        found |= {f"{what}, {arm}": told.mean(arm, what) for what in (BITS, SEEN, CONTEXT, "extracted", "copied")}
        curve = [told.mean(arm, f"bits@{point}") for point in range(1, POINTS + 1)]
        found[f"turned, {arm}"] = curve[-1] - min(curve)
    for what in ("parameters", "flops a step", "tokens"):
        values = [value for arm in WHOLE for value in told.values(arm, what)]
        found |= {what: max(values), f"{what}, spread": max(values) - min(values)}
    found["most extracted, held out"] = max(told.mean(arm, "extracted, held out") for arm in WHOLE)
    for times in EPOCHS[1:]:
        found |= told.bounds(f"minus_once_{times}", f"{times} x", "1 x", BITS)
    found |= told.bounds("rather_than_stop", "2 x", "once, 1/2", BITS)
    found |= told.bounds("few_often", "1 % x 50", "2 x", BITS)
    found |= told.bounds("context", "4 x", "1 x", CONTEXT)
    found |= told.bounds("by_heart", "64 x", "1 x", "extracted")
    for times in DROPPED:
        found |= told.bounds(f"dropped_{times}", f"{times} x, dropout", f"{times} x", BITS)
    return found | _worths(told) | _copies(told) | _steps(told)


def _worths(told: Told) -> Figures:
    """How much of what text met once would have gained, over stopping, is gained by meeting text again; and the fit."""
    found: Figures = {}
    shares = dict[int, list[float]]()
    for times in FEWER:
        rows = (told.values(arm, BITS) for arm in (f"{times} x", "1 x", f"once, 1/{times}"))
        shares[times] = [(less - again) / (less - once) for again, once, less in zip(*rows, strict=True)]
        part = statistics.mean(shares[times])
        found |= {f"gained_{times}": part.value, f"gained_{times}_lower": part.low}
    falls = statistics.mean([few - many for few, many in zip(shares[2], shares[8], strict=True)])
    found |= {"gained_falls": falls.value, "gained_falls_lower": falls.low}
    ends = {times: statistics.mean(_rise(told, f"{times} x")).value for times in EPOCHS}
    fit = [times for times in EPOCHS[1:] if ends[times] <= TURNED]
    once = [told.mean(arm, BITS) for arm in ONCE]
    found |= fitted(fit, [told.mean(f"{times} x", BITS) for times in fit], [1, *(1 / part for part in FEWER)], once)
    return found | {"fitted_epochs": float(max(fit)), "turned_epochs": float(min(set(EPOCHS[1:]) - set(fit)))}


def _rise(told: Told, arm: str) -> list[float]:
    """By how much the held-out loss ends above its least, a seed."""
    return [curve[-1] - min(curve) for curve in _curves(told, arm)]


def _curves(told: Told, arm: str) -> list[list[float]]:
    """The held-out losses in the course of a training, a seed."""
    points = (told.values(arm, f"bits@{point}") for point in range(1, POINTS + 1))
    return [list(seed) for seed in zip(*points, strict=True)]


def _copies(told: Told) -> Figures:
    """What comes back verbatim, by the copies of it in one corpus."""
    found: Figures = {}
    for what in ("extracted", "copied"):
        by_seed = [told.values("every count", f"{what} x{times}") for times in COPIES]
        found |= {f"{what} x{times}": sum(row) / len(row) for times, row in zip(COPIES, by_seed, strict=True)}
        doublings = np.log2(COPIES)
        slopes = statistics.mean([statistics.slope(doublings, seed).value for seed in zip(*by_seed, strict=True)])
        found |= {f"{what}_slope": slopes.value, f"{what}_slope_lower": slopes.low}
    return found


def _steps(told: Told) -> Figures:
    """The share of its steps after which text met once tells held-out text as well as duplicated text at the end."""
    pairs = zip(_curves(told, "1 x"), _curves(told, "1 % x 50"), strict=True)
    needed = statistics.mean([reached(clean, often[-1]) for clean, often in pairs])
    return {"steps_needed": needed.value, "steps_needed_upper": needed.high}


def _said_again(told: Told) -> Figures:
    """Words said again within a text against texts met again: question 6's race."""
    found = told.bounds("loops", "within 30 %", "across 30 %", "rep-4, greedy")
    for arm, name in (("within 30 %", "within"), ("across 30 %", "across"), ("none", "plain")):
        found |= {f"rep-4, {name}": told.mean(arm, "rep-4, greedy")}
        found |= {f"verbatim, {name}": told.mean(arm, "extracted, met again")}
    return found | told.bounds("verbatim", "across 30 %", "within 30 %", "extracted, met again")


def raced(told: Mapping[str, Told]) -> Figures:
    return _epochs(told["epochs"]) | _said_again(told["repeated_data"])


# ---------------------------------------------------------------- in words


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"Of the runs of 32 tokens in the held-out end of the book {f['held_out_known']:.0f} stand in the rest; "
        f"documents that are met another number of times than asked: {f['miscounted']:.0f}."
    )
    zh = (
        f"留出的书末部分，每 32 个词元的片段中有 {f['held_out_known']:.0f} 个也见于其余部分；遇到次数与设定不符的文档："
        f"{f['miscounted']:.0f} 篇。"
    )
    if f"{BITS}, 1 x" not in f:
        return Text(en, zh)
    en += (
        f" {f['tokens']:,.0f} tokens read, always the same model ({f['parameters']:,.0f} parameters, "
        f"{f['flops a step'] / 1e9:.2f} GFLOP a step; {f['seeds']:.0f} seeds; between arms "
        f"{f['parameters, spread']:.0f} and {f['flops a step, spread']:.0f} apart). Held-out bits per byte: "
        f"{f[f'{BITS}, 1 x']:.2f} once, {f[f'{BITS}, 4 x']:.2f} in 4 epochs of a quarter, {f[f'{BITS}, 16 x']:.2f} in "
        f"16, {f[f'{BITS}, 64 x']:.2f} in 64 (of its own text {f[f'{SEEN}, 64 x']:.3f}). Reading a quarter four times "
        f"gains {f['gained_4']:.0%} of what three more quarters would have gained, an eighth eight times "
        f"{f['gained_8']:.0%}; from {f['turned_epochs']:.0f} epochs on the held-out loss turns up. D' fitted up to "
        f"{f['fitted_epochs']:.0f} epochs: R* = {f['r_star']:.1f}, error {f['fit_error']:.3f} bits. Dropout changes "
        f"16 epochs by {f['dropped_16']:+.2f} and one by {f['dropped_1']:+.2f}. 1 % of the documents 50 times: "
        f"{f[f'{BITS}, 1 % x 50']:.2f}, which text met once reaches after {f['steps_needed']:.0%} of the steps. In "
        f"one corpus {f['extracted x1']:.0%} of what is met once comes back verbatim, 16 times "
        f"{f['extracted x16']:.0%}, 32 times {f['extracted x32']:.0%}, 64 times {f['extracted x64']:.0%}. Question "
        f"6's models, 30 % said again within a text or in texts met again: greedy rep-4 {f['rep-4, within']:.2f} and "
        f"{f['rep-4, across']:.2f}, verbatim {f['verbatim, within']:.0%} and {f['verbatim, across']:.0%}."
    )
    zh += (
        f"共读 {f['tokens']:,.0f} 个词元，模型始终相同（{f['parameters']:,.0f} 个参数，每步 "
        f"{f['flops a step'] / 1e9:.2f} GFLOP；{f['seeds']:.0f} 个种子；各组之间相差 {f['parameters, spread']:.0f} 与 "
        f"{f['flops a step, spread']:.0f}）。留出文本的每字节比特：只读一遍 {f[f'{BITS}, 1 x']:.2f}，四分之一文本读 4 "
        f"遍 {f[f'{BITS}, 4 x']:.2f}，16 遍 {f[f'{BITS}, 16 x']:.2f}，64 遍 {f[f'{BITS}, 64 x']:.2f}（对训练过的文本只"
        f"有 {f[f'{SEEN}, 64 x']:.3f}）。四分之一文本读四遍，得到了另外四分之三新文本所能带来收益的 "
        f"{f['gained_4']:.0%}；八分之一读八遍得到 {f['gained_8']:.0%}；从 {f['turned_epochs']:.0f} 遍起，留出损失掉头"
        f"上升。以不超过 {f['fitted_epochs']:.0f} 遍的各组拟合 D'：R* = {f['r_star']:.1f}，误差 {f['fit_error']:.3f} "
        f"比特。Dropout 使 16 遍的损失变化 {f['dropped_16']:+.2f}，使一遍的变化 {f['dropped_1']:+.2f}。1% 的文档各读 "
        f"50 次：{f[f'{BITS}, 1 % x 50']:.2f}，不重复的文本只用 {f['steps_needed']:.0%} 的步数便达到。同一语料中逐字背"
        f"出的比例：只出现一次 {f['extracted x1']:.0%}，16 次 {f['extracted x16']:.0%}，32 次 "
        f"{f['extracted x32']:.0%}，64 次 {f['extracted x64']:.0%}。第 6 问的模型，三成词元在文内重说、或三成文本反复"
        f"遇到：贪心 rep-4 为 {f['rep-4, within']:.2f} 与 {f['rep-4, across']:.2f}，逐字背出 "
        f"{f['verbatim, within']:.0%} 与 {f['verbatim, across']:.0%}。"
    )
    return Text(en, zh)


def _name(arm: str) -> Text:
    if arm in ONCE[1:]:
        part = arm.removeprefix("once, 1/")
        return Text(f"1/{part} of the budget, once", f"预算的 1/{part}，读一遍")
    if arm == "1 % x 50":
        return Text("1 % of the documents 50 times", "1% 的文档各 50 次")
    if arm == "every count":
        return Text("documents of every count", "各种次数的文档")
    if arm == "1 x":
        return Text("all different, once", "全不相同，一遍")
    times = arm.partition(" ")[0]
    if "dropout" in arm:
        return Text(f"{times} x, dropout", f"{times} 遍，dropout")
    return Text(f"1/{times} of the text, {times} x", f"1/{times} 的文本，{times} 遍")


def tables(f: Mapping[str, float]) -> list[Table]:
    if f"{BITS}, 1 x" not in f:
        return []
    heads = (
        Text("what is read", "所读文本"),
        Text("bits per byte, held out", "留出文本每字节比特"),
        Text("above its least", "高出最低点"),
        Text("of its own text", "训练文本"),
        Text("verbatim", "逐字背出"),
    )
    rows = tuple(
        (
            _name(arm),
            f"{f[f'{BITS}, {arm}']:.3f}",
            f"{f[f'turned, {arm}']:.3f}",
            f"{f[f'{SEEN}, {arm}']:.3f}",
            f"{f[f'extracted, {arm}']:.0%}",
        )
        for arm in (*WHOLE, *ONCE[1:])
    )
    copies: tuple[tuple[Text | str, ...], ...] = (
        (Text("verbatim", "逐字背出"), *(f"{f[f'extracted x{times}']:.0%}" for times in COPIES)),
        (Text("tokens copied of 32", "32 个中照抄"), *(f"{f[f'copied x{times}']:.1f}" for times in COPIES)),
    )
    first = Text("copies in the corpus", "语料中的份数")
    return [
        Table(Text("One budget of tokens", "同一词元预算"), heads, rows),
        Table(Text("By copies, in one corpus", "同一语料，按份数"), (first, *map(str, COPIES)), copies),
    ]
