"""Question 41: the formula of LayerNorm. It stands once epsilon is in the root and the deviation is the biased one."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmlab.handbook.costs import spread
from llmlab.handbook.measures import draw, filled, gap, power
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.model.norms import LayerNorm
from llmlab.stages import Session

EXACT = 1e-12
INVARIANT = 1e-8  # epsilon is 1e-12 there, so scale and shift are invariant to about that
SEEN = 0.005  # relative error that nobody would call rounding
DIM, SMALL_DIM, ROWS = 64, 8, 16
EPS, TINY_EPS, TINY_STD = 1e-5, 1e-12, 1e-4


class PrintedLayerNorm(nn.Module):
    """The handbook's formula to the letter, with std as torch has it by default: no epsilon, divided by d - 1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight / x.std(-1, keepdim=True) * (x - x.mean(-1, keepdim=True)) + self.bias


def _norm(session: Session, dim: int = DIM, eps: float = EPS) -> nn.Module:
    return filled(LayerNorm(eps=eps).build(dim), session.seed, f"q41.norm.{dim}")


def _plain(dim: int = DIM, eps: float = EPS) -> nn.Module:
    return LayerNorm(eps=eps).build(dim).double()


def _formula(session: Session) -> Figures:
    """Forward and backward against the closed forms."""
    norm = _norm(session)
    gain, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    x = draw(session.seed, "q41.x", ROWS, DIM).requires_grad_()
    dy = draw(session.seed, "q41.dy", ROWS, DIM)
    y = norm(x)
    dx, dgain, dbias = torch.autograd.grad(y, (x, gain, bias), dy)
    with torch.no_grad():
        deviation = ((x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True) + EPS).sqrt()
        unit = (x - x.mean(-1, keepdim=True)) / deviation
        g = dy * gain
        by_hand = (g - g.mean(-1, keepdim=True) - unit * (g * unit).mean(-1, keepdim=True)) / deviation
        return {
            "formula_gap": gap(y, gain * unit + bias),
            "gradient_gap": max(gap(dx, by_hand), gap(dgain, (dy * unit).sum(0)), gap(dbias, dy.sum(0))),
            "smallest_learnt_gradient": min(float(dgain.abs().max()), float(dbias.abs().max())),
        }


@torch.no_grad()
def _deviation_and_epsilon(session: Session) -> Figures:
    """What the printed formula does with torch's std, and on rows without variance."""
    x = draw(session.seed, "q41.x", ROWS, DIM)
    small = draw(session.seed, "q41.small", ROWS, SMALL_DIM)

    def excess(row: Tensor) -> float:
        """By how much the printed result is too small, exactly sqrt(d / (d - 1)) - 1."""
        right = _plain(row.shape[-1], TINY_EPS)(row)
        return float((right / PrintedLayerNorm(row.shape[-1]).double()(row)).mean()) - 1

    constant = torch.full((1, DIM), 3.0, dtype=torch.float64)
    unit = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0)
    shrunk = _plain()(TINY_STD * unit)
    return {
        "excess_d8": excess(small),
        "excess_d64": excess(x),
        "excess_gap": abs(excess(small) - (math.sqrt(SMALL_DIM / (SMALL_DIM - 1)) - 1)),
        "printed_undefined_share": float((~PrintedLayerNorm(DIM).double()(constant).isfinite()).double().mean()),
        "ours_undefined_share": float((~_plain()(constant).isfinite()).double().mean()),
        "kept_eps_inside": float(shrunk.std(-1, correction=0).mean()),
        "kept_eps_outside": TINY_STD / (TINY_STD + EPS),
        "eps_inside_gap": gap(shrunk.std(-1, correction=0), torch.tensor(TINY_STD / math.sqrt(TINY_STD**2 + EPS))),
    }


