"""Question 32: absolute position encodings. Sinusoids are one; a shifted text is another text to all of them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from llmlab.errors import InputError
from llmlab.evaluation import statistics
from llmlab.handbook.measures import parameters, power
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.handbook.recall_task import BACK, LENGTH, SETTINGS, nats, rows, trained
from llmlab.handbook.sinusoids import added, built, line, nearest
from llmlab.model.encoding import PositionPart
from llmlab.model.positions import Learned, Sinusoidal
from llmlab.model.relative import Alibi, T5Bias
from llmlab.model.rotary import Rope
from llmlab.model.transformer import Transformer
from llmlab.stages import Session

FOUND = 0.9  # share of the index's variance that a linear map must recover from a sinusoid
APART = 1.0  # two sinusoids this far from one another are not the same
HARMED = 0.1  # nats by which a shifted text must get worse, 95 % bound; knowing nothing costs 2.8
NUDGED = 1e-4  # nats by which a shift inside the trained positions changes a token, on average
UNHARMED = 1e-5
WIDTH, FURTHEST, PROBED = 64, 1_000_000, 512
TABLE = 160  # rows of the learnt table, of which LENGTH are trained
TEXTS, EXCERPT = 64, 24
INSIDE, OUTSIDE = 20, 100  # offsets: among the trained positions, and past them


def recovered(vectors_PD: Tensor) -> float:
    """R² of a linear regression of the index, fitted at even positions and judged at odd ones."""
    index = torch.arange(len(vectors_PD), dtype=torch.float64)
    inputs = torch.cat([vectors_PD.double(), torch.ones(len(vectors_PD), 1, dtype=torch.float64)], 1)
    weights = torch.linalg.lstsq(inputs[0::2], index[0::2, None]).solution
    missed = index[1::2] - (inputs[1::2] @ weights)[:, 0]
    return 1 - float(missed.square().sum() / (index[1::2] - index[1::2].mean()).square().sum())


def _refuses() -> float:
    """1 where the table of `Learned` takes its last index and refuses the next by name."""
    table = built(Learned(), WIDTH, context=TABLE)
    added(table, line(1, start=TABLE - 1), WIDTH)
    try:
        added(table, line(1, start=TABLE), WIDTH)
    except InputError:
        return 1.0
    return 0.0


def _moved(model: Transformer, offset: int, seed: int) -> tuple[float, float, float]:
    """What standing `offset` positions later does to the loss: mean over texts, its lower 95 % bound, mean size."""
    texts = rows(TEXTS, EXCERPT, seed)
    change = nats(model, texts, offset) - nats(model, texts)
    found = statistics.mean(change.mean(1).tolist())
    assert found.interval[0] is not None
    return found.value, found.interval[0], float(change.abs().mean())


def _shifts(seed: int) -> Figures:
    absolute: tuple[PositionPart, ...] = (Learned(), Sinusoidal())
    models = {part.kind: trained(part, seed, TABLE) for part in (*absolute, Rope(), Alibi(), T5Bias())}
    told: Figures = {}
    for part in absolute:
        told[f"{part.kind}_shifted"], told[f"{part.kind}_shifted_lower"], _ = _moved(models[part.kind], OUTSIDE, seed)
        told[f"{part.kind}_nudged"] = _moved(models[part.kind], INSIDE, seed)[2]
    relative = [models[part.kind] for part in (Rope(), Alibi(), T5Bias())]
    told["relative_shifted"] = max(_moved(model, offset, seed)[2] for model in relative for offset in (INSIDE, OUTSIDE))
    loss = nats(models["learned"], rows(TEXTS, 2 * LENGTH, seed))
    jump = statistics.mean((loss[:, LENGTH - BACK :].mean(1) - loss[:, : LENGTH - BACK].mean(1)).tolist())
    assert jump.interval[0] is not None
    return told | {"untrained_jump": jump.value, "untrained_jump_lower": jump.interval[0]}


def figures(session: Session) -> Figures:
    apart, distance = nearest(FURTHEST, WIDTH)
    return {
        "nearest_at": float(apart),
        "nearest_distance": distance,
        "index_recovered": recovered(added(built(Sinusoidal(), WIDTH), line(PROBED), WIDTH)),
        "table_refuses": _refuses(),
        "table_share": parameters(built(Learned(), WIDTH, context=TABLE)) / (TABLE * WIDTH),
        **_shifts(session.seed),
    }


def raced(told: Mapping[str, Told]) -> Figures:
    race = told["positions"]
    return {
        "learned_reads_2x": float(race.fails("learned", "bits_per_byte@2x") is None),
        **race.grown("sinusoidal", 2),
        **race.bounds("learned_minus_sinusoidal", "learned", "sinusoidal", "bits_per_byte"),
    }


def evidence(f: Mapping[str, float]) -> Text:
    en, zh = "", ""
    if "sinusoidal_2x_minus_1x" in f:
        between = f"[{f['learned_minus_sinusoidal_lower']:+.3f}, {f['learned_minus_sinusoidal_upper']:+.3f}]"
        en = (
            f" On text, at twice the trained length, sinusoids lose {f['sinusoidal_2x_minus_1x']:+.3f} bits per byte; "
            f"within it a learnt table differs from them by {f['learned_minus_sinusoidal']:+.3f} {between}."
        )
        zh = (
            f"真实文本上，读到训练长度的两倍时，正弦编码每字节多用 {f['sinusoidal_2x_minus_1x']:+.3f} 比特；训练长度"
            f"以内，可学习的位置表与它相差 {f['learned_minus_sinusoidal']:+.3f} {between}。"
        )
    return Text(
        f"A linear map recovers the index from a sinusoid (R² {f['index_recovered']:.6f}); up to a million positions "
        f"apart the nearest two are {f['nearest_at']:.0f} apart, at distance {f['nearest_distance']:.2f}. The same "
        f"texts {OUTSIDE} positions later cost {f['learned_shifted']:+.2f} nats a token with a learnt table, "
        f"{f['sinusoidal_shifted']:+.2f} with sinusoids and at most {power(f['relative_shifted'])} with RoPE, ALiBi or "
        f"T5's bias. Rows of the table that were never trained: {f['untrained_jump']:+.2f} nats.{en}",
        f"线性映射就能从正弦编码里读出下标（R² = {f['index_recovered']:.6f}）；相距一百万以内，最接近的两个编码下标只"
        f"差 {f['nearest_at']:.0f}，距离 {f['nearest_distance']:.2f}。同样的文本往后挪 {OUTSIDE} 位，每个词元的损失在位"
        f"置表下增加 {f['learned_shifted']:.2f} 奈特，在正弦编码下增加 {f['sinusoidal_shifted']:.2f}，在 RoPE、"
        f"ALiBi、T5 偏置下至多变化 {power(f['relative_shifted'])}。位置表中未训练过的行：多损失 "
        f"{f['untrained_jump']:.2f} 奈特。{zh}",
    )


QUESTION = Question(
    number=32,
    tier="seconds",
    claim=Text(
        "The sinusoids of the original Transformer say how far apart tokens are but not where they are; absolute "
        "encodings, one vector a position and usually from a trained table, were brought in to mend that. With them a "
        "model recognises positions however these change, which translation needs in particular.",
        "原始 Transformer 的正弦编码只说明词元相隔多远，不说明各在何处；为补救这一点才有了绝对位置编码：一个位置一个向"
        "量，多由可训练的表给出。位置无论怎样变动，模型都认得准，对翻译尤其要紧。",
    ),
    correction=Text(
        "Sinusoids are an absolute encoding: no two positions share a vector, and the index can be read off. Learnt "
        "tables are the older idea (Gehring 2017), and Vaswani's paper found the two nearly alike. Neither is robust "
        "to a change of positions: the same text some positions later is another input, which relative encodings "
        "were made to avoid. A table also ends, at 512 in BERT and 1024 in GPT-2, and its untrained rows mean nothing.",
        "正弦编码本身就是绝对编码：任意两个位置的向量都不同，下标可以直接读出。可学习的位置表其实更早（Gehring 2017），"
        "Vaswani 的论文里两者几乎没有差别。它们都经不起位置变动：同一段文本整体后移，对模型就是另一个输入，相对编码正"
        "是为此而来。表还有尽头，BERT 是 512，GPT-2 是 1024；没训练过的行毫无意义。",
    ),
    run=Text(
        "Distances between sinusoids up to a million positions apart; a linear regression of the index. Five small "
        f"models learn to name the token three back, in rows of {LENGTH}; the same texts are then read {INSIDE} "
        f"positions later, among the trained ones, and {OUTSIDE} later, past them. The table is asked for one row too "
        "many.",
        f"计算相距至多一百万的正弦编码之间的距离，并对下标作线性回归。五个小模型在长 {LENGTH} 的序列上学习报出三位之"
        f"前的词元，再让它们读同样的文本：后移 {INSIDE} 位（仍在训练过的位置内）与后移 {OUTSIDE} 位（超出）。最后向位置"
        "表多要一行。",
    ),
    papers=(
        "Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762",
        "Gehring et al. 2017, Convolutional Sequence to Sequence Learning, arXiv 1705.03122",
        "Shaw, Uszkoreit & Vaswani 2018, Self-Attention with Relative Position Representations, arXiv 1803.02155",
    ),
    errors={"E32.1": "W", "E32.2": "W", "E32.3": "I", "E32.4": "M"},
    on_paper={
        "E32.4": Text(
            "translation as the task for absolute positions: relative ones did better there, by 1.3 BLEU into German "
            "and 0.3 into French (Shaw 2018)",
            "称翻译尤其需要绝对位置：恰恰在翻译上相对编码更好，英德高 1.3 BLEU，英法高 0.3（Shaw 2018）",
        )
    },
    races=("positions",),
    raced=raced,
    claims=(
        Claim(
            "sinusoids",
            "sinusoids carry no absolute position",
            "正弦编码不含绝对位置",
            (
                Check(
                    "index_recovered",
                    ">",
                    FOUND,
                    "R² of the index, read off linearly at positions not fitted",
                    "在未参与拟合的位置上线性读出下标的 R²",
                ),
                Check(
                    "nearest_distance",
                    ">",
                    APART,
                    "distance of the nearest two, up to a million apart",
                    "相距一百万以内最接近的两个编码的距离",
                ),
                Check("nearest_at", "==", 1.0, "how far apart those two stand", "这两个编码的下标之差"),
            ),
            Verdict.REFUTED,
            errors=("E32.1",),
        ),
        Claim(
            "moved positions",
            "positions are recognised however they change",
            "位置怎样变动都能认准",
            (
                Check(
                    "learned_shifted_lower",
                    ">",
                    HARMED,
                    "learnt table: nats lost by a shift, 95 % bound",
                    "位置表：后移损失的奈特数（95% 下界）",
                ),
                Check("sinusoidal_shifted_lower", ">", HARMED, "sinusoids: the same", "正弦编码：同上"),
                Check(
                    "relative_shifted",
                    "<",
                    UNHARMED,
                    "RoPE, ALiBi, T5: largest mean change",
                    "RoPE、ALiBi、T5：平均变化的最大者",
                ),
            ),
            Verdict.REFUTED,
            errors=("E32.2",),
        ),
        Claim(
            "nudged",
            "inside the trained positions a shift goes unnoticed",
            "在训练过的位置之内，平移没有影响",
            (
                Check("learned_nudged", ">", NUDGED, "learnt table: mean change in nats", "位置表：平均变化（奈特）"),
                Check("sinusoidal_nudged", ">", NUDGED, "sinusoids: the same", "正弦编码：同上"),
            ),
            Verdict.REFUTED,
            kind="aside",
        ),
        Claim(
            "table",
            "a trainable table has one vector a position",
            "可训练的表给每个位置一个向量",
            (
                Check("table_share", "==", 1.0, "its parameters over rows × width", "参数量与行数×宽度之比"),
                Check("table_refuses", "==", 1.0, "the row after its last is refused", "最后一行之后即被拒绝"),
                Check(
                    "untrained_jump_lower",
                    ">",
                    HARMED,
                    "nats lost on rows never trained, 95 % bound",
                    "未训练的行损失的奈特数（95% 下界）",
                ),
            ),
            kind="control",
            errors=("E32.3",),
        ),
        Claim(
            "longer text",
            "absolute encodings follow a text past the trained length",
            "绝对编码能跟着文本超出训练长度",
            (
                Check(
                    "learned_reads_2x", "==", 0.0, "whether the table reads twice the length", "位置表能否读两倍长度"
                ),
                Check(
                    "sinusoidal_2x_minus_1x_lower",
                    ">",
                    0.0,
                    "sinusoids: bits per byte lost at twice the length, 95 % bound",
                    "正弦编码：两倍长度时每字节多用的比特（95% 下界）",
                ),
            ),
            Verdict.REFUTED,
            kind="aside",
            race="positions",
        ),
    ),
    figures=figures,
    evidence=evidence,
    uses=("llmlab/model/positions.py", "llmlab/model/rotary.py", "llmlab/model/relative.py"),
    settings={
        "sinusoid": [WIDTH, FURTHEST, PROBED],
        "table": TABLE,
        "shift": [TEXTS, EXCERPT, INSIDE, OUTSIDE],
        **SETTINGS,
    },
)
