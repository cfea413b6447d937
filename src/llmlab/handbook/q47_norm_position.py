"""Question 47: does it matter where LayerNorm sits? Very much: after the addition, or inside the branch."""

from collections.abc import Mapping

import torch
from torch import nn

from llmlab.handbook.depth import DIM, Start, architecture, geometric, slope, start, texts
from llmlab.handbook.measures import draw, relative
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.handbook.towers import Tower, gradients_of, tower_gradients
from llmlab.model.block import Post, Pre, Wired
from llmlab.model.embedding import Embedding
from llmlab.model.transformer import Transformer
from llmlab.stages import Session

DEPTHS, SEEDS = (4, 16, 64), 3
SUBLAYERS = (8, 32, 128)
FLAT = 0.2  # exponent of depth below which a gradient is called independent of it; theory 0
OFF = 0.15  # how far Pre-LN's exponent may lie from the theory's -1/2
SAME = 1e-3  # share of its size by which an answer may move where a norm stands between
STUCK = 0.1  # bits per byte beyond token frequencies up to which a model is called stuck
KINDS = ("post", "pre", "sandwich", "deepnorm")


def _depths(seed: int) -> Figures:
    """The last block's gradient and the stream's size, in whole models."""
    seeds = range(seed, seed + SEEDS)
    out: Figures = {}
    for kind in KINDS:
        found: dict[int, list[Start]] = {n: [start(kind, n, one) for one in seeds] for n in DEPTHS}
        last = [geometric([one.gradients[-1] for one in found[n]]) for n in DEPTHS]
        out |= {f"{kind}_last_{n}": value for n, value in zip(DEPTHS, last, strict=True)}
        out[f"{kind}_last_slope"] = slope(DEPTHS, last)
        deepest = found[DEPTHS[-1]]
        out[f"{kind}_stream_first"] = geometric([one.stream[0] for one in deepest])
        out[f"{kind}_stream_last"] = geometric([one.stream[-1] for one in deepest])
    out["pre_last_off"] = abs(out["pre_last_slope"] + 0.5)
    out["post_last_bend"] = abs(out["post_last_slope"])
    return out


def _towers(seed: int) -> Figures:
    """The same gradient in towers of feed-forwards, where attention has no part."""
    pair: dict[str, Wired] = {"post": Post(), "pre": Pre()}
    out: Figures = {}
    for name, wiring in pair.items():
        last = [
            sum(tower_gradients(wiring, n, one)[-1] for one in range(seed, seed + SEEDS)) / SEEDS for n in SUBLAYERS
        ]
        out |= {f"{name}_tower_{n}": value for n, value in zip(SUBLAYERS, last, strict=True)}
        out[f"{name}_tower_slope"] = slope(SUBLAYERS, last)
    return out


def _without(seed: int) -> Figures:
    """The first gradient of a tower 64 sublayers deep over that of one 8 deep: with its norms, and with none."""

    def first(sublayers: int, bare: bool) -> float:
        tower = Tower(Pre(), sublayers, DIM, 4 * DIM, seed).double()
        for module in list(tower.modules()) if bare else ():
            for name, child in list(module.named_children()):
                if isinstance(child, nn.LayerNorm):
                    setattr(module, name, nn.Identity())
        return gradients_of(tower, seed, DIM)[0]

    return {f"{name}_growth": first(64, bare) / first(8, bare) for name, bare in (("bare", True), ("normed", False))}


@torch.no_grad()
def _ends(seed: int) -> Figures:
    """What a tenfold change does at both ends: of the embeddings, of the last hidden states, of the head."""
    ids_BT, _ = texts(seed)
    base = architecture("pre", 4)
    models: dict[str, Transformer] = {
        name: base.model_copy(update={"embedding": Embedding(norm=norm), "tied": False}).build(64, seed).double()
        for name, norm in (("plain", False), ("normed", True))
    }
    out: Figures = {}
    for name, model in models.items():
        before = model(ids_BT)
        model.embedding.weight.mul_(10)
        far = model(ids_BT)
        model.embedding.weight.mul_(10)
        out[f"input_moves_{name}"] = relative(model(ids_BT), far)
        model.embedding.weight.div_(100)
        if name == "plain":
            stream_BTD = draw(seed, "q47.stream", *ids_BT.shape, DIM)
            at_the_end = model.logits(model.final_norm(stream_BTD))
            out["output_moves"] = relative(model.logits(model.final_norm(10 * stream_BTD)), at_the_end)
            assert model.head is not None
            model.head.weight.mul_(10)
            out["head_tenfold"] = float(model(ids_BT).norm() / before.norm())
    return out


