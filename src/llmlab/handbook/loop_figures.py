"""What questions 5 and 7 make of the bench of decoders: the figures they share, and the tables that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmlab.evaluation import statistics
from llmlab.handbook.question import Figures, Table, Text
from llmlab.handbook.raced import Told
from llmlab.handbook.races.loops_by_decoder import MEASURES, RACE

BENCH = "loops_by_decoder"
TEMPERATURES = ("T = 0.5", "T = 0.7", "T = 1", "T = 1.3", "T = 1.5")
BEAMS = ("beam 2", "beam 4", "beam 8")
# The strongest of each remedy that is not named; those that draw are set against greedy too.
OMITTED = (
    *("top-k 40", "top-p 0.9", "typical 0.9", "min-p 0.1", "repetition 1.3", "presence 1", "frequency 1"),
    *("no repeated 3-gram", "contrastive"),
)
NAMES = {
    "greedy": Text("greedy", "贪心"),
    "greedy, may end": Text("greedy, may end", "贪心，允许结束"),
    **{f"beam {n}": Text(f"beam {n}", f"束宽 {n}") for n in (2, 4, 8)},
    "diverse beam 4": Text("diverse beams, 4 groups", "分组束搜索，4 组"),
    "contrastive": Text("contrastive search (3 passages a seed)", "对比搜索（每种子 3 段）"),
    **{f"repetition {p}": Text(f"repetition penalty {p}", f"重复惩罚 {p}") for p in ("1.05", "1.1", "1.2", "1.3")},
    **{f"presence {p}": Text(f"presence penalty {p}", f"出现惩罚 {p}") for p in ("0.5", "1")},
    **{f"frequency {p}": Text(f"frequency penalty {p}", f"频率惩罚 {p}") for p in ("0.5", "1")},
    **{f"no repeated {n}-gram": Text(f"no repeated {n}-gram", f"禁止重复 {n} 元组") for n in (3, 4)},
    "filter by words": Text("greedy, then filter by words", "贪心，再按用词过滤"),
    "filter by meaning": Text("greedy, then by words and MiniLM", "贪心，再按用词与 MiniLM 过滤"),
    "people": Text("people", "人写"),
    "people, filtered": Text("people, by words and MiniLM", "人写，按用词与 MiniLM 过滤"),
    "begun again": Text("greedy after a passage begun again", "贪心，提示为重新起头的段落"),
    "said often": Text("greedy after a sentence said 4 times", "贪心，提示为说了 4 遍的句子"),
}
HEADS: dict[str, Text | str] = {
    "rep_4": "rep-4",
    "looping": Text("loop", "循环"),
    "before_loop": Text("from token", "始于"),
    "period": Text("period", "周期"),
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "copied": Text("of the prompt", "出自提示"),
    "nats": Text("nats", "奈特"),
    "nats_first": Text("first 32", "前 32"),
    "nats_last": Text("last 32", "末 32"),
    "mauve": Text("MAUVE, light", "简版 MAUVE"),
    "kept": Text("kept", "留下"),
}
SHARES = ("looping", "copied", "kept")


def means(race: Told) -> Figures:
    """`measure arm` for all that was asked of an arm; the period only of arms of which every seed has a loop."""
    return {
        f"{measure} {arm}": race.mean(arm, measure)
        for arm in RACE.arms
        for measure in MEASURES
        if race.fails(arm, measure) is None and (measure != "period" or min(race.values(arm, measure)) > 0)
    }


def least(race: Told, pairs: Sequence[tuple[str, str, str]]) -> float:
    """The smallest lower bound of these differences (a, b, measure)."""
    return min(race.difference(a, b, measure).low for a, b, measure in pairs)


def apart(figure: str, a: Sequence[float], b: Sequence[float]) -> Figures:
    """a minus b over seeds, of figures that no single measure holds."""
    found = statistics.mean([x - y for x, y in zip(a, b, strict=True)])
    return {figure: found.value, f"{figure}_lower": found.low, f"{figure}_upper": found.high}


def table(f: Mapping[str, float], title: Text, arms: Sequence[str], measures: Sequence[str]) -> Table:
    rows = tuple((NAMES.get(arm, arm), *(_cell(f, measure, arm) for measure in measures)) for arm in arms)
    return Table(title, (Text("decoder", "解码方式"), *(HEADS[measure] for measure in measures)), rows)


def _cell(f: Mapping[str, float], measure: str, arm: str) -> str:
    value = f.get(f"{measure} {arm}")
    if value is None:
        return "–"
    if measure in SHARES:
        return f"{value:.0%}"
    return f"{value:.0f}" if measure in ("before_loop", "period") else f"{value:.2f}"
