"""Question 43: how RMSNorm differs from LayerNorm. Not in what it spans, nor in long sequences, but in the centring."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmlab.handbook.costs import MARGIN, over_seeds, spread, weighed
from llmlab.handbook.measures import draw, filled, gap, parameters, power, relative
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.model.attention import MultiHead
from llmlab.model.equivalents import to_rmsnorm
from llmlab.model.norms import LayerNorm, RMSNorm
from llmlab.model.transformer import Architecture
from llmlab.stages import Session

EXACT = 1e-12
CONVERTED = 1e-4  # of float32 logits after LayerNorm was replaced by RMSNorm
SHIFTED = 1e-6  # epsilon is 1e-5 and the shift is 1: what LayerNorm may show of it
NO_WORSE = 0.1  # share by which RMSNorm's gradient may decay faster than LayerNorm's in a recurrence, upper 95 % bound
# Bits per byte by which RMSNorm may lose more than LayerNorm at eight times the trained length, upper 95 % bound. It is
# wider than MARGIN since positions nobody trained differ more by seed; gradients that vanish or explode cost more yet.
NO_WORSE_FAR = 0.1
DIM, ROWS, LENGTH, VOCABULARY = 32, 4, 16, 40
SHORT, LONG = 64, 1024
STEPS, MATRICES, RECURRENT_DIM = 256, 32, 64
TINY = Architecture(layers=2, dim=DIM, context=LENGTH, attention=MultiHead(heads=4), norm=LayerNorm(), tied=False)


class WholeInputRMSNorm(nn.Module):
    """The handbook's description to the letter: one mean square over the entire input."""

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(x.square().mean() + 1e-5)


@torch.no_grad()
def _conversion(session: Session) -> Figures:
    model = TINY.build(VOCABULARY, session.seed)
    filled(model, session.seed, "q43.model").float()
    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) * 7 % VOCABULARY
    before, converted = model(ids), to_rmsnorm(model)
    centred = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    left = [module for module in converted.modules() if isinstance(module, nn.LayerNorm)]
    return {
        "conversion_gap": gap(converted(ids), before),
        "logits_size": float(before.square().mean().sqrt()),
        "norms_converted": float(len(centred) - len(left)),
        "layernorms_left": float(len(left)),
    }


def _decays(norm: nn.Module, seed: int) -> Tensor:
    """[MATRICES] Mean change per step, in nats, of the gradient's size through h = norm(h W + x_t); one W an entry."""
    dim = RECURRENT_DIM
    weight_MDD = draw(seed, "q43.recurrent", MATRICES, dim, dim) / math.sqrt(dim)
    h_M1D = start = draw(seed, "q43.start", MATRICES, 1, dim).requires_grad_()
    for x_M1D in draw(seed, "q43.walk", STEPS, MATRICES, 1, dim):
        h_M1D = norm(torch.baddbmm(x_M1D, h_M1D, weight_MDD))
    outward_M1D = draw(seed, "q43.outward", MATRICES, 1, dim)
    (gradient_M1D,) = torch.autograd.grad(h_M1D, start, outward_M1D)
    growth_M1: Tensor = (gradient_M1D.norm(dim=-1) / outward_M1D.norm(dim=-1)).log()
    return growth_M1[:, 0] / STEPS


def _recurrence(session: Session) -> Figures:
    """Paired over the matrices: does RMSNorm let gradients vanish or explode more than LayerNorm does?"""
    rms = _decays(RMSNorm().build(RECURRENT_DIM).double(), session.seed)
    layer = _decays(LayerNorm().build(RECURRENT_DIM).double(), session.seed)
    excess = (rms.abs() - layer.abs()) / layer.abs().mean()
    half_width = 1.96 * float(excess.std()) / math.sqrt(MATRICES)
    return {
        "decay_rms": float(rms.mean()),
        "decay_layer": float(layer.mean()),
        "decay_excess": float(excess.mean()),
        "decay_excess_upper": float(excess.mean()) + half_width,
    }


