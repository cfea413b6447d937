"""Question 38: the idea of ALiBi. A fixed penalty by distance; no map to few dimensions, no liking for what is far."""

from collections.abc import Mapping

import torch

from llmlab.handbook.lengths import MULTIPLES, TRAINED, bias_of_the_last, nearest
from llmlab.handbook.measures import gap, parameters, power, relative
from llmlab.handbook.one_layer import Layer, penalties
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.model.attention import MultiHead
from llmlab.model.encoding import Shape
from llmlab.model.positions import NoPosition
from llmlab.model.relative import Alibi, AlibiEncoding
from llmlab.model.transformer import Architecture
from llmlab.stages import Session

EXACT = 1e-12
HEADS, HEAD_DIM, LOW, TOKENS = 8, 16, 4, 48
FAR, LONG = 1024, 8192
SHARE = 0.99
STEPS, RATE = 5, 0.5
TIMES = MULTIPLES[-1]
MARGIN = 0.02  # bits per byte by which a loss may grow and still count as no worse, upper 95 % bound
TINY = Architecture(layers=1, dim=16, context=32, position=Alibi(), attention=MultiHead(heads=HEADS))


def _slopes(heads: int) -> torch.Tensor:
    encoding = Alibi().build(Shape(heads, heads, 1, 8, 1))
    assert isinstance(encoding, AlibiEncoding)
    return encoding.slopes(torch.device("cpu")).double()


def _formula(session: Session) -> Figures:
    """Our attention with ALiBi against the paper's formula, and against one whose bias is scaled as the scores are."""
    layer, bias = Layer(session.seed, "q38", TOKENS, HEADS, HEAD_DIM), penalties(HEADS, TOKENS)
    ours = layer.read(Alibi())
    eight, twelve = _slopes(8), _slopes(12)
    appended = torch.cat([eight, 2.0 ** (-0.5 * torch.arange(1, 8, 2, dtype=torch.float64))])
    return {
        "formula_gap": gap(ours, layer.written(lambda scores: (scores + bias).softmax(-1))),
        "bias_scaled_gap": gap(ours, layer.written(lambda scores: (scores + bias / HEAD_DIM**0.5).softmax(-1))),
        "slopes_8_gap": gap(eight, 2.0 ** -torch.arange(1, 9, dtype=torch.float64)),
        "slopes_12_gap": gap(twelve, appended),
    }


def _low_dimension(session: Session) -> Figures:
    """The handbook's account, few dimensions whose inner products are the weights, beside ALiBi on a shuffled past."""
    alibi, low = (Layer(session.seed, "q38.order", TOKENS, HEADS, width) for width in (HEAD_DIM, LOW))
    felt = {}
    for name, layer, part in (("alibi", alibi, Alibi()), ("low", low, NoPosition())):
        shuffled = torch.cat([layer.text_TD[:-1].flip(0), layer.text_TD[-1:]])
        felt[name] = relative(layer.read(part, shuffled)[-1], layer.read(part)[-1])
    bare = TINY.model_copy(update={"position": NoPosition()})
    return {
        "order_felt_alibi": felt["alibi"],
        "order_felt_low": felt["low"],
        "parameters_added": float(parameters(TINY.build(32)) - parameters(bare.build(32))),
    }


def _training(session: Session) -> Figures:
    """Whether anything of the bias moves when a model is trained."""
    model, ids = TINY.build(32, session.seed), torch.arange(64).reshape(2, 32) * 5 % 32
    before, weights = bias_of_the_last(HEADS, FAR), model.embedding.weight.detach().clone()
    learnt = list(model.parameters())
    for _ in range(STEPS):
        loss = torch.nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        gradients = torch.autograd.grad(loss, learnt)
        with torch.no_grad():
            for parameter, gradient in zip(learnt, gradients, strict=True):
                parameter.sub_(RATE * gradient)
    position = model.position
    assert isinstance(position, AlibiEncoding)
    at = TINY.mask.places(torch.zeros(1, FAR, dtype=torch.int64))
    after = position.bias(position.prepare(at[:, -1:], at))[0, :, 0].double()
    return {
        "learnable": float(parameters(position) + sum(buffer.numel() for buffer in position.buffers())),
        "bias_moved": gap(after, before),
        "weights_moved": gap(model.embedding.weight, weights),
    }


