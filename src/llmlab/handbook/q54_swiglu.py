"""Question 54: the gated block with Swish as its gate (SwiGLU). The printed formula has no Swish in it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmlab.handbook.costs import spread, weighed
from llmlab.handbook.measures import curvature, draw, filled, gap, power, relative
from llmlab.handbook.q52_glu import PrintedGLU, with_identities
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.model.feedforward import GatedFeedForward, SwiGLU, SwishFunction
from llmlab.model.linear import Linear
from llmlab.stages import Session

EXACT = 1e-12
STRAIGHT = 1e-9  # a second derivative that went through a logarithm
ANOTHER_FUNCTION = 0.1
DIM, ROWS, LENGTH = 48, 2, 5
BETA = 1.5


class PrintedSwiGLU(nn.Module):
    """The handbook's formula to the letter: x times sigmoid(W1 x), as in its question 52."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = Linear(dim, dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * torch.sigmoid(self.gate(x_BTD))


def _block(seed: int, width: int | None = None) -> GatedFeedForward:
    block = filled(SwiGLU(width=width).build(DIM), seed, "q54.block")
    assert isinstance(block, GatedFeedForward)
    return block


def _sigmoids_argument(x: Tensor) -> Tensor:
    """What Swish hands its sigmoid, recovered from the outside: logit(Swish(x) / x)."""
    return torch.logit(SwishFunction(BETA)(x) / x)


def figures(session: Session) -> Figures:
    x_BTD = draw(session.seed, "q54.x", ROWS, LENGTH, DIM)
    block, square = _block(session.seed), _block(session.seed, DIM)
    printed, sigmoid_gated = PrintedSwiGLU(DIM).double(), PrintedGLU(DIM).double()
    printed.gate = sigmoid_gated.gate = square.gate
    right = block(x_BTD)
    gate = x_BTD @ block.gate.weight.T
    by_hand = (gate / (1 + torch.exp(-gate)) * (x_BTD @ block.up.weight.T)) @ block.down.weight.T
    figures = {
        "block_gap": gap(right, by_hand),
        "sigmoid_gate_gap": gap(printed(x_BTD), sigmoid_gated(x_BTD)),
        "printed_difference": relative(printed(x_BTD), square(x_BTD)),
        "argument_curvature": max(abs(curvature(_sigmoids_argument, at)) for at in (-2.0, -0.5, 0.5, 2.0)),
    }
    bare = with_identities(square)
    figures["bare_difference"] = relative(printed(x_BTD), bare(x_BTD))
    figures["factor_gap"] = gap(printed(x_BTD) * square.gate(x_BTD), bare(x_BTD))
    block.gate, block.up = block.up, block.gate
    figures["swapped_difference"] = relative(block(x_BTD), right)
    return figures


def raced(told: Mapping[str, Told]) -> Figures:
    race, measure = told["feedforward"], "bits_per_byte"
    return {
        **race.bounds("printed_cost", "one matrix glu", "swiglu", measure),
        **race.bounds("swiglu_minus_geglu", "swiglu", "geglu", measure),
        **race.bounds("swiglu_minus_swish", "swiglu", "swish", measure),
        "printed_parameters": race.mean("one matrix glu", "parameters") / race.mean("swiglu", "parameters"),
    }


def evidence(f: Mapping[str, float]) -> Text:
    en, zh = "", ""
    if "printed_cost" in f:
        said = weighed(f, "printed_cost")
        en = (
            f" Trained, in bits per byte: the printed form, in a model of {f['printed_parameters']:.0%} of the "
            f"parameters, {spread(f, 'printed_cost')} over SwiGLU, {said.en}; SwiGLU minus GEGLU "
            f"{spread(f, 'swiglu_minus_geglu')}, minus the plain Swish block {spread(f, 'swiglu_minus_swish')}."
        )
        zh = (
            f"实际训练，每字节比特之差：手册写法（全模型参数只有 {f['printed_parameters']:.0%}）比 SwiGLU 多 "
            f"{spread(f, 'printed_cost')}：{said.zh}；SwiGLU 减 GEGLU 为 {spread(f, 'swiglu_minus_geglu')}，减普通 "
            f"Swish 前馈块为 {spread(f, 'swiglu_minus_swish')}。"
        )
    return Text(
        f"The printed SwiGLU is the sigmoid gate of question 52 (gap {power(f['sigmoid_gate_gap'])}) and misses "
        f"SwiGLU by {f['printed_difference']:.0%} of its size; even with V = I and W2 = I the factor W1x is lacking: "
        f"{f['bare_difference']:.0%} off without it, {power(f['factor_gap'])} with it. Swapping gate and value "
        f"changes the output by {f['swapped_difference']:.0%}.{en}",
        f"手册的 SwiGLU 其实是第 52 问的 sigmoid 门（误差 {power(f['sigmoid_gate_gap'])}），与真正的 SwiGLU 相差其输"
        f"出的 {f['printed_difference']:.0%}；即使令 V = I、W2 = I，也还少一个因子 W1x：缺它相差 "
        f"{f['bare_difference']:.0%}，补上则只差 {power(f['factor_gap'])}。门与值对调，输出改变 "
        f"{f['swapped_difference']:.0%}。{zh}",
    )


