"""Question 44: the idea behind DeepNorm. Not a norm between layers but a factor on the residual stream and smaller
initial weights, which hold the first steps of a deep Post-LN stack to the size of a shallow one's."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmlab.handbook.depth import (
    DIM,
    ROWS,
    Start,
    architecture,
    geometric,
    initial_ratios,
    slope,
    start,
    texts,
    untrained,
)
from llmlab.handbook.literal.deepnorm import NormedMLP
from llmlab.handbook.literal.norms import Batch
from llmlab.handbook.measures import draw, filled, gap, power
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.model.block import Block, deepnorm
from llmlab.model.transformer import Transformer
from llmlab.stages import Session

EXACT = 1e-12
FLAT = 0.1  # exponent of depth below which a step is called independent of it
GROWS = 0.5  # and above which it is called growing
STUCK = 0.1  # bits per byte beyond token frequencies up to which a model is called stuck
DEPTHS, SEEDS, ABLATED_SEEDS = (6, 24, 96), 3, 2
SIZES = ((1, 0), (12, 0), (100, 0), (500, 0), (6, 6), (18, 18), (6, 24), (100, 12))  # layers, encoder layers


def _paper(layers: int, encoder_layers: int, encoder: bool) -> tuple[float, float]:
    """Table 2 of the paper, written out once more: M decoder layers, N encoder layers, or N of one stack alone."""
    m, n = float(layers), float(encoder_layers)
    if not n:
        return (2 * m) ** (1 / 4), (8 * m) ** (-1 / 4)
    if encoder:
        return 0.81 * (n**4 * m) ** (1 / 16), 0.87 / (n**4 * m) ** (1 / 16)
    return (3 * m) ** (1 / 4), (12 * m) ** (-1 / 4)


def _constants() -> Figures:
    gaps = [
        abs(ours - theirs)
        for m, n in SIZES
        for half in ((False, True) if n else (False,))
        for ours, theirs in zip(deepnorm(m, n, half), _paper(m, n, half), strict=True)
    ]
    pairs = {
        "12": deepnorm(12),
        "100": deepnorm(100),
        "18_encoder": deepnorm(18, 18, True),
        "18_decoder": deepnorm(18, 18, False),
    }
    return {
        "constants_gap": max(gaps),
        **{f"alpha_{name}": alpha for name, (alpha, _) in pairs.items()},
        **{f"beta_{name}": beta for name, (_, beta) in pairs.items()},
    }


def _rule(seed: int) -> Figures:
    """Our block against LN(alpha x + G(x)) by hand, and its initial weights against those of Post-LN."""
    layers = 12
    deep = untrained("deepnorm", layers, seed)
    alpha, beta = _paper(layers, 0, False)
    scaled, left = initial_ratios(layers, seed)
    block = deep.blocks[0]
    assert isinstance(block, Block)
    filled(block, seed, "q44.block")
    parts: dict[str, Tensor] = {}
    for name in ("attention", "feedforward"):
        block.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: parts.__setitem__(name, y))
    given: list[Tensor] = []
    block.register_forward_hook(lambda _, args, y: given.extend((args[0], y)))
    deep(texts(seed)[0])
    x_BTD, y_BTD = given
    middle = block.attention_norm(alpha * x_BTD + parts["attention"])
    by_hand = block.feedforward_norm(alpha * middle + parts["feedforward"])
    return {
        "rule_gap": gap(y_BTD, by_hand),
        "beta_gap": max(abs(ratio - beta) for ratio in scaled),
        "query_key_gap": max(abs(ratio - 1) for ratio in left),
    }


@torch.no_grad()
def _silenced(seed: int) -> Figures:
    """How much of the input is left when every linear map is 0: the handbook's layers against a DeepNorm block."""
    printed = NormedMLP(DIM, [DIM, DIM], DIM).double()
    model = untrained("deepnorm", 2, seed)
    for module in (printed, model.blocks):
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.zero_()
    x_RD = draw(seed, "q44.x", ROWS, DIM)
    y_RD = printed(x_RD)
    hidden_BTD = model.hidden(texts(seed)[0], model.architecture.mask.places(texts(seed)[0]))
    return {
        "printed_left": gap(y_RD, y_RD[:1].expand_as(y_RD)),
        "deepnorm_left": gap(hidden_BTD, hidden_BTD[:, :1].expand_as(hidden_BTD)),
    }


