"""What the two races of needles found, as question 11 shows it."""

from __future__ import annotations

from collections.abc import Mapping

from llmlab.handbook.question import Figures, Table, Text
from llmlab.handbook.raced import Told
from llmlab.handbook.races import needles, needles_past
from llmlab.handbook.roofline import cache_bytes
from llmlab.handbook.smollm2_shape import SMOLLM2

HALF = 2  # bytes of a cached number: the native step keeps bf16
SAID = {
    "short": Text("all of 512 tokens", "整读 512 个词元"),
    "short, asked": Text("the same, asked in a chat", "同上，以对话提问"),
    "truncated": Text("its first 2,048 tokens", "只读前 2,048 个词元"),
    "chunks": Text("chunks of 512", "分块，每块 512"),
    "overlapping": Text("chunks, overlap 64", "分块，重叠 64"),
    "chunks, on edges": Text("chunks, facts on edges", "分块，事实在边界上"),
    "overlapping, on edges": Text("overlap, facts on edges", "重叠，事实在边界上"),
    "summaries": Text("summaries of chunks", "各块摘要"),
    "hierarchy": Text("best sentence of each section", "每节最相关的一句"),
    "retrieved": Text("retrieve, then read", "先检索后阅读"),
    "streamed": Text("window of 2,048, 4 sinks", "窗口 2,048 加 4 个汇点"),
    "stretched": Text("all, NTK for twice the length", "整读，NTK 两倍"),
    "whole": Text("all of it", "整读"),
}


def needle_figures(within: Told, past: Told) -> Figures:
    """Means of every arm, and the differences that are claimed."""
    found: Figures = {}
    for name, race in (("6k", within), ("12k", past)):
        found[f"{name}: documents"] = float(len(race.record["seeds"]))
        for arm in race.record["arms"]:
            found |= {f"{name} {arm}: {measure}": race.mean(arm, measure) for measure in needles.MEASURES}
    for name, a, b in (
        ("overlapping_minus_truncated", "overlapping", "truncated"),
        ("hierarchy_minus_truncated", "hierarchy", "truncated"),
        ("hierarchy_minus_summaries", "hierarchy", "summaries"),
        ("overlap_on_edges", "overlapping, on edges", "chunks, on edges"),
    ):
        found |= within.bounds(name, a, b, "recall")
    for way in ("retrieved", "stretched", "streamed"):
        found |= past.bounds(f"{way}_minus_whole", way, "whole", "recall")
    found |= within.bounds("middle_minus_first", "whole", "whole", "recall_3", "recall_1")
    found |= within.bounds("middle_minus_last", "whole", "whole", "recall_3", "recall_5")
    return found | {
        "chunk_share": found["6k overlapping: held"] / needles.TOKENS,
        "hierarchy_share": found["6k hierarchy: held"] / needles.TOKENS,
        "retrieved_work": found["12k retrieved: tera"] / found["12k whole: tera"],
        "streamed_share": found["12k streamed: held"] / found["12k whole: held"],
    }


def said_of_needles(f: Mapping[str, float]) -> Text:
    def at(name: str) -> str:
        return f"{f[f'{name}: recall']:.0%}"

    en = (
        f" SmolLM2 finds {at('6k short')} of ten facts in 512 tokens (asked in its chat form "
        f"{at('6k short, asked')}) and {at('6k whole')} in {needles.TOKENS:,}; of "
        f"those it finds {at('6k truncated')} in the first 2,048, {at('6k overlapping')} in chunks that overlap, "
        f"{at('6k hierarchy')} by the best sentence of each section, {at('6k retrieved')} by retrieval, "
        f"{at('6k summaries')} by summaries; of facts on edges {at('6k chunks, on edges')} without overlap and "
        f"{at('6k overlapping, on edges')} with it. In {needles_past.TOKENS:,} tokens, past its length: "
        f"{at('12k whole')} as it is, {at('12k stretched')} by NTK, {at('12k streamed')} by window and sinks, "
        f"{at('12k retrieved')} by retrieval with {f['retrieved_work']:.0%} of the operations."
    )
    zh = (
        f"十个事实，SmolLM2 在 512 个词元中找到 {at('6k short')}（以对话提问则为 "
        f"{at('6k short, asked')}），在 {needles.TOKENS:,} 个词元中整读找到 "
        f"{at('6k whole')}，只读前 2,048 个找到 {at('6k truncated')}，重叠分块 {at('6k overlapping')}，每节取最相关的一"
        f"句 {at('6k hierarchy')}，检索 {at('6k retrieved')}，摘要 {at('6k summaries')}；事实在边界上时，不重叠找到 "
        f"{at('6k chunks, on edges')}，重叠找到 {at('6k overlapping, on edges')}。在超出训练长度的 "
        f"{needles_past.TOKENS:,} 个词元中：原样整读 {at('12k whole')}，NTK {at('12k stretched')}，窗口加汇点 "
        f"{at('12k streamed')}，检索 {at('12k retrieved')}，运算量为整读的 {f['retrieved_work']:.0%}。"
    )
    return Text(en, zh)


def needle_tables(f: Mapping[str, float]) -> list[Table]:
    """Each way with its recall by fifth of the document, and what it took; none before the races were run."""
    if "chunk_share" not in f:
        return []
    return [_table(f, "6k", needles.TOKENS, list(needles.RACE.arms)), _table(f, "12k", needles_past.TOKENS)]


def _table(f: Mapping[str, float], name: str, tokens: int, arms: list[str] | None = None) -> Table:
    def row(arm: str) -> tuple[Text | str, ...]:
        def figure(measure: str) -> float:
            return f[f"{name} {arm}: {measure}"]

        held = figure("held") * cache_bytes(SMOLLM2, HALF) / 1e6
        return (
            SAID[arm],
            f"{figure('recall'):.0%}",
            *(f"{figure(f'recall_{fifth}'):.0%}" for fifth in range(1, 6)),
            f"{figure('tokens'):,.0f}",
            f"{figure('embedded'):,.0f}",
            f"{figure('tera'):.2f}",
            f"{held:.0f}",
        )

    count = f"{f[f'{name}: documents']:.0f}"
    return Table(
        Text(
            f"Ten questions to each of {count} documents of {tokens:,} tokens: recall, also by fifth of the document "
            f"where the fact stands; tokens read by SmolLM2 and by MiniLM, 10¹² operations, megabytes of keys and "
            f"values at most (bf16)",
            f"{count} 份 {tokens:,} 个词元的文档，各提十个问题：找到的比例，以及按事实所在的五分之一；SmolLM2 与 "
            f"MiniLM 各读的词元数，10¹² 次运算，键值缓存最多占的 MB（bf16）",
        ),
        (
            Text("read", "读法"),
            Text("recall", "找到"),
            *(Text(f"{fifth}/5", f"第 {fifth} 段") for fifth in range(1, 6)),
            Text("tokens", "词元"),
            "MiniLM",
            Text("10¹²", "万亿次"),
            "MB",
        ),
        tuple(row(arm) for arm in arms or list(needles_past.RACE.arms)),
    )
