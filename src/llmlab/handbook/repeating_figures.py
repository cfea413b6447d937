"""What question 6 makes of its races: one figure or more a cause, the sentences and the tables that show them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from llmlab.evaluation import statistics
from llmlab.handbook.question import Figures, Table, Text
from llmlab.handbook.raced import Told

DOSES = ("none", "within 5 %", "within 15 %", "within 30 %")
MADE = (*DOSES, "across 30 %", "a 32nd")
AIMS = ("likelihood", "unlikelihood", "label smoothing", "ditto", "half the rows")
LAYERS = ("one layer", "two layers")
COPIES = range(9)
GREEDY, SAMPLED, BOOK = "rep-4, greedy", "rep-4, sampled", "rep-4, book"
BITS, NATS = "bits per byte", "nats a token"


def slope(x: list[float], y: list[float]) -> float:
    """Of the straight line that fits best."""
    middle, height = sum(x) / len(x), sum(y) / len(y)
    across = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True))
    return across / sum((a - middle) ** 2 for a in x)


def _told_again(told: Told) -> Figures:
    found: Figures = {}
    for arm in ("real", "random"):
        curve = [told.mean(arm, f"probability_{copy}") for copy in COPIES]
        found |= {f"{arm}_{copy}": value for copy, value in zip(COPIES, curve, strict=True)}
        found |= told.bounds(f"{arm}_first", arm, arm, "probability_1", "probability_0")
        found[f"{arm}_whole_8"] = told.mean(arm, "whole_8")
    found["real_smallest_rise"] = min(found[f"real_{n + 1}"] - found[f"real_{n}"] for n in COPIES[:-1])
    return found


def _data(told: Told) -> Figures:
    found: Figures = {}
    for arm in MADE:
        for mark in (GREEDY, "loops, greedy", "distinct-2, greedy", SAMPLED, BITS, "rep-4, data"):
            found[f"{mark}, {arm}"] = told.mean(arm, mark)
        for mark in ("extracted, met again", "extracted, met once"):
            found[f"{mark}, {arm}"] = told.mean(arm, mark)
    found[BOOK] = told.mean("none", BOOK)
    by_seed = [
        slope([told.values(arm, "rep-4, data")[n] for arm in DOSES], [told.values(arm, GREEDY)[n] for arm in DOSES])
        for n in range(len(told.values("none", GREEDY)))
    ]
    fitted = statistics.mean(by_seed)
    found |= {"dose_slope": fitted.value, "dose_slope_lower": fitted.low, "dose_slope_seeds": len(by_seed)}
    found |= told.bounds("dose", "within 30 %", "none", GREEDY)
    found |= told.bounds("within_minus_across", "within 30 %", "across 30 %", GREEDY)
    found |= told.bounds("across", "across 30 %", "none", GREEDY)
    found |= told.bounds("remembered", "across 30 %", "across 30 %", "extracted, met again", "extracted, met once")
    found |= told.bounds("within_minus_narrow", "within 30 %", "a 32nd", GREEDY)
    found |= told.bounds("narrow", "a 32nd", "none", GREEDY)
    found |= told.bounds("narrow_loss", "a 32nd", "none", BITS)
    found |= told.bounds("greedy_minus_sampled", "none", "none", GREEDY, SAMPLED)
    found |= told.bounds("sampled_minus_book", "none", "none", SAMPLED, BOOK)
    return found


def _aims(told: Told) -> Figures:
    found: Figures = {}
    for arm in AIMS:
        for mark in (GREEDY, "loops, greedy", "distinct-2, greedy", SAMPLED, BITS):
            found[f"{mark}, {arm}"] = told.mean(arm, mark)
    for arm, name in (("unlikelihood", "unlikelihood"), ("label smoothing", "smoothing"), ("ditto", "ditto")):
        found |= told.bounds(f"{name}_gain", "likelihood", arm, GREEDY)
        pairs = zip(told.values(arm, NATS), told.values("likelihood", NATS), strict=True)
        cost = statistics.mean([math.exp(mine - theirs) - 1 for mine, theirs in pairs])
        found |= {f"{name}_cost": cost.value, f"{name}_cost_upper": cost.high}
    found |= told.bounds("ditto_gain_rows", "half the rows", "ditto", GREEDY)
    found |= told.bounds("ditto_cost_rows", "ditto", "half the rows", BITS)
    return found


def _attention(told: Told) -> Figures:
    found: Figures = {}
    for arm in LAYERS:
        name = arm.replace(" ", "_")
        for mark in (GREEDY, "loops, greedy", BITS, "right, random again"):
            found[f"{mark}, {arm}"] = told.mean(arm, mark)
        found |= told.bounds(f"{name}_induction", arm, arm, "nats, random shuffled", "nats, random again")
        found |= told.bounds(f"{name}_recall", arm, arm, "nats, random", "nats, random shuffled")
    saved = [
        [
            a - b
            for a, b in zip(*(told.values(arm, f"nats, random {how}") for how in ("shuffled", "again")), strict=True)
        ]
        for arm in LAYERS
    ]
    apart = statistics.mean([two - one for one, two in zip(*saved, strict=True)])
    found |= {"induction": apart.value, "induction_lower": apart.low}
    found |= told.bounds("layers", "two layers", "one layer", GREEDY)
    return found


READ = {
    "self_reinforcement": _told_again,
    "repeated_data": _data,
    "against_repetition": _aims,
    "attention_alone": _attention,
}


def raced(told: Mapping[str, Told]) -> Figures:
    """The figures of the races that were run."""
    found: Figures = {}
    for name, record in told.items():
        found |= READ[name](record)
    return found


# ---------------------------------------------------------------- in words


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"For fixed logits the likelihood moves by {f['likelihood_moves']:.0f} when the earlier tokens are exchanged, "
        f"unlikelihood by {f['unlikelihood_moves']:.2f} nats a token."
    )
    zh = (
        f"固定 logits 而换掉前文，似然损失变化 {f['likelihood_moves']:.0f}，非似然损失每词元变化 "
        f"{f['unlikelihood_moves']:.2f} 奈特。"
    )
    for part in (_of_copies, _of_data, _of_aims, _of_layers):
        told = part(f)
        en, zh = en + told.en, zh + told.zh
    return Text(en, zh)


NOTHING = Text("", "")


def _of_copies(f: Mapping[str, float]) -> Text:
    if "real_0" not in f:
        return NOTHING
    return Text(
        f" SmolLM2 gives the tokens of a sentence {f['real_0']:.2f}, behind one copy {f['real_1']:.2f}, behind eight "
        f"{f['real_8']:.2f}; random tokens {f['random_0']:.5f}, {f['random_1']:.2f}, {f['random_8']:.2f}. Behind "
        f"eight copies greedy decoding says {f['real_whole_8']:.0%} of the sentences once more, "
        f"{f['random_whole_8']:.0%} of the random ones.",
        f"SmolLM2 给一句话各词元的平均概率：初次 {f['real_0']:.2f}，已说过一遍 {f['real_1']:.2f}，说过八遍 "
        f"{f['real_8']:.2f}；换成随机词元则为 {f['random_0']:.5f}、{f['random_1']:.2f}、{f['random_8']:.2f}。说过八遍"
        f"后，贪心解码会把 {f['real_whole_8']:.0%} 的句子再说一遍，随机词元则为 {f['random_whole_8']:.0%}。",
    )


def _of_data(f: Mapping[str, float]) -> Text:
    if f"{GREEDY}, none" not in f:
        return NOTHING
    return Text(
        f" Little models of the book, greedy rep-4: {f[f'{GREEDY}, none']:.2f} on plain text, "
        f"{f[f'{GREEDY}, within 30 %']:.2f} with 30 % said again within passages (slope over the data's rep-4 "
        f"{f['dose_slope']:+.2f}, at least {f['dose_slope_lower']:+.2f}), {f[f'{GREEDY}, across 30 %']:.2f} with as "
        f"much in passages met again, of which {f['extracted, met again, across 30 %']:.0%} come back verbatim "
        f"({f['extracted, met once, across 30 %']:.0%} of others); {f[f'{GREEDY}, a 32nd']:.2f} on a 32nd of the "
        f"text. Sampled from the plain model: {f[f'{SAMPLED}, none']:.3f}, the book {f[BOOK]:.3f}.",
        f"以该书训练的小模型，贪心文本的 rep-4：原文 {f[f'{GREEDY}, none']:.2f}；段内三成重说 "
        f"{f[f'{GREEDY}, within 30 %']:.2f}（对数据 rep-4 的斜率 {f['dose_slope']:+.2f}，下界 "
        f"{f['dose_slope_lower']:+.2f}）；同样份量改为跨段重复 {f[f'{GREEDY}, across 30 %']:.2f}，这些段落有 "
        f"{f['extracted, met again, across 30 %']:.0%} 能逐字背出（其余 "
        f"{f['extracted, met once, across 30 %']:.0%}）；只用三十二分之一的文本 {f[f'{GREEDY}, a 32nd']:.2f}。原文模型"
        f"改用采样为 {f[f'{SAMPLED}, none']:.3f}，书本身 {f[BOOK]:.3f}。",
    )


def _of_aims(f: Mapping[str, float]) -> Text:
    if "unlikelihood_gain" not in f:
        return NOTHING
    return Text(
        f" Unlikelihood lowers greedy rep-4 by {f['unlikelihood_gain']:.2f} and costs {f['unlikelihood_cost']:+.1%} "
        f"perplexity, label smoothing {f['smoothing_gain']:+.2f} and {f['smoothing_cost']:+.1%}, DITTO "
        f"{f['ditto_gain']:+.2f} and {f['ditto_cost']:+.1%}.",
        f"非似然训练使贪心 rep-4 降低 {f['unlikelihood_gain']:.2f}，困惑度变化 {f['unlikelihood_cost']:+.1%}；标"
        f"签平滑为 {f['smoothing_gain']:+.2f} 与 {f['smoothing_cost']:+.1%}；DITTO 为 {f['ditto_gain']:+.2f} 与 "
        f"{f['ditto_cost']:+.1%}。",
    )


def _of_layers(f: Mapping[str, float]) -> Text:
    if "induction" not in f:
        return NOTHING
    return Text(
        f" With attention alone, random tokens said again in their order cost {f['two_layers_induction']:.2f} nats "
        f"less than shuffled with two layers, {f['one_layer_induction']:+.2f} with one; greedy rep-4 "
        f"{f[f'{GREEDY}, two layers']:.2f} and {f[f'{GREEDY}, one layer']:.2f}.",
        f"纯注意力模型读随机词元的第二遍，照原序比打乱省下的奈特数：两层 {f['two_layers_induction']:.2f}，一层 "
        f"{f['one_layer_induction']:+.2f}；贪心 rep-4 分别为 {f[f'{GREEDY}, two layers']:.2f} 与 "
        f"{f[f'{GREEDY}, one layer']:.2f}。",
    )


NAMES = {
    "none": Text("plain text", "原文"),
    "within 5 %": Text("5 % said again within", "段内重说 5%"),
    "within 15 %": Text("15 % said again within", "段内重说 15%"),
    "within 30 %": Text("30 % said again within", "段内重说 30%"),
    "across 30 %": Text("30 % passages met again", "跨段重复 30%"),
    "a 32nd": Text("a 32nd of the text", "文本的三十二分之一"),
    "likelihood": Text("likelihood", "最大似然"),
    "unlikelihood": Text("unlikelihood", "非似然"),
    "label smoothing": Text("label smoothing", "标签平滑"),
    "ditto": Text("DITTO", "DITTO 训练"),
    "half the rows": Text("likelihood, half the rows", "最大似然，行数减半"),
}


def tables(f: Mapping[str, float]) -> list[Table]:
    """One a race that was run."""
    marks = (GREEDY, "loops, greedy", "distinct-2, greedy", SAMPLED, BITS)
    heads = (
        Text("greedy rep-4", "贪心 rep-4"),
        Text("in loops", "陷入循环"),
        Text("greedy distinct-2", "贪心 distinct-2"),
        Text("sampled rep-4", "采样 rep-4"),
        Text("bits per byte", "每字节比特"),
    )

    def row(arm: str) -> tuple[Text | str, ...]:
        shown = ("{:.3f}", "{:.0%}", "{:.3f}", "{:.3f}", "{:.3f}")
        return (NAMES[arm], *(form.format(f[f"{mark}, {arm}"]) for form, mark in zip(shown, marks, strict=True)))

    found = list[Table]()
    if "real_0" in f:
        kinds = {"real": Text("sentences", "真句子"), "random": Text("random tokens", "随机词元")}
        title = Text("SmolLM2: mean probability of a token, behind n copies", "SmolLM2：已说过 n 遍之后词元的平均概率")
        first = Text("copies before", "已说遍数")
        lines = list[tuple[Text | str, ...]]()
        for kind, name in kinds.items():
            lines.append((name, *(f"{f[f'{kind}_{n}']:.3f}" for n in COPIES)))
        found.append(Table(title, (first, *map(str, COPIES)), tuple(lines)))
    if f"{GREEDY}, none" in f:
        first = Text("trained on", "训练文本")
        found.append(Table(Text("By the text", "按训练文本"), (first, *heads), tuple(row(arm) for arm in MADE)))
    if "unlikelihood_gain" in f:
        first = Text("trained by", "训练目标")
        found.append(Table(Text("By the objective", "按训练目标"), (first, *heads), tuple(row(arm) for arm in AIMS)))
    return found