def figures(session: Session) -> Figures:
    layer, rms, whole = LayerNorm().build(DIM).double(), RMSNorm().build(DIM).double(), WholeInputRMSNorm()
    x_TD = draw(session.seed, "q43.x", LONG, DIM)
    edited = x_TD.clone()
    edited[0] += 5 * draw(session.seed, "q43.edit", DIM)
    return {
        "others_change_rms": gap(rms(edited)[1:], rms(x_TD)[1:]),
        "others_change_layer": gap(layer(edited)[1:], layer(x_TD)[1:]),
        "others_change_whole": gap(whole(edited)[1:], whole(x_TD)[1:]),
        "whole_difference": relative(whole(x_TD), rms(x_TD)),
        "length_change_rms": gap(rms(x_TD)[:SHORT], rms(x_TD[:SHORT])),
        "length_change_layer": gap(layer(x_TD)[:SHORT], layer(x_TD[:SHORT])),
        "centring_gap": gap(rms(x_TD - x_TD.mean(-1, keepdim=True)), layer(x_TD)),
        "shift_rms": gap(rms(x_TD + 1), rms(x_TD)),
        "shift_layer": gap(layer(x_TD + 1), layer(x_TD)),
        "parameter_ratio": parameters(rms) / parameters(layer),
        **_recurrence(session),
        **_conversion(session),
    }


def raced(told: Mapping[str, Told]) -> Figures:
    """Quality at the trained length, what eight times that length adds, and the norm over the entire input."""
    race, near, far = told["norms"], "bits_per_byte", "bits_per_byte@8x"
    grown = {
        arm: [after - before for after, before in zip(race.values(arm, far), race.values(arm, near), strict=True)]
        for arm in ("rmsnorm", "layernorm")
    }
    return {
        **race.bounds("rms_cost", "rmsnorm", "layernorm", near),
        **race.bounds("rms_cost_8x", "rmsnorm", "layernorm", far),
        **over_seeds("rms_growth_excess", [r - n for r, n in zip(grown["rmsnorm"], grown["layernorm"], strict=True)]),
        **race.bounds("whole_cost", "whole input", "rmsnorm", near),
        **race.bounds("whole_cost_8x", "whole input", "rmsnorm", far),
        **race.bounds("partial_cost", "partial", "rmsnorm", near),
    }


def evidence(f: Mapping[str, float]) -> Text:
    en, zh = "", ""
    if "rms_cost" in f:
        said = weighed(f, "whole_cost")
        en = (
            f" Trained, RMSNorm minus LayerNorm in bits per byte: {spread(f, 'rms_cost')}, read at eight times the "
            f"trained length {spread(f, 'rms_cost_8x')}; by a sixteenth of the components {spread(f, 'partial_cost')} "
            f"more. One mean over the entire input: {spread(f, 'whole_cost')}, {said.en}."
        )
        zh = (
            f"实际训练，RMSNorm 减 LayerNorm，每字节 {spread(f, 'rms_cost')} 比特，以八倍训练长度评测则为 "
            f"{spread(f, 'rms_cost_8x')}；只用十六分之一的分量，再加 {spread(f, 'partial_cost')}。若真对整个输入取一"
            f"个均方，则为 {spread(f, 'whole_cost')}：{said.zh}。"
        )
    return Text(
        f"Editing one token changes the others by {power(f['others_change_rms'])} under RMSNorm, as under LayerNorm; "
        f"length enters neither, and over {STEPS} recurrent steps gradients change by {f['decay_rms']:+.3f} "
        f"(RMSNorm) and {f['decay_layer']:+.3f} (LayerNorm) nats a step. LayerNorm = RMSNorm ∘ centring ("
        f"{power(f['centring_gap'])}), and a Pre-LN model converts to Pre-RMSNorm with logits equal to "
        f"{power(f['conversion_gap'])}.{en}",
        f"改动一个词元，RMSNorm 下其余词元的变化为 {power(f['others_change_rms'])}，与 LayerNorm 无异；序列长度不进"
        f"入任何一个公式，循环 {STEPS} 步时梯度每步变化 {f['decay_rms']:+.3f}（RMSNorm）与 {f['decay_layer']:+.3f}（"
        f"LayerNorm）奈特。LayerNorm 就是先中心化再作 RMSNorm（误差 {power(f['centring_gap'])}）；Pre-LN 模型可精确"
        f"改写为 Pre-RMSNorm，logits 只差 {power(f['conversion_gap'])}。{zh}",
    )