@torch.no_grad()
def _axis(session: Session) -> Figures:
    """Inside each token, or across samples? BatchNorm beside it for contrast."""
    x = draw(session.seed, "q41.x", ROWS, DIM) + 2 * draw(session.seed, "q41.feature", DIM)  # features differ in mean
    edited = x.clone()
    edited[0] += draw(session.seed, "q41.edit", DIM)
    layer, batch = _plain(eps=TINY_EPS), nn.BatchNorm1d(DIM, eps=TINY_EPS, track_running_stats=False).double()
    return {
        "scale_gap": gap(layer(7.5 * x), layer(x)),
        "shift_gap": gap(layer(x + 7.5), layer(x)),
        "token_mean": float(layer(x).mean(-1).abs().max()),
        "token_variance_gap": float((layer(x).var(-1, correction=0) - 1).abs().max()),
        "feature_mean": float(layer(x).mean(0).abs().max()),
        "feature_mean_batchnorm": float(batch(x).mean(0).abs().max()),
        "others_change": gap(layer(edited)[1:], layer(x)[1:]),
        "others_change_batchnorm": gap(batch(edited)[1:], batch(x)[1:]),
    }


def figures(session: Session) -> Figures:
    return _formula(session) | _deviation_and_epsilon(session) | _axis(session)


def raced(told: Mapping[str, Told]) -> Figures:
    """BatchNorm in LayerNorm's place, its moving averages used at test."""
    return told["norms"].bounds("batch_cost", "batch", "layernorm", "bits_per_byte")


def evidence(f: Mapping[str, float]) -> Text:
    en, zh = "", ""
    if "batch_cost" in f:
        en = f" Trained in its place, BatchNorm costs {spread(f, 'batch_cost')} bits per byte."
        zh = f"实际训练时以 BatchNorm 取而代之，每字节多费 {spread(f, 'batch_cost')} 比特。"
    return Text(
        f"With ε in the root and the biased deviation the formula holds to {power(f['formula_gap'])}, gradients to "
        f"{power(f['gradient_gap'])}. torch.std is {f['excess_d8']:.1%} too large at d = {SMALL_DIM} and "
        f"{f['excess_d64']:.2%} at d = {DIM}; a constant row without ε is {f['printed_undefined_share']:.0%} NaN. "
        f"Editing one sample changes the others by {power(f['others_change'])} (BatchNorm: "
        f"{f['others_change_batchnorm']:.2f}).{en}",
        f"把 ε 放进根号、标准差取有偏的，公式成立，误差 {power(f['formula_gap'])}，梯度误差 "
        f"{power(f['gradient_gap'])}。torch.std 在 d = {SMALL_DIM} 时偏大 {f['excess_d8']:.1%}，d = {DIM} 时偏大 "
        f"{f['excess_d64']:.2%}；没有 ε 时，常数行的输出 {f['printed_undefined_share']:.0%} 是 NaN。改动一个样本，其"
        f"余样本的变化为 {power(f['others_change'])}（BatchNorm 为 {f['others_change_batchnorm']:.2f}）。{zh}",
    )


