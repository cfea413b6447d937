"""Question 33: relative position encodings. A score sees the offset of two tokens, through a table of offsets."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llmlab.evaluation import statistics
from llmlab.handbook.measures import draw, filled, gap, parameters, power
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.handbook.sinusoids import built, line, sinusoids
from llmlab.model.encoding import Encoding, PositionPart, Shape
from llmlab.model.positions import Learned
from llmlab.model.relative import XL, Alibi, Shaw, ShawEncoding, T5Bias, T5Encoding, XLEncoding, XLTable
from llmlab.model.rotary import Rope
from llmlab.stages import Session

EXACT = 1e-10  # float64
ALIKE = 1e-4  # of scores of about 10: rotary angles are float32
TOLD_APART = 1.0  # scores at one offset that differ by this are not a function of the offset
LENGTH, HEADS, HEAD_DIM, LAYERS = 64, 4, 32, 2
DIM = HEADS * HEAD_DIM
CLIP, BUCKETS, FURTHEST, OFFSETS = 16, 32, 128, 300
RELATIVE: tuple[PositionPart, ...] = (Shaw(clip=CLIP), T5Bias(), XL(), Alibi(), Rope())
RACED_RELATIVE, RACED_ABSOLUTE = ("shaw", "t5", "xl", "alibi", "rope"), ("sinusoidal", "learned")


def _encoding(part: PositionPart, seed: int) -> Encoding:
    found = filled(part.build(Shape(DIM, HEADS, HEAD_DIM, LENGTH, LAYERS)), seed, f"q33.{part.kind}")
    assert isinstance(found, Encoding)
    return found


@torch.no_grad()
def scores(encoding: Encoding, q_HK: Tensor, k_HK: Tensor) -> Tensor:
    """[H, L, L]: the scores where each position holds this same query and this same key."""
    at = line(LENGTH)
    prepared = encoding.prepare(at, at)
    q, k = (x_HK[None, :, None].expand(1, HEADS, LENGTH, HEAD_DIM) for x_HK in (q_HK, k_HK))
    q, k = encoding.query(q, prepared), encoding.key(k, prepared)
    total = q @ k.transpose(2, 3)
    for added in (encoding.scores(0, q, k, prepared), encoding.bias(prepared)):
        total = total if added is None else total + added
    return total[0]


def spread(scores_HLL: Tensor) -> float:
    """The largest difference between two scores of a head at one offset."""
    worst = 0.0
    for offset in range(-LENGTH + 1, LENGTH):
        line_HL = torch.diagonal(scores_HLL, offset, -2, -1)
        worst = max(worst, float((line_HL.amax(-1) - line_HL.amin(-1)).max()))
    return worst


def bucket_by_hand(distance: int) -> int:
    """The bucket of a key `distance` before its query, in words: as many as half have their own, the others share by
    logarithm up to the furthest (Raffel et al. 2020)."""
    exact = BUCKETS // 2
    if distance < exact:
        return max(distance, 0)
    return min(exact + int(math.log(distance / exact) / math.log(FURTHEST / exact) * (BUCKETS - exact)), BUCKETS - 1)


def _xl_by_hand(encoding: XLEncoding, q_HK: Tensor, k_HK: Tensor) -> Tensor:
    """(q + u) k + (q + v) W r, pair by pair, without the shift that makes it quick."""
    table: Any = encoding.tables[0]
    assert isinstance(table, XLTable)
    r_ND = sinusoids(torch.arange(-LENGTH + 1, LENGTH), DIM)
    r_ND = torch.cat([r_ND[:, 0::2], r_ND[:, 1::2]], -1)  # all sines, then all cosines
    total = torch.zeros(HEADS, LENGTH, LENGTH, dtype=torch.float64)
    content_H = ((q_HK + table.content_bias) * k_HK).sum(-1)
    for i in range(LENGTH):
        for j in range(LENGTH):
            wr_HK = (table.distance.weight @ r_ND[i - j + LENGTH - 1]).view(HEADS, HEAD_DIM)
            total[:, i, j] = content_H + ((q_HK + table.distance_bias) * wr_HK).sum(-1)
    return total


def _absolute(seed: int) -> Figures:
    """Inner products of positions' vectors by offset: sinusoids bare, and projected to queries and keys; a table."""
    vectors = sinusoids(torch.arange(LENGTH), DIM)
    table = filled(built(Learned(), DIM, context=LENGTH), seed, "q33.learned").get_parameter("weight").detach()
    to_q, to_k = (draw(seed, f"q33.{name}", DIM, DIM) / math.sqrt(DIM) for name in ("query", "key"))
    table = table * math.sqrt(DIM)  # entries of about 1, as the sinusoid's
    return {
        "sinusoid_spread": spread((vectors @ vectors.T)[None]),
        "projected_spread": spread((vectors @ to_q @ (vectors @ to_k).T)[None]),
        "learned_spread": spread((table @ table.T)[None]),
    }