@torch.no_grad()
def _statistics(seed: int) -> Figures:
    """Whether training and testing differ, and whether one row hears of another: DeepNorm, and the same with
    BatchNorm, as the handbook's moving averages have it."""

    def differences(model: Transformer) -> tuple[float, float]:
        ids_BT, other_BT = texts(seed)
        edited_BT = torch.cat((other_BT[:1], ids_BT[1:]))
        trained = model.train()(ids_BT)
        heard = gap(model(edited_BT)[1:], trained[1:])
        return heard, gap(model.eval()(ids_BT), trained)

    deep = architecture("deepnorm", 4)
    layer, batch = (deep.model_copy(update={"norm": norm}).build(64, seed) for norm in (deep.norm, Batch()))
    layer_heard, layer_moved = differences(layer)
    batch_heard, batch_moved = differences(batch)
    return {
        "rows_heard_layer": layer_heard,
        "rows_heard_batch": batch_heard,
        "train_test_gap_layer": layer_moved,
        "train_test_gap_batch": batch_moved,
        "buffers": float(len(list(layer.buffers()))),
        "norms_layer": float(sum(isinstance(module, nn.LayerNorm) for module in layer.modules())),
        "norms_batch": float(sum(type(module).__name__ == "BatchStatistics" for module in batch.modules())),
    }


def _growth(name: str, wirings: Mapping[int, Any], seeds: range) -> Figures:
    """One step's effect on the answer over DEPTHS, geometric means over seeds, and its exponent."""
    started: dict[int, list[Start]] = {n: [start(wirings[n], n, seed) for seed in seeds] for n in DEPTHS}
    out: Figures = {}
    for rule in ("sgd", "adam"):
        moved = [geometric([getattr(one, rule) for one in started[n]]) for n in DEPTHS]
        out |= {f"{name}_{rule}_{n}": value for n, value in zip(DEPTHS, moved, strict=True)}
        out[f"{name}_{rule}_slope"] = slope(DEPTHS, moved)
    return out


def _updates(seed: int) -> Figures:
    seeds, fewer = range(seed, seed + SEEDS), range(seed, seed + ABLATED_SEEDS)
    alphas = {n: {"kind": "deepnorm", "alpha": deepnorm(n)[0], "beta": 1.0} for n in DEPTHS}
    betas = {n: {"kind": "deepnorm", "alpha": 1.0, "beta": deepnorm(n)[1]} for n in DEPTHS}
    out = {
        **_growth("post", dict.fromkeys(DEPTHS, "post"), seeds),
        **_growth("deepnorm", dict.fromkeys(DEPTHS, "deepnorm"), seeds),
        **_growth("alpha_alone", alphas, fewer),
        **_growth("beta_alone", betas, fewer),
    }
    out["deepnorm_sgd_bend"] = abs(out["deepnorm_sgd_slope"])
    out["adam_ratio_96"] = out["post_adam_96"] / out["deepnorm_adam_96"]
    return out


def figures(session: Session) -> Figures:
    seed = session.seed
    return {**_constants(), **_rule(seed), **_silenced(seed), **_statistics(seed), **_updates(seed)}