QUESTION = Question(
    number=41,
    tier="formula",
    claim=Text(
        "LayerNorm(x) = a/σ ⊙ (x - μ) + b, with mean and standard deviation over the last axis and a learnt scale "
        "and bias, though its last step would compute them. It is said to give features similar distributions "
        "across samples.",
        "LayerNorm(x) = a/σ ⊙ (x - μ) + b，均值与标准差沿末维计算，缩放与偏置可学习（其最后一步却说要去“计算”它们）；"
        "并称它使不同样本的特征分布相近。",
    ),
    correction=Text(
        "y = a ⊙ (x - μ)/√(σ² + ε) + b: ε belongs inside the root, σ² is the biased variance (divided by d), a and b "
        "are learnt. The normalisation happens inside each token and knows no other; evening out samples is what "
        "BatchNorm does.",
        "y = a ⊙ (x - μ)/√(σ² + ε) + b：ε 在根号里，σ² 是有偏方差（除以 d），a 与 b 靠学习得到。归一化在每个词元内部"
        "完成，不涉及其他词元；拉平样本间差异的是 BatchNorm。",
    ),
    run=Text(
        "Our LayerNorm in double precision: forward and closed-form backward; the printed formula with torch's std "
        "at d = 8 and 64 and on a constant row; ε inside against outside; scale and shift; one sample edited, "
        "BatchNorm beside it. Trained: four pre-norm layers with either norm.",
        "以双精度检验本库的 LayerNorm：前向与闭式反向；手册写法配 torch 默认的 std，取 d = 8 与 64 以及常数行；ε 放"
        "根号内外之别；缩放与平移；改动一个样本，并与 BatchNorm 对照。另有实际训练：四层 Pre-Norm，"
        "分别用这两种归一化。",
    ),
    papers=(
        "Ba, Kiros & Hinton 2016, Layer Normalization, arXiv 1607.06450",
        "Ioffe & Szegedy 2015, Batch Normalization, arXiv 1502.03167",
    ),
    errors={"E41.1": "I", "E41.2": "M", "E41.3": "M", "E41.4": "M"},
    claims=(
        Claim(
            "formula",
            "centre, divide by the deviation, scale and shift",
            "先中心化，再除以标准差，然后缩放平移",
            (
                Check(
                    "formula_gap", "<", EXACT, "distance from a(x - μ)/√(σ² + ε) + b", "与 a(x - μ)/√(σ² + ε) + b 之差"
                ),
                Check("gradient_gap", "<", EXACT, "distance of the gradients from their closed form", "梯度与闭式之差"),
                Check("scale_gap", "<", INVARIANT, "change when x is scaled", "x 缩放后的变化"),
                Check("shift_gap", "<", INVARIANT, "change when x is shifted", "x 平移后的变化"),
            ),
        ),
        Claim(
            "epsilon",
            "the deviation alone is the divisor",
            "分母只有标准差",
            (
                Check("printed_undefined_share", ">", 0.5, "NaN share on a constant row", "常数行输出中 NaN 的比例"),
                Check("ours_undefined_share", "==", 0.0, "the same with ε", "加上 ε 之后"),
                Check(
                    "eps_inside_gap", "<", 1e-6, "σ = 1e-4: distance from σ/√(σ² + ε)", "σ = 1e-4 时与 σ/√(σ² + ε) 之差"
                ),
            ),
            Verdict.CORRECTED,
            errors=("E41.1",),
        ),
        Claim(
            "deviation",
            "the divisor is the standard deviation",
            "分母是标准差",
            (
                Check(
                    "excess_d8", ">", SEEN, "excess of torch's default std at d = 8", "d = 8 时 torch 默认 std 偏大多少"
                ),
                Check("excess_d64", ">", SEEN, "the same at d = 64", "d = 64 时偏大多少"),
                Check("excess_gap", "<", 1e-6, "distance from √(d/(d - 1)) - 1", "与 √(d/(d - 1)) - 1 之差"),
            ),
            Verdict.CORRECTED,
            errors=("E41.2",),
        ),
        Claim(
            "across samples",
            "it evens features out across samples",
            "它拉平不同样本之间的特征",
            (
                Check(
                    "others_change",
                    "==",
                    0.0,
                    "other samples' change when one is edited",
                    "改动一个样本，其余样本的变化",
                ),
                Check("others_change_batchnorm", ">", 1e-3, "the same with BatchNorm", "BatchNorm 则为"),
                Check(
                    "feature_mean", ">", 0.5, "a feature's mean over samples stays off 0", "某特征对样本的均值仍偏离 0"
                ),
                Check("token_mean", "<", EXACT, "a token's mean is 0", "每个词元的均值为 0"),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E41.3",),
        ),
        Claim(
            "learnt",
            "scale and bias are computed",
            "缩放与偏置由计算得出",
            (
                Check(
                    "smallest_learnt_gradient",
                    ">",
                    0.0,
                    "both have gradients, so are learnt",
                    "两者皆有梯度，是学出来的",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E41.4",),
        ),
        Claim(
            "across samples, trained",
            "evening features out across samples serves a language model as well",
            "拉平样本之间的特征，对语言模型同样有效",
            (
                Check(
                    "batch_cost_lower",
                    ">",
                    0.0,
                    "BatchNorm minus LayerNorm, bits per byte, 95 % bound",
                    "BatchNorm 减 LayerNorm，每字节比特，95% 下界",
                ),
            ),
            Verdict.REFUTED,
            kind="aside",
            errors=("E41.3",),
            race="norms",
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("norms",),
    raced=raced,
    uses=("llmlab/model/norms.py", "llmlab/handbook/literal/norms.py", "llmlab/handbook/races/norms.py"),
    settings={"dims": [DIM, SMALL_DIM], "rows": ROWS, "eps": [EPS, TINY_EPS], "tiny_std": TINY_STD},
)
