"""Question 8: whether LLaMA's input could be infinitely long. The formulas take any length; what was learnt does not,
and neither memory nor time does. Gradients are not among the limits."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from llmlab.errors import InputError
from llmlab.handbook import reach
from llmlab.handbook.depth import slope
from llmlab.handbook.long_text import BINS
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.handbook.reach import DISTANCES, per_token, reached, stretched, untrained
from llmlab.inference.cache import DenseCache
from llmlab.model.attention import GroupedQuery, MultiHead
from llmlab.model.feedforward import SwiGLU
from llmlab.model.places import Places
from llmlab.model.positions import Learned, Position
from llmlab.model.rotary import NoScaling, Rope
from llmlab.model.transformer import Architecture, Transformer
from llmlab.stages import Session

LENGTHS = (4096, 8192, 16384)
VOCABULARY = 49_152
SMOLLM2 = Architecture(
    layers=30,
    dim=576,
    context=8192,
    position=Rope(base=100_000.0),
    attention=GroupedQuery(heads=9, kv_heads=3),
    feedforward=SwiGLU(width=1536),
)
# Head width, base and trained length: LLaMA-1 as published, SmolLM2 as its weights say.
TURNED = {"llama": (128, 10_000.0, 2048), "smollm2": (64, 100_000.0, 8192)}
TABLE, MULTIPLES = 32, (2, 4, 8)  # of positions that a toy was trained for, and texts so many times as long
GAIN = 2.0  # of the recurrent net whose state is stretched at every token
SEEDS = 3  # of initial weights and texts
JUMP = 0.5  # nats a token by which the loss past the trained length must exceed that within


class Counted(DenseCache):
    """Counts the bytes of the keys and values that each layer holds."""

    held: int

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.held = 0

    def update(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = super().update(layer, k_BGTK, v_BGTK)
        self.held += sum(tensor.numel() * tensor.element_size() for tensor in (keys, values))
        return keys, values


def _costs() -> Figures:
    """Bytes of the cache and operations of the blocks, counted on a model of SmolLM2's shape that holds no numbers."""
    device = torch.device("meta")
    with device:
        model = Transformer(SMOLLM2, VOCABULARY)
    held, work = [], []
    for tokens in LENGTHS:
        cache, ids = Counted(tokens), torch.zeros(1, tokens, dtype=torch.int64, device=device)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.hidden(ids, Places.causal(1, tokens, device), cache)
        held.append(cache.held)
        work.append(counter.get_total_flops())
    layers, dim, most = SMOLLM2.layers, SMOLLM2.dim, LENGTHS[-1]
    matrices = sum(parameter.numel() for parameter in model.blocks.parameters() if parameter.ndim > 1)
    linear = [2 * matrices * tokens for tokens in LENGTHS]
    squared = [4 * layers * dim * tokens**2 for tokens in LENGTHS]
    width = 2 * layers * 3 * 64 * 4  # bytes a token: keys and values, 3 heads of 64, float32
    return {
        "cache_mib": held[-1] / 2**20,
        "cache_gap": float(max(abs(a - width * tokens) for a, tokens in zip(held, LENGTHS, strict=True))),
        "cache_growth": held[-1] / held[-2],
        "work_tera": work[-1] / 1e12,
        "work_masked_tera": (linear[-1] + squared[-1] / 2) / 1e12,
        "head_tera": 2 * VOCABULARY * dim * most / 1e12,
        "work_gap": max(abs(a / (b + c) - 1) for a, b, c in zip(work, linear, squared, strict=True)),
        "attention_growth": (work[-1] - linear[-1]) / (work[-2] - linear[-2]),
        "attention_share": 1 - linear[-1] / work[-1],
    }


