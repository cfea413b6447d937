"""Question 46: what speaks for DeepNorm. Gradients and learning rates, yes; fewer parameters or clear outputs, no."""

from collections.abc import Mapping

import torch
from torch import nn

from llmlab.handbook.depth import geometric, start, untrained
from llmlab.handbook.literal.deepnorm import NormedMLP
from llmlab.handbook.measures import draw, parameters
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.handbook.towers import BATCH, CLASSES, DIM, Tower, frequencies, learnt, tower_gradients
from llmlab.model.block import DeepNorm, Post, Pre, Wired
from llmlab.stages import Session

LAYERS, SEEDS = 24, 3
SUBLAYERS, TOWER_SEEDS = 64, 5
TRAINED, STEPS, RATES = 24, 32, (2e-3, 6e-3, 1.8e-2)
LEARNT = 0.2  # nats beyond class frequencies: what counts as having learnt
EVEN = 0.1  # how far from 1 the gradient of the last layer over the first may be
WIRINGS: dict[str, Wired] = {"post": Post(), "deepnorm": DeepNorm(), "pre": Pre()}


def _gradients(seed: int) -> Figures:
    """Last over first gradient, in whole models (geometric mean) and in towers of feed-forwards (mean)."""
    out: Figures = {}
    for name, wiring in WIRINGS.items():
        whole = [start(wiring, LAYERS, one).gradients for one in range(seed, seed + SEEDS)]
        towers = [tower_gradients(wiring, SUBLAYERS, one) for one in range(seed, seed + TOWER_SEEDS)]
        ratios = torch.tensor([one[-1] / one[0] for one in towers])
        out[f"{name}_ratio"] = geometric([one[-1] / one[0] for one in whole])
        out[f"{name}_spread"] = geometric([max(one) / min(one) for one in whole])
        out[f"{name}_tower_ratio"], out[f"{name}_tower_ratio_std"] = float(ratios.mean()), float(ratios.std())
    out["deepnorm_uneven"] = abs(out["deepnorm_ratio"] - 1)
    return out


