"""Question 52: the feed-forward block gated by a GLU. The printed form has lost two of its three matrices."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.handbook.measures import draw, filled, gap, parameters, power, relative
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.model.feedforward import GLU, GatedFeedForward, ReLU
from llmlab.model.linear import Linear
from llmlab.stages import Session

EXACT = 1e-12
ANOTHER_FUNCTION = 0.1  # share of the block's size by which the printed form must miss it to be called another
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


def evidence(f: Mapping[str, float]) -> Text:
    return Text(
        f"The printed form is the block with V = I and W2 = I (gap {power(f['specialised_gap'])}); with real V and "
        f"W2 it is off by {f['printed_difference']:.0%} of the block's size and holds {f['printed_share']:.1%} of a "
        f"plain block's parameters. At two thirds of the width the GLU block costs {f['parameter_ratio']:.2f}x the "
        f"parameters and {f['flop_ratio']:.2f}x the FLOPs of the plain one.",
        f"手册写法等于令 V = I、W2 = I 的特例（误差 {power(f['specialised_gap'])}）；V 与 W2 取一般矩阵时，二者之差"
        f"达到前馈块输出的 {f['printed_difference']:.0%}，参数也只有普通前馈块的 {f['printed_share']:.1%}。宽度取三"
        f"分之二后，GLU 前馈块的参数量是普通块的 {f['parameter_ratio']:.2f} 倍，浮点运算量为 {f['flop_ratio']:.2f} "
        "倍。",
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
        "the block with V = I and W2 = I; parameters and FLOPs counted at matched and at equal width.",
        "拿本库的 GLU 前馈块与 torch 的 F.glu 对照；把手册写法单独实现，与完整前馈块以及 V = I、W2 = I 的特例对照；"
        "分别在参数对齐和宽度相同两种情形下清点参数与浮点运算。",
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
    ),
    figures=figures,
    evidence=evidence,
    uses=("llmlab/model/feedforward.py",),
    settings={"dim": DIM, "rows": ROWS, "length": LENGTH, "parity_dim": PARITY_DIM},
)
