"""Question 42: the formula of RMSNorm. The learnt gain is missing; where that costs anything, and where not."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmlab.handbook.costs import MARGIN, spread, weighed
from llmlab.handbook.measures import draw, filled, gap, parameters, power, relative
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.model.attention import MultiHead
from llmlab.model.equivalents import fold_gains
from llmlab.model.norms import LayerNorm, RMSNorm, RootMeanSquare
from llmlab.model.transformer import Architecture
from llmlab.stages import Session

EXACT = 1e-12
FOLDED = 1e-5  # of the logits of a model whose gains were moved into the next matrices
ANOTHER_FUNCTION = 0.1
DIM, ROWS, LENGTH, VOCABULARY = 32, 16, 8, 40
TINY = Architecture(layers=2, dim=DIM, context=LENGTH, attention=MultiHead(heads=4), norm=RMSNorm())
LOUD = 300.0  # its square does not fit into float16, whose largest number is 65504


class PrintedRMSNorm(nn.Module):
    """The handbook's formula to the letter: no gain, computed in whatever precision the input has."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + self.eps)


@torch.no_grad()
def _folding(session: Session) -> Figures:
    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) * 7 % VOCABULARY
    figures: Figures = {}
    for tied in (False, True):
        model = TINY.model_copy(update={"tied": tied}).build(VOCABULARY, session.seed)
        filled(model, session.seed, "q42.model")
        folded = fold_gains(model)
        if tied:  # the head is the embedding: what the last gain makes of the one would change the other
            assert folded.head is not None
            folded.embedding.weight.copy_(folded.head.weight)
            figures["tied_fold_difference"] = relative(folded(ids), model(ids))
        else:
            figures["fold_gap"] = gap(folded(ids), model(ids))
    return figures


@torch.no_grad()
def figures(session: Session) -> Figures:
    norm = RMSNorm().build(DIM)
    filled(norm, session.seed, "q42.norm")
    assert isinstance(norm, RootMeanSquare)
    by_torch = nn.RMSNorm(DIM, eps=norm.eps).double()
    by_torch.weight = norm.weight
    x = draw(session.seed, "q42.x", ROWS, DIM)
    printed = PrintedRMSNorm(norm.eps)
    loud = torch.full((1, DIM), LOUD, dtype=torch.float16)
    unit = RMSNorm().build(DIM)
    return {
        "formula_gap": gap(norm(x), norm.weight * x / torch.sqrt(x.square().mean(-1, keepdim=True) + norm.eps)),
        "torch_gap": gap(norm(x), by_torch(x)),
        "printed_difference": relative(printed(x), norm(x)),
        "printed_gap_unit_gain": gap(printed(x), unit.double()(x)),
        "shift_difference": relative(norm(x + 1), norm(x)),
        "parameters_over_layernorm": parameters(norm) / parameters(LayerNorm().build(DIM)),
        "half_ours": float(unit.half()(loud).float().mean()),
        "half_printed": float(printed(loud).float().mean()),
        **_folding(session),
    }


def raced(told: Mapping[str, Told]) -> Figures:
    """The same norm without its gain, the head tied, where the last gain cannot be folded."""
    return told["norms"].bounds("no_gain_cost", "no gain", "rmsnorm", "bits_per_byte")


def evidence(f: Mapping[str, float]) -> Text:
    en, zh = "", ""
    if "no_gain_cost" in f:
        said = weighed(f, "no_gain_cost")
        en = f" Trained without gains: {spread(f, 'no_gain_cost')} bits per byte, {said.en}."
        zh = f"不带增益实际训练，每字节多费 {spread(f, 'no_gain_cost')} 比特：{said.zh}。"
    return Text(
        f"Without the gain the output is off by {f['printed_difference']:.0%}; with it, the distance from torch's "
        f"RMSNorm is {power(f['torch_gap'])}. In a pre-norm model the gains fold into the next matrices (logits "
        f"change by {power(f['fold_gap'])}), except the last one under a tied head ({f['tied_fold_difference']:.0%} "
        f"change).{en}",
        f"缺了增益，输出相差 {f['printed_difference']:.0%}；补上后与 torch 的 RMSNorm 之差为 {power(f['torch_gap'])}。"
        f"在 Pre-Norm 模型里，增益可以并入随后的矩阵（logits 变化 {power(f['fold_gap'])}），唯独输出头与嵌入共享权重"
        f"时最后一个增益不行（变化 {f['tied_fold_difference']:.0%}）。{zh}",
    )