def _rates(seed: int) -> Figures:
    """Nats learnt beyond class frequencies at each learning rate, without warm-up; at how many rates enough is."""
    seeds = range(seed, seed + SEEDS)
    plain = [frequencies(one, STEPS) for one in seeds]
    out: Figures = {}
    for name, wiring in WIRINGS.items():
        for rate in RATES:
            gains = []
            for one, known in zip(seeds, plain, strict=True):
                head = nn.Linear(DIM, CLASSES)
                head.load_state_dict(
                    {"weight": draw(one, "q46.head", CLASSES, DIM) / DIM, "bias": torch.zeros(CLASSES)}
                )
                network = nn.Sequential(Tower(wiring, TRAINED, DIM, DIM // 2, one, bias=True), head)
                gains.append(known - learnt(network, one, STEPS, rate))
            out[f"{name}_learnt_{rate:g}"] = sum(gains) / SEEDS
        out[f"{name}_rates"] = float(sum(out[f"{name}_learnt_{rate:g}"] > LEARNT for rate in RATES))
        out[f"{name}_best"] = max(out[f"{name}_learnt_{rate:g}"] for rate in RATES)
        out[f"{name}_worst"] = min(out[f"{name}_learnt_{rate:g}"] for rate in RATES)
    out["margin"] = out["deepnorm_worst"] - out["post_best"]
    return out


@torch.no_grad()
def _sizes(seed: int) -> Figures:
    """Parameters, and whether the printed network's answers are normalised."""
    printed = NormedMLP(100, [64, 32], 10)
    for name, parameter in printed.named_parameters():
        if not name.startswith("norms"):
            parameter.copy_(draw(seed, f"q46.{name}", *parameter.shape) / parameter.shape[-1] ** 0.5)
    answers = printed(draw(seed, "q46.x", 32, 100).float())
    printed.last.weight.mul_(10)
    printed.last.bias.mul_(10)
    models = {kind: untrained(kind, 6, seed) for kind in ("deepnorm", "post", "pre")}
    norms = {
        kind: sum(isinstance(module, nn.LayerNorm) for module in model.modules()) for kind, model in models.items()
    }
    return {
        "printed_norm_parameters": float(sum(map(parameters, printed.norms))),
        "deepnorm_minus_post": float(parameters(models["deepnorm"]) - parameters(models["post"])),
        "deepnorm_norms_minus_post": float(norms["deepnorm"] - norms["post"]),
        "output_means_spread": float(answers.mean(-1).std()),
        "output_sizes_spread": float(answers.std(-1).max() / answers.std(-1).min()),
        "tenfold": float(printed(draw(seed, "q46.x", 32, 100).float()).norm() / answers.norm()),
    }


def figures(session: Session) -> Figures:
    return {**_gradients(session.seed), **_rates(session.seed), **_sizes(session.seed)}


def raced(told: Mapping[str, Told]) -> Figures:
    wiring, measure = told["wiring"], "bits_per_byte"
    stuck = [wiring.difference("blind", f"post, {rate}, cold", measure).high for rate in ("slow", "middle", "fast")]
    learnt = wiring.difference("blind", "deepnorm, middle, cold", measure)
    fastest = wiring.difference("pre, fast, cold", "deepnorm, fast, cold", measure)
    best = wiring.difference("deepnorm, middle, cold", "pre, fast, cold", measure)
    return {
        "post_any_rate_upper": max(stuck),
        "deepnorm_middle_learnt": learnt.mean,
        "deepnorm_middle_learnt_lower": learnt.low,
        "pre_minus_deepnorm_fast": fastest.mean,
        "pre_minus_deepnorm_fast_upper": fastest.high,
        "deepnorm_minus_pre_best": best.mean,
        "deepnorm_minus_pre_best_low": best.low,
        "deepnorm_minus_pre_best_high": best.high,
    }


def evidence(f: Mapping[str, float]) -> Text:
    shown = {name: ", ".join(f"{f[f'{name}_learnt_{rate:g}']:.2f}" for rate in RATES) for name in WIRINGS}
    listed = {name: text.replace(", ", "、") for name, text in shown.items()}
    en = (
        f"Gradient of the last layer over the first at {LAYERS} layers: DeepNorm {f['deepnorm_ratio']:.2f}, Post-LN "
        f"{f['post_ratio']:.2f}, Pre-LN {f['pre_ratio']:.2f}. Nats learnt by {TRAINED} sublayers at rates of "
        f"{RATES[0]:g}, {RATES[1]:g} and {RATES[2]:g} without warm-up: DeepNorm {shown['deepnorm']}; Post-LN "
        f"{shown['post']}; Pre-LN {shown['pre']}. DeepNorm has {f['deepnorm_minus_post']:.0f} parameters more than "
        f"Post-LN; the norms of question 45's code have {f['printed_norm_parameters']:.0f}, and its output, with no "
        f"norm, grows {f['tenfold']:.0f} times with its last layer."
    )
    zh = (
        f"{LAYERS} 层时末层与首层梯度之比：DeepNorm {f['deepnorm_ratio']:.2f}，Post-LN {f['post_ratio']:.2f}，Pre-LN "
        f"{f['pre_ratio']:.2f}。{TRAINED} 个子层、不作预热，学习率取 {RATES[0]:g}、{RATES[1]:g}、{RATES[2]:g} 时学到"
        f"的奈特"
        f"数：DeepNorm {listed['deepnorm']}；Post-LN {listed['post']}；Pre-LN {listed['pre']}。DeepNorm 比 Post-LN 多 "
        f"{f['deepnorm_minus_post']:.0f} 个参数；第 45 问代码中的归一化层有 {f['printed_norm_parameters']:.0f} 个，"
        f"而其输出"
        f"端没有归一化，末层放大，输出随之放大 {f['tenfold']:.0f} 倍。"
    )
    if "deepnorm_minus_pre_best" in f:
        en += (
            f" Trained, 24 layers: DeepNorm minus Pre-LN, each at its best rate, "
            f"{f['deepnorm_minus_pre_best']:+.3f} bits per byte (95 %: {f['deepnorm_minus_pre_best_low']:+.3f} to "
            f"{f['deepnorm_minus_pre_best_high']:+.3f})."
        )
        zh += (
            f"实际训练 24 层：各取最佳学习率，DeepNorm 减 Pre-LN 为每字节 {f['deepnorm_minus_pre_best']:+.3f} 比特"
            f"（95%："
            f"{f['deepnorm_minus_pre_best_low']:+.3f} 至 {f['deepnorm_minus_pre_best_high']:+.3f}）。"
        )
    return Text(en, zh)


QUESTION = Question(
    number=46,
    tier="seconds",
    claim=Text(
        "Gradients pass better; it generalises better; the learning rate matters less; the structure is leaner, with "
        "no norm layers of its own and fewer parameters; and the model becomes easier to interpret, since its numbers "
        "have mean 0 and variance 1.",
        "其一，梯度传得更顺；其二，泛化更好；其三，不那么挑学习率；其四，结构精简，无须单设归一化层，参数更少；其"
        "五，数值落在"
        "均值 0、方差 1，模型更好解读。",
    ),
    correction=Text(
        "Gradients and learning rates, yes, for the real DeepNorm: at the start every layer gets the same gradient, "
        "and deep stacks train at rates, and without the warm-up, where Post-LN learns nothing; Pre-LN is as robust "
        "by other means. It has exactly the norms and parameters of Post-LN. Nothing normalises the output, and no "
        "result on interpretability is known. The paper claims stability up to 1,000 layers (2,500 sublayers) with the "
        "quality of Post-LN, not generalisation.",
        "就真正的 DeepNorm 而言，梯度与学习率两条成立：起步时各层梯度一样大；Post-LN 学不动的学习率、无预热的条件"
        "下，它照样"
        "能训练；Pre-LN 则另有其稳健之道。它的归一化层与参数同 Post-LN 分毫不差。输出端并无归一化，可解释性也无任何"
        "结果支持"
        "。论文主张的是稳定训练到 1000 层（2500 个子层）并保有 Post-LN 的质量，而非泛化。",
    ),
    run=Text(
        "Gradients of all layers before training, in whole models and in towers of feed-forwards; 24 sublayers trained "
        "for 32 steps at three rates without warm-up, three wirings, three seeds; norms and parameters counted; the "
        "last layer of question 45's code tenfold. Trained: 24 layers at three rates.",
        "训练前各层的梯度，分别在整个模型与只有前馈的塔中测；24 个子层、三档学习率、不作预热，训练 32 步，三种接法各"
        "三个种子"
        "；清点归一化层与参数；把第 45 问代码的末层放大十倍。另有实际训练：24 层，三档学习率。",
    ),
    papers=(
        "Wang et al. 2022, DeepNet: Scaling Transformers to 1,000 Layers, arXiv 2203.00555",
        "Xiong et al. 2020, On Layer Normalization in the Transformer Architecture, arXiv 2002.04745",
    ),
    errors={"E46.1": "W", "E46.2": "W", "E46.3": "M"},
    on_paper={
        "E46.3": Text(
            "generalisation is not the claim: it is stability to 1,000 layers at Post-LN's quality (Wang 2022)",
            "泛化并非其主张：论文说的是稳定到 1000 层且质量不逊于 Post-LN（Wang 2022）",
        )
    },
    claims=(
        Claim(
            "leaner",
            "it needs no norm layers of its own and has fewer parameters",
            "无须另设归一化层，参数更少",
            (
                Check("deepnorm_minus_post", "==", 0.0, "parameters more than Post-LN's", "比 Post-LN 多出的参数"),
                Check("deepnorm_norms_minus_post", "==", 0.0, "norms more than Post-LN's", "比 Post-LN 多出的归一化层"),
                Check(
                    "printed_norm_parameters",
                    "==",
                    192.0,
                    "parameters of the norms in question 45's code",
                    "第 45 问代码中归一化层的参数",
                ),
            ),
            Verdict.REFUTED,
            errors=("E46.1",),
        ),
        Claim(
            "interpretable",
            "its output has mean 0 and variance 1 and is easier to interpret",
            "输出均值 0、方差 1，更好解读",
            (
                Check(
                    "tenfold",
                    ">",
                    9.0,
                    "last layer tenfold: the output grows so many times",
                    "末层放大十倍：输出的倍数",
                ),
                Check(
                    "output_sizes_spread",
                    ">",
                    1.5,
                    "largest spread of a row over the smallest",
                    "各行标准差，最大比最小",
                ),
            ),
            Verdict.REFUTED,
            errors=("E46.2",),
        ),
        Claim(
            "gradients",
            "gradients pass better",
            "梯度传得更顺",
            (
                Check(
                    "deepnorm_uneven",
                    "<",
                    EVEN,
                    "last over first gradient: distance from 1",
                    "末层比首层的梯度：与 1 之差",
                ),
                Check("deepnorm_spread", "<", 1.5, "largest over smallest gradient", "最大梯度比最小梯度"),
                Check("post_spread", ">", 2.0, "the same in Post-LN", "Post-LN：同上"),
                Check("pre_spread", ">", 2.0, "the same in Pre-LN", "Pre-LN：同上"),
            ),
            kind="aside",
        ),
        Claim(
            "learning rate",
            "the learning rate matters less",
            "不那么挑学习率",
            (
                Check("deepnorm_rates", "==", 3.0, "rates of three at which it learns", "三档学习率中能学的档数"),
                Check("post_rates", "==", 0.0, "the same of Post-LN", "Post-LN：同上"),
            ),
            kind="aside",
        ),
        Claim(
            "learning rate, trained",
            "24 layers: DeepNorm learns at the middle rate, Post-LN at none of three",
            "24 层：DeepNorm 在中档学习率下能学，Post-LN 三档皆不能",
            (
                Check(
                    "deepnorm_middle_learnt_lower",
                    ">",
                    0.1,
                    "DeepNorm: bits per byte beyond frequencies, 95 % bound",
                    "DeepNorm：词频之外学到的比特，95% 下界",
                ),
                Check(
                    "post_any_rate_upper",
                    "<",
                    0.1,
                    "Post-LN: the same at its best rate, 95 % bound",
                    "Post-LN 的最佳一档：同上，95% 上界",
                ),
            ),
            kind="aside",
            race="wiring",
        ),
        Claim(
            "not the widest",
            "of all wirings it minds the learning rate least",
            "各种接法中它最不挑学习率",
            (
                Check(
                    "pre_minus_deepnorm_fast_upper",
                    "<",
                    0.0,
                    "fast rate: Pre-LN minus DeepNorm, bits per byte, 95 % bound",
                    "快档学习率：Pre-LN 减 DeepNorm，每字节比特，95% 上界",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            race="wiring",
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("wiring",),
    raced=raced,
    uses=("llmlab/model/block.py", "llmlab/model/initial.py", "llmlab/handbook/literal/deepnorm.py"),
    settings={
        "gradients": [LAYERS, SEEDS, SUBLAYERS, TOWER_SEEDS],
        "trained": [TRAINED, STEPS, *RATES, DIM, BATCH],
    },
)
