"""Question 51: the formula of Swish. Formula and limits stand; the remark on its shape is the wrong way round."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.handbook.costs import MARGIN, spread
from llmlab.handbook.measures import curvature, gap, power
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.model.feedforward import SwishFunction
from llmlab.stages import Session

EXACT = 1e-12
NEAR_RELU = 0.003  # at beta 100; the law is 0.2785 / beta
HALF_RANGE, POINTS, FAR = 10.0, 20_001, 4.0
BETAS = (1.0, 10.0, 100.0)
LEARNT = 1.5


def _distance_from_relu(beta: float, grid: Tensor) -> float:
    x = grid / beta  # the same points of beta x for every beta
    return gap(SwishFunction(beta)(x), F.relu(x))


def figures(session: Session) -> Figures:
    x = torch.linspace(-HALF_RANGE, HALF_RANGE, POINTS, dtype=torch.float64)
    distances = [_distance_from_relu(beta, x) for beta in BETAS]
    products = [beta * distance for beta, distance in zip(BETAS, distances, strict=True)]
    silu = SwishFunction(1.0)(x)
    beta = torch.full_like(x, LEARNT).requires_grad_()
    (learnt,) = torch.autograd.grad((x * torch.sigmoid(beta * x)).sum(), beta)
    gate = torch.sigmoid(LEARNT * x)
    return {
        "formula_gap": max(gap(SwishFunction(b)(x), x / (1 + torch.exp(-b * x))) for b in (0.5, 1.0, LEARNT)),
        "half_gap": gap(SwishFunction(0.0)(x), x / 2),
        "relu_distance_beta_1": distances[0],
        "relu_distance_beta_10": distances[1],
        "relu_distance_beta_100": distances[2],
        "law_spread": max(products) - min(products),
        "minimum": float(silu.min()),
        "minimum_at": float(x[silu.argmin()]),
        "beta_gradient_gap": gap(learnt, x.square() * gate * (1 - gate)),
        "beta_gradient_largest": float(learnt.abs().max()),
        "curvature_at_0": curvature(SwishFunction(1.0), 0.0),
        "curvature_at_4": curvature(SwishFunction(1.0), FAR),
        "curvature_falls": curvature(SwishFunction(1.0), 0.0) / abs(curvature(SwishFunction(1.0), FAR)),
    }


def raced(told: Mapping[str, Told]) -> Figures:
    race, measure = told["feedforward"], "bits_per_byte"
    return {
        **race.bounds("swish_minus_relu", "swish", "relu", measure),
        **race.bounds("swish_minus_gelu", "swish", "gelu", measure),
        **race.bounds("learnt_minus_fixed", "swish, learnt", "swish", measure),
    }


def evidence(f: Mapping[str, float]) -> Text:
    en, zh = "", ""
    if "swish_minus_relu" in f:
        en = (
            f" Trained, in bits per byte: Swish minus ReLU {spread(f, 'swish_minus_relu')}, minus GELU "
            f"{spread(f, 'swish_minus_gelu')}; β learnt minus β = 1 {spread(f, 'learnt_minus_fixed')}."
        )
        zh = (
            f"实际训练，每字节比特之差：Swish 减 ReLU 为 {spread(f, 'swish_minus_relu')}，减 GELU 为 "
            f"{spread(f, 'swish_minus_gelu')}；β 可学习减 β 固定为 1 为 {spread(f, 'learnt_minus_fixed')}。"
        )
    return Text(
        f"β = 0 gives x/2 (gap {power(f['half_gap'])}); the distance from ReLU is {f['relu_distance_beta_1']:.4f}, "
        f"{f['relu_distance_beta_10']:.4f}, {f['relu_distance_beta_100']:.4f} at β = 1, 10, 100. The remark on the "
        f"shape is reversed: curvature is {f['curvature_at_0']:.2f} at 0 and {f['curvature_at_4']:.3f} at 4.{en}",
        f"β = 0 时恰为 x/2（误差 {power(f['half_gap'])}）；β = 1、10、100 时与 ReLU 相差 "
        f"{f['relu_distance_beta_1']:.4f}、{f['relu_distance_beta_10']:.4f}、{f['relu_distance_beta_100']:.4f}。关于"
        f"形状的说法则反了：二阶导数在 0 处为 {f['curvature_at_0']:.2f}，在 4 处为 {f['curvature_at_4']:.3f}。{zh}",
    )


QUESTION = Question(
    number=51,
    tier="formula",
    claim=Text(
        "Swish(x) = x·sigmoid(βx) with a β to be set; β = 0 makes it linear and β → ∞ turns it into ReLU. It is "
        "close to linear near zero and nonlinear far from it.",
        "Swish(x) = x·sigmoid(βx)，β 由人设定；β = 0 时是线性的，β 越大越接近 ReLU。又称它在原点附近近乎直线，到远处"
        "才弯曲。",
    ),
    correction=Text(
        "Formula and limits are right; at β = 0 the line is x/2. β may be fixed (β = 1 is SiLU) or learnt. The "
        "function was found by an automatic search, not inspired by one. Its curvature is largest at zero, and both "
        "ends are straight.",
        "公式与两个极限都对，β = 0 时那条直线是 x/2。β 既可固定（β = 1 即 SiLU），也可学习。这个函数本身就是自动搜索"
        "搜出来的，而不只是受其启发。它在零点弯得最厉害，两端都趋于直线。",
    ),
    run=Text(
        "Our Swish on a grid in double precision: against the closed form, x/2 and ReLU at β = 1, 10, 100; the "
        "gradient in β against its closed form; second derivatives by autograd. Trained: Swish with β = 1 and with a "
        "learnt β, ReLU and GELU.",
        "在双精度网格上检验本库的 Swish：与闭式、x/2、以及 β = 1、10、100 时的 ReLU 对照；对 β 的梯度与闭式对照；用"
        "自动微分求二阶导数。另有实际训练：β = 1 与 β 可学习的 Swish，以及 ReLU、GELU。",
    ),
    papers=(
        "Ramachandran, Zoph & Le 2017, Searching for Activation Functions, arXiv 1710.05941",
        "Elfwing, Uchibe & Doya 2017, Sigmoid-Weighted Linear Units, arXiv 1702.03118",
    ),
    errors={"E51.1": "W", "E51.2": "M", "E51.3": "I"},
    claims=(
        Claim(
            "formula and limits",
            "x·sigmoid(βx), linear at β = 0, ReLU as β grows",
            "x·sigmoid(βx)，β = 0 时线性，β 增大时趋于 ReLU",
            (
                Check(
                    "formula_gap",
                    "<",
                    EXACT,
                    "distance of our Swish from x / (1 + e^(-βx))",
                    "本库 Swish 与 x / (1 + e^(-βx)) 之差",
                ),
                Check("half_gap", "<", EXACT, "distance from x/2 at β = 0", "β = 0 时与 x/2 之差"),
                Check(
                    "relu_distance_beta_100", "<", NEAR_RELU, "distance from ReLU at β = 100", "β = 100 时与 ReLU 之差"
                ),
                Check(
                    "law_spread",
                    "<",
                    1e-6,
                    "spread of β × distance, which is one constant",
                    "β 与该距离之积为常数，其波动",
                ),
            ),
            errors=("E51.3",),
        ),
        Claim(
            "shape",
            "Swish is nearly linear around zero and nonlinear far out",
            "Swish 在零点附近近似线性，远离零点才非线性",
            (
                Check("curvature_at_0", ">", 0.4, "second derivative at 0", "0 处的二阶导数"),
                Check("curvature_falls", ">", 10.0, "times the one at 4", "是 4 处的多少倍"),
            ),
            Verdict.REFUTED,
            kind="aside",
            errors=("E51.1",),
        ),
        Claim(
            "beta",
            "β is a hyper-parameter",
            "β 是超参数",
            (
                Check(
                    "beta_gradient_gap", "<", EXACT, "gradient in β against x²σ(1 - σ)", "对 β 的梯度与 x²σ(1 - σ) 之差"
                ),
                Check(
                    "beta_gradient_largest",
                    ">",
                    0.1,
                    "its largest value: β can be learnt too",
                    "其最大值（β 也可以学习）",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E51.2",),
        ),
        Claim(
            "beta, trained",
            "a learnt β trains as well as a fixed one",
            "β 可学习与固定，训练效果一样好",
            (
                Check(
                    "learnt_minus_fixed_upper",
                    "<",
                    MARGIN,
                    "learnt minus fixed, bits per byte, 95 % bound",
                    "可学习减固定，每字节比特，95% 上界",
                ),
            ),
            kind="aside",
            errors=("E51.2",),
            race="feedforward",
        ),
        Claim(
            "activation, trained",
            "Swish serves a model as well as ReLU and GELU",
            "Swish 不逊于 ReLU 与 GELU",
            (
                Check(
                    "swish_minus_relu_upper",
                    "<",
                    MARGIN,
                    "Swish minus ReLU, bits per byte, 95 % bound",
                    "Swish 减 ReLU，每字节比特，95% 上界",
                ),
                Check("swish_minus_gelu_upper", "<", MARGIN, "Swish minus GELU, the same", "Swish 减 GELU，同上"),
            ),
            kind="aside",
            race="feedforward",
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("feedforward",),
    raced=raced,
    uses=(
        "llmlab/model/feedforward.py",
        "llmlab/handbook/races/feedforward.py",
    ),
    settings={"half_range": HALF_RANGE, "points": POINTS, "far": FAR, "betas": BETAS, "learnt": LEARNT},
)