@torch.no_grad()
def figures(session: Session) -> Figures:
    seed = session.seed
    q_HK, k_HK = draw(seed, "q33.q", HEADS, HEAD_DIM), draw(seed, "q33.k", HEADS, HEAD_DIM)
    encodings = {part.kind: _encoding(part, seed) for part in RELATIVE}
    told = {kind: scores(encoding, q_HK, k_HK) for kind, encoding in encodings.items()}
    t5, shaw, xl = encodings["t5"], encodings["shaw"], encodings["xl"]
    assert isinstance(t5, T5Encoding)
    assert isinstance(shaw, ShawEncoding)
    assert isinstance(xl, XLEncoding)
    offsets = torch.arange(-OFFSETS, OFFSETS + 1)
    wrong = [int(t5.bucket(offset)) != bucket_by_hand(int(offset)) for offset in offsets]
    at = line(LENGTH)
    return {
        **_absolute(seed),
        **{f"{kind}_spread": spread(found) for kind, found in told.items()},
        "worst_spread": max(spread(found) for found in told.values()),
        "least_change": min(float((found.amax(-1) - found.amin(-1)).max()) for found in told.values()),
        "wrong_buckets": float(sum(wrong)),
        "xl_gap": gap(told["xl"], _xl_by_hand(xl, q_HK, k_HK)),
        "shaw_rows": float(len(shaw.table(0).key)),
        "shaw_rows_used": float(len(set(shaw.prepare(at, at).flatten().tolist()))),
        "shaw_clipped_gap": gap(told["shaw"][:, LENGTH - 1, : LENGTH - CLIP], told["shaw"][:, LENGTH - 1, :1]),
        "pairs": float(LENGTH * LENGTH),
        "t5_parameters": float(parameters(t5)),
        "free_parameters": float(parameters(encodings["rope"]) + parameters(encodings["alibi"])),
    }


def raced(told: Mapping[str, Told]) -> Figures:
    """The mean of the five relative arms against that of the two absolute ones, seed by seed."""
    race = told["positions"]

    def averaged(arms: tuple[str, ...]) -> list[float]:
        return [sum(row) / len(arms) for row in zip(*(race.values(arm, "bits_per_byte") for arm in arms), strict=True)]

    gains = [a - r for a, r in zip(averaged(RACED_ABSOLUTE), averaged(RACED_RELATIVE), strict=True)]
    found = statistics.mean(gains)
    assert found.interval[0] is not None
    assert found.interval[1] is not None
    arms = {f"bits_{arm}": race.mean(arm, "bits_per_byte") for arm in (*RACED_ABSOLUTE, *RACED_RELATIVE)}
    return {
        "relative_gain": found.value,
        "relative_gain_lower": found.interval[0],
        "relative_gain_upper": found.interval[1],
    } | arms


