"""Question 40: what speaks for ALiBi. Training on short rows; not reach, nor flexibility, nor parameters saved."""

import math
from collections.abc import Mapping

import torch

from llmlab.handbook.lengths import MULTIPLES, TRAINED, bias_of_the_last
from llmlab.handbook.measures import parameters
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.model.attention import MultiHead
from llmlab.model.encoding import Shape
from llmlab.model.feedforward import GELU
from llmlab.model.norms import LayerNorm
from llmlab.model.places import Places
from llmlab.model.positions import Learned, NoPosition, Position
from llmlab.model.relative import Alibi
from llmlab.model.transformer import Architecture, Transformer, sight
from llmlab.stages import Session

TIMES = MULTIPLES[-1]
LAYERS, DIM, HEADS, CONTEXT, VOCABULARY = 12, 768, 12, 1024, 50_257  # GPT-2 small
SLOPES, NEEDLE = 8, 1000  # heads of the paper's slopes; how far back stands what should be recalled
SHORT = 64
MARGIN = 0.02  # bits per byte by which a loss may be higher and still count as no worse, upper 95 % bound


def _parameters() -> Figures:
    """GPT-2 small with each encoding, without its memory."""
    kinds: dict[str, Position] = {"none": NoPosition(), "learned": Learned(), "alibi": Alibi()}
    counts = {}
    for name, position in kinds.items():
        a = Architecture(
            layers=LAYERS,
            dim=DIM,
            context=CONTEXT,
            position=position,
            attention=MultiHead(heads=HEADS, bias=True),
            norm=LayerNorm(),
            feedforward=GELU(),
        )
        with torch.device("meta"):
            counts[name] = parameters(Transformer(a, VOCABULARY))
    return {
        "added": float(counts["alibi"] - counts["none"]),
        "saved": float(counts["learned"] - counts["alibi"]),
        "saved_share": (counts["learned"] - counts["alibi"]) / counts["learned"],
    }