def _angles() -> Figures:
    """Rotary pairs that go all the way round within the trained length; the others stand at new angles past it."""
    found: Figures = {}
    for name, (head_dim, base, trained) in TURNED.items():
        frequencies = NoScaling().frequencies(head_dim // 2, base).double()
        found[f"turned_{name}"] = float((2 * math.pi / frequencies <= trained).sum())
        found[f"pairs_{name}"] = float(head_dim // 2)
    return found


@torch.no_grad()
def _accepted(position: Position, seed: int) -> float:
    """How many of the longer texts a toy with this encoding answers with finite numbers."""
    a = Architecture(layers=2, dim=16, context=TABLE, position=position, attention=MultiHead(heads=2))
    model, answered = a.build(8, seed), 0
    for times in MULTIPLES:
        try:
            answered += bool(model(torch.zeros(1, times * TABLE, dtype=torch.int64)).isfinite().all())
        except InputError:
            continue
    return float(answered)


def _gradients(seed: int) -> Figures:
    """Gradient of the loss at one token by the first token's embedding, over distance; geometric means over seeds."""
    found: Figures = {}
    for name in ("mha", "lstm", "gru", "stretched"):
        first = [0.0] * len(DISTANCES)
        weights = [0.0] * len(DISTANCES)
        for one in range(seed, seed + SEEDS):
            model = stretched(untrained("rnn", one), GAIN) if name == "stretched" else untrained(name, one)
            for place, distance in enumerate(DISTANCES):
                by_first, by_weights = reached(model, distance, one)
                first[place] += math.log(by_first) / SEEDS
                weights[place] += math.log(by_weights) / SEEDS
        means = [math.exp(value) for value in first]
        found |= {f"{name}_{distance}": value for distance, value in zip(DISTANCES, means, strict=True)}
        found[f"{name}_exponent"] = slope(DISTANCES, means)
        found[f"{name}_per_token"] = per_token(means)
        found[f"{name}_weights_growth"] = math.exp(weights[-1] - weights[0])
    return found


def figures(session: Session) -> Figures:
    return {
        **_costs(),
        **_angles(),
        "learned_accepted": _accepted(Learned(), session.seed),
        "rope_accepted": _accepted(Rope(), session.seed),
        **_gradients(session.seed),
    }


def raced(told: Mapping[str, Told]) -> Figures:
    positions, text = told["positions"], told["long_text"]
    whole, later, yarn, ntk, linear = "whole", "begun later", "whole, yarn", "whole, ntk", "whole, linear"
    within, past = BINS[7], BINS[-1]  # the last thousand tokens of the trained length, and of the text

    def differences(a: str, b: str, at: str, other: str) -> list[float]:
        return [x - y for x, y in zip(text.values(a, at), text.values(b, other), strict=True)]

    return {
        **positions.grown("rope", 8),
        "learned_refuses": float(positions.fails("learned", "bits_per_byte@2x") is not None),
        "real_within": text.mean(whole, within),
        "real_past": text.mean(whole, past),
        "real_same": text.mean(later, past),
        # where the loss turns: what the text costs more, read whole, than the same tokens begun later
        **{f"real_cost_{name.removeprefix('nats_')}": max(differences(whole, later, name, name)) for name in BINS[7:]},
        "real_yarn": text.mean(yarn, past),
        "real_ntk": text.mean(ntk, past),
        "real_linear": text.mean(linear, past),
        # of several texts the one that shows least
        "real_past_minus_within_least": min(differences(whole, whole, past, within)),
        "real_past_minus_same_least": min(differences(whole, later, past, past)),
        "real_yarn_minus_same_most": max(differences(yarn, later, past, past)),
        "real_ntk_minus_same_most": max(differences(ntk, later, past, past)),
        "real_linear_minus_yarn_least": min(min(differences(linear, yarn, name, name)) for name in BINS),
    }


def evidence(f: Mapping[str, float]) -> Text:
    far, near = DISTANCES[-1], DISTANCES[0]
    en = (
        f"A model with rotary positions answers {f['rope_accepted']:.0f} of {len(MULTIPLES)} texts past its length, "
        f"one with a table {f['learned_accepted']:.0f}; only {f['turned_llama']:.0f} of {f['pairs_llama']:.0f} rotary "
        f"pairs of LLaMA and {f['turned_smollm2']:.0f} of {f['pairs_smollm2']:.0f} of SmolLM2 turn full circle in "
        f"training. At 16,384 tokens SmolLM2's cache holds {f['cache_mib']:.0f} MiB and its blocks take "
        f"{f['work_tera']:.1f} TFLOP ({f['work_masked_tera']:.1f} if what is masked is skipped), "
        f"{f['attention_share']:.0%} in attention; twice the tokens are {f['cache_growth']:.0f} times the cache, "
        f"{f['attention_growth']:.0f} times the attention. From {near} to {far} tokens the gradient by the first falls "
        f"to {f[f'mha_{far}'] / f[f'mha_{near}']:.2f} with attention (exponent {f['mha_exponent']:.2f}), to "
        f"{f[f'lstm_{far}'] / f[f'lstm_{near}']:.0e} in an LSTM; in a recurrent net that stretches it grows to "
        f"{f[f'stretched_{far}'] / f[f'stretched_{near}']:.0e} times."
    )
    zh = (
        f"旋转位置的模型能算 {len(MULTIPLES)} 种超长文本中的 {f['rope_accepted']:.0f} 种，位置表能算 "
        f"{f['learned_accepted']:.0f} 种；训练中转满一圈的，LLaMA {f['pairs_llama']:.0f} 对坐标中只有 "
        f"{f['turned_llama']:.0f} 对，SmolLM2 {f['pairs_smollm2']:.0f} 对中只有 {f['turned_smollm2']:.0f} 对。读 16384"
        f" 个词元时，SmolLM2 的缓存占 {f['cache_mib']:.0f} MiB，各层运算 {f['work_tera']:.1f} TFLOP（跳过被遮住的部分则"
        f"为 {f['work_masked_tera']:.1f}），其中注意力占 {f['attention_share']:.0%}；长度翻倍，缓存为 "
        f"{f['cache_growth']:.0f} 倍，注意力为 {f['attention_growth']:.0f} 倍。距离从 {near} 增到 {far}，对首个词元的"
        f"梯度在注意力中降为 {f[f'mha_{far}'] / f[f'mha_{near}']:.2f}（指数 {f['mha_exponent']:.2f}），在 LSTM 中降为 "
        f"{f[f'lstm_{far}'] / f[f'lstm_{near}']:.0e}；在逐步放大状态的循环网络中则涨到 "
        f"{f[f'stretched_{far}'] / f[f'stretched_{near}']:.0e} 倍。"
    )
    if "real_past" in f:
        en += (
            f" Trained at 128 tokens, RoPE changes by {f['rope_8x_minus_1x']:+.2f} bits per byte at 8 times that. "
            f"SmolLM2 reads Moby Dick: {f['real_within']:.2f} nats a token before 8,192 tokens, {f['real_past']:.2f} "
            f"before 12,288; the same last tokens, read from 4,096 on, {f['real_same']:.2f}; with YaRN "
            f"{f['real_yarn']:.2f}, NTK {f['real_ntk']:.2f}, PI {f['real_linear']:.2f}, all for twice the length and "
            f"untuned. What reading from the start costs, by thousand from the 8th to the 12th: "
            f"{f['real_cost_8k']:+.2f}, {f['real_cost_9k']:+.2f}, {f['real_cost_10k']:+.2f}, "
            f"{f['real_cost_11k']:+.2f}, {f['real_cost_12k']:+.2f}."
        )
        zh += (
            f"以 128 个词元训练的 RoPE，读到 8 倍长时每字节变化 {f['rope_8x_minus_1x']:+.2f} 比特。SmolLM2 读《白鲸》："
            f"第 8192 个词元之前每词元 {f['real_within']:.2f} 奈特，第 12288 个之前 {f['real_past']:.2f}；同样的末段"
            f"改从第 4096 个读起为 {f['real_same']:.2f}，用 YaRN 为 {f['real_yarn']:.2f}，NTK "
            f"{f['real_ntk']:.2f}，PI {f['real_linear']:.2f}（均按两倍长度，未经微调）。从头读起多付的代价，自第 8 "
            f"个千词元至第 12 个依次为 {f['real_cost_8k']:+.2f}、{f['real_cost_9k']:+.2f}、{f['real_cost_10k']:+.2f}、"
            f"{f['real_cost_11k']:+.2f}、{f['real_cost_12k']:+.2f}。"
        )
    return Text(en, zh)


QUESTION = Question(
    number=8,
    tier="seconds",
    claim=Text(
        "In theory a large model takes sentences of any length. In practice there are limits: memory and time; in "
        "training, gradients that vanish or explode on long sentences; in use, more errors and slower generation; and "
        "a context that grows complex. Remedies are cutting into chunks, more computing power, a better structure, "
        "faster inference.",
        "原则上多长都行，实际则受几方面制约：内存和时间；训练时长句引发梯度消失或爆炸；推理时出错更多、也更慢；上下文愈"
        "加复杂。应对之道是分块、添算力、改结构、提速推理。",
    ),
    correction=Text(
        "Only the forward pass takes any length, and only where no table of positions ends. What was learnt ends with "
        "the trained window (LLaMA: 2048); past it perplexity can exceed 1000 (Chen 2023), since rotary pairs that "
        "have not gone full circle in training turn to angles never met (Liu 2023), and attention thins out over ever "
        "more keys. The cache grows with the length, attention with its square. Vanishing and exploding gradients "
        "over long texts belong to recurrent nets: with attention any two tokens are one step apart (Vaswani 2017), "
        "and what reaches a far token falls no faster than about 1/n. Depth is where gradients trouble a Transformer.",
        "能接受任意长度的只有前向计算，而且前提是没有会用尽的位置表。学到的东西止于训练窗口（LLaMA 为 2048）；越过之"
        "后困惑度可超过 1000（Chen 2023），因为训练中没有转满一圈的坐标对会转到从未出现的角度（Liu 2023），注意力也随键"
        "数增多而稀释。缓存随长度线性增长，注意力的运算量按平方增长。长文本上梯度消失或爆炸是循环网络的问题：有了注意力，任"
        "意两个词元只隔一步（Vaswani 2017），传到远处的梯度下降不快于约 1/n。Transformer 的梯度麻烦出在深度上。",
    ),
    run=Text(
        "A table of positions and rotary positions given longer texts; pairs that turn full circle; bytes of our cache "
        "and operations of a model of SmolLM2's shape, counted; the gradient of one token's loss by a token 16 to 256 "
        "before, with attention, LSTM, GRU and a recurrent net that stretches its state, two layers each, initial "
        "weights. Trained: encodings at 8 times their length; SmolLM2 over 12,288 tokens of Moby Dick, as it is, begun "
        "later, and with PI, NTK and YaRN.",
        "给位置表与旋转位置喂更长的文本；数转满一圈的坐标对；清点本库缓存的字节数，以及与 SmolLM2 同形的模型的运算"
        "量；取初始权重的两层模型，量某个词元的损失对其前 16 至 256 个词元处的梯度，比较注意力、LSTM、GRU 和放大状态"
        "的循环网络。训练所得：各编码读 8 倍长度；SmolLM2 读《白鲸》12288 个词元，一次读完、晚些起读、改"
        "用 PI、NTK 和 YaRN。",
    ),
    papers=(
        "Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762",
        "Touvron et al. 2023, LLaMA, arXiv 2302.13971",
        "Chen et al. 2023, Extending Context Window via Positional Interpolation, arXiv 2306.15595",
        "Peng et al. 2023, YaRN, arXiv 2309.00071",
        "Liu et al. 2023, Scaling Laws of RoPE-based Extrapolation, arXiv 2310.05209",
        "Pascanu, Mikolov & Bengio 2013, On the difficulty of training Recurrent Neural Networks, arXiv 1211.5063",
    ),
    errors={"E8.1": "M", "E8.2": "W", "E8.3": "I"},
    claims=(
        Claim(
            "any length",
            "in theory the input may be of any length",
            "原则上输入长度不限",
            (
                Check(
                    "rope_accepted", "==", 3.0, "rotary: longer texts answered, of 3", "旋转位置：能算的超长文本，共 3"
                ),
                Check("learned_accepted", "==", 0.0, "table of positions: the same", "位置表：同上"),
                Check(
                    "turned_llama",
                    "<",
                    60.0,
                    "LLaMA: pairs with no new angle past 2048, of 64",
                    "LLaMA：越过 2048 也不见新角度的对数，共 64",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E8.1",),
        ),
        Claim(
            "gradients",
            "long texts make gradients vanish or explode",
            "文本一长，梯度便消失或爆炸",
            (
                Check(
                    "mha_exponent", ">", -1.25, "attention: exponent of the distance", "注意力：梯度随距离变化的指数"
                ),
                Check(
                    "mha_per_token",
                    "<",
                    0.02,
                    "attention: nats lost a token, far away",
                    "注意力：远处每词元衰减（奈特）",
                ),
                Check(
                    "mha_weights_growth",
                    "<",
                    3.0,
                    "attention: weights' gradient, 256 over 16",
                    "注意力：权重梯度，256 比 16",
                ),
                Check("lstm_per_token", ">", 0.05, "LSTM: nats lost a token", "LSTM：每词元衰减（奈特）"),
                Check("gru_per_token", ">", 0.05, "GRU: the same", "GRU：同上"),
                Check(
                    "stretched_weights_growth",
                    ">",
                    1000.0,
                    "stretching net: weights' gradient, 256 over 16",
                    "放大状态的网络：权重梯度，256 比 16",
                ),
            ),
            Verdict.REFUTED,
            errors=("E8.2",),
        ),
        Claim(
            "diluted",
            "with attention the gradient is the same at any distance",
            "有了注意力，梯度与距离无关",
            (Check("mha_exponent", "<", -0.25, "exponent of the distance", "梯度随距离变化的指数"),),
            Verdict.CORRECTED,
            kind="aside",
        ),
        Claim(
            "limits",
            "the limits are those that are named",
            "限制就是所列的那些",
            (
                Check(
                    "turned_llama",
                    "==",
                    41.0,
                    "LLaMA: pairs that turn full circle, of 64",
                    "LLaMA：转满一圈的对数，共 64",
                ),
                Check("turned_smollm2", "==", 20.0, "SmolLM2: the same, of 32", "SmolLM2：同上，共 32"),
                Check("cache_growth", "==", 2.0, "cache, twice the tokens", "长度翻倍，缓存的倍数"),
                Check("attention_growth", ">", 3.9, "attention, twice the tokens", "长度翻倍，注意力的倍数"),
            ),
            Verdict.CORRECTED,
            errors=("E8.3",),
        ),
        Claim(
            "counting",
            "bytes and operations that are counted are those of the formulas",
            "清点所得与公式一致",
            (
                Check("cache_gap", "==", 0.0, "bytes of the cache", "缓存字节数之差"),
                Check("work_gap", "<", 1e-6, "operations of the blocks, relative", "各层运算量的相对差"),
            ),
            kind="control",
        ),
        Claim(
            "any length, trained",
            "a model trained on short texts reads long ones",
            "以短文训练的模型能读长文",
            (
                Check(
                    "rope_8x_minus_1x_lower",
                    ">",
                    0.0,
                    "RoPE: loss, 8x minus 1x, lower bound",
                    "RoPE：8 倍减 1 倍，下界",
                ),
                Check("learned_refuses", "==", 1.0, "learnt table: refuses 2x", "可学习的表：拒绝 2 倍"),
            ),
            Verdict.CORRECTED,
            errors=("E8.1",),
            race="positions",
        ),
        Claim(
            "any length, real",
            "a real model reads past its window",
            "实际模型能读过窗口",
            (
                Check(
                    "real_past_minus_within_least",
                    ">",
                    JUMP,
                    "real text: loss before 12k minus before 8k",
                    "实际文本：12k 前的损失减 8k 前的",
                ),
                Check(
                    "real_past_minus_same_least",
                    ">",
                    JUMP,
                    "the same tokens, minus begun later",
                    "同样的词元，减晚些起读",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E8.1",),
            race="long_text",
        ),
        Claim(
            "rescaled, real",
            "YaRN lets the real model read on",
            "用 YaRN 可让实际模型读下去",
            (
                Check(
                    "real_yarn_minus_same_most",
                    "<",
                    JUMP,
                    "loss before 12k minus begun later",
                    "12k 前的损失减晚些起读的",
                ),
            ),
            kind="aside",
            race="long_text",
        ),
        Claim(
            "bases, real",
            "a larger base of the angles lets it read on too",
            "换大底数同样可让它读下去",
            (Check("real_ntk_minus_same_most", "<", JUMP, "NTK: the same difference", "NTK：同一差值"),),
            kind="aside",
            race="long_text",
        ),
        Claim(
            "interpolation, real",
            "untuned, interpolated positions cost the real model something at every place",
            "不经微调，位置插值处处都有代价",
            (
                Check(
                    "real_linear_minus_yarn_least",
                    ">",
                    0.0,
                    "PI minus YaRN, the least thousand",
                    "PI 减 YaRN，差值最小的一千个词元",
                ),
            ),
            kind="aside",
            race="long_text",
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("positions", "long_text"),
    raced=raced,
    uses=(
        "llmlab/handbook/reach.py",
        "llmlab/handbook/long_text.py",
        "llmlab/handbook/races/positions.py",
        "llmlab/handbook/races/long_text.py",
        "llmlab/inference/cache.py",
        "llmlab/model/rotary.py",
        "llmlab/model/recurrent.py",
    ),
    settings={
        **reach.SETTINGS,
        "lengths": [*LENGTHS, VOCABULARY],
        "turned": TURNED,
        "accepted": [TABLE, *MULTIPLES],
        "gradients": [GAIN, SEEDS],
    },
)
