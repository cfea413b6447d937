"""Question 50: the formula of GELU. The handbook's form lost its cube, which makes it a Swish."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmlab.handbook.costs import MARGIN, spread, weighed
from llmlab.handbook.measures import curvature, gap, power
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.model.feedforward import gelu, gelu_tanh
from llmlab.stages import Session

EXACT = 1e-12  # float64 identities
WRONG = 0.01  # a formula this far from GELU is another function
TIMES_WORSE = 10.0  # than the tanh approximation, which is what the printed form means to be
HALF_RANGE, POINTS, FAR = 10.0, 20_001, 4.0
HIDDEN_BETA = 2 * math.sqrt(2 / math.pi) * 1.044715  # tanh(z) = 2 sigmoid(2 z) - 1


class PrintedGELU(nn.Module):
    """The handbook's formula to the letter: 0.044715 x where 0.044715 x^3 belongs."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x)))


def figures(session: Session) -> Figures:
    x = torch.linspace(-HALF_RANGE, HALF_RANGE, POINTS, dtype=torch.float64)
    density = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
    exact, tanh, printed = gelu(x), gelu_tanh(x), PrintedGELU()(x)
    far = max(abs(curvature(gelu, at)) for at in (-FAR, FAR))
    same_point = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)

    def rms(wrong: Tensor) -> float:
        return math.sqrt(float(torch.trapezoid(density * (wrong - exact).square(), x)))

    cube = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return {
        "erf_gap": gap(exact, 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))),
        "cube_gap": gap(tanh, cube),
        "tanh_error": gap(tanh, exact),
        "tanh_rms": rms(tanh),
        "printed_error": gap(printed, exact),
        "printed_error_at": float(x[(printed - exact).abs().argmax()]),
        "printed_rms": rms(printed),
        "times_worse": gap(printed, exact) / gap(tanh, exact),
        "swish_gap": gap(printed, x * torch.sigmoid(HIDDEN_BETA * x)),
        "blind_gap": gap(PrintedGELU()(same_point), gelu_tanh(same_point)),
        "curvature_at_0": curvature(gelu, 0.0),
        "curvature_far": far,
        "curvature_falls": curvature(gelu, 0.0) / far,
    }


def raced(told: Mapping[str, Told]) -> Figures:
    race, measure = told["feedforward"], "bits_per_byte"
    return {
        **race.bounds("printed_cost", "gelu without cube", "gelu", measure),
        **race.bounds("tanh_cost", "gelu_tanh", "gelu", measure),
    }


def evidence(f: Mapping[str, float]) -> Text:
    en, zh = "", ""
    if "printed_cost" in f:
        said = weighed(f, "printed_cost")
        en = (
            f" Trained with the printed form: {spread(f, 'printed_cost')} bits per byte, {said.en}; with the tanh form "
            f"{spread(f, 'tanh_cost')}."
        )
        zh = (
            f"照手册写法实际训练，每字节多费 {spread(f, 'printed_cost')} 比特：{said.zh}；用 tanh 近似则为 "
            f"{spread(f, 'tanh_cost')}。"
        )
    return Text(
        f"The printed form misses GELU by up to {f['printed_error']:.4f} (at x = {f['printed_error_at']:.2f}), the "
        f"true tanh form by {f['tanh_error']:.1e}; it equals x·sigmoid({HIDDEN_BETA:.5f}x) to "
        f"{power(f['swish_gap'])}. Curvature is {f['curvature_at_0']:.3f} at 0 and at most {f['curvature_far']:.3f} "
        f"at ±4.{en}",
        f"手册写法与 GELU 最多相差 {f['printed_error']:.4f}（在 x = {f['printed_error_at']:.2f} 处），正确的 tanh 近"
        f"似只差 {f['tanh_error']:.1e}；它其实就是 x·sigmoid({HIDDEN_BETA:.5f}x)，误差 {power(f['swish_gap'])}。二阶"
        f"导数在 0 处为 {f['curvature_at_0']:.3f}，在 ±4 处不超过 {f['curvature_far']:.3f}。{zh}",
    )


