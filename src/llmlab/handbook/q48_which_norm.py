"""Question 48: which normalisation each model uses, found by scaling: an X-ray of 17 models of our own family files."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from llmlab.handbook.measures import draw, gap, power
from llmlab.handbook.published import TABLE, VOCABULARY, Row, published
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.interpret.xray import xray
from llmlab.model.block import Block
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.stages import Session

EXACT = 1e-12
CARRIED, HIDDEN = 5.0, 2.0  # a stream that grows tenfold is carried on, or hidden by a norm
WIRINGS = ("post", "pre", "sandwich", "parallel", "deepnorm")
NORMS = ("layernorm", "rmsnorm")


def _code(found: Any, names: tuple[str, ...]) -> float:
    """Its place in the list; -1 for anything else, a mixture over layers included."""
    return float(names.index(found)) if isinstance(found, str) and found in names else -1.0


def _probed(row: Row, model: Transformer) -> Figures:
    findings = {one.name: one for one in xray(model)}
    probes = list(findings["wiring"].evidence.values())
    return {
        f"{row.name}: {what}": value
        for what, value in (
            ("wiring", _code(findings["wiring"].found, WIRINGS)),
            ("norm", _code(findings["norm"].found, NORMS)),
            ("embedding norm", float(findings["embedding norm"].found)),
            ("final norm", float(findings["final norm"].found)),
            ("query and key norm", float(findings["query and key norm"].found)),
            ("norms a block", float(findings["norms a block"].found)),
            ("alpha", float(findings["alpha"].found)),
            ("encoder layers", float(findings["encoder layers"].found)),
            ("stream tenfold", probes[0]),
            ("part tenfold", probes[2]),
        )
    }


def _as_published(row: Row, found: Figures) -> bool:
    said = {
        "wiring": WIRINGS.index(row.wiring),
        "norm": NORMS.index(row.norm),
        "embedding norm": row.embedding,
        "final norm": row.final,
        "query and key norm": row.heads,
    }
    return all(found[f"{row.name}: {what}"] == value for what, value in said.items())


@torch.no_grad()
def _norm_itself(model: Transformer, seed: int, name: str) -> Figures:
    """The norm of a first block against LayerNorm's formula, and what one token's edit does to another's answer."""
    block = model.blocks[0]
    assert isinstance(block, Block)
    norm = block.attention_norm.double()
    assert isinstance(norm, nn.LayerNorm)
    x_TD = draw(seed, f"q48.{name}.x", 6, model.architecture.dim)
    edited_TD = torch.cat((-3 * x_TD[:1], x_TD[1:]))
    centred_TD = x_TD - x_TD.mean(-1, keepdim=True)
    by_hand = centred_TD / (centred_TD.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias
    return {f"{name}_gap": gap(norm(x_TD), by_hand), f"{name}_heard": gap(norm(edited_TD)[1:], norm(x_TD)[1:])}


def _known(seed: int) -> float:
    """At how many of our wirings, each built by its name, the probe is wrong: DeepNorm with a factor of 3."""
    wrong = 0
    for kind in WIRINGS:
        wiring = {"kind": kind, "alpha": 3.0} if kind == "deepnorm" else kind
        for norm in NORMS:
            told = {"layers": 2, "dim": 32, "context": 32, "norm": norm, "wiring": wiring}
            findings = {one.name: one.found for one in xray(parse(Architecture, told).build(VOCABULARY, seed))}
            wrong += (findings["wiring"], findings["norm"]) != (kind, norm)
    return float(wrong)


def figures(session: Session) -> Figures:
    seed = session.seed
    models = {row.name: published(row, seed) for row in TABLE}
    out: Figures = {}
    for row in TABLE:
        out |= _probed(row, models[row.name])
    return {
        **out,
        "models": float(len(TABLE)),
        "unlike_published": float(sum(not _as_published(row, out) for row in TABLE)),
        "wirings": float(len({out[f"{row.name}: wiring"] for row in TABLE})),
        "without_layernorm": float(sum(out[f"{row.name}: norm"] == 1 for row in TABLE)),
        "probe_wrong": _known(seed),
        **_norm_itself(models["GPT-1"], seed, "gpt1"),
        **_norm_itself(models["GPT-2"], seed, "gpt2"),
        **_norm_itself(models["XLNet"], seed, "xlnet"),
    }


def evidence(f: Mapping[str, float]) -> Text:
    groups: dict[tuple[float, float], list[str]] = {}
    for row in TABLE:
        marks = [mark for mark in ("embedding norm", "query and key norm") if f[f"{row.name}: {mark}"] == 1]
        star = {0: "", 1: "*" if "embedding norm" in marks else "†", 2: "*†"}[len(marks)]
        groups.setdefault((f[f"{row.name}: wiring"], f[f"{row.name}: norm"]), []).append(row.name + star)
    shown = {
        (WIRINGS[int(wiring)] if wiring in range(len(WIRINGS)) else "?")
        + " "
        + ({0.0: "LayerNorm", 1.0: "RMSNorm"}.get(norm, "?")): names
        for (wiring, norm), names in sorted(groups.items())
    }
    en = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in shown.items())
    zh = "；".join(f"{kind}：{'、'.join(names)}" for kind, names in shown.items())
    carried, hidden = f["GPT-2: stream tenfold"], f["GPT-1: stream tenfold"]
    return Text(
        f"{f['models']:.0f} models probed, {f['unlike_published']:.0f} unlike the papers. {en} (* norm on the "
        f"embeddings, † on queries and keys). A stream ten times as large leaves a block of GPT-2 {carried:.1f} times "
        f"as large, one of GPT-1 {hidden:.1f} times, one of XLNet {f['XLNet: stream tenfold']:.1f} times; GPT-2's norm "
        f"is LayerNorm to {power(f['gpt2_gap'])}, and XLNet's hears of no other token ({power(f['xlnet_heard'])}).",
        f"探查了 {f['models']:.0f} 个模型，与论文不符的有 {f['unlike_published']:.0f} 个。{zh}（* 表示词嵌入后另有归"
        f"一化，"
        f"† 表示查询与键上另有）。残差流放大十倍，GPT-2 的块输出放大 {carried:.1f} 倍，GPT-1 为 {hidden:.1f} 倍，"
        f"XLNet 为 "
        f"{f['XLNet: stream tenfold']:.1f} 倍；GPT-2 的归一化与 LayerNorm 公式相差 {power(f['gpt2_gap'])}，XLNet 的"
        f"归一化"
        f"不受其他词元影响（{power(f['xlnet_heard'])}）。",
    )