def raced(told: Mapping[str, Told]) -> Figures:
    wiring, norms = told["wiring"], told["norms"]
    measure = "bits_per_byte"
    helped = wiring.difference("post, middle, cold", "deepnorm, middle, cold", measure)
    warmed = wiring.difference("deepnorm, middle, cold", "deepnorm, middle, warm", measure)
    learnt = wiring.difference("blind", "post, middle, cold", measure)
    batch = norms.difference("batch", "layernorm", measure)
    return {
        "blind": wiring.mean("blind", measure),
        "post_cold": wiring.mean("post, middle, cold", measure),
        "deepnorm_cold": wiring.mean("deepnorm, middle, cold", measure),
        "post_learnt_upper": learnt.high,
        "post_minus_deepnorm": helped.mean,
        "post_minus_deepnorm_lower": helped.low,
        "warmup_worth": warmed.mean,
        "warmup_worth_lower": warmed.low,
        "warmup_worth_upper": warmed.high,
        "batch_minus_layer": batch.mean,
        "batch_minus_layer_lower": batch.low,
    }


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"From {DEPTHS[0]} to {DEPTHS[-1]} layers, what one step does to the answer grows "
        f"{f['post_sgd_96'] / f['post_sgd_6']:.0f}-fold in Post-LN (depth to the {f['post_sgd_slope']:.2f}) and "
        f"{f['deepnorm_sgd_96'] / f['deepnorm_sgd_6']:.2f}-fold in DeepNorm ({f['deepnorm_sgd_slope']:+.2f}); with "
        f"alpha alone the "
        f"exponent is {f['alpha_alone_sgd_slope']:.2f}, with beta alone {f['beta_alone_sgd_slope']:.2f}. Under Adam "
        f"DeepNorm grows too, as depth to the {f['deepnorm_adam_slope']:.2f}, and at {DEPTHS[-1]} layers moves "
        f"{f['adam_ratio_96']:.0f} times less than Post-LN. For 12 layers alpha = {f['alpha_12']:.3f}, beta = "
        f"{f['beta_12']:.3f}. Training and testing differ by {power(f['train_test_gap_layer'])}; with BatchNorm they "
        f"would by {f['train_test_gap_batch']:.1f}."
    )
    zh = (
        f"层数从 {DEPTHS[0]} 增到 {DEPTHS[-1]}，同样走一步，Post-LN 输出的变动放大到 "
        f"{f['post_sgd_96'] / f['post_sgd_6']:.0f} 倍（按深度的 {f['post_sgd_slope']:.2f} 次方增长），DeepNorm 只到 "
        f"{f['deepnorm_sgd_96'] / f['deepnorm_sgd_6']:.2f} 倍（{f['deepnorm_sgd_slope']:+.2f} 次方）；单用 alpha 指"
        f"数为 "
        f"{f['alpha_alone_sgd_slope']:.2f}，单用 beta 为 {f['beta_alone_sgd_slope']:.2f}。换成 Adam，DeepNorm 也按深"
        f"度的 "
        f"{f['deepnorm_adam_slope']:.2f} 次方增长，但在 {DEPTHS[-1]} 层时变动仍只有 Post-LN 的 "
        f"1/{f['adam_ratio_96']:.0f}。12 层时 alpha = {f['alpha_12']:.3f}，beta = {f['beta_12']:.3f}。训练与测试两种"
        f"模式"
        f"相差 {power(f['train_test_gap_layer'])}；若用 BatchNorm 则相差 {f['train_test_gap_batch']:.1f}。"
    )
    if "post_minus_deepnorm" in f:
        en += (
            f" Trained for real, 24 layers without warm-up: Post-LN ends at {f['post_cold']:.2f} bits per byte, where "
            f"token frequencies alone give {f['blind']:.2f}; DeepNorm at {f['deepnorm_cold']:.2f}, "
            f"to which warm-up is worth {f['warmup_worth']:+.3f} (95 %: {f['warmup_worth_lower']:+.3f} to "
            f"{f['warmup_worth_upper']:+.3f})."
        )
        zh += (
            f"实际训练 24 层且不作预热：Post-LN 止于每字节 {f['post_cold']:.2f} 比特，而只知词频也有 {f['blind']:.2f}；"
            f"DeepNorm 到 {f['deepnorm_cold']:.2f}，预热对它值 {f['warmup_worth']:+.3f}（95%："
            f"{f['warmup_worth_lower']:+.3f} 至 "
            f"{f['warmup_worth_upper']:+.3f}）。"
        )
    return Text(en, zh)


