"""Question 52: the feed-forward block gated by a GLU. The printed form has lost two of its three matrices."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.handbook.costs import over_seeds, spread, weighed
from llmlab.handbook.measures import draw, filled, gap, parameters, power, relative
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.model.feedforward import GLU, GatedFeedForward, ReLU
from llmlab.model.linear import Linear
from llmlab.stages import Session

EXACT = 1e-12
ANOTHER_FUNCTION = 0.1  # share of the block's size by which the printed form must miss it to be called another
PLAIN, GATED = ("relu", "gelu", "swish"), ("glu", "bilinear", "reglu", "geglu", "swiglu")  # arms that are averaged
DIM, ROWS, LENGTH = 48, 2, 5
PARITY_DIM = 192  # 8/3 of it is 512, a width that needs no rounding


class PrintedGLU(nn.Module):
    """The handbook's formula to the letter: x times sigmoid(W1 x)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = Linear(dim, dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * torch.sigmoid(self.gate(x_BTD))


@torch.no_grad()
def with_identities(block: GatedFeedForward) -> GatedFeedForward:
    """The block with V = I and W2 = I: what is left of it in the handbook."""
    for linear in (block.up, block.down):
        linear.weight.copy_(torch.eye(linear.weight.shape[0]))
    return block


def _flops(block: nn.Module) -> int:
    """Floating-point operations of the matrix products that one token goes through, counted as they are called."""
    calls: list[int] = []
    for module in block.modules():
        if isinstance(module, Linear):
            module.register_forward_hook(lambda linear, *_: calls.append(2 * linear.weight.numel()))
    block(torch.zeros(1, 1, PARITY_DIM))
    return sum(calls)


def figures(session: Session) -> Figures:
    x_BTD = draw(session.seed, "q52.x", ROWS, LENGTH, DIM)
    block = filled(GLU().build(DIM), session.seed, "q52.block")
    square = filled(GLU(width=DIM).build(DIM), session.seed, "q52.square")
    assert isinstance(block, GatedFeedForward)
    assert isinstance(square, GatedFeedForward)
    printed = PrintedGLU(DIM).double()
    printed.gate = square.gate
    by_torch = F.glu(torch.cat([block.up(x_BTD), block.gate(x_BTD)], -1), dim=-1) @ block.down.weight.T
    difference = relative(printed(x_BTD), square(x_BTD))
    plain, gated, wide = ReLU().build(PARITY_DIM), GLU().build(PARITY_DIM), GLU(width=4 * PARITY_DIM).build(PARITY_DIM)
    return {
        "block_gap": gap(block(x_BTD), by_torch),
        "printed_difference": difference,
        "specialised_gap": gap(printed(x_BTD), with_identities(square)(x_BTD)),
        "printed_share": parameters(PrintedGLU(PARITY_DIM)) / parameters(plain),
        "parameter_ratio": parameters(gated) / parameters(plain),
        "flop_ratio": _flops(gated) / _flops(plain),
        "flop_ratio_unmatched": _flops(wide) / _flops(plain),
    }


def _gating(race: Told) -> Figures:
    """The gated arms' mean against the plain ones', seed by seed.

    The gated blocks are a few percent larger, since their width is rounded. What that is worth is taken off: as many
    doublings as they have parameters more, each worth what doubling the ReLU block's width saves in that seed.
    """
    plain, gated = (
        [sum(row) / len(arms) for row in zip(*(race.values(arm, "bits_per_byte") for arm in arms), strict=True)]
        for arms in (PLAIN, GATED)
    )
    block, larger = (race.mean(arm, "parameters") - race.mean("none", "parameters") for arm in ("relu", "glu"))
    single, double = (race.values(arm, "bits_per_byte") for arm in ("relu", "relu, width 8"))
    doublings = math.log2(larger / block)
    allowed = [doublings * max(0.0, s - d) for s, d in zip(single, double, strict=True)]
    gains = [p - g for p, g in zip(plain, gated, strict=True)]
    return {
        **over_seeds("gating_gain", gains),
        **over_seeds("gating_net_gain", [gain - worth for gain, worth in zip(gains, allowed, strict=True)]),
        "gated_over_plain": larger / block,
    }