def _recency() -> Figures:
    """Where the weight lies when all contents score alike."""
    reach = nearest(bias_of_the_last(HEADS, LONG).softmax(-1), SHARE)
    far_H = bias_of_the_last(HEADS, FAR).softmax(-1)[:, : FAR // 2].sum(-1)
    return {f"reach_{head}": float(tokens) for head, tokens in enumerate(reach, 1)} | {
        "far_half_mean": float(far_H.mean()),
        "far_half_most": float(far_H.max()),
    }


def figures(session: Session) -> Figures:
    return {**_formula(session), **_low_dimension(session), **_training(session), **_recency()}


def raced(told: Mapping[str, Told]) -> Figures:
    race = told["positions"]
    found = {**race.grown("alibi", TIMES), **race.grown("alibi", TIMES, 2)}
    for arm in ("rope", "sinusoidal"):
        found |= race.bounds(f"alibi_minus_{arm}", "alibi", arm, f"bits_per_byte@{TIMES}x")
    for times in (1, TIMES):
        found |= race.bounds(f"low_minus_alibi_{times}x", "low dimension", "alibi", f"bits_per_byte@{times}x")
    return found


def evidence(f: Mapping[str, float]) -> Text:
    reach = [f"{f[f'reach_{head}']:.0f}" for head in range(1, HEADS + 1)]
    en = (
        f"Our attention with ALiBi is softmax(q k / √d + m (j − i)) to {power(f['formula_gap'])}, with "
        f"{f['parameters_added']:.0f} parameters more; training moves its bias by {power(f['bias_moved'])}. Shuffling "
        f"the past changes its output by {f['order_felt_alibi']:.0%}, that of a map to {LOW} dimensions by "
        f"{power(f['order_felt_low'])}. Where contents score alike, 99 % of the weight lies within "
        f"{', '.join(reach)} tokens, and of {FAR} the farther half gets {f['far_half_mean']:.1%}."
    )
    zh = (
        f"本库的 ALiBi 注意力就是 softmax(q k / √d + m (j − i))，误差 {power(f['formula_gap'])}，新增参数 "
        f"{f['parameters_added']:.0f} 个；训练使偏置变化 {power(f['bias_moved'])}。打乱前文次序，其输出改变 "
        f"{f['order_felt_alibi']:.0%}；若只映射到 {LOW} 维，则改变 {power(f['order_felt_low'])}。内容得分相同时，各头 "
        f"99% 的权重落在最近 {'、'.join(reach)} 个词元之内；{FAR} 个词元中较远的一半只分得 {f['far_half_mean']:.1%}。"
    )
    if "alibi_minus_rope" in f:
        en += (
            f" Trained at {TRAINED}: from 1x to 8x {f['alibi_8x_minus_1x']:+.3f} bits per byte; at 8x "
            f"{f['alibi_minus_rope']:+.2f} against RoPE, {f['alibi_minus_sinusoidal']:+.2f} against sinusoids. The "
            f"map to 8 dimensions costs {f['low_minus_alibi_1x']:+.3f} at 1x, {f['low_minus_alibi_8x']:+.2f} at 8x."
        )
        zh += (
            f"以 {TRAINED} 个词元训练：从 1 倍到 8 倍每字节 {f['alibi_8x_minus_1x']:+.3f} 比特；8 倍处比 RoPE "
            f"{f['alibi_minus_rope']:+.2f}，比正弦编码 {f['alibi_minus_sinusoidal']:+.2f}。映射到 8 维的做法，1 倍处 "
            f"{f['low_minus_alibi_1x']:+.3f}，8 倍处 {f['low_minus_alibi_8x']:+.2f}。"
        )
    return Text(en, zh)


QUESTION = Question(
    number=38,
    tier="formula",
    claim=Text(
        "ALiBi improves self-attention so that it copes with longer inputs. The input is mapped linearly to a vector "
        "of few dimensions, and inner products of such vectors are the attention weights, which eases long-range "
        "dependencies. A bias vector is adjusted to steer how sparse or concentrated the weights are, and so lengths "
        "vary freely.",
        "ALiBi 改造自注意力，使之能对付更长的输入：先把输入线性投影成维数很少的向量，再以这些向量的内积充当注意力权"
        "重，借此让远程依赖更易建模；另设一个可调的偏置向量，左右权重的疏密，从而适应各种长度。",
    ),
    correction=Text(
        "softmax(q_i K^T / √d + m_h · [−(i−1), …, −1, 0]): a penalty that grows with distance is added to the scores "
        "before the softmax, with one slope a head, m_h = 2^(−8h/n), not scaled by √d; there is no position "
        "embedding. Queries and keys keep their width. The slopes are set before training and stay (trainable ones "
        "did not help extrapolation). It is a prior for what is recent, not for what is far. That it reads past its "
        "trained length is right.",
        "softmax(q_i K^T / √d + m_h · [−(i−1), …, −1, 0])：在 softmax 之前给得分加上随距离增大的惩罚，每个头一个斜率 "
        "m_h = 2^(−8h/n)，不除以 √d，也不再用位置嵌入。查询与键的宽度照旧。斜率在训练前定死（论文试过可训练的斜率，对"
        "外推并无益处）。它偏向近处，而非远处。至于能读得比训练长度更长，则所言不虚。",
    ),
    run=Text(
        "Our attention against the formula, with the bias scaled or not; slopes of 8 and 12 heads; the past shuffled "
        "before ALiBi and before a map to few dimensions; some training steps, and what of the bias has moved; how "
        "far back the weight lies when contents score alike. The race trains ALiBi, its rivals and the handbook's map.",
        "本库的注意力与公式对照，偏置除不除以 √d 各算一遍；8 头与 12 头的斜率；打乱前文，看 ALiBi 与低维映射各有何反"
        "应；训练几步，看偏置变了没有；内容得分相同时权重落在多远。竞赛训练 ALiBi、它的对手以及手册所说的低维映射。",
    ),
    papers=(
        "Press, Smith & Lewis 2022, Train Short, Test Long, arXiv 2108.12409",
        "BigScience 2022, BLOOM, arXiv 2211.05100",
    ),
    errors={"E38.1": "W", "E38.2": "W", "E38.3": "W"},
    claims=(
        Claim(
            "low dimension",
            "inputs are mapped to few dimensions, whose inner products are the weights",
            "先投影到低维，再以内积作权重",
            (
                Check("parameters_added", "==", 0.0, "parameters that ALiBi adds", "ALiBi 新增的参数"),
                Check(
                    "order_felt_low", "<", EXACT, "such a map: effect of shuffling the past", "低维映射：打乱前文的影响"
                ),
                Check("order_felt_alibi", ">", 1e-3, "ALiBi: the same", "ALiBi：同上"),
            ),
            Verdict.REFUTED,
            errors=("E38.1",),
        ),
        Claim(
            "tuned",
            "the bias is adjusted to steer the weights",
            "偏置可调，用以左右权重",
            (
                Check("learnable", "==", 0.0, "numbers in it that could be learnt", "其中可学习的数"),
                Check("bias_moved", "==", 0.0, "change of the bias by training", "训练前后偏置的变化"),
                Check("weights_moved", ">", 1e-3, "change of the embedding by it", "词嵌入的变化"),
            ),
            Verdict.REFUTED,
            errors=("E38.2",),
        ),
        Claim(
            "far",
            "long-range dependencies are strengthened",
            "加强了远程依赖",
            (
                Check(
                    "far_half_mean", "<", 0.1, "weight of the farther half (flat: 0.5)", "较远一半的权重（平摊为 0.5）"
                ),
                Check("far_half_most", "<", 0.25, "the same, flattest head", "最平缓的头：同上"),
            ),
            Verdict.REFUTED,
            errors=("E38.3",),
        ),
        Claim(
            "formula",
            "our attention computes the paper's formula",
            "本库的注意力与论文公式一致",
            (
                Check("formula_gap", "<", EXACT, "distance from the formula", "与公式之差"),
                Check("bias_scaled_gap", ">", 1e-3, "were the bias scaled by √d", "若偏置也除以 √d"),
                Check("slopes_8_gap", "<", 1e-6, "slopes of 8 heads: error", "8 头斜率的误差"),
                Check("slopes_12_gap", "<", 1e-6, "slopes of 12 heads: error", "12 头斜率的误差"),
            ),
            kind="control",
        ),
        Claim(
            "extrapolation",
            "ALiBi reads past its trained length",
            "ALiBi 能读得比训练时更长",
            (
                Check("alibi_minus_rope_upper", "<", 0.0, "minus RoPE, 8x, upper bound", "8 倍处减 RoPE，上界"),
                Check("alibi_minus_sinusoidal_upper", "<", 0.0, "minus sinusoidal, the same", "减正弦编码，同上"),
                Check("alibi_8x_minus_2x_upper", "<", MARGIN, "loss, 8x minus 2x, upper bound", "8 倍减 2 倍，上界"),
            ),
            race="positions",
        ),
        Claim(
            "low dimension, trained",
            "a map to few dimensions does it",
            "低维映射即可做到",
            (
                Check("low_minus_alibi_1x_lower", ">", 0.0, "minus ALiBi, 1x, lower bound", "1 倍处减 ALiBi，下界"),
                Check("low_minus_alibi_8x_lower", ">", 0.0, "minus ALiBi, 8x, lower bound", "8 倍处减 ALiBi，下界"),
            ),
            Verdict.REFUTED,
            errors=("E38.1",),
            race="positions",
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("positions",),
    raced=raced,
    uses=(
        "llmlab/model/relative.py",
        "llmlab/model/attention.py",
        "llmlab/handbook/one_layer.py",
        "llmlab/handbook/races/positions.py",
    ),
    settings={"layer": [HEADS, HEAD_DIM, LOW, TOKENS], "lengths": [FAR, LONG], "steps": [STEPS, RATE]},
)