def figures(session: Session) -> Figures:
    seed = session.seed
    return {**_depths(seed), **_towers(seed), **_without(seed), **_ends(seed)}


def raced(told: Mapping[str, Told]) -> Figures:
    wiring, measure = told["wiring"], "bits_per_byte"
    rates = [f"post, {rate}, cold" for rate in ("slow", "middle", "fast")]
    learnt = {arm: wiring.difference("blind", arm, measure) for arm in (*rates, "post, middle, warm")}
    pre = wiring.difference("post, fast, cold", "pre, fast, cold", measure)
    warmed = wiring.difference("post, shallow, cold", "post, shallow, warm", measure)
    best = {kind: min(wiring.mean(f"{kind}, {rate}, cold", measure) for rate in ("middle", "fast")) for kind in KINDS}
    return {
        "post_deep_learnt_upper": max(one.high for one in learnt.values()),
        "post_minus_pre_fast": pre.mean,
        "post_minus_pre_fast_lower": pre.low,
        "warmup_worth_shallow": warmed.mean,
        "warmup_worth_shallow_lower": warmed.low,
        "blind": wiring.mean("blind", measure),
        **{f"{kind}_best": value for kind, value in best.items()},
    }


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"Gradient of the last block at {DEPTHS[0]}, {DEPTHS[1]} and {DEPTHS[2]} layers: Post-LN "
        f"{f['post_last_4']:.2f}, {f['post_last_16']:.2f}, {f['post_last_64']:.2f} (depth to the "
        f"{f['post_last_slope']:+.2f}); Pre-LN {f['pre_last_4']:.3f}, {f['pre_last_16']:.3f}, {f['pre_last_64']:.3f} "
        f"({f['pre_last_slope']:+.2f}; theory 0 and -0.5). Over {DEPTHS[2]} layers the stream's variance goes from "
        f"{f['pre_stream_first']:.2f} to {f['pre_stream_last']:.0f} in Pre-LN and stays {f['post_stream_last']:.2f} in "
        f"Post-LN. Without any norm the first gradient grows {f['bare_growth']:.1e} times from 8 to 64 sublayers."
    )
    zh = (
        f"在 {DEPTHS[0]}、{DEPTHS[1]}、{DEPTHS[2]} 层时，末块的梯度：Post-LN 为 {f['post_last_4']:.2f}、"
        f"{f['post_last_16']:.2f}、{f['post_last_64']:.2f}（按深度的 {f['post_last_slope']:+.2f} 次方变化），Pre-LN 为 "
        f"{f['pre_last_4']:.3f}、{f['pre_last_16']:.3f}、{f['pre_last_64']:.3f}（{f['pre_last_slope']:+.2f} 次方；理"
        f"论值"
        f"分别为 0 与 -0.5）。走完 {DEPTHS[2]} 层，Pre-LN 残差流的方差由 {f['pre_stream_first']:.2f} 涨到 "
        f"{f['pre_stream_last']:.0f}，Post-LN 始终为 {f['post_stream_last']:.2f}。去掉全部归一化，子层由 8 增至 64 "
        f"时首层"
        f"梯度放大 {f['bare_growth']:.1e} 倍。"
    )
    if "pre_best" in f:
        en += (
            f" Trained, 24 layers without warm-up, bits per byte at the better of two rates: Post-LN "
            f"{f['post_best']:.2f} (token frequencies alone {f['blind']:.2f}), Pre-LN {f['pre_best']:.2f}, Sandwich "
            f"{f['sandwich_best']:.2f}, DeepNorm {f['deepnorm_best']:.2f}."
        )
        zh += (
            f"实际训练 24 层、不作预热，取两档学习率中较好者，每字节比特：Post-LN {f['post_best']:.2f}（只知词频为 "
            f"{f['blind']:.2f}），Pre-LN {f['pre_best']:.2f}，Sandwich {f['sandwich_best']:.2f}，DeepNorm "
            f"{f['deepnorm_best']:.2f}。"
        )
    return Text(en, zh)