QUESTION = Question(
    number=43,
    tier="formula",
    claim=Text(
        "RMSNorm divides by the root of the mean square, LayerNorm uses mean and variance. RMSNorm normalises the "
        "input as a whole, LayerNorm each sample; RMSNorm goes with RNNs, LayerNorm with CNNs and dense layers; on "
        "long sequences RMSNorm may see gradients vanish or explode, which LayerNorm handles better.",
        "RMSNorm 除以均方根，LayerNorm 用均值和方差。又称 RMSNorm 把输入当作整体来归一化，LayerNorm 才按样本进行；"
        "RMSNorm 配 RNN，LayerNorm 配 CNN 和全连接；序列一长，RMSNorm 的梯度可能消失或爆炸，而 LayerNorm 应付得更好。",
    ),
    correction=Text(
        "Both work on each token alone, over the last axis, and neither formula contains the length. LayerNorm was "
        "introduced with RNNs; RMSNorm is the norm of T5, LLaMA, Qwen and Mistral. The real difference: no centring "
        "and no bias, so RMSNorm keeps invariance to scale but not to shift, and is cheaper (7 to 41 % less running "
        "time in the paper, up to 64 % for its partial variant). LayerNorm is RMSNorm after centring, so a Pre-LN "
        "model converts to Pre-RMSNorm exactly.",
        "两者都只在单个词元内部、沿末维计算，公式里都没有序列长度。LayerNorm 恰恰是随 RNN 提出的；T5、LLaMA、Qwen、"
        "Mistral 用的则是 RMSNorm。真正的区别在于：RMSNorm 不作中心化、没有偏置，因而保留缩放不变性而失去平移不变性，"
        "计算也更省（论文报告运行时间减少 7% 至 41%，只取部分分量的变体可达 64%）。LayerNorm 等于中心化之后的 "
        "RMSNorm，所以 Pre-LN 模型可以精确地改写成 Pre-RMSNorm。",
    ),
    run=Text(
        "One token edited, for both norms and for a norm over the entire input; the same tokens inside 64 and 1024; "
        "gradients through 256 recurrent steps; a shifted input; a tiny Pre-LN model of ours converted by centring "
        "what writes into its residual stream. Trained at 128 tokens and read at 128 and 1024: four layers with "
        "LayerNorm, RMSNorm, partial RMSNorm, and the norm over the entire input.",
        "改动一个词元，看两种归一化以及“整体归一化”各有何反应；同样的词元置于长 64 与 1024 的序列中；梯度穿过 256 步"
        "循环；平移输入；把本库的一个小型 Pre-LN 模型转换过来：凡写入残差流的矩阵都预先中心化。另有实际训练：四层，以 "
        "128 个词元训练、以 128 与 1024 个词元评测，分别用 LayerNorm、RMSNorm、只取部分分量的 RMSNorm 与“整体归一化”。",
    ),
    papers=(
        "Zhang & Sennrich 2019, Root Mean Square Layer Normalization, arXiv 1910.07467",
        "Ba, Kiros & Hinton 2016, Layer Normalization, arXiv 1607.06450",
        "Jiang et al. 2023, Pre-RMSNorm and Pre-CRMSNorm Transformers, arXiv 2305.14858",
        "Touvron et al. 2023, LLaMA, arXiv 2302.13971",
    ),
    errors={"E43.1": "W", "E43.2": "W", "E43.3": "W", "E43.4": "I"},
    on_paper={
        "E43.2": Text(
            "RMSNorm for RNNs and LayerNorm for CNNs: LayerNorm came with RNNs (Ba 2016), RMSNorm is LLaMA's "
            "(Touvron 2023)",
            "所谓 RMSNorm 配 RNN、LayerNorm 配 CNN：LayerNorm 正是随 RNN 提出（Ba 2016），RMSNorm 则用于 LLaMA（"
            "Touvron 2023）",
        )
    },
    claims=(
        Claim(
            "range",
            "RMSNorm spans the entire input, LayerNorm one sample",
            "RMSNorm 覆盖整个输入，LayerNorm 只管单个样本",
            (
                Check(
                    "others_change_rms",
                    "==",
                    0.0,
                    "RMSNorm: others' change when one token is edited",
                    "RMSNorm：改动一个词元，其余的变化",
                ),
                Check("others_change_layer", "==", 0.0, "LayerNorm: the same", "LayerNorm：同上"),
                Check(
                    "others_change_whole",
                    ">",
                    1e-4,
                    "a norm over the entire input would show",
                    "若真按整体归一化，则会变化",
                ),
            ),
            Verdict.REFUTED,
            errors=("E43.1",),
        ),
        Claim(
            "long sequences",
            "RMSNorm endangers gradients on long sequences, LayerNorm does not",
            "序列长时 RMSNorm 危及梯度，LayerNorm 则不然",
            (
                Check(
                    "length_change_rms",
                    "==",
                    0.0,
                    "RMSNorm: change from 64 to 1024 tokens",
                    "RMSNorm：由 64 增至 1024 个词元的变化",
                ),
                Check(
                    "decay_excess_upper",
                    "<",
                    NO_WORSE,
                    "share by which gradients decay faster, 95 % bound",
                    "循环中梯度比 LayerNorm 多衰减的比例（95% 上界）",
                ),
            ),
            Verdict.REFUTED,
            errors=("E43.3",),
        ),
        Claim(
            "computation",
            "they differ in what is computed",
            "二者计算内容不同",
            (
                Check("shift_rms", ">", 0.1, "RMSNorm: change when x is shifted by 1", "RMSNorm：x 平移 1 后的变化"),
                Check("shift_layer", "<", SHIFTED, "LayerNorm: the same", "LayerNorm：同上"),
                Check("parameter_ratio", "==", 0.5, "parameters over LayerNorm's", "参数量与 LayerNorm 之比"),
            ),
            kind="aside",
        ),
        Claim(
            "what it really is",
            "LayerNorm is RMSNorm after centring",
            "LayerNorm 等于中心化之后的 RMSNorm",
            (
                Check("centring_gap", "<", EXACT, "distance of the two", "二者之差"),
                Check(
                    "conversion_gap",
                    "<",
                    CONVERTED,
                    "logits' change, Pre-LN to Pre-RMSNorm",
                    "Pre-LN 改写为 Pre-RMSNorm 后 logits 的变化",
                ),
                Check(
                    "layernorms_left",
                    "==",
                    0.0,
                    "LayerNorms left in the converted model",
                    "改写后剩下的 LayerNorm 数目",
                ),
            ),
            kind="control",
            errors=("E43.4",),
        ),
        Claim(
            "long sequences, trained",
            "read on long rows, RMSNorm loses more than LayerNorm",
            "评测长文时，RMSNorm 比 LayerNorm 损失更多",
            (
                Check(
                    "rms_growth_excess_upper",
                    "<",
                    NO_WORSE_FAR,
                    "128 to 1024 tokens: bits per byte lost beyond LayerNorm's, 95 % bound",
                    "由 128 增至 1024 个词元，比 LayerNorm 多失的每字节比特，95% 上界",
                ),
            ),
            Verdict.REFUTED,
            errors=("E43.3",),
            race="norms",
        ),
        Claim(
            "quality, trained",
            "without centring and bias the model is as good",
            "不作中心化、没有偏置，模型一样好",
            (
                Check(
                    "rms_cost_upper",
                    "<",
                    MARGIN,
                    "RMSNorm minus LayerNorm, bits per byte, upper bound",
                    "RMSNorm 减 LayerNorm，每字节比特，上界",
                ),
                Check("rms_cost_lower", ">", -MARGIN, "the same, lower bound", "同上，下界"),
            ),
            kind="aside",
            errors=("E43.4",),
            race="norms",
        ),
        Claim(
            "range, trained",
            "a norm over the entire input trains as well",
            "对整个输入作归一化，训练效果一样好",
            (
                Check(
                    "whole_cost_upper",
                    "<",
                    MARGIN,
                    "bits per byte lost by it, 95 % bound",
                    "因此每字节多费的比特，95% 上界",
                ),
            ),
            kind="aside",
            errors=("E43.1",),
            race="norms",
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
        "lengths": [SHORT, LONG],
        "recurrence": [STEPS, MATRICES, RECURRENT_DIM],
    },
)