QUESTION = Question(
    number=44,
    tier="seconds",
    claim=Text(
        "A norm is put between all layers (mean 0, variance 1), then the activation, then the next layer; unlike "
        "BatchNorm it stands at every layer. Mean and variance are tracked by moving averages and reused at test. It "
        "counters vanishing and exploding gradients and makes the learning rate less critical.",
        "逐层插入归一化（均值 0、方差 1），之后过激活，再送入下一层；与 BatchNorm 的区别在于层层都有。均值和方差靠滑动"
        "平均积累，留到测试时用。由此缓解梯度消失与爆炸，学习率也不再那么难调。",
    ),
    correction=Text(
        "DeepNorm is LN(αx + G(x)) with initial weights of value, output and feed-forward times β, so that one step "
        "moves the model by the same amount at any depth. N layers alone: α = (2N)^(1/4), β = (8N)^(-1/4); N encoder "
        "and M decoder layers: encoder α = 0.81(N⁴M)^(1/16), β = 0.87(N⁴M)^(-1/16), decoder α = (3M)^(1/4), β = "
        "(12M)^(-1/4). GLM-130B and ChatGLM-6B take α = (2N)^(1/2). The norm itself is LayerNorm: each token by "
        "itself, nothing averaged over training, training and testing alike. Post-LN has its norms at every layer "
        "too; what helps are α and β, together.",
        "DeepNorm 是 LN(αx + G(x))，并把值、输出与前馈矩阵的初始权重乘以 β，使模型走一步的变动不随深度放大。单独 N 层"
        "时 α = (2N)^(1/4)，β = (8N)^(-1/4)；N 层编码器配 M 层解码器时，编码器 α = 0.81(N⁴M)^(1/16)，β = "
        "0.87(N⁴M)^(-1/16)，解码器 α = (3M)^(1/4)，β = (12M)^(-1/4)。GLM-130B 与 ChatGLM-6B 取 α = (2N)^(1/2)。所用"
        "的归一化就是 LayerNorm：各词元自行计算，不积累任何统计量，训练测试并无二致。Post-LN 同样层层都有归一化，真正"
        "起作用的是 α 与 β，且缺一不可。",
    ),
    run=Text(
        "Our constants against the paper's table; our block against the formula by hand, its initial weights against "
        "Post-LN's; every linear map silenced, in the handbook's layers and in ours; training mode against testing, "
        "with LayerNorm and with BatchNorm; one step of SGD and of Adam on 6, 24 and 96 layers, with Post-LN, "
        "DeepNorm, and either of its two factors alone. Trained: 24 layers without warm-up.",
        "本库的常数对照论文表格；本库的块对照手写公式，其初始权重对照 Post-LN；把所有线性映射归零，看手册的层与本库的块"
        "各剩下什么；分别以 LayerNorm 与 BatchNorm 比较训练和测试两种模式；在 6、24、96 层上各走一步 SGD 与 Adam，比较 "
        "Post-LN、DeepNorm 以及只用其中一个系数的情形。另有实际训练：24 层、不作预热。",
    ),
    papers=(
        "Wang et al. 2022, DeepNet: Scaling Transformers to 1,000 Layers, arXiv 2203.00555",
        "Ba, Kiros & Hinton 2016, Layer Normalization, arXiv 1607.06450",
        "Ioffe & Szegedy 2015, Batch Normalization, arXiv 1502.03167",
        "Zeng et al. 2022, GLM-130B, arXiv 2210.02414",
    ),
    errors={"E44.1": "W", "E44.2": "W", "E44.3": "M"},
    claims=(
        Claim(
            "definition",
            "DeepNorm is a norm between layers, then an activation",
            "DeepNorm 就是层与层之间加归一化，再接激活",
            (
                Check(
                    "printed_left",
                    "==",
                    0.0,
                    "linear maps silenced, the handbook's layers: what is left of the input",
                    "线性映射归零后，手册的层里输入还剩多少",
                ),
                Check("deepnorm_left", ">", 0.1, "the same in DeepNorm", "DeepNorm 中同样归零"),
            ),
            Verdict.REFUTED,
            errors=("E44.1",),
        ),
        Claim(
            "moving averages",
            "mean and variance are averaged in training and reused at test",
            "训练时滑动平均均值与方差，测试时沿用",
            (
                Check("train_test_gap_layer", "==", 0.0, "training against testing mode", "训练模式与测试模式之差"),
                Check("buffers", "==", 0.0, "running statistics kept", "保存的滑动统计量个数"),
                Check(
                    "train_test_gap_batch",
                    ">",
                    0.1,
                    "BatchNorm, which does so, would show",
                    "若为 BatchNorm，则两种模式确有差异",
                ),
            ),
            Verdict.REFUTED,
            errors=("E44.2",),
        ),
        Claim(
            "what helps",
            "norms between the layers are what lets deep nets train",
            "深层网络得以训练，靠的是层间的归一化",
            (
                Check(
                    "post_sgd_slope",
                    ">",
                    GROWS,
                    "Post-LN has them too: growth of a step",
                    "Post-LN 也有：一步变动的增长指数",
                ),
                Check("alpha_alone_sgd_slope", ">", 0.2, "alpha alone: the same", "只用 alpha：同上"),
                Check("beta_alone_sgd_slope", ">", 0.2, "beta alone: the same", "只用 beta：同上"),
                Check("deepnorm_sgd_bend", "<", FLAT, "both, as DeepNorm: its size", "二者并用即 DeepNorm：指数之大小"),
            ),
            Verdict.CORRECTED,
        ),
        Claim(
            "trained cold",
            "DeepNorm trains 24 layers without warm-up, where Post-LN learns no more than how frequent tokens are",
            "24 层不作预热，DeepNorm 能训练，Post-LN 只学到词频",
            (
                Check(
                    "post_minus_deepnorm_lower",
                    ">",
                    0.0,
                    "Post-LN minus DeepNorm, bits per byte, 95 % bound",
                    "Post-LN 减 DeepNorm，每字节比特，95% 下界",
                ),
                Check(
                    "post_learnt_upper",
                    "<",
                    STUCK,
                    "what Post-LN learns beyond frequencies, 95 % bound",
                    "Post-LN 在词频之外学到的，95% 上界",
                ),
            ),
            Verdict.CORRECTED,
            race="wiring",
        ),
        Claim(
            "unlike BatchNorm",
            "what sets it apart from BatchNorm is that it stands at every layer",
            "与 BatchNorm 的区别在于层层都有",
            (
                Check("norms_batch", "==", 8.0, "places of BatchNorm in four such layers", "四层中 BatchNorm 的个数"),
                Check("norms_layer", "==", 8.0, "places of LayerNorm", "四层中 LayerNorm 的个数"),
                Check(
                    "rows_heard_batch",
                    ">",
                    0.01,
                    "BatchNorm: one row edited, the others' change",
                    "BatchNorm：改一行，其余行的变化",
                ),
                Check("rows_heard_layer", "==", 0.0, "LayerNorm: the same", "LayerNorm：同上"),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E44.3",),
        ),
        Claim(
            "batch statistics, trained",
            "a Transformer with BatchNorm is worse than with LayerNorm",
            "Transformer 改用 BatchNorm，效果不及 LayerNorm",
            (
                Check(
                    "batch_minus_layer_lower",
                    ">",
                    0.0,
                    "BatchNorm minus LayerNorm, bits per byte, 95 % bound",
                    "BatchNorm 减 LayerNorm，每字节比特，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            race="norms",
        ),
        Claim(
            "gentle",
            "the learning rate becomes less critical",
            "对学习率不再那么敏感",
            (
                Check(
                    "adam_ratio_96",
                    ">",
                    10.0,
                    "96 layers, one step of Adam: Post-LN moves so many times as far",
                    "96 层走一步 Adam：Post-LN 变动是 DeepNorm 的多少倍",
                ),
            ),
            kind="aside",
        ),
        Claim(
            "the real one",
            "LN(αx + G(x)), with the paper's α and β",
            "LN(αx + G(x))，取论文的 α 与 β",
            (
                Check("constants_gap", "<", EXACT, "constants against the paper's table", "常数与论文表格之差"),
                Check("rule_gap", "<", EXACT, "block against the formula", "块与公式之差"),
                Check(
                    "beta_gap", "<", 1e-6, "initial weights against β times Post-LN's", "初始权重与 Post-LN 的 β 倍之差"
                ),
                Check("query_key_gap", "<", 1e-6, "query and key, which are left alone", "查询与键（不缩放）"),
            ),
            kind="control",
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("wiring", "norms"),
    raced=raced,
    uses=("llmlab/model/block.py", "llmlab/model/initial.py", "llmlab/model/norms.py"),
    settings={"depths": list(DEPTHS), "seeds": [SEEDS, ABLATED_SEEDS], "dim": DIM, "sizes": [list(s) for s in SIZES]},
)