QUESTION = Question(
    number=50,
    tier="formula",
    claim=Text(
        "GELU(x) = 0.5x(1 + tanh(√(2/π)(x + 0.044715x))). It behaves almost linearly close to zero and bends far "
        "from it.",
        "GELU(x) = 0.5x(1 + tanh(√(2/π)(x + 0.044715x)))；并称其在原点附近近乎直线，到远处才弯曲。",
    ),
    correction=Text(
        "Exactly, GELU(x) = xΦ(x) = 0.5x(1 + erf(x/√2)); the tanh form approximates it with 0.044715x³. Without the "
        "cube it is a Swish with β = 2√(2/π)·1.044715. At -1, 0 and 1, where x³ = x, no test can see the slip. GELU "
        "bends most at zero and is straight far away.",
        "精确定义是 GELU(x) = xΦ(x) = 0.5x(1 + erf(x/√2))；tanh 近似里的那一项应为 0.044715x³。丢了立方，就成了 β = "
        "2√(2/π)·1.044715 的 Swish。由于 x³ = x 在 -1、0、1 三点成立，只在这三点验算发现不了错误。GELU 恰恰在零点弯"
        "得最厉害，远处趋于直线。",
    ),
    run=Text(
        "The printed formula, the tanh form and the erf form on 20,001 points of [-10, 10] in double precision; the "
        "printed form against a Swish; second derivatives by autograd. Trained: the three forms in a model each.",
        "在 [-10, 10] 的 20,001 个点上以双精度比较手册写法、tanh 近似与 erf 定义，再把手册写法与 Swish 对照，并用自"
        "动微分求二阶导数。另有实际训练：三种写法各训练一个模型。",
    ),
    papers=("Hendrycks & Gimpel 2016, Gaussian Error Linear Units, arXiv 1606.08415",),
    errors={"E50.1": "W", "E50.2": "I", "E50.3": "W"},
    claims=(
        Claim(
            "formula",
            "the printed formula is GELU",
            "手册所写的就是 GELU",
            (
                Check("printed_error", ">", WRONG, "largest error of the printed form", "手册写法的最大误差"),
                Check(
                    "times_worse", ">", TIMES_WORSE, "that, in errors of the tanh form", "相当于 tanh 近似误差的倍数"
                ),
                Check("swish_gap", "<", EXACT, "its distance from x·sigmoid(1.667x)", "它与 x·sigmoid(1.667x) 之差"),
                Check(
                    "blind_gap",
                    "<",
                    EXACT,
                    "its error at -1, 0, 1: invisible there",
                    "它在 -1、0、1 三点的误差（看不出来）",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E50.1",),
        ),
        Claim(
            "shape",
            "GELU is nearly linear around zero and nonlinear far out",
            "GELU 在零点附近近似线性，远离零点才非线性",
            (
                Check("curvature_at_0", ">", 0.5, "second derivative at 0", "0 处的二阶导数"),
                Check("curvature_falls", ">", 10.0, "times the one at ±4", "是 ±4 处的多少倍"),
            ),
            Verdict.REFUTED,
            kind="aside",
            errors=("E50.3",),
        ),
        Claim(
            "parts",
            "our GELU is the erf form and our tanh form has the cube",
            "本库的 GELU 即 erf 定义，其 tanh 近似含立方项",
            (
                Check("erf_gap", "<", EXACT, "distance from 0.5x(1 + erf(x/√2))", "与 0.5x(1 + erf(x/√2)) 之差"),
                Check(
                    "cube_gap",
                    "<",
                    EXACT,
                    "distance of the tanh form from the cubed formula",
                    "tanh 近似与含立方公式之差",
                ),
                Check("tanh_error", "<", 1e-3, "error of the approximation itself", "近似本身的误差"),
            ),
            kind="control",
            errors=("E50.2",),
        ),
        Claim(
            "trained",
            "a model trained with the printed formula is as good",
            "照手册所写训练出的模型一样好",
            (
                Check(
                    "printed_cost_upper",
                    "<",
                    MARGIN,
                    "bits per byte lost by the slip, 95 % bound",
                    "因笔误每字节多费的比特，95% 上界",
                ),
            ),
            kind="aside",
            errors=("E50.1",),
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
    settings={"half_range": HALF_RANGE, "points": POINTS, "far": FAR},
)
