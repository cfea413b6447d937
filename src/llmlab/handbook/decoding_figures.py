"""What question 16 makes of its identities and of its race: the sentences and the table that show them."""

from __future__ import annotations

from collections.abc import Mapping

from llmlab.evaluation import statistics
from llmlab.handbook import decoding_desk as desk
from llmlab.handbook.question import Figures, Table, Text
from llmlab.handbook.raced import Told

TRIED = ("T = 0", "T = 0.25", "T = 0.5", "T = 0.8", "T = 1", "T = 1.5", "T = 2", "top-k = 20", "top-p = 0.9")


def raced(told: Mapping[str, Told]) -> Figures:
    race = told["temperatures"]
    out = {f"exact {name}": race.mean("sums", f"exact {name}") for name in TRIED}
    for mark in ("words", "distinct", "divergence"):
        out |= {f"{mark} {name}": race.mean("stories", f"{mark} {name}") for name in (*TRIED, "human")}

    def bounds(figure: str, arm: str, mark: str, a: str, b: str) -> Figures:
        return race.bounds(figure, arm, arm, f"{mark} {a}", f"{mark} {b}")

    warm = [race.values("stories", f"divergence T = {t}") for t in ("0.8", "1")]
    best = [min(pair) for pair in zip(*warm, strict=True)]
    for figure, name in (("cold_story", "T = 0.5"), ("hot_story", "T = 1.5")):
        other = race.values("stories", f"divergence {name}")
        found = statistics.mean([a - b for a, b in zip(other, best, strict=True)])
        out |= {figure: found.value, f"{figure}_lower": found.low}
    return {
        **out,
        **bounds("greedy_sums", "sums", "exact", "T = 0", "T = 1"),
        **bounds("diversity", "stories", "distinct", "T = 1", "T = 0.25"),
        **bounds("quality", "stories", "words", "T = 0.25", "T = 1.5"),
        **bounds("top_p", "stories", "words", "top-p = 0.9", "T = 1"),
    }


def evidence(f: Mapping[str, float]) -> Text:
    acting, all_texts = f["parameters_tried"] - f["silent_parameters"], desk.TOY**desk.TOY_LENGTH
    cold, hot = desk.TEMPERATURES[0], desk.TEMPERATURES[-1]
    low, high = desk.LENGTH_PENALTIES[0], desk.LENGTH_PENALTIES[-1]
    told = Text(
        f"From T = {cold:g} to {hot:g} entropy rises at every step, from {f['entropy_coldest']:.2f} to "
        f"{f['entropy_hottest']:.2f} nats, and top-p = {desk.NUCLEUS:g} keeps {f['top_p_growth']:.1f} times as many "
        f"tokens, top-k {f['top_k_growth']:.0f} times; temperature changes {f['top_k_1_differs']:.0f} greedy texts. "
        f"Length limits are broken {f['limits_broken']:.0f} times. Of {f['parameters_tried']:.0f} parameters the "
        f"handbook leaves out, {acting:.0f} change the text. Of {desk.TOY_PROMPTS} prompts of a toy vocabulary greedy "
        f"misses the likeliest text {f['greedy_misses']:.0f} times, two beams {f['beam_2_misses']:.0f} times, as many "
        f"beams as there are texts ({all_texts}) {f['beam_all_differs']:.0f} times. With a stop token and the penalty "
        f"for length going up from {low:g} to {high:g}, the best text of two beams grows longer for "
        f"{f['length_rises']:.0f} prompts; that of two beams or of all grows shorter {f['length_falls']:.0f} times. "
        f"Two texts of {desk.WIDTH} beams differ at {f['apart_beams']:.0%} of their places, in groups of one at "
        f"{f['apart_groups']:.0%}.",
        f"温度由 {cold:g} 升到 {hot:g}，熵逐级上升，从 {f['entropy_coldest']:.2f} 增至 {f['entropy_hottest']:.2f} 奈特"
        f"；top-p = {desk.NUCLEUS:g} 留下的词元增至 {f['top_p_growth']:.1f} 倍，top-k 则为 {f['top_k_growth']:.0f} 倍"
        f"；因温度改变的贪心文本有 {f['top_k_1_differs']:.0f} 条。违反长度限制 {f['limits_broken']:.0f} 次。手册未列而"
        f"在此试过的 {f['parameters_tried']:.0f} 个参数中，有 {acting:.0f} 个会改变文本。小词表上 {desk.TOY_PROMPTS} "
        f"个提示：贪心有 {f['greedy_misses']:.0f} 次错过最可能的文本，束宽 2 有 {f['beam_2_misses']:.0f} 次，束宽取全"
        f"部 {all_texts} 条文本时 {f['beam_all_differs']:.0f} 次。设停止词元，长度惩罚由 {low:g} 逐级升到 {high:g}，束"
        f"宽 2 所得最佳文本变长的提示有 {f['length_rises']:.0f} 个；束宽 2 或取全部时，变短的情形有 "
        f"{f['length_falls']:.0f} 次。{desk.WIDTH} 条束的文本两两相比，不同的位置占 {f['apart_beams']:.0%}，每组一束时"
        f"占 {f['apart_groups']:.0%}。",
    )
    if "exact T = 0" not in f:
        return told
    sums = max(TRIED, key=lambda name: f[f"exact {name}"])
    story = min(TRIED, key=lambda name: f[f"divergence {name}"])
    return Text(
        f"{told.en} Of models trained here, the one that adds is best at {sums} ({f[f'exact {sums}']:.0%} of sums of 8 "
        f"digits right to the last, at T = 1 {f['exact T = 1']:.0%}), the one that tells stories nearest to people's "
        f"text at {story} ({f[f'divergence {story}']:.3f} bits; other text of people {f['divergence human']:.3f}, at "
        f"T = 0 {f['divergence T = 0']:.3f}).",
        f"{told.zh}此处训练的模型：做加法的以 {sums} 为最好（8 位加法全对 {f[f'exact {sums}']:.0%}，T = 1 时 "
        f"{f['exact T = 1']:.0%}）；讲故事的以 {story} 最接近人写的文本（散度 {f[f'divergence {story}']:.3f} 比特；人写"
        f"的另一批文本 {f['divergence human']:.3f}，T = 0 时 {f['divergence T = 0']:.3f}）。",
    )


def tables(f: Mapping[str, float]) -> list[Table]:
    if "exact T = 0" not in f:
        return []
    title = Text(
        "Sums of 8 digits; stories: words that the book has, distinct runs of 8 bytes, bits from people's text",
        "8 位加法；故事：书中有的词，不重复的 8 字节片段，与人写文本的散度（比特）",
    )
    heads = (
        Text("setting", "设置"),
        Text("sums right", "加法全对"),
        Text("words", "真词"),
        Text("distinct", "不重复"),
        Text("divergence", "散度"),
    )
    rows = tuple(
        (
            name if name in TRIED else Text("people", "人写"),
            f"{f[f'exact {name}']:.0%}" if name in TRIED else "–",
            f"{f[f'words {name}']:.0%}",
            f"{f[f'distinct {name}']:.0%}",
            f"{f[f'divergence {name}']:.3f}",
        )
        for name in (*TRIED, "human")
    )
    return [Table(title, heads, rows)]
