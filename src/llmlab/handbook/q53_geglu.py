"""Question 53: the gated block with GELU as its gate (GEGLU). V, W2 and the cube are missing in print."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmlab.handbook.costs import spread, weighed
from llmlab.handbook.measures import draw, filled, gap, power, relative
from llmlab.handbook.q50_gelu import PrintedGELU
from llmlab.handbook.q52_glu import with_identities
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.model.feedforward import GEGLU, GatedFeedForward
from llmlab.model.linear import Linear
from llmlab.stages import Session

EXACT = 1e-12
ANOTHER_FUNCTION = 0.1
VISIBLE = 1e-3  # an effect of the missing cube that no rounding explains
DIM, ROWS, LENGTH = 48, 2, 5


class PrintedGEGLU(nn.Module):
    """The handbook's formula to the letter: x times its cubeless GELU of W1 x."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = Linear(dim, dim, bias=False)
        self.activation = PrintedGELU()

    def forward(self, x_BTD: Tensor) -> Tensor:
        y: Tensor = x_BTD * self.activation(self.gate(x_BTD))
        return y


def _block(seed: int, width: int | None = None) -> GatedFeedForward:
    block = filled(GEGLU(tanh=True, width=width).build(DIM), seed, "q53.block")
    assert isinstance(block, GatedFeedForward)
    return block


def _by_hand(block: GatedFeedForward, x: Tensor) -> Tensor:
    """T5 v1.1's gated-gelu: (gelu_new(x W) * x V) W2."""
    g = x @ block.gate.weight.T
    gelu_new = 0.5 * g * (1 + torch.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))
    return (gelu_new * (x @ block.up.weight.T)) @ block.down.weight.T


def figures(session: Session) -> Figures:
    x_BTD = draw(session.seed, "q53.x", ROWS, LENGTH, DIM)
    block, square = _block(session.seed), _block(session.seed, DIM)
    printed = PrintedGEGLU(DIM).double()
    printed.gate = square.gate
    right = block(x_BTD)
    figures = {
        "block_gap": gap(right, _by_hand(block, x_BTD)),
        "printed_difference": relative(printed(x_BTD), square(x_BTD)),
    }
    bare = with_identities(square)
    figures["cube_difference"] = relative(printed(x_BTD), bare(x_BTD))
    bare.activation = PrintedGELU()
    figures["specialised_gap"] = gap(printed(x_BTD), bare(x_BTD))
    block.gate, block.up = block.up, block.gate
    figures["swapped_difference"] = relative(block(x_BTD), right)
    block.gate, block.up = block.up, block.gate
    block.activation = torch.sigmoid
    figures["sigmoid_difference"] = relative(block(x_BTD), right)
    return figures


def raced(told: Mapping[str, Told]) -> Figures:
    race, measure = told["feedforward"], "bits_per_byte"
    return {
        **race.bounds("printed_cost", "one matrix geglu", "geglu", measure),
        **race.bounds("geglu_minus_glu", "geglu", "glu", measure),
        **race.bounds("geglu_minus_gelu", "geglu", "gelu", measure),
        "printed_parameters": race.mean("one matrix geglu", "parameters") / race.mean("geglu", "parameters"),
    }


def evidence(f: Mapping[str, float]) -> Text:
    en, zh = "", ""
    if "printed_cost" in f:
        said = weighed(f, "printed_cost")
        en = (
            f" Trained, in bits per byte: the printed form, in a model of {f['printed_parameters']:.0%} of the "
            f"parameters, {spread(f, 'printed_cost')} over GEGLU, {said.en}; GEGLU minus GLU "
            f"{spread(f, 'geglu_minus_glu')}, minus the plain GELU block {spread(f, 'geglu_minus_gelu')}."
        )
        zh = (
            f"实际训练，每字节比特之差：手册写法（全模型参数只有 {f['printed_parameters']:.0%}）比 GEGLU 多 "
            f"{spread(f, 'printed_cost')}：{said.zh}；GEGLU 减 GLU 为 {spread(f, 'geglu_minus_glu')}，减普通 GELU 前馈"
            f"块为 {spread(f, 'geglu_minus_gelu')}。"
        )
    return Text(
        f"The printed form is the block with V = I, W2 = I and the cube left out (gap {power(f['specialised_gap'])}"
        f"); it misses the block by {f['printed_difference']:.0%} of its size. With V and W2 left out of both, the "
        f"cube alone makes {f['cube_difference']:.1%}. Swapping gate and value changes the output by "
        f"{f['swapped_difference']:.0%}.{en}",
        f"手册写法等于令 V = I、W2 = I 并丢掉立方项的特例（误差 {power(f['specialised_gap'])}），与完整前馈块之差达"
        f"其输出的 {f['printed_difference']:.0%}；若两边都不要 V 和 W2，单单丢掉立方项造成 "
        f"{f['cube_difference']:.1%} 的差异。门与值对调，输出改变 {f['swapped_difference']:.0%}。{zh}",
    )