QUESTION = Question(
    number=54,
    tier="formula",
    claim=Text(
        "For a gate made of Swish the formula given is GLU(x) = x·sigmoid(W1x), beside Swish(x) = x·sigmoid(βx) with "
        "a learnt β; Swish is told as a nonlinear transform followed by a sigmoid and a product with x.",
        "给出的公式是 GLU(x) = x·sigmoid(W1x)，旁边另列 Swish(x) = x·sigmoid(βx)，这回 β 可学习；并把 Swish 说成先作"
        "非线性变换、再过 sigmoid、最后与 x 相乘。",
    ),
    correction=Text(
        "FFN_SwiGLU(x) = (Swish_β(xW) ⊗ xV)W2 with Swish_β(z) = z·σ(βz); PaLM and LLaMA take β = 1, LLaMA a width of "
        "⅔·4d. The printed formula gates by a plain sigmoid. Swish gates its own input: before the sigmoid stands "
        "nothing but βz.",
        "FFN_SwiGLU(x) = (Swish_β(xW) ⊗ xV)W2，其中 Swish_β(z) = z·σ(βz)；PaLM 与 LLaMA 取 β = 1，LLaMA 的宽度为 ⅔·4d。"
        "手册的公式只是普通的 sigmoid 门。Swish 以自身作门：sigmoid 之前除了 βz 别无他物。",
    ),
    run=Text(
        "Our SwiGLU block against the formula of LLaMA written out; the printed form against question 52's, against "
        "the block, and against V = I, W2 = I; gate and value swapped; the argument of Swish's sigmoid recovered and "
        "differentiated. Trained: SwiGLU, GEGLU, the plain Swish block, and the printed form.",
        "拿本库的 SwiGLU 前馈块与逐项写出的 LLaMA 公式对照；手册写法依次与第 52 问的写法、完整前馈块、V = I 且 W2 = "
        "I 的特例对照；门与值对调；反解出 Swish 中 sigmoid 的自变量并求导。另有实际训练：SwiGLU、GEGLU、普通 Swish 前馈"
        "块与手册写法。",
    ),
    papers=(
        "Shazeer 2020, GLU Variants Improve Transformer, arXiv 2002.05202",
        "Ramachandran, Zoph & Le 2017, Searching for Activation Functions, arXiv 1710.05941",
        "Chowdhery et al. 2022, PaLM, arXiv 2204.02311",
        "Touvron et al. 2023, LLaMA, arXiv 2302.13971",
    ),
    errors={"E54.1": "W", "E54.2": "M"},
    claims=(
        Claim(
            "formula",
            "x·sigmoid(W1x) is the block gated by Swish",
            "x·sigmoid(W1x) 就是以 Swish 为门的前馈块",
            (
                Check(
                    "sigmoid_gate_gap",
                    "<",
                    EXACT,
                    "distance from question 52's sigmoid gate",
                    "与第 52 问 sigmoid 门之差",
                ),
                Check(
                    "printed_difference", ">", ANOTHER_FUNCTION, "relative distance from SwiGLU", "与 SwiGLU 的相对差异"
                ),
                Check(
                    "bare_difference",
                    ">",
                    ANOTHER_FUNCTION,
                    "the same with V = I, W2 = I",
                    "令 V = I、W2 = I 后的相对差异",
                ),
                Check("factor_gap", "<", EXACT, "distance once multiplied by W1x", "再乘上 W1x 之后的差"),
            ),
            Verdict.REFUTED,
            errors=("E54.1",),
        ),
        Claim(
            "self-gating",
            "Swish transforms nonlinearly before its sigmoid",
            "Swish 在 sigmoid 之前先作非线性变换",
            (
                Check(
                    "argument_curvature",
                    "<",
                    STRAIGHT,
                    "second derivative of what the sigmoid is given",
                    "sigmoid 自变量的二阶导数",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E54.2",),
        ),
        Claim(
            "parts",
            "our SwiGLU block is LLaMA's, and its gate is not its value",
            "本库的 SwiGLU 前馈块与 LLaMA 一致，门与值不可互换",
            (
                Check("block_gap", "<", EXACT, "distance from the formula written out", "与逐项公式之差"),
                Check(
                    "swapped_difference", ">", ANOTHER_FUNCTION, "change when gate and value swap", "门与值对调的变化"
                ),
            ),
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
                    "bits per byte lost against SwiGLU, 95 % bound",
                    "与 SwiGLU 相比每字节多费的比特，95% 下界",
                ),
            ),
            Verdict.REFUTED,
            kind="aside",
            errors=("E54.1",),
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
    settings={"dim": DIM, "rows": ROWS, "length": LENGTH, "beta": BETA},
)