QUESTION = Question(
    number=47,
    tier="seconds",
    claim=Text(
        "It can be put at the input, at the output, or in the hidden layers. At the input it steadies the data and "
        "helps generalisation; on the output it lowers the variance of the results and makes predictions more "
        "accurate; between hidden layers it fights vanishing and exploding gradients.",
        "可放在输入端、输出端或隐藏层。放输入端使数据平稳、利于泛化；放输出端减小结果的方差、预测更准；放在隐藏层之"
        "间则对抗"
        "梯度消失与爆炸。",
    ),
    correction=Text(
        "What matters is where it stands in the block. Post-LN, norm(x + part(x)), keeps the stream at variance 1; the "
        "last layers' gradient is as large at any depth, so deep stacks need warm-up and often fail. Pre-LN, x + "
        "part(norm(x)), has a gradient that falls as 1/√L and a stream that grows with depth: it trains without "
        "warm-up, often to a slightly worse end than a Post-LN that did train. Sandwich-LN has norms at both ends of "
        "the branch; DeepNorm is Post-LN with factors. Beside these: a norm on the embeddings (BLOOM), on queries and "
        "keys, and after the last block. That last one acts on hidden states before the head, never on predictions.",
        "关键在于它在块内的位置。Post-LN 即 norm(x + part(x))，残差流方差恒为 1，末层梯度不论多深都一样大，因此深层"
        "须预热，"
        "且常常失败。Pre-LN 即 x + part(norm(x))，末层梯度按 1/√L 减小，残差流随深度增大：无需预热即可训练，但终点往"
        "往略逊"
        "于训练成功的 Post-LN。Sandwich-LN 在分支两端各放一个；DeepNorm 是带系数的 Post-LN。此外还有词嵌入之后"
        "（BLOOM）、查"
        "询与键之上、末块之后的归一化。末块之后那个作用于进入输出头之前的隐藏状态，从不作用于预测值。",
    ),
    run=Text(
        "Untrained models of 4, 16 and 64 layers, four wirings, three seeds: the last block's gradient and the size of "
        "the stream; the same in towers of feed-forwards alone, and in towers whose norms were taken out; tenfold "
        "embeddings, last hidden states and head. Trained: 24 layers of four wirings at several rates without "
        "warm-up, 6 layers of Post-LN with and without.",
        "未训练的 4、16、64 层模型，四种接法，三个种子：末块的梯度与残差流的大小；换成只有前馈的塔再测，并测去掉全部"
        "归一化"
        "的塔；把词嵌入、末层隐藏状态、输出头各放大十倍。另有实际训练：四种接法各 24 层，多档学习率，不作预热；6 层 "
        "Post-LN 分别带与不带预热。",
    ),
    papers=(
        "Xiong et al. 2020, On Layer Normalization in the Transformer Architecture, arXiv 2002.04745",
        "Ding et al. 2021, CogView, arXiv 2105.13290",
        "Wang et al. 2022, DeepNet: Scaling Transformers to 1,000 Layers, arXiv 2203.00555",
        "Le Scao et al. 2022, BLOOM, arXiv 2211.05100",
    ),
    errors={"E47.1": "M", "E47.2": "M", "E47.3": "I"},
    claims=(
        Claim(
            "places",
            "the places are input, output and hidden layers",
            "位置分为输入端、输出端与隐藏层",
            (
                Check(
                    "post_stream_last",
                    "<",
                    1.5,
                    "after the addition: the stream's variance",
                    "在相加之后：残差流方差",
                ),
                Check(
                    "pre_stream_last",
                    ">",
                    10.0,
                    "inside the branch: the same, 64 layers",
                    "在分支之内：同上，64 层",
                ),
                Check("sandwich_stream_last", ">", 10.0, "at both its ends: the same", "在分支两端：同上"),
            ),
            Verdict.CORRECTED,
            errors=("E47.1",),
        ),
        Claim(
            "difference",
            "what difference it makes for gradients and warm-up goes unsaid",
            "对梯度与预热的影响只字未提",
            (
                Check(
                    "post_last_bend",
                    "<",
                    FLAT,
                    "Post-LN: exponent of the last gradient",
                    "Post-LN：末层梯度的指数之大小",
                ),
                Check(
                    "pre_last_off",
                    "<",
                    OFF,
                    "Pre-LN: its exponent's distance from -1/2",
                    "Pre-LN：指数与 -1/2 之差",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E47.3",),
        ),
        Claim(
            "output",
            "on the output it lowers the variance of results",
            "放在输出端可减小结果的方差",
            (
                Check(
                    "output_moves",
                    "<",
                    SAME,
                    "hidden states tenfold: logits change by",
                    "隐藏状态放大十倍：logits 变化",
                ),
                Check("head_tenfold", ">", 9.0, "head tenfold: logits so many times", "输出头放大十倍：logits 的倍数"),
            ),
            Verdict.CORRECTED,
            errors=("E47.2",),
        ),
        Claim(
            "hidden",
            "between hidden layers it keeps gradients from exploding",
            "放在隐藏层之间可防梯度爆炸",
            (
                Check("bare_growth", ">", 100.0, "no norms: first gradient, 64 over 8", "无归一化：首层梯度，64 比 8"),
                Check("normed_growth", "<", 3.0, "with norms: the same", "有归一化：同上"),
            ),
        ),
        Claim(
            "warm-up",
            "Post-LN 24 deep learns nothing at any rate; 6 deep it wants warm-up; Pre-LN needs none",
            "24 层 Post-LN 在各档学习率下都学不动，6 层时须预热；Pre-LN 无此需要",
            (
                Check(
                    "post_deep_learnt_upper",
                    "<",
                    STUCK,
                    "Post-LN: bits per byte beyond frequencies, 95 % bound",
                    "Post-LN：词频之外学到的比特，95% 上界",
                ),
                Check(
                    "post_minus_pre_fast_lower",
                    ">",
                    0.0,
                    "Post-LN minus Pre-LN at the fast rate, 95 % bound",
                    "快档学习率下 Post-LN 减 Pre-LN，95% 下界",
                ),
                Check(
                    "warmup_worth_shallow_lower",
                    ">",
                    0.0,
                    "what warm-up is worth to 6 layers of Post-LN, 95 % bound",
                    "预热给 6 层 Post-LN 的好处，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            race="wiring",
        ),
        Claim(
            "input",
            "at the input it steadies what enters",
            "放在输入端可使输入平稳",
            (
                Check(
                    "input_moves_normed",
                    "<",
                    SAME,
                    "embeddings tenfold, normed: logits change by",
                    "词嵌入放大十倍，有归一化：logits 变化",
                ),
                Check("input_moves_plain", ">", 0.01, "not normed: the same", "无归一化：同上"),
            ),
            kind="aside",
        ),
        Claim(
            "towers",
            "the exponents are those of feed-forwards alone, too",
            "只有前馈的塔亦得同样的指数",
            (
                Check("pre_tower_slope", "<", OFF - 0.5, "Pre-LN: exponent", "Pre-LN：指数"),
                Check("post_tower_slope", ">", -FLAT, "Post-LN: exponent", "Post-LN：指数"),
            ),
            kind="control",
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("wiring",),
    raced=raced,
    uses=("llmlab/model/block.py", "llmlab/model/transformer.py", "llmlab/model/initial.py"),
    settings={"depths": list(DEPTHS), "seeds": SEEDS, "sublayers": list(SUBLAYERS), "dim": DIM},
)