def evidence(f: Mapping[str, float]) -> Text:
    en, zh = "", ""
    if "relative_gain" in f:
        ranked = sorted((*RACED_ABSOLUTE, *RACED_RELATIVE), key=lambda arm: f[f"bits_{arm}"])
        order = ", ".join(f"{arm} {f[f'bits_{arm}']:.3f}" for arm in ranked)
        interval = f"[{f['relative_gain_lower']:+.3f}, {f['relative_gain_upper']:+.3f}]"
        en = f" Within the trained length relative arms gain {f['relative_gain']:+.3f} {interval} bits a byte: {order}."
        zh = f"训练长度以内，相对编码平均每字节省下 {f['relative_gain']:+.3f} {interval} 比特：{order}。"
    return Text(
        "At one offset, scores of equal content differ by at most "
        f"{power(f['worst_spread'])} (Shaw {power(f['shaw_spread'])}, T5 {power(f['t5_spread'])}, Transformer-XL "
        f"{power(f['xl_spread'])}, ALiBi {power(f['alibi_spread'])}, RoPE {power(f['rope_spread'])}); sinusoids' inner "
        f"products by {power(f['sinusoid_spread'])}, after query and key projections by {f['projected_spread']:.1f}, a "
        f"learnt table's by {f['learned_spread']:.1f}. Shaw's {f['pairs']:.0f} pairs share {f['shaw_rows_used']:.0f} "
        f"rows, T5's {f['t5_parameters']:.0f} scalars.{en}",
        f"内容相同时，同一偏移上的分数最多相差 {power(f['worst_spread'])}（Shaw {power(f['shaw_spread'])}，T5 "
        f"{power(f['t5_spread'])}，Transformer-XL {power(f['xl_spread'])}，ALiBi {power(f['alibi_spread'])}，RoPE "
        f"{power(f['rope_spread'])}）；正弦编码的内积相差 {power(f['sinusoid_spread'])}，经查询、键投影后相差 "
        f"{f['projected_spread']:.1f}，可学习的位置表相差 {f['learned_spread']:.1f}。Shaw 的 {f['pairs']:.0f} 对位置共"
        f"用 {f['shaw_rows_used']:.0f} 行，T5 共用 {f['t5_parameters']:.0f} 个标量。{zh}",
    )


