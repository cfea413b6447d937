"""Question 4: how a large language model is built. The formula, the count of its parameters, the price of heads, which
parts a trained model cannot spare, what attention keeps that a state loses, and what pretraining saves in labels."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from llmlab.evaluation import statistics
from llmlab.families import llama, mapping
from llmlab.handbook.measures import draw, filled, gap, parameters, power
from llmlab.handbook.one_layer import Layer
from llmlab.handbook.published import TABLE
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.interpret.xray import xray
from llmlab.model.attention import MultiHead
from llmlab.model.encoding import Encoding
from llmlab.model.norms import RMSNorm
from llmlab.model.places import Places
from llmlab.model.positions import NoPosition
from llmlab.model.transformer import Architecture, Transformer, sight
from llmlab.recipe import parse
from llmlab.stages import Session

EXACT = 1e-6  # against torch's own attention
SAME_COST = 0.02  # by which many heads may cost more than one
SOFTMAX = 5  # operations a score: largest, difference, exponential, sum, division
TOKENS, HEADS, HEAD_DIM = 24, 4, 8
DIM, MANY, LONG = 576, 9, 128  # of the attention whose operations are counted: SmolLM2's width and heads
LAYERS, WIDTH, VOCABULARY = 3, 48, 100  # of the model whose parameters are counted
SMOLLM2 = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "vocab_size": 49_152,
}
# Language models that go on with a text, of those that question 48 X-rays; the LLaMA class among them.
GENERATE = ("GPT-2", "LLaMA", "Mistral", "Qwen2", "Qwen3", "Gemma 3", "BLOOM", "GPT-NeoX", "GLM-4")
LIKE_LLAMA = ("LLaMA", "Mistral", "Qwen2", "Qwen3")
PARTS = ("residual", "norm", "position", "mask", "feedforward", "heads")
FLAT = 0.02  # accuracy that attention may lose from the fewest to the most pairs, or from near to far
FEWEST, MOST, NEAR, FAR, FEW = 2, 64, 16, 256, 4


class _Shown(Encoding):
    """No positions; attention is computed step by step, as for encodings that look at its weights."""

    content = True


@torch.no_grad()
def _formula(seed: int) -> Figures:
    """Our attention, by its fused path and step by step, against softmax(q k / sqrt(d) + M) v and torch's own."""
    layer = Layer(seed, "q04", TOKENS, HEADS, HEAD_DIM)
    written_TD = layer.written(lambda scores: scores.softmax(-1))
    at = Places.causal(1, TOKENS)
    shown_TD = layer.attention(layer.text_TD[None], sight(_Shown(), at, at, None, 0, None, None), 0)[0]
    q, k, v = (layer._heads(part) for part in (layer.attention.query, layer.attention.key, layer.attention.value))
    theirs_HTK = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    theirs_TD = layer.attention.output(theirs_HTK.transpose(0, 1).flatten(1))
    return {
        "formula_gap": gap(layer.read(NoPosition()), written_TD),
        "shown_gap": gap(shown_TD, theirs_TD),
    }


def _counted() -> Figures:
    """Parameters of a model of 2017's parts against 12 L d^2 + V d, and SmolLM2's, item by item."""
    told = {"layers": LAYERS, "dim": WIDTH, "attention": {"kind": "mha", "heads": 4}, "feedforward": "relu"}
    with torch.device("meta"):
        plain = Transformer(parse(Architecture, told), VOCABULARY)
        smollm2 = Transformer(*llama.read_config(SMOLLM2))
    matrices = sum(parameter.numel() for parameter in plain.parameters() if parameter.ndim > 1)
    block = smollm2.blocks[0]
    items = {
        "embedding": smollm2.embedding.weight.numel(),
        "attention": sum(parameters(one.get_submodule("attention")) for one in smollm2.blocks),
        "feedforward": sum(parameters(one.get_submodule("feedforward")) for one in smollm2.blocks),
        "norms": sum(p.numel() for p in smollm2.parameters() if p.ndim == 1),
    }
    d, layers = SMOLLM2["hidden_size"], SMOLLM2["num_hidden_layers"]
    formula = 12 * layers * d**2 + SMOLLM2["vocab_size"] * d
    return {
        "matrices_beyond_formula": float(matrices - (12 * LAYERS * WIDTH**2 + VOCABULARY * WIDTH)),
        "vectors_share": 1 - matrices / parameters(plain),
        "smollm2_parameters": float(parameters(smollm2)),
        "smollm2_unlisted": float(parameters(smollm2) - sum(items.values())),
        **{f"smollm2_{name}": float(count) for name, count in items.items()},
        "smollm2_matrices": float(sum(p.ndim > 1 for p in block.get_submodule("feedforward").parameters())),
        "formula_over_smollm2": formula / parameters(smollm2),
    }