QUESTION = Question(
    number=53,
    tier="formula",
    claim=Text(
        "GLU(x) = x·GELU(W1x), with GELU once more as 0.5x(1 + tanh(√(2/π)(x + 0.044715x))). GLU and GELU are two "
        "different things, and either may be replaced.",
        "GLU(x) = x·GELU(W1x)，GELU 仍写作 0.5x(1 + tanh(√(2/π)(x + 0.044715x)))；并说 GLU 与 GELU 是两回事，两者都"
        "可另换。",
    ),
    correction=Text(
        "FFN_GEGLU(x) = (GELU(xW) ⊗ xV)W2. In print V and W2 are gone and so is the cube in 0.044715x³. GELU takes "
        "the place of the sigmoid that gates a plain GLU; the gated operand comes first by convention. T5 v1.1 and "
        "Gemma use the tanh form.",
        "FFN_GEGLU(x) = (GELU(xW) ⊗ xV)W2。手册既漏了 V 和 W2，也漏了 0.044715x³ 的立方。GELU 取代的正是普通 GLU 里"
        "做门的 sigmoid；习惯上把门写在前面。T5 v1.1 与 Gemma 用的是 tanh 近似。",
    ),
    run=Text(
        "Our GEGLU block (tanh form) against the formula of T5 v1.1 written out; the printed form against the block, "
        "against V = I, W2 = I, and against the same without the cube; gate and value swapped; sigmoid in place of "
        "GELU. Trained: GEGLU, GLU, the plain GELU block, and the printed form.",
        "拿本库的 GEGLU 前馈块（tanh 近似）与逐项写出的 T5 v1.1 公式对照；手册写法依次与完整前馈块、V = I 且 W2 = I "
        "的特例、以及再去掉立方项的特例对照；门与值对调；把 GELU 换回 sigmoid。另有实际训"
        "练：GEGLU、GLU、普通 GELU 前馈块与手册写法。",
    ),
    papers=(
        "Shazeer 2020, GLU Variants Improve Transformer, arXiv 2002.05202",
        "Hendrycks & Gimpel 2016, Gaussian Error Linear Units, arXiv 1606.08415",
        "Raffel et al. 2020, T5, arXiv 1910.10683",
    ),
    errors={"E53.1": "W", "E53.2": "W", "E53.3": "I"},
    claims=(
        Claim(
            "formula",
            "the block is x·GELU(W1x)",
            "前馈块就是 x·GELU(W1x)",
            (
                Check(
                    "printed_difference",
                    ">",
                    ANOTHER_FUNCTION,
                    "relative distance from the block",
                    "与完整前馈块的相对差异",
                ),
                Check(
                    "specialised_gap",
                    "<",
                    EXACT,
                    "distance once V = I, W2 = I and no cube",
                    "令 V = I、W2 = I 并去掉立方后之差",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E53.1",),
        ),
        Claim(
            "cube",
            "GELU has 0.044715x inside",
            "GELU 里面是 0.044715x",
            (Check("cube_difference", ">", VISIBLE, "effect of the missing cube alone", "单单丢掉立方项的影响"),),
            Verdict.CORRECTED,
            errors=("E53.2",),
        ),
        Claim(
            "gate",
            "GLU and GELU are different things",
            "GLU 与 GELU 是两回事",
            (
                Check(
                    "sigmoid_difference",
                    ">",
                    ANOTHER_FUNCTION,
                    "GELU is the gate: change with sigmoid",
                    "GELU 是门：换成 sigmoid 的变化",
                ),
                Check(
                    "swapped_difference", ">", ANOTHER_FUNCTION, "change when gate and value swap", "门与值对调的变化"
                ),
            ),
            kind="aside",
            errors=("E53.3",),
        ),
        Claim(
            "parts",
            "our GEGLU block is T5 v1.1's",
            "本库的 GEGLU 前馈块与 T5 v1.1 一致",
            (Check("block_gap", "<", EXACT, "distance from the formula written out", "与逐项公式之差"),),
            kind="control",
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
                    "bits per byte lost against GEGLU, 95 % bound",
                    "与 GEGLU 相比每字节多费的比特，95% 下界",
                ),
            ),
            Verdict.REFUTED,
            kind="aside",
            errors=("E53.1",),
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
    settings={"dim": DIM, "rows": ROWS, "length": LENGTH},
)