QUESTION = Question(
    number=42,
    tier="formula",
    claim=Text(
        "RMSNorm(x) = x / √(mean(x²) + ε), the mean taken over the last axis.",
        "RMSNorm(x) = x / √(mean(x²) + ε)，均值沿末维计算。",
    ),
    correction=Text(
        "y = g ⊙ x / √(mean(x²) + ε) with a learnt gain g. Against LayerNorm, centring and bias are dropped. LLaMA "
        "computes it in float32, casts back, then multiplies by g; the paper itself has no ε. In a pre-norm net g "
        "folds into the next matrices, so the missing gain costs expressive power only at a last norm before a tied "
        "head.",
        "y = g ⊙ x / √(mean(x²) + ε)，其中增益 g 可学习。与 LayerNorm 相比，它省去了中心化和偏置。LLaMA 先用 float32 "
        "计算，转回原精度后再乘 g；原论文中并没有 ε。在 Pre-Norm 网络里 g 能并入下一层矩阵，因此缺了增益真正损失表达"
        "力的，只有共享输出头之前的最后一个归一化。",
    ),
    run=Text(
        "Our RMSNorm against the formula and against torch; the printed form with gains away from 1; a tiny pre-norm "
        "model whose gains are folded into the next matrices, with a free and with a tied head; a loud input in "
        "float16. Trained: four pre-norm layers with and without gains, the head tied.",
        "拿本库的 RMSNorm 与公式及 torch 对照；在增益不为 1 时检验手册写法；把一个小型 Pre-Norm 模型的增益并入后续矩"
        "阵，输出头分独立与共享两种；再以 float16 输入大数值。另有实际训练：四层 Pre-Norm，共享输出头，分别带与不带增"
        "益。",
    ),
    papers=(
        "Zhang & Sennrich 2019, Root Mean Square Layer Normalization, arXiv 1910.07467",
        "Touvron et al. 2023, LLaMA, arXiv 2302.13971",
    ),
    errors={"E42.1": "W", "E42.2": "I"},
    claims=(
        Claim(
            "gain",
            "nothing is multiplied after the division",
            "相除之后不再乘任何东西",
            (
                Check(
                    "printed_difference", ">", ANOTHER_FUNCTION, "relative error without the gain", "缺少增益的相对误差"
                ),
                Check("printed_gap_unit_gain", "<", EXACT, "its gap where every gain is 1", "增益全为 1 时的误差"),
                Check(
                    "fold_gap",
                    "<",
                    FOLDED,
                    "logits' change, gains folded, free head",
                    "增益并入后 logits 的变化（独立输出头）",
                ),
                Check("tied_fold_difference", ">", 0.01, "the same under a tied head", "共享输出头时的相对变化"),
            ),
            Verdict.CORRECTED,
            errors=("E42.1",),
        ),
        Claim(
            "dropped",
            "nothing is said of what LayerNorm does besides",
            "未提 LayerNorm 另外还做了什么",
            (
                Check(
                    "shift_difference",
                    ">",
                    ANOTHER_FUNCTION,
                    "not centred: change when x is shifted",
                    "x 平移后的变化（不作中心化）",
                ),
                Check(
                    "parameters_over_layernorm",
                    "==",
                    0.5,
                    "no bias: parameters over LayerNorm's",
                    "参数量与 LayerNorm 之比（没有偏置）",
                ),
                Check(
                    "half_ours",
                    ">",
                    0.9,
                    "float16, x = 300 everywhere: our output",
                    "float16 下 x 全为 300 时本库的输出",
                ),
                Check("half_printed", "<", 0.01, "the same without going through float32", "不经 float32 计算的输出"),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E42.2",),
        ),
        Claim(
            "trained without it",
            "a model trained without the gain is as good",
            "不带增益训练出的模型一样好",
            (
                Check(
                    "no_gain_cost_upper",
                    "<",
                    MARGIN,
                    "bits per byte lost without it, 95 % bound",
                    "缺少增益每字节多费的比特，95% 上界",
                ),
            ),
            kind="aside",
            errors=("E42.1",),
            race="norms",
        ),
        Claim(
            "parts",
            "our RMSNorm is the formula with its gain",
            "本库的 RMSNorm 即带增益的公式",
            (
                Check("formula_gap", "<", EXACT, "distance from the formula", "与公式之差"),
                Check("torch_gap", "<", EXACT, "distance from torch", "与 torch 之差"),
            ),
            kind="control",
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("norms",),
    raced=raced,
    uses=(
        "llmlab/model/norms.py",
        "llmlab/model/equivalents.py",
        "llmlab/handbook/literal/norms.py",
        "llmlab/handbook/races/norms.py",
    ),
    settings={
        "model": [TINY.layers, TINY.dim, TINY.attention.heads, TINY.norm.kind],
        "rows": ROWS,
        "vocabulary": VOCABULARY,
        "loud": LOUD,
    },
)