def _mask_bytes() -> Figures:
    """What attention is handed besides queries, keys and values, for one text of the whole context."""
    at, shape = Places.causal(1, CONTEXT), Shape(DIM, HEADS, DIM // HEADS, CONTEXT, LAYERS)
    sizes = {}
    for name, part in (("none", NoPosition()), ("alibi", Alibi())):
        mask = sight(part.build(shape), at, at, None, 0, None, None).mask
        sizes[name] = float(mask.numel() * mask.element_size())
    return {"mask_bytes_alibi": sizes["alibi"], "mask_ratio": sizes["alibi"] / sizes["none"]}


def _recall() -> Figures:
    """By how much a token NEEDLE back must outscore the others, all of them alike, to get half of the weight."""
    bias_HS = bias_of_the_last(SLOPES, CONTEXT)
    place = CONTEXT - 1 - NEEDLE
    others = torch.cat([bias_HS[:, :place], bias_HS[:, place + 1 :]], 1).logsumexp(-1)
    lead_H = others - bias_HS[:, place]
    flat = math.log(CONTEXT - 1)
    return {
        "lead_flat": flat,
        "lead_least": float(lead_H.min()),
        "lead_most": float(lead_H.max()),
        "lead_extra": float(lead_H.min()) - flat,
    }


def figures(session: Session) -> Figures:
    encoding = Alibi().build(Shape(DIM, HEADS, DIM // HEADS, CONTEXT, LAYERS))
    return {
        **_parameters(),
        **_mask_bytes(),
        **_recall(),
        "learnable": float(parameters(encoding)),
        "options": float(len(Alibi.model_fields) - 1),  # its kind aside
        "cells_ratio": (SHORT + 1) / (TRAINED + 1),  # scores a token, rows of SHORT over rows of TRAINED
    }


def raced(told: Mapping[str, Told]) -> Figures:
    race, short = told["positions"], told["short_alibi"]
    a, b = f"alibi, {SHORT}", f"sinusoidal, {TRAINED}"
    return {
        **race.grown("alibi", TIMES, 2),
        **race.bounds("alibi_minus_sinusoidal", "alibi", "sinusoidal", f"bits_per_byte@{TIMES}x"),
        **short.bounds("short_minus_long", a, b, "bits_per_byte@context"),
        **short.bounds("short_alibi_minus_short_sinusoidal", a, f"sinusoidal, {SHORT}", "bits_per_byte@context"),
        **short.bounds("seconds_short_minus_long", a, b, "seconds"),
        "seconds_long": short.mean(b, "seconds"),
        "megabytes_short_minus_long": (short.mean(a, "peak_bytes") - short.mean(b, "peak_bytes")) / 1e6,
    }


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"In GPT-2 small ALiBi adds {f['added']:.0f} parameters to no encoding; against a learnt table it saves "
        f"{f['saved']:,.0f}, {f['saved_share']:.1%} of all. Its mask takes {f['mask_bytes_alibi'] / 1e6:.0f} MB a "
        f"text, {f['mask_ratio']:.0f} times a plain one. To get half the weight, a token {NEEDLE} back must lead by "
        f"{f['lead_flat']:.1f} without a bias, by {f['lead_least']:.1f} in ALiBi's flattest head and by "
        f"{f['lead_most']:.0f} in the steepest. Rows of {SHORT} have {f['cells_ratio']:.0%} of the scores a token of "
        f"rows of {TRAINED}."
    )
    zh = (
        f"在 GPT-2 small 中，ALiBi 比无编码多 {f['added']:.0f} 个参数；比可学习的位置表省 {f['saved']:,.0f} 个，占全部"
        f"的 {f['saved_share']:.1%}。其掩码每段文本占 {f['mask_bytes_alibi'] / 1e6:.0f} MB，是普通掩码的 "
        f"{f['mask_ratio']:.0f} 倍。要拿到一半权重，{NEEDLE} 个词元之前的那一个，得分须领先 {f['lead_flat']:.1f}（无偏"
        f"置）、{f['lead_least']:.1f}（ALiBi 最平缓的头）、{f['lead_most']:.0f}（最陡的头）。每行 {SHORT} 个词元时，平"
        f"均每词元的得分个数是 {TRAINED} 时的 {f['cells_ratio']:.0%}。"
    )
    if "short_minus_long" in f:
        en += (
            f" Read at {TRAINED}: ALiBi trained at {SHORT} minus sinusoidal trained at {TRAINED} is "
            f"{f['short_minus_long']:+.3f} bits per byte, {f['seconds_short_minus_long'] / f['seconds_long']:+.0%} of "
            f"its time and {f['megabytes_short_minus_long']:+.0f} MB. From 2x to 8x ALiBi's loss changes by "
            f"{f['alibi_8x_minus_2x']:+.3f}, and is {f['alibi_minus_sinusoidal']:+.2f} against sinusoids."
        )
        zh += (
            f"均在 {TRAINED} 处评测：以 {SHORT} 训练的 ALiBi 比以 {TRAINED} 训练的正弦编码每字节 "
            f"{f['short_minus_long']:+.3f} 比特，训练时间 {f['seconds_short_minus_long'] / f['seconds_long']:+.0%}，内"
            f"存峰值 {f['megabytes_short_minus_long']:+.0f} MB。从 2 倍到 8 倍，ALiBi 的损失变化 "
            f"{f['alibi_8x_minus_2x']:+.3f}；8 倍处比正弦编码 {f['alibi_minus_sinusoidal']:+.2f}。"
        )
    return Text(en, zh)


QUESTION = Question(
    number=40,
    tier="formula",
    claim=Text(
        "Better attention, since long-range dependencies are captured better; flexibility, since the entries of the "
        "bias matrix are adjusted to the task and the data; fewer parameters and less cost, since the input is mapped "
        "to few dimensions; and performance beyond the trained length.",
        "其一，远程依赖抓得更牢，注意力因而更好；其二，偏置矩阵的取值可随任务与数据调整，因而灵活；其三，输入被投影到"
        "低维，参数与开销因而更少；其四，长度外推表现好。",
    ),
    correction=Text(
        "Only the last is right. ALiBi favours what is near; nothing of it is adjusted; it adds no parameter and maps "
        "nothing to few dimensions. What it saves is a learnt table where there was one: 786,432 numbers in GPT-2 "
        "small. At equal length its mask takes a little more memory (up to 100 MB in the paper). The gain is to train "
        "on short text and read longer: a model of 1.3 billion parameters trained at 1024 matches sinusoids trained "
        "at 2048 when both read 2048, 11 % faster and with 11 % less memory (Press 2022).",
        "只有最后一条成立。ALiBi 偏爱近处；其中没有可调之物；它不增加参数，也不作低维投影。若原先用可学习的位置表，省"
        "下的便是那张表，在 GPT-2 small 中为 786,432 个数。长度相同时，它的掩码反而略费内存（论文中至多 100 MB）。好处"
        "在于用短文训练、读更长的文本：13 亿参数的模型以 1024 训练，在 2048 处与以 2048 训练的正弦编码相当，而训练快 "
        "11%、内存少 11%（Press 2022）。",
    ),
    run=Text(
        "Parameters and masks of GPT-2 small with and without ALiBi; the lead that a token 1000 back needs to be "
        "recalled. The races train ALiBi on rows of 64 and sinusoids on rows of 128, both read at 128, and read what "
        "was trained at 128 at up to 1024.",
        "清点 GPT-2 small 使用 ALiBi 前后的参数与掩码；计算 1000 个词元之前的内容要被记起须领先多少。竞赛让 ALiBi 以每"
        "行 64、正弦编码以每行 128 训练，均在 128 处评测；另把以 128 训练的模型读到 1024。",
    ),
    papers=(
        "Press, Smith & Lewis 2022, Train Short, Test Long, arXiv 2108.12409",
        "Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762",
    ),
    errors={"E40.1": "W", "E40.2": "W", "E40.3": "W", "E40.4": "I"},
    claims=(
        Claim(
            "far",
            "long-range dependencies are captured better",
            "远程依赖抓得更牢",
            (
                Check(
                    "lead_extra", ">", 1.0, "flattest head: lead needed beyond a flat one", "最平缓的头：须多领先的得分"
                ),
                Check(
                    "lead_most", ">", 100.0, "steepest head: lead needed 1000 back", "最陡的头：隔 1000 须领先的得分"
                ),
            ),
            Verdict.REFUTED,
            errors=("E40.1",),
        ),
        Claim(
            "flexible",
            "its bias is adjusted to task and data",
            "偏置随任务与数据而调整",
            (
                Check("learnable", "==", 0.0, "numbers in it that could be learnt", "其中可学习的数"),
                Check("options", "==", 0.0, "settings that it has", "可设的选项"),
            ),
            Verdict.REFUTED,
            errors=("E40.2",),
        ),
        Claim(
            "parameters",
            "a map to few dimensions saves parameters and cost",
            "低维投影省下参数与开销",
            (
                Check("added", "==", 0.0, "parameters over no encoding", "比无编码多出的参数"),
                Check(
                    "saved", "==", float(CONTEXT * DIM), "saved against a learnt table", "比可学习的位置表省下的参数"
                ),
                Check("mask_ratio", ">", 1.5, "its mask over a plain one, bytes", "掩码字节数与普通掩码之比"),
            ),
            Verdict.REFUTED,
            errors=("E40.3",),
        ),
        Claim(
            "extrapolation",
            "it does well beyond the trained length",
            "外推表现好",
            (
                Check("alibi_8x_minus_2x_upper", "<", MARGIN, "loss, 8x minus 2x, upper bound", "8 倍减 2 倍，上界"),
                Check(
                    "alibi_minus_sinusoidal_upper", "<", 0.0, "minus sinusoidal, 8x, upper", "8 倍处减正弦编码，上界"
                ),
            ),
            race="positions",
        ),
        Claim(
            "train short",
            "its use, to train on short rows, is left out",
            "以短文训练的好处只字未提",
            (
                Check(
                    "short_minus_long_upper",
                    "<",
                    MARGIN,
                    "trained at 64 minus sinusoidal at 128, upper",
                    "以 64 训练减正弦以 128，上界",
                ),
                Check(
                    "short_alibi_minus_short_sinusoidal_upper",
                    "<",
                    0.0,
                    "minus sinusoidal at 64, upper bound",
                    "减正弦以 64，上界",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E40.4",),
            race="short_alibi",
        ),
        Claim(
            "faster",
            "shorter rows train faster",
            "行短则训练快",
            (Check("seconds_short_minus_long_upper", "<", 0.0, "seconds, upper bound", "训练秒数之差，上界"),),
            kind="aside",
            race="short_alibi",
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("positions", "short_alibi"),
    raced=raced,
    uses=(
        "llmlab/model/relative.py",
        "llmlab/model/transformer.py",
        "llmlab/handbook/lengths.py",
        "llmlab/handbook/races/short_alibi.py",
    ),
    settings={
        "model": [LAYERS, DIM, HEADS, CONTEXT, VOCABULARY],
        "recall": [SLOPES, NEEDLE],
        "rows": [SHORT, TRAINED],
    },
)