QUESTION = Question(
    number=33,
    tier="formula",
    claim=Text(
        "The Transformer's absolute positions say nothing of how tokens stand to one another. Relative encodings add "
        "that, either as offsets handed to attention, or as a layer that maps each position to a vector of its "
        "relations to the others.",
        "Transformer 的绝对位置不反映词元之间的相互位置，相对位置编码补上这一点：一种做法是把偏移量交给注意力，另一种是"
        "用一层嵌入，为每个位置给出一个表示它与其余位置关系的向量。",
    ),
    correction=Text(
        "Sinusoids do hold relative information, since their inner product depends on the offset alone; the "
        "projections to queries and keys break that, and only a learnt table lacks it from the start. A relative "
        "table is indexed by the clipped offset i - j, not by a position: 2k + 1 rows that all pairs share. By name: "
        "Shaw (vectors on keys and values), Transformer-XL (projected sinusoids of the distance), T5 (a scalar a head "
        "and bucket), DeBERTa (content and position apart), RoPE, ALiBi.",
        "正弦编码并非没有相对信息：两个编码的内积只取决于偏移量，是查询与键的投影破坏了这一性质；一开始就没有的只有可学"
        "习的位置表。相对位置表的下标也不是位置，而是截断后的偏移量 i - j：共 2k + 1 行，所有位置对共用。具体方法有："
        "Shaw（向量加在键和值上）、Transformer-XL（距离的正弦编码再作投影）、T5（每头每桶一个标量）、DeBERTa（内容与位"
        "置分开）、RoPE、ALiBi。",
    ),
    run=Text(
        f"The same query and key at each of {LENGTH} positions, for five relative encodings of ours with random "
        "weights: scores must form a Toeplitz matrix. The same test for sinusoids, bare and projected, and for a "
        "table. T5's buckets and Transformer-XL's scores against loops over pairs; rows and parameters counted.",
        f"在 {LENGTH} 个位置上放同样的查询和键，取本库五种相对编码（权重随机），分数应构成 Toeplitz 矩阵；对正弦编码"
        "（投影前、投影后）与可学习的位置表作同样检验。T5 的分桶和 Transformer-XL 的分数与逐对循环的写法核对，并清点行"
        "数与参数。",
    ),
    papers=(
        "Shaw, Uszkoreit & Vaswani 2018, Self-Attention with Relative Position Representations, arXiv 1803.02155",
        "Dai et al. 2019, Transformer-XL, arXiv 1901.02860",
        "Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, arXiv "
        "1910.10683",
        "He et al. 2020, DeBERTa, arXiv 2006.03654",
        "Su et al. 2021, RoFormer, arXiv 2104.09864",
        "Press, Smith & Lewis 2021, Train Short, Test Long, arXiv 2108.12409",
    ),
    errors={"E33.1": "M", "E33.2": "M", "E33.3": "I"},
    races=("positions",),
    raced=raced,
    claims=(
        Claim(
            "absolute has none",
            "absolute encodings hold nothing relative",
            "绝对编码不含相对信息",
            (
                Check(
                    "sinusoid_spread",
                    "<",
                    EXACT,
                    "sinusoids: spread of inner products at one offset",
                    "正弦编码：同一偏移上内积的波动",
                ),
                Check("projected_spread", ">", TOLD_APART, "the same after projections", "投影之后的波动"),
                Check("learned_spread", ">", TOLD_APART, "a learnt table", "可学习的位置表"),
            ),
            Verdict.CORRECTED,
            errors=("E33.1",),
        ),
        Claim(
            "a vector a position",
            "each position is mapped to a relative vector",
            "一个位置配一个相对向量",
            (
                Check(
                    "shaw_rows",
                    "==",
                    2.0 * CLIP + 1,
                    "rows of Shaw's table, clipped at 16",
                    "Shaw 表的行数（截断于 16）",
                ),
                Check(
                    "shaw_clipped_gap",
                    "<",
                    EXACT,
                    "difference of scores past the clip",
                    "超出截断距离后分数之差",
                ),
                Check("t5_parameters", "==", float(BUCKETS * HEADS), "T5: buckets × heads", "T5：桶数×头数"),
            ),
            Verdict.CORRECTED,
            errors=("E33.2",),
        ),
        Claim(
            "offsets",
            "attention is given the offsets",
            "注意力得到的是偏移量",
            (
                Check(
                    "worst_spread", "<", ALIKE, "spread at one offset, worst of five", "同一偏移上的波动（五种中最大）"
                ),
                Check("least_change", ">", 0.1, "change over offsets, least of five", "随偏移的变化（五种中最小）"),
            ),
        ),
        Claim(
            "methods",
            "our T5 buckets and Transformer-XL scores are the papers'",
            "本库的 T5 分桶与 Transformer-XL 分数同论文一致",
            (
                Check(
                    "wrong_buckets",
                    "==",
                    0.0,
                    "offsets -300 to 300 in another bucket",
                    "偏移 -300 至 300 中分错桶的个数",
                ),
                Check("xl_gap", "<", ALIKE, "Transformer-XL against the loop", "Transformer-XL 与循环写法之差"),
                Check("free_parameters", "==", 0.0, "parameters of RoPE and ALiBi", "RoPE 与 ALiBi 的参数"),
            ),
            kind="control",
            errors=("E33.3",),
        ),
        Claim(
            "text",
            "relative encodings serve a language model better",
            "相对编码更利于语言模型",
            (
                Check(
                    "relative_gain_lower",
                    ">",
                    0.0,
                    "bits per byte gained over absolute ones, 95 % bound",
                    "比绝对编码每字节省下的比特（95% 下界）",
                ),
            ),
            kind="aside",
            race="positions",
        ),
    ),
    figures=figures,
    evidence=evidence,
    uses=("llmlab/model/relative.py", "llmlab/model/rotary.py", "llmlab/model/positions.py"),
    settings={"shape": [LENGTH, HEADS, HEAD_DIM, LAYERS], "offsets": [CLIP, BUCKETS, FURTHEST, OFFSETS]},
)