QUESTION = Question(
    number=48,
    tier="seconds",
    claim=Text(
        "BERT and RoBERTa: LayerNorm in every encoder layer. The GPT series: a variant named GPT-Norm, a LayerNorm "
        "after each sublayer. XLNet: a token-wise LayerNorm in encoder layers and a segment-wise one after the "
        "self-attention of decoder layers.",
        "BERT 与 RoBERTa：编码器每层都用 LayerNorm。GPT 系列：用一个叫 GPT-Norm 的变种，放在各子层之后。XLNet：编码"
        "器层用"
        "词元级的，解码器层的自注意力之后用片段级的。",
    ),
    correction=Text(
        "There is no GPT-Norm. GPT-1 is Post-LN; GPT-2 and 3 put a plain LayerNorm before each sublayer and one after "
        "the last block. XLNet is Post-LN with one plain LayerNorm after each addition; it has no decoder layers, and "
        "its segments are a matter of encoding and recurrence. BERT and RoBERTa are Post-LN with one more norm on the "
        "embeddings. Missing: pre-RMSNorm in T5, LLaMA, Mistral, Qwen, Baichuan, SmolLM2 and ChatGLM2; an embedding "
        "norm before Pre-LN in BLOOM; DeepNorm's wiring in GLM-130B and ChatGLM-6B; parallel branches in GPT-NeoX, "
        "PaLM and Falcon; both ends of the branch in Gemma 2 and 3; OPT-350M, which is post where its siblings are "
        "pre; OLMo 2, with norms on the branch's output.",
        "并没有 GPT-Norm。GPT-1 是 Post-LN；GPT-2、GPT-3 把普通 LayerNorm 放在每个子层之前，末块之后再加一个。XLNet "
        "也是 "
        "Post-LN，每次相加后接一个普通 LayerNorm；它没有解码器层，所谓片段是编码与循环机制的事。BERT、RoBERTa 是 "
        "Post-LN，"
        "词嵌入后还多一个归一化。遗漏的有：T5、LLaMA、Mistral、Qwen、Baichuan、SmolLM2、ChatGLM2 用前置 RMSNorm；"
        "BLOOM 在 "
        "Pre-LN 之外对词嵌入归一化；GLM-130B 与 ChatGLM-6B 用 DeepNorm 式接法；GPT-NeoX、PaLM、Falcon 两支并行；"
        "Gemma 2、"
        "3 在分支两端都放；OPT-350M 后置，与同系列相反；OLMo 2 放在分支的输出上。",
    ),
    run=Text(
        "Models of 17 published kinds, from our own family files (each equal to its reference in tests), cut small, "
        "with random weights, gains and biases. Found by experiment, not by name: the stream tenfold, a part's answer "
        "tenfold, a constant added to a norm's input. The same probe on models whose wiring is known.",
        "17 种已发布的模型，取自本库的模型族文件（测试中逐一与参照实现核对相等），缩小尺寸，权重、增益、偏置全部随"
        "机。靠实"
        "验而非名称判断：残差流放大十倍，子层输出放大十倍，归一化的输入加上常数。另用接法已知的模型检验这套探查。",
    ),
    papers=(
        "Devlin et al. 2018, BERT, arXiv 1810.04805",
        "Liu et al. 2019, RoBERTa, arXiv 1907.11692",
        "Yang et al. 2019, XLNet, arXiv 1906.08237",
        "Brown et al. 2020, GPT-3 (GPT-2's architecture, section 2.1), arXiv 2005.14165",
        "Raffel et al. 2020, T5, arXiv 1910.10683",
        "Touvron et al. 2023, LLaMA, arXiv 2302.13971",
        "Le Scao et al. 2022, BLOOM, arXiv 2211.05100",
        "Black et al. 2022, GPT-NeoX-20B, arXiv 2204.06745",
        "Zeng et al. 2022, GLM-130B, arXiv 2210.02414",
        "Gemma Team 2025, Gemma 3, arXiv 2503.19786",
    ),
    errors={"E48.1": "W", "E48.2": "W", "E48.3": "W", "E48.4": "I"},
    claims=(
        Claim(
            "GPT-Norm",
            "the GPT series has a norm of its own, GPT-Norm",
            "GPT 系列用自己的变种 GPT-Norm",
            (
                Check("gpt1_gap", "<", EXACT, "GPT-1's norm against LayerNorm", "GPT-1 的归一化与 LayerNorm 之差"),
                Check("gpt2_gap", "<", EXACT, "GPT-2's norm against LayerNorm", "GPT-2 的归一化与 LayerNorm 之差"),
            ),
            Verdict.REFUTED,
            errors=("E48.1",),
        ),
        Claim(
            "after each sublayer",
            "in the GPT series it stands after each sublayer",
            "GPT 系列把它放在各子层之后",
            (
                Check(
                    "GPT-2: stream tenfold",
                    ">",
                    CARRIED,
                    "GPT-2: a stream ten times as large leaves a block so many times as large",
                    "GPT-2：残差流放大十倍，块输出的倍数",
                ),
                Check("GPT-2: part tenfold", ">", CARRIED, "GPT-2: a part's answer tenfold", "GPT-2：子层输出放大十倍"),
                Check("GPT-2: final norm", "==", 1.0, "GPT-2: a norm after the last block", "GPT-2：末块之后的归一化"),
                Check(
                    "GPT-1: stream tenfold",
                    "<",
                    HIDDEN,
                    "GPT-1 alone: the stream tenfold",
                    "唯 GPT-1：残差流放大十倍",
                ),
            ),
            Verdict.REFUTED,
            errors=("E48.2",),
        ),
        Claim(
            "two kinds in XLNet",
            "XLNet has a token-wise norm in encoder layers, a segment-wise one in decoder layers",
            "XLNet 编码器层用词元级、解码器层用片段级",
            (
                Check("xlnet_gap", "<", EXACT, "its norm against plain LayerNorm", "其归一化与普通 LayerNorm 之差"),
                Check("xlnet_heard", "==", 0.0, "what it hears of other tokens", "受其他词元的影响"),
                Check("XLNet: stream tenfold", "<", HIDDEN, "Post-LN: the stream tenfold", "Post-LN：残差流放大十倍"),
                Check("XLNet: norms a block", "==", 2.0, "norms a block", "每块的归一化个数"),
                Check("XLNet: encoder layers", "==", 0.0, "layers of an encoder beside", "另设的编码器层数"),
            ),
            Verdict.REFUTED,
            errors=("E48.3",),
        ),
        Claim(
            "what is missing",
            "with these four the picture is told",
            "说完这四家便算齐全",
            (
                Check("BERT: embedding norm", "==", 1.0, "BERT: a norm on the embeddings", "BERT：词嵌入后的归一化"),
                Check("RoBERTa: embedding norm", "==", 1.0, "RoBERTa: the same", "RoBERTa：同上"),
                Check("wirings", "==", 5.0, "wirings found", "找到的接法种数"),
                Check("without_layernorm", ">", 7.5, "models with RMSNorm instead", "改用 RMSNorm 的模型数"),
            ),
            Verdict.CORRECTED,
            errors=("E48.4",),
        ),
        Claim(
            "BERT and RoBERTa",
            "BERT and RoBERTa have the original Transformer's LayerNorm in each layer",
            "BERT 与 RoBERTa 各层沿用原版 Transformer 的 LayerNorm",
            (
                Check("BERT: norm", "==", 0.0, "BERT: LayerNorm is 0", "BERT：LayerNorm 记 0"),
                Check("RoBERTa: norm", "==", 0.0, "RoBERTa: the same", "RoBERTa：同上"),
                Check(
                    "BERT: stream tenfold",
                    "<",
                    HIDDEN,
                    "BERT, Post-LN: the stream tenfold",
                    "BERT，Post-LN：残差流放大十倍",
                ),
                Check("RoBERTa: stream tenfold", "<", HIDDEN, "RoBERTa: the same", "RoBERTa：同上"),
            ),
            kind="aside",
        ),
        Claim(
            "instrument",
            "the probe finds what is known",
            "这套探查能认出已知的接法",
            (
                Check("probe_wrong", "==", 0.0, "ten models of known wiring: misjudged", "十个接法已知的模型：误判数"),
                Check(
                    "unlike_published",
                    "==",
                    0.0,
                    "published models: unlike the papers",
                    "已发布的模型：与论文不符者",
                ),
            ),
            kind="control",
        ),
    ),
    figures=figures,
    evidence=evidence,
    uses=(
        "llmlab/interpret/xray.py",
        "llmlab/interpret/wiring.py",
        "llmlab/families/mapping.py",
        "llmlab/model/block.py",
    ),
    settings={"models": [[row.name, row.model_type, dict(row.config)] for row in TABLE]},
)