def raced(told: Mapping[str, Told]) -> Figures:
    race, measure = told["feedforward"], "bits_per_byte"
    return {
        **{f"bits_{arm}": race.mean(arm, measure) for arm in (*PLAIN, *GATED)},
        **_gating(race),
        **race.bounds("printed_cost", "one matrix glu", "glu", measure),
        **race.bounds("printed_minus_narrow", "one matrix glu", "relu, width 1", measure),
        "printed_parameters": race.mean("one matrix glu", "parameters") / race.mean("glu", "parameters"),
    }


def evidence(f: Mapping[str, float]) -> Text:
    en, zh = "", ""
    if "gating_gain" in f:
        ranked = sorted((*PLAIN, *GATED), key=lambda arm: f[f"bits_{arm}"])
        order = [f"{arm} {f[f'bits_{arm}']:.3f}" for arm in ranked]
        said = weighed(f, "printed_cost")
        en = (
            f" Trained, bits per byte: {', '.join(order)}; gating saves {spread(f, 'gating_gain')} "
            f"({spread(f, 'gating_net_gain')} less what its {f['gated_over_plain'] - 1:.1%} more parameters are worth)."
            f" The printed form, in a model of {f['printed_parameters']:.0%} of the parameters: "
            f"{spread(f, 'printed_cost')}, {said.en}; beside a ReLU block only d wide "
            f"{spread(f, 'printed_minus_narrow')}."
        )
        zh = (
            f"实际训练，每字节比特：{'、'.join(order)}；门控省下 {spread(f, 'gating_gain')}（扣除多出 "
            f"{f['gated_over_plain'] - 1:.1%} 参数所值，为 {spread(f, 'gating_net_gain')}）。手册写法（全模型参数只有 "
            f"{f['printed_parameters']:.0%}）多费 {spread(f, 'printed_cost')}：{said.zh}；与宽度仅为 d 的 ReLU 前馈块相"
            f"比则为 {spread(f, 'printed_minus_narrow')}。"
        )
    return Text(
        f"The printed form is the block with V = I and W2 = I (gap {power(f['specialised_gap'])}); with real V and "
        f"W2 it is off by {f['printed_difference']:.0%} of the block's size and holds {f['printed_share']:.1%} of a "
        f"plain block's parameters. At two thirds of the width the GLU block costs {f['parameter_ratio']:.2f}x the "
        f"parameters and {f['flop_ratio']:.2f}x the FLOPs of the plain one.{en}",
        f"手册写法等于令 V = I、W2 = I 的特例（误差 {power(f['specialised_gap'])}）；V 与 W2 取一般矩阵时，二者之差"
        f"达到前馈块输出的 {f['printed_difference']:.0%}，参数也只有普通前馈块的 {f['printed_share']:.1%}。宽度取三"
        f"分之二后，GLU 前馈块的参数量是普通块的 {f['parameter_ratio']:.2f} 倍，浮点运算量为 {f['flop_ratio']:.2f} "
        f"倍。{zh}",
    )


