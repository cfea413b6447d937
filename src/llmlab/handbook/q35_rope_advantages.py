"""Question 35: what speaks for RoPE. Not a cured period, nor longer texts by itself."""

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from llmlab.handbook.measures import filled, gap, parameters, power
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.handbook.sinusoids import BASE, built, frequencies, line, nearest
from llmlab.inference.cache import DenseCache
from llmlab.model.attention import MultiHead
from llmlab.model.encoding import PositionPart
from llmlab.model.places import Places
from llmlab.model.positions import Learned, Sinusoidal
from llmlab.model.rotary import NTK, NoScaling, Rope, YaRN, angles
from llmlab.model.transformer import Architecture, Transformer
from llmlab.stages import Session

EXACT = 1e-10  # float64
SINGLE = 1e-4  # angles are float32
APART = 1.0
WIDTH, FURTHEST = 64, 1_000_000
REACH = 512  # distances of the decay curve
RISES = 0.2  # share of steps on which a curve rises that does not fall all the way
HEAD, TRAINED = 32, 128  # as in the race
SMOLLM2 = (64, 100_000.0, 8192)  # head width, base and context of SmolLM2's file
DIM, HEADS, LENGTH, VOCABULARY = 32, 2, 24, 30
MULTIPLES = (2, 4, 8)


def unfinished(head_dim: int, base: float, trained: int) -> int:
    """How many pairs do not turn once within the trained length, so that a longer text has angles never met."""
    return int((2 * math.pi / frequencies(head_dim, base) > trained).sum())


def rope_scores(q_K: Tensor, distance_N: Tensor) -> Tensor:
    """float64 [N]: q · R(distance) q / K, of our encoding."""
    rope = built(Rope(), len(q_K))
    at = Places(distance_N[None], distance_N[None], torch.zeros_like(distance_N)[None])
    keys = rope.key(q_K.expand(1, 1, len(distance_N), -1), rope.prepare(at, at))
    return (keys[0, 0] @ q_K) / len(q_K)