@torch.no_grad()
def _operations(seed: int, heads: int, head_dim: int | None = None) -> float:
    """Multiplications and additions of one attention over LONG tokens, its softmax included."""
    attention = MultiHead(heads=heads, head_dim=head_dim).build(DIM, RMSNorm())
    filled(attention, seed, f"q04.heads.{heads}")
    at = Places.causal(1, LONG)
    x_BTD = draw(seed, "q04.long", 1, LONG, DIM)
    with FlopCounterMode(display=False) as counter:
        attention(x_BTD, sight(_Shown(), at, at, None, 0, None, None), 0)
    return float(counter.get_total_flops()) + SOFTMAX * heads * LONG**2


def _heads(seed: int) -> Figures:
    one, many, full = _operations(seed, 1), _operations(seed, MANY), _operations(seed, MANY, DIM)
    return {"heads_extra_cost": many / one - 1, "full_width_cost": full / one}


def _published(seed: int) -> Figures:
    """What an X-ray finds in models of our family files, random weights: how many have a causal mask and no encoder,
    and which of those like LLaMA have gates, RMSNorm and rotary positions."""
    found: dict[str, dict[str, Any]] = {}
    for row in TABLE:
        if row.name in (*GENERATE, "T5"):
            family = mapping.family(row.model_type)
            architecture, vocabulary = family.read_config({"vocab_size": 60, **row.config})
            found[row.name] = {one.name: one.found for one in xray(architecture.build(vocabulary, seed))}
    alone = [found[n]["encoder layers"] == 0 and found[n]["mask"] == "causal" for n in GENERATE]
    newer = [
        found[n]["gate"] is True and found[n]["norm"] == "rmsnorm" and found[n]["position"] == "rope"
        for n in LIKE_LLAMA
    ]
    return {
        "decoders_alone": float(sum(alone)),
        "t5_encoder": float(found["T5"]["encoder layers"]),
        "llama_class_gated": float(sum(newer)),
        "llama_class_grouped": float(sum(found[n]["key/value heads"] < found[n]["heads"] for n in LIKE_LLAMA)),
    }


def figures(session: Session) -> Figures:
    seed = session.seed
    return {**_formula(seed), **_counted(), **_heads(seed), **_published(seed)}