QUESTION = Question(
    number=52,
    tier="formula",
    claim=Text(
        "GLU(x) = x·sigmoid(W1x): the sigmoid of one projection decides how much of each input element passes. It is "
        "used in encoders and decoders and is heavy to compute.",
        "GLU(x) = x·sigmoid(W1x)：由一个投影经 sigmoid 得到的门，决定输入各分量放行多少。编码器和解码器都用它，计算"
        "偏重。",
    ),
    correction=Text(
        "A GLU has two projections, σ(xW) ⊗ xV, and the block ends with an output matrix: FFN_GLU(x) = (σ(xW) ⊗ "
        "xV)W2. Three matrices at ⅔·4d have the parameters and FLOPs of two at 4d, so it is no dearer. Transformers "
        "mostly gate with GELU or Swish rather than with the plain sigmoid.",
        "GLU 有两个投影：σ(xW) ⊗ xV；前馈块最后还有输出矩阵：FFN_GLU(x) = (σ(xW) ⊗ xV)W2。三个宽 ⅔·4d 的矩阵与两个宽 "
        "4d 的矩阵，参数和运算量相同，并不更贵。Transformer 里常见的门是 GELU 或 Swish，而不是单纯的 sigmoid。",
    ),
    run=Text(
        "Our GLU block against torch's F.glu; the printed form as a module of its own against the block, and against "
        "the block with V = I and W2 = I; parameters and FLOPs counted at matched and at equal width. Trained: three "
        "plain and five gated blocks of nearly equal size, and the printed form, which is d wide and so cannot be "
        "matched in parameters.",
        "拿本库的 GLU 前馈块与 torch 的 F.glu 对照；把手册写法单独实现，与完整前馈块以及 V = I、W2 = I 的特例对照；"
        "分别在参数对齐和宽度相同两种情形下清点参数与浮点运算。另有实际训练：三种普通前馈块与五种门控前馈块，大小几乎"
        "相等；还有手册写法，其宽度固定为 d，参数无从对齐。",
    ),
    papers=(
        "Dauphin et al. 2017, Language Modeling with Gated Convolutional Networks, arXiv 1612.08083",
        "Shazeer 2020, GLU Variants Improve Transformer, arXiv 2002.05202",
    ),
    errors={"E52.1": "W", "E52.2": "W", "E52.3": "M", "E52.4": "M"},
    on_paper={
        "E52.4": Text(
            "the plain GLU as a common part of Transformers: GEGLU (T5 v1.1) and SwiGLU (PaLM, LLaMA) are",
            "称普通 GLU 常见于 Transformer：其实常见的是 GEGLU（T5 v1.1）与 SwiGLU（PaLM、LLaMA）",
        )
    },
    claims=(
        Claim(
            "formula",
            "the block is x·sigmoid(W1x)",
            "前馈块就是 x·sigmoid(W1x)",
            (
                Check(
                    "printed_difference",
                    ">",
                    ANOTHER_FUNCTION,
                    "relative distance from the block",
                    "与完整前馈块的相对差异",
                ),
                Check("specialised_gap", "<", EXACT, "distance once V = I and W2 = I", "令 V = I、W2 = I 后之差"),
                Check("printed_share", "<", 0.5, "its parameters over the plain block's", "其参数占普通前馈块的比例"),
            ),
            Verdict.CORRECTED,
            errors=("E52.1", "E52.2"),
        ),
        Claim(
            "cost",
            "gating makes the block heavier to compute",
            "门控使前馈块的计算更重",
            (
                Check("parameter_ratio", "==", 1.0, "parameters over the plain block's", "参数量之比"),
                Check("flop_ratio", "==", 1.0, "FLOPs over the plain block's", "浮点运算量之比"),
                Check("flop_ratio_unmatched", ">", 1.0, "the same at equal width 4d", "若宽度同为 4d，则为"),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E52.3",),
        ),
        Claim(
            "parts",
            "our GLU block is F.glu followed by W2",
            "本库的 GLU 前馈块即 F.glu 再乘 W2",
            (Check("block_gap", "<", EXACT, "distance from torch", "与 torch 之差"),),
            kind="control",
        ),
        Claim(
            "gain, trained",
            "a gate costs; what it gives goes unsaid",
            "只说门控费算力，未说换来什么",
            (
                Check(
                    "gating_net_gain_lower",
                    ">",
                    0.0,
                    "bits per byte that gates save, size aside, 95 % bound",
                    "门控每字节省下的比特（已扣除大小之差），95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E52.3",),
            race="feedforward",
        ),
        Claim(
            "printed, trained",
            "the printed form serves as a feed-forward block",
            "手册写法可以充当前馈块",
            (
                Check(
                    "printed_cost_lower",
                    ">",
                    0.0,
                    "bits per byte lost against the GLU block, 95 % bound",
                    "与 GLU 前馈块相比每字节多费的比特，95% 下界",
                ),
            ),
            Verdict.REFUTED,
            kind="aside",
            errors=("E52.1", "E52.2"),
            race="feedforward",
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("feedforward",),
    raced=raced,
    uses=(
        "llmlab/model/feedforward.py",
        "llmlab/handbook/literal/feedforward.py",
        "llmlab/handbook/races/feedforward.py",
    ),
    settings={"dim": DIM, "rows": ROWS, "length": LENGTH, "parity_dim": PARITY_DIM},
)