def decay_bound(distance_N: Tensor, dim: int) -> Tensor:
    """float64 [N]: mean size of the partial sums of exp(i distance θ), which bounds a score (Su et al. 2021, 3.4.3), in
    units of that at distance 0."""
    turns = torch.polar(torch.ones(1, dtype=torch.float64), distance_N.double()[:, None] * frequencies(dim))
    return turns.cumsum(1).abs().mean(1) / torch.arange(1, dim // 2 + 1).double().mean()


def _periods() -> Figures:
    apart, distance = nearest(FURTHEST, WIDTH)
    waves = 2 * math.pi / frequencies(WIDTH)
    turned = NoScaling().frequencies(WIDTH // 2, BASE)
    one = torch.ones(1, 1, dtype=torch.int64)
    return {
        "shortest_wave": float(waves[0]),
        "longest_wave": float(waves[-1]),
        "nearest_at": float(apart),
        "nearest_distance": distance,
        "frequency_gap": gap(turned, angles(one, WIDTH, BASE)[0, 0]),
        "formula_gap": gap(turned.double(), frequencies(WIDTH)),
    }


def _decay() -> Figures:
    distance = torch.arange(REACH + 1)
    curve = rope_scores(torch.ones(WIDTH, dtype=torch.float64), distance)
    bound = decay_bound(distance, WIDTH)
    blocks = bound[1:].view(4, -1).mean(1).tolist()
    return {
        **{f"score_at_{at}": float(curve[at]) for at in (0, 1, 8, 64, 512)},
        "rises": float((curve[1:] > curve[:-1]).double().mean()),
        "bound_at_64": float(bound[64]),
        "bound_at_512": float(bound[512]),
        "bound_falls": min(near / far for near, far in pairwise(blocks)),
    }


def _tiny(position: PositionPart, seed: int) -> Transformer:
    attention = MultiHead(heads=HEADS)
    model = Architecture(layers=2, dim=DIM, context=LENGTH, position=position, attention=attention)
    found = filled(model.build(VOCABULARY, seed), seed, "q35.model")
    assert isinstance(found, Transformer)
    return found


@torch.no_grad()
def _merits(seed: int) -> Figures:
    """Keys cached as they were turned; the same text at other positions; parameters."""
    rope, sinusoidal = _tiny(Rope(), seed), _tiny(Sinusoidal(), seed)
    ids, at = torch.arange(LENGTH)[None], line(LENGTH)
    cache = DenseCache(LENGTH)
    pieces = [
        rope(ids[:, :9], at[:, :9], cache),
        *(rope(ids[:, t : t + 1], at[:, t : t + 1], cache) for t in range(9, LENGTH)),
    ]
    later = line(LENGTH, start=100)
    return {
        "cached_gap": gap(torch.cat(pieces, 1), rope(ids, at)),
        "shifted_rope": gap(rope(ids, later), rope(ids, at)),
        "shifted_sinusoidal": gap(sinusoidal(ids, later), sinusoidal(ids, at)),
        "rope_parameters": float(parameters(built(Rope(), HEAD))),
        "table_parameters": float(parameters(built(Learned(), HEAD, context=TRAINED))),
    }


def _critical() -> Figures:
    """Pairs that do not turn once in training, and which of them YaRN and NTK slow down when they read four times."""
    pairs = HEAD // 2
    plain = NoScaling().frequencies(pairs, BASE)
    yarn = YaRN(by=4, trained=TRAINED).frequencies(pairs, BASE) / plain
    ntk = NTK(by=4).frequencies(pairs, BASE) / plain
    slow = unfinished(HEAD, BASE, TRAINED)
    return {
        "unfinished_race": float(slow),
        "unfinished_smollm2": float(unfinished(*SMOLLM2)),
        "yarn_slows_unfinished": float(yarn[pairs - slow :].max()),
        "yarn_keeps_fastest": float(yarn[0]),
        "ntk_slowest": float(ntk[-1]),
        "ntk_fastest": float(ntk[0]),
    }


def figures(session: Session) -> Figures:
    return {**_periods(), **_decay(), **_merits(session.seed), **_critical()}


def raced(told: Mapping[str, Told]) -> Figures:
    race = told["positions"]
    found = race.bounds("alibi_minus_rope_8x", "alibi", "rope", "bits_per_byte@8x")
    found |= race.bounds("yarn_minus_plain_4x", "rope", "rope", "yarn@4x", "bits_per_byte@4x")
    for k in MULTIPLES:
        found |= race.grown("rope", k)
    for other in ("sinusoidal", "learned"):
        found |= race.bounds(f"rope_minus_{other}", "rope", other, "bits_per_byte")
    return found


def evidence(f: Mapping[str, float]) -> Text:
    en, zh = "", ""
    if "rope_2x_minus_1x" in f:
        lost = ", ".join(f"{f[f'rope_{k}x_minus_1x']:+.2f}" for k in MULTIPLES)
        en = (
            f" Read at 2, 4 and 8 times its trained length RoPE loses {lost} bits per byte; within it, it stands "
            f"{f['rope_minus_sinusoidal']:+.3f} against sinusoids, {f['rope_minus_learned']:+.3f} against a table."
        )
        zh = (
            f"读到训练长度的 2、4、8 倍时，RoPE 每字节多用 {lost} 比特；训练长度以内，它与正弦编码相差 "
            f"{f['rope_minus_sinusoidal']:+.3f}，与位置表相差 {f['rope_minus_learned']:+.3f}。"
        )
    return Text(
        f"Sinusoids' wavelengths run from {f['shortest_wave']:.2f} to {f['longest_wave']:,.0f}; up to a million apart "
        f"the nearest two are {f['nearest_at']:.0f} apart, at distance {f['nearest_distance']:.2f}, and RoPE turns at "
        f"the very same frequencies (gap {power(f['frequency_gap'])}). Its score falls {f['score_at_0']:.2f}, "
        f"{f['score_at_1']:.2f}, {f['score_at_8']:.2f}, {f['score_at_64']:.2f}, {f['score_at_512']:.2f} at 0, 1, 8, "
        f"64, 512, yet rises on {f['rises']:.1%} of the steps. {f['unfinished_race']:.0f} of {HEAD // 2} pairs never "
        f"turn once in {TRAINED} tokens; in SmolLM2 {f['unfinished_smollm2']:.0f} of {SMOLLM2[0] // 2}.{en}",
        f"正弦编码的波长从 {f['shortest_wave']:.2f} 到 {f['longest_wave']:,.0f}；相距一百万以内，最接近的两个下标只差 "
        f"{f['nearest_at']:.0f}，距离 {f['nearest_distance']:.2f}，而 RoPE 用的正是同一组频率（误差 "
        f"{power(f['frequency_gap'])}）。相距 0、1、8、64、512 时分数为 {f['score_at_0']:.2f}、{f['score_at_1']:.2f}、"
        f"{f['score_at_8']:.2f}、{f['score_at_64']:.2f}、{f['score_at_512']:.2f}，但有 {f['rises']:.1%} 的单步是上升"
        f"的。{HEAD // 2} 对坐标里有 {f['unfinished_race']:.0f} 对在 {TRAINED} 个词元内转不满一圈；SmolLM2 则是 "
        f"{SMOLLM2[0] // 2} 对中的 {f['unfinished_smollm2']:.0f} 对。{zh}",
    )


QUESTION = Question(
    number=35,
    tier="formula",
    claim=Text(
        "Sinusoids repeat after a fixed period and so fail on long texts, which RoPE cures. RoPE models relative "
        "positions where older methods had only absolute ones. And since turning works like augmenting the data, it "
        "copes with lengths that training never showed.",
        "正弦编码有固定周期，过了一个周期就重复，所以长文本上会失效，RoPE 则没有这个毛病。以前的方法只有绝对位置，RoPE "
        "能描述相对位置。旋转还相当于给数据做增强，因此训练时没见过的长度也应付得来。",
    ),
    correction=Text(
        "No sinusoid repeats: its wavelengths run from 2π to nearly 2π·10⁴ and the vector as a whole does not come "
        "back. RoPE has the same frequencies, so it could cure nothing there. By itself it reads poorly past the "
        "trained length, where its slow pairs meet new angles; rescaled angles (position interpolation, NTK, YaRN) "
        "mend that. Its real merits: relative by construction, no parameters, keys cached once turned, open to linear "
        "attention, and a decay with distance that holds on average, not step by step.",
        "正弦编码并不重复：波长从 2π 直到接近 2π·10⁴，整个向量不会再次出现。RoPE 用的是同一组频率，就算有周期问题它也治"
        "不了。单靠 RoPE 读超出训练长度的文本效果很差，因为转得慢的坐标对遇到了没见过的角度；缩放角度的办法（位置插值、"
        "NTK、YaRN）才补得上。它真正的长处是：构造上就是相对的，不增加参数，键旋转一次即可缓存，可配线性注意力，分数随距"
        "离衰减（只在平均意义上，并非步步下降）。",
    ),
    run=Text(
        "Wavelengths and the nearest two of a million sinusoids; their frequencies against those of our RoPE. Scores "
        "of our RoPE by distance for a constant query and key, with the paper's bound. A tiny model with and without "
        "a cache, and at shifted positions. Pairs that do not finish a turn in training.",
        "计算波长以及一百万个正弦编码中最接近的两个，并将其频率与本库 RoPE 的频率对照。查询与键取常向量，看 RoPE 的分数"
        "如何随距离变化，并给出论文的上界。小模型用与不用缓存、整体平移位置各算一遍。数出训练中转不满一圈的坐标对。",
    ),
    papers=(
        "Su et al. 2021, RoFormer, arXiv 2104.09864",
        "Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762",
        "Press, Smith & Lewis 2021, Train Short, Test Long, arXiv 2108.12409",
        "Chen et al. 2023, Extending Context Window of Large Language Models via Positional Interpolation, arXiv "
        "2306.15595",
        "Kazemnejad et al. 2023, The Impact of Positional Encoding on Length Generalization in Transformers, arXiv "
        "2305.19466",
        "Peng et al. 2023, YaRN, arXiv 2309.00071",
    ),
    errors={"E35.1": "W", "E35.2": "W", "E35.3": "M", "E35.4": "I"},
    on_paper={
        "E35.3": Text(
            "older methods as absolute only: Shaw (2018), Transformer-XL (2019) and T5 (2019) were relative before",
            "称以前的方法只有绝对位置：Shaw（2018）、Transformer-XL（2019）、T5（2019）早已是相对编码",
        )
    },
    races=("positions",),
    raced=raced,
    claims=(
        Claim(
            "period",
            "sinusoids repeat after a fixed period, and RoPE cures that",
            "正弦编码过一个周期就重复，RoPE 解决了它",
            (
                Check(
                    "nearest_distance",
                    ">",
                    APART,
                    "distance of the nearest two, up to a million apart",
                    "相距一百万以内最接近的两个编码的距离",
                ),
                Check("nearest_at", "==", 1.0, "how far apart those two stand", "这两个编码的下标之差"),
                Check("frequency_gap", "<", 1e-12, "RoPE's frequencies from theirs", "RoPE 的频率与之相差"),
            ),
            Verdict.REFUTED,
            errors=("E35.1",),
        ),
        Claim(
            "unseen lengths",
            "RoPE generalises to lengths not seen in training",
            "RoPE 能推广到训练中没有的长度",
            tuple(
                Check(
                    f"rope_{k}x_minus_1x_lower",
                    ">",
                    0.0,
                    f"bits per byte lost at {k} times the length, 95 % bound",
                    f"{k} 倍长度时每字节多用的比特（95% 下界）",
                )
                for k in MULTIPLES
            ),
            Verdict.REFUTED,
            errors=("E35.2",),
            race="positions",
        ),
        Claim(
            "relative",
            "our RoPE is relative, has no parameters, and its keys can be cached",
            "本库的 RoPE 是相对的，没有参数，键可以缓存",
            (
                Check(
                    "shifted_rope",
                    "<",
                    SINGLE,
                    "logits' change when a text stands 100 later",
                    "文本后移 100 位时 logits 的变化",
                ),
                Check("shifted_sinusoidal", ">", 0.01, "the same with sinusoids", "正弦编码：同上"),
                Check("cached_gap", "<", EXACT, "logits with a cache from without", "用缓存与不用缓存的 logits 之差"),
                Check("rope_parameters", "==", 0.0, "its parameters", "参数量"),
                Check("formula_gap", "<", 1e-6, "its frequencies from base^(-2i/d)", "其频率与 base^(-2i/d) 之差"),
            ),
            kind="control",
            errors=("E35.4",),
        ),
        Claim(
            "decay",
            "the score falls steadily with distance",
            "分数随距离一路下降",
            (
                Check("rises", ">", RISES, "share of 512 steps on which it rises", "512 步中上升的比例"),
                Check(
                    "bound_falls",
                    ">",
                    1.0,
                    "the paper's bound, a quarter over the next: least",
                    "论文上界：前四分之一与后一段之比的最小值",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
        ),
        Claim(
            "critical pairs",
            "slow pairs are those that length scaling has to mend",
            "需要长度缩放来修补的是转得慢的坐标对",
            (
                Check(
                    "unfinished_race",
                    "==",
                    10.0,
                    "of 16 pairs, those that never turn once in 128",
                    "16 对中在 128 个词元内转不满一圈的",
                ),
                Check("yarn_slows_unfinished", "<", 0.9, "YaRN's factor of them at most", "YaRN 对它们的倍率（最大）"),
                Check("yarn_keeps_fastest", "==", 1.0, "YaRN's factor of the fastest pair", "YaRN 对最快一对的倍率"),
            ),
            kind="aside",
        ),
        Claim(
            "in length",
            "within the trained length RoPE does better than absolute encodings",
            "训练长度以内，RoPE 优于绝对编码",
            (
                Check(
                    "rope_minus_sinusoidal_upper", "<", 0.0, "against sinusoids, 95 % bound", "相对正弦编码（95% 上界）"
                ),
                Check(
                    "rope_minus_learned_upper", "<", 0.0, "against a learnt table, 95 % bound", "相对位置表（95% 上界）"
                ),
            ),
            kind="aside",
            race="positions",
        ),
        Claim(
            "mended",
            "rescaled angles mend what RoPE loses at four times its length",
            "缩放角度能补回 RoPE 在四倍长度上的损失",
            (
                Check(
                    "yarn_minus_plain_4x_upper", "<", 0.0, "YaRN minus plain, 95 % bound", "YaRN 减去原样（95% 上界）"
                ),
            ),
            kind="aside",
            race="positions",
        ),
        Claim(
            "others",
            "at eight times the trained length RoPE holds up as well as any",
            "八倍训练长度时，RoPE 不比别的编码差",
            (
                Check(
                    "alibi_minus_rope_8x_upper", "<", 0.0, "ALiBi minus RoPE, 95 % bound", "ALiBi 减去 RoPE（95% 上界）"
                ),
            ),
            Verdict.REFUTED,
            kind="aside",
            race="positions",
        ),
    ),
    figures=figures,
    evidence=evidence,
    uses=("llmlab/model/rotary.py", "llmlab/model/positions.py", "llmlab/inference/cache.py"),
    settings={
        "sinusoid": [WIDTH, FURTHEST],
        "decay": REACH,
        "pairs": [HEAD, TRAINED, *SMOLLM2],
        "model": [DIM, HEADS, LENGTH, VOCABULARY],
    },
)