def raced(told: Mapping[str, Told]) -> Figures:
    parts, pairs, labels = told["parts"], told["stored_pairs"], told["labels"]
    found: Figures = {"whole": parts.mean("trained", "whole")}
    for part in PARTS:
        found |= parts.bounds(f"without_{part}", "trained", "trained", f"without {part}", "whole")

    def recalled(count: int, distance: int) -> str:
        return f"accuracy, {count} pairs, distance {distance}"

    for name in ("attention", "lstm"):
        near, most, far = recalled(FEWEST, NEAR), recalled(MOST, NEAR), recalled(FEW, FAR)
        found |= pairs.bounds(f"{name}_lost_by_pairs", name, name, near, most)
        found |= pairs.bounds(f"{name}_lost_by_distance", name, name, recalled(FEW, NEAR), far)
        found |= {f"{name}_{count}_pairs": pairs.mean(name, recalled(count, NEAR)) for count in (FEWEST, MOST)}
    beyond = statistics.mean(
        [
            (fewest - most) - (close - far)
            for fewest, most, close, far in zip(
                *(
                    pairs.values("lstm", recalled(*cell))
                    for cell in ((FEWEST, NEAR), (MOST, NEAR), (FEW, NEAR), (FEW, FAR))
                ),
                strict=True,
            )
        ]
    )
    found |= {"lstm_pairs_beyond_distance": beyond.value, "lstm_pairs_beyond_distance_lower": beyond.low}
    for count in (50, 200, 1000):
        found |= labels.bounds(
            f"pretrained_minus_scratch_{count}", "pretrained", "scratch", f"accuracy, {count} labels"
        )
        for name in ("pretrained", "scratch"):
            found[f"{name}_{count}"] = labels.mean(name, f"accuracy, {count} labels")
    return found


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"Attention computed step by step is torch's to {power(f['shown_gap'])}. Matrices of a model of 2017's parts: "
        f"12 L d² + V d and {f['matrices_beyond_formula']:.0f} more. SmolLM2 has {f['smollm2_parameters']:,.0f} "
        f"parameters: {f['smollm2_embedding']:,.0f} in the embedding, {f['smollm2_attention']:,.0f} in attention, "
        f"{f['smollm2_feedforward']:,.0f} in feed-forwards of {f['smollm2_matrices']:.0f} matrices, "
        f"{f['smollm2_norms']:,.0f} in norms. {MANY} heads cost {f['heads_extra_cost']:.1%} more than one as wide as "
        f"all; {MANY} of full width {f['full_width_cost']:.1f} times as much. Of {len(GENERATE)} families that "
        f"generate, {f['decoders_alone']:.0f} have a decoder alone; T5, cut to two "
        f"layers, has {f['t5_encoder']:.0f} of an encoder too."
    )
    zh = (
        f"逐步计算的注意力与 torch 相差 {power(f['shown_gap'])}。按 2017 年的部件搭建，矩阵参数与 12 L d² + V d 相差 "
        f"{f['matrices_beyond_formula']:.0f} 个。SmolLM2 共 {f['smollm2_parameters']:,.0f} 个参数：词嵌入 "
        f"{f['smollm2_embedding']:,.0f}，注意力 {f['smollm2_attention']:,.0f}，前馈网络（每层 "
        f"{f['smollm2_matrices']:.0f} 个矩阵）{f['smollm2_feedforward']:,.0f}，归一化 {f['smollm2_norms']:,.0f}。"
        f"{MANY} 个头比一个等宽的头只多花 {f['heads_extra_cost']:.1%} 的运算；若每个头都取全宽，则是 "
        f"{f['full_width_cost']:.1f} 倍。{len(GENERATE)} 个生成式家族中有 {f['decoders_alone']:.0f} 个只有解码器；T5 缩"
        f"到两层，另有 {f['t5_encoder']:.0f} 层编码器。"
    )
    if "whole" in f:
        lost = ", ".join(f"{part} {f[f'without_{part}']:+.2f}" for part in PARTS)
        words = ("残差", "归一化", "位置", "掩码", "前馈网络", "多头并为一头")
        without = "、".join(f"{word} {f[f'without_{part}']:+.2f}" for word, part in zip(words, PARTS, strict=True))
        en += (
            f" A trained model at {f['whole']:.2f} nats a byte, a part taken away: {lost}. From {FEWEST} to {MOST} "
            f"pairs attention recalls {f['attention_2_pairs']:.0%} and {f['attention_64_pairs']:.0%}, an LSTM of equal "
            f"size {f['lstm_2_pairs']:.0%} and {f['lstm_64_pairs']:.0%}; from {NEAR} to {FAR} tokens away they lose "
            f"{f['attention_lost_by_distance']:.1%} and {f['lstm_lost_by_distance']:.1%}."
        )
        zh += (
            f"训练好的模型每字节 {f['whole']:.2f} 纳特，去掉一个部件后的增量：{without}。从 {FEWEST} 对增到 {MOST} 对，"
            f"注意力答对 {f['attention_2_pairs']:.0%} 与 {f['attention_64_pairs']:.0%}，同样大小的 LSTM 为 "
            f"{f['lstm_2_pairs']:.0%} 与 {f['lstm_64_pairs']:.0%}；相隔从 {NEAR} 个词元拉到 {FAR} 个，二者分别下降 "
            f"{f['attention_lost_by_distance']:.1%} 与 {f['lstm_lost_by_distance']:.1%}。"
        )
        en += (
            f" With 50, 200 and 1000 labels a pretrained model is right in {f['pretrained_50']:.0%}, "
            f"{f['pretrained_200']:.0%} and {f['pretrained_1000']:.0%}, one that starts from nothing in "
            f"{f['scratch_50']:.0%}, {f['scratch_200']:.0%} and {f['scratch_1000']:.0%}."
        )
        zh += (
            f"用 50、200、1000 条标注微调，预训练过的模型答对 {f['pretrained_50']:.0%}、{f['pretrained_200']:.0%}、"
            f"{f['pretrained_1000']:.0%}，从零开始的为 {f['scratch_50']:.0%}、{f['scratch_200']:.0%}、"
            f"{f['scratch_1000']:.0%}。"
        )
    return Text(en, zh)


QUESTION = Question(
    number=4,
    tier="seconds",
    claim=Text(
        "A Transformer of several encoder and decoder layers, each with multi-head self-attention and a feed-forward. "
        "Self-attention weighs the other words for each word and catches long dependencies; multi-head "
        "applies it several times with other matrices; the feed-forward is two linear layers around a non-linearity "
        "such as ReLU. Pretrained on unlabelled text, then fine-tuned on labels.",
        "即 Transformer，含若干编码器层与解码器层，层内有多头自注意力和前馈网络。自注意力为每个词衡量其余各词，能抓住"
        "远距离的联系；多头就是换几组矩阵重复做几遍；前馈是两层线性变换夹一个 ReLU 之类的非线性。先在无标注语料上预训"
        "练，再用标注数据微调。",
    ),
    correction=Text(
        "Most large language models are a decoder alone, under a causal mask: GPT, LLaMA, BLOOM, Qwen. A tokenizer and "
        "an embedding, L blocks, a last norm, and a head, often the embedding again. Each block adds to a residual "
        "stream softmax(QKᵀ/√d + M)V and a feed-forward, each after a norm; places are told by a position encoding. A "
        "head has d/h dimensions, and an output projection joins them, so h heads cost what one costs. The two-matrix "
        "ReLU network is the form of 2017; the LLaMA class has SwiGLU of three matrices, RMSNorm, RoPE and often "
        "grouped queries. After pretraining and fine-tuning mostly comes learning from preferences.",
        "大语言模型多半只有解码器，配因果掩码，GPT、LLaMA、BLOOM、Qwen 皆然。依次是分词器、词嵌入、L 个块、末端归一化"
        "和输出头（常与词嵌入共用）。每个块先归一化，再把 softmax(QKᵀ/√d + M)V 与前馈网络的结果加回残差流，位置则由位"
        "置编码给出。每个头只有 d/h 维，末尾再经输出投影合并，所以 h 个头的开销与一个头相当。双矩阵 ReLU 是 2017 年的形"
        "式；LLaMA 一类改用三个矩阵的 SwiGLU、RMSNorm、RoPE，常配分组查询。预训练和微调之后，多半还有偏好学习一步。",
    ),
    run=Text(
        "Our attention against its formula and torch's own; parameters counted, for a model of 2017's parts and for "
        "SmolLM2 by item; operations of one head, of many and of many at full width; an X-ray of ten families with "
        "random weights. Trained: a little model that loses one part at a time, after training, which shows what it "
        "uses and not that others need it; stored pairs recalled by attention and by an LSTM of equal size; a small "
        "labelled task, with pretraining and without, tuned for equally many steps.",
        "本库的注意力对照公式与 torch；清点参数，一是 2017 年式的模型，二是 SmolLM2，逐项列出；统计一个头、多个头、多个"
        "全宽头的运算量；对随机权重的十个家族作 X 光检查。另有训练：小模型训练之后逐一去掉部件，由此可知它用到了什么，"
        "但不等于别的模型非有不可；注意力与同样大小的 LSTM 回忆键值对；在小型标注任务上比较有无预训练，微调步数相同。",
    ),
    papers=(
        "Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762",
        "Touvron et al. 2023, LLaMA, arXiv 2302.13971",
        "Shazeer 2020, GLU Variants Improve Transformer, arXiv 2002.05202",
        "Ainslie et al. 2023, GQA, arXiv 2305.13245",
        "Arora et al. 2023, Zoology: Measuring and Improving Recall, arXiv 2312.04927",
    ),
    errors={"E4.1": "W", "E4.2": "I", "E4.3": "M", "E4.4": "I"},
    claims=(
        Claim(
            "encoder and decoder",
            "a large language model has encoder layers and decoder layers",
            "大语言模型由编码器层与解码器层组成",
            (
                Check(
                    "decoders_alone",
                    "==",
                    float(len(GENERATE)),
                    "of nine families, a decoder alone under a causal mask",
                    "九个家族中，只有解码器且为因果掩码者",
                ),
                Check("t5_encoder", ">", 0.0, "T5, which has both: encoder layers", "两者兼有的 T5：编码器层数"),
            ),
            Verdict.CORRECTED,
            errors=("E4.1",),
        ),
        Claim(
            "what is left out",
            "attention and feed-forward are the parts",
            "部件就是注意力与前馈网络",
            tuple(
                Check(
                    f"without_{part}_lower",
                    ">",
                    0.0,
                    f"trained, {en}: loss gained, 95 % bound",
                    f"{zh}：损失增量，95% 下界",
                )
                for part, en, zh in (
                    ("residual", "no residual", "训练后去掉残差"),
                    ("norm", "no norms in the blocks", "训练后去掉块内归一化"),
                    ("position", "no positions", "训练后去掉位置"),
                    ("mask", "no mask", "训练后去掉掩码"),
                )
            ),
            Verdict.CORRECTED,
            errors=("E4.2",),
            race="parts",
        ),
        Claim(
            "named parts",
            "attention of several heads and the feed-forward both matter",
            "多头注意力与前馈网络都不可少",
            tuple(
                Check(
                    f"without_{part}_lower",
                    ">",
                    0.0,
                    f"trained, {en}: loss gained, 95 % bound",
                    f"{zh}：损失增量，95% 下界",
                )
                for part, en, zh in (
                    ("feedforward", "no feed-forward", "训练后去掉前馈网络"),
                    ("heads", "heads joined into one", "训练后把各头并为一头"),
                )
            ),
            kind="aside",
            race="parts",
        ),
        Claim(
            "feed-forward",
            "the feed-forward is two linear layers around ReLU",
            "前馈网络是两层线性变换夹一个 ReLU",
            (
                Check(
                    "smollm2_matrices", "==", 3.0, "SmolLM2: matrices of a feed-forward", "SmolLM2：前馈网络的矩阵数"
                ),
                Check(
                    "llama_class_gated",
                    "==",
                    float(len(LIKE_LLAMA)),
                    "of four like LLaMA: gate, RMSNorm and RoPE",
                    "LLaMA 一类四家：兼有门控、RMSNorm 与 RoPE 者",
                ),
                Check(
                    "formula_over_smollm2",
                    ">",
                    1.05,
                    "12 L d² + V d over SmolLM2's true count",
                    "12 L d² + V d 与 SmolLM2 实际参数量之比",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E4.3",),
        ),
        Claim(
            "heads",
            "many heads are self-attention applied many times",
            "多头就是把自注意力做许多遍",
            (
                Check(
                    "heads_extra_cost", "<", SAME_COST, "nine heads beyond one: operations", "九个头比一个头多出的运算"
                ),
                Check("full_width_cost", ">", 8.0, "nine of full width: times as many", "九个全宽头：运算量的倍数"),
            ),
            Verdict.CORRECTED,
            errors=("E4.4",),
        ),
        Claim(
            "long dependencies",
            "self-attention catches what stands far away",
            "自注意力能抓住远距离的联系",
            (
                Check(
                    "attention_lost_by_distance_upper",
                    "<",
                    FLAT,
                    "attention: accuracy lost from 16 to 256 tokens, upper",
                    "注意力：相隔 16 增至 256 时准确率的下降，上界",
                ),
                Check(
                    "attention_lost_by_pairs_upper",
                    "<",
                    FLAT,
                    "attention: lost from 2 to 64 pairs, upper",
                    "注意力：2 对增至 64 对时的下降，上界",
                ),
                Check(
                    "lstm_lost_by_pairs_lower",
                    ">",
                    0.0,
                    "LSTM of equal size: lost from 2 to 64 pairs, lower",
                    "同样大小的 LSTM：2 对增至 64 对时的下降，下界",
                ),
                Check(
                    "lstm_pairs_beyond_distance_lower",
                    ">",
                    0.0,
                    "LSTM: lost by pairs minus lost by distance, lower",
                    "LSTM：因对数增多的下降减去因距离的下降，下界",
                ),
            ),
            race="stored_pairs",
        ),
        Claim(
            "pretraining",
            "pretraining without labels, then fine-tuning with them",
            "先无标注预训练，再用标注微调",
            (
                Check(
                    "pretrained_minus_scratch_200_lower",
                    ">",
                    0.0,
                    "200 labels: accuracy gained by pretraining, lower",
                    "200 条标注：预训练带来的准确率提升，下界",
                ),
            ),
            race="labels",
        ),
        Claim(
            "instruments",
            "our parts are the papers'",
            "本库的部件与论文一致",
            (
                Check("formula_gap", "<", EXACT, "fused attention against the formula", "融合的注意力与公式之差"),
                Check("shown_gap", "<", EXACT, "step by step against torch's", "逐步计算与 torch 之差"),
                Check("matrices_beyond_formula", "==", 0.0, "matrices beyond 12 L d² + V d", "与 12 L d² + V d 之差"),
                Check("smollm2_parameters", "==", 134_515_008.0, "SmolLM2's parameters", "SmolLM2 的参数量"),
                Check("smollm2_unlisted", "==", 0.0, "of these in no item", "其中未列入各项者"),
            ),
            kind="control",
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("parts", "stored_pairs", "labels"),
    raced=raced,
    uses=(
        "llmlab/model/transformer.py",
        "llmlab/model/attention.py",
        "llmlab/interpret/xray.py",
        "llmlab/handbook/little_model.py",
        "llmlab/handbook/stored_pairs_task.py",
        "llmlab/handbook/misspelling_task.py",
    ),
    settings={
        "attention": [TOKENS, HEADS, HEAD_DIM],
        "operations": [DIM, MANY, LONG, SOFTMAX],
        "counted": [LAYERS, WIDTH, VOCABULARY],
        "smollm2": SMOLLM2,
        "families": [*GENERATE, "T5"],
    },
)
