"""Question 45: DeepNorm in code. What is printed runs, and is a plain network without a single skip."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmlab.handbook.depth import initial_ratios, texts, untrained
from llmlab.handbook.literal.deepnorm import NormedMLP
from llmlab.handbook.measures import draw, gap, parameters, power
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.towers import BATCH, CLASSES, DIM, HELD_OUT, Tower, frequencies, learnt
from llmlab.model.block import DeepNorm, deepnorm
from llmlab.runtime import derive
from llmlab.stages import Session

EXACT = 1e-12
ROWS, INPUTS, HIDDEN, OUTPUTS = 32, 100, [64, 32], 10  # the handbook's example
DEPTHS, SEEDS = (8, 32, 64), 3
STEPS, RATE = 45, 2e-3
STUDENT = 4.303  # 97.5 % point of Student's t with 2 degrees of freedom


@torch.no_grad()
def _silence(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.zero_()


def _seeded(seed: int, network: NormedMLP) -> NormedMLP:
    """torch's own initial weights, of this seed: uniform up to 1 / sqrt(fan-in)."""
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            key = torch.Generator().manual_seed(derive(seed, "handbook", "q45", name))
            nn.init.uniform_(parameter, -(parameter.shape[1] ** -0.5), parameter.shape[1] ** -0.5, generator=key)
        elif name.startswith("linears") or name.startswith("last"):
            nn.init.zeros_(parameter)
    return network


def _jacobian(function: nn.Module, x: Tensor) -> float:
    """The largest derivative of an output by an input."""
    jacobian: Tensor = torch.autograd.functional.jacobian(function, x)  # type: ignore[no-untyped-call]
    return float(jacobian.abs().max())


def _skips(seed: int) -> Figures:
    """What the output still owes to the input when all weight matrices are 0."""
    printed = _seeded(seed, NormedMLP(INPUTS, HIDDEN, OUTPUTS)).double()
    block = Tower(DeepNorm(), 2, DIM, DIM // 2, seed).double()
    x, y = draw(seed, "q45.x", 2, INPUTS), draw(seed, "q45.y", 2, DIM)
    before = _jacobian(printed, x)
    _silence(printed)
    _silence(block)
    return {
        "printed_jacobian": before,
        "printed_jacobian_silenced": _jacobian(printed, x),
        "deepnorm_jacobian_silenced": _jacobian(block, y),
    }


@torch.no_grad()
def _other_norm(seed: int) -> Figures:
    """The same network with LayerNorm and with BatchNorm: one row edited, and testing mode."""
    x = draw(seed, "q45.rows", ROWS, INPUTS)
    edited = torch.cat((-x[:1], x[1:]))
    out: Figures = {}
    for name, norm in (("layer", nn.LayerNorm), ("batch", nn.BatchNorm1d)):
        network = _seeded(seed, NormedMLP(INPUTS, HIDDEN, OUTPUTS, norm)).double()
        trained = network.train()(x)
        out[f"rows_heard_{name}"] = gap(network(edited)[1:], trained[1:])
        out[f"train_test_gap_{name}"] = gap(network.eval()(x), trained)
    return out


def _real(seed: int) -> Figures:
    """Ours with alpha = beta = 1 against Post-LN, and its initial weights against the paper's beta."""
    layers, ids_BT = 6, texts(seed)[0]
    one = untrained({"kind": "deepnorm", "alpha": 1.0, "beta": 1.0}, layers, seed)
    scaled, left = initial_ratios(layers, seed)
    beta = deepnorm(layers)[1]
    return {
        "post_gap": gap(one(ids_BT), untrained("post", layers, seed)(ids_BT)),
        "deepnorm_from_post": gap(untrained("deepnorm", layers, seed)(ids_BT), one(ids_BT)),
        "scaled_lowest": min(scaled) / beta,
        "scaled_highest": max(scaled) / beta,
        "left_lowest": min(left),
        "left_highest": max(left),
    }


# ---------------------------------------------------------------- trained


def _pair(depth: int, seed: int) -> tuple[nn.Module, nn.Module]:
    """So many layers as printed, and so many sublayers of DeepNorm, of the same parameters within 2 %."""
    head = nn.Linear(DIM, CLASSES)
    printed = _seeded(seed, NormedMLP(DIM, [DIM] * depth, CLASSES))
    head.load_state_dict(printed.last.state_dict())
    return printed, nn.Sequential(Tower(DeepNorm(), depth, DIM, DIM // 2, seed, bias=True), head)


def _trained(seed: int) -> Figures:
    seeds = range(seed, seed + SEEDS)
    out: Figures = {"frequencies": sum(frequencies(one, STEPS) for one in seeds) / SEEDS}
    for depth in DEPTHS:
        pairs = [_pair(depth, one) for one in seeds]
        losses = torch.tensor(
            [[learnt(net, one, STEPS, RATE) for net in pair] for pair, one in zip(pairs, seeds, strict=True)]
        )
        apart = losses[:, 0] - losses[:, 1]
        out[f"printed_{depth}"], out[f"deepnorm_{depth}"] = losses.mean(0).tolist()
        out[f"apart_{depth}_lower"] = float(apart.mean() - STUDENT * apart.std() / SEEDS**0.5)
        out[f"parameter_ratio_{depth}"] = parameters(pairs[0][1]) / parameters(pairs[0][0])
    deepest = DEPTHS[-1]
    out["printed_learnt"] = out["frequencies"] - out[f"printed_{deepest}"]
    out["deepnorm_learnt"] = out["frequencies"] - out[f"deepnorm_{deepest}"]
    return out


def figures(session: Session) -> Figures:
    seed = session.seed
    rows, columns = _seeded(seed, NormedMLP(INPUTS, HIDDEN, OUTPUTS))(draw(seed, "q45.in", ROWS, INPUTS).float()).shape
    shape = {"rows": float(rows), "columns": float(columns)}
    return {**shape, **_skips(seed), **_other_norm(seed), **_real(seed), **_trained(seed)}


def evidence(f: Mapping[str, float]) -> Text:
    return Text(
        f"The printed network answers 32 rows with {f['rows']:.0f} x {f['columns']:.0f} numbers; with its matrices "
        f"at 0 "
        f"its derivative by the input is {power(f['printed_jacobian_silenced'])}, that of a DeepNorm block "
        f"{f['deepnorm_jacobian_silenced']:.2f}. Loss on fresh examples at 8, 32 and 64 layers: printed "
        f"{f['printed_8']:.2f}, {f['printed_32']:.2f}, {f['printed_64']:.2f} (class frequencies alone "
        f"{f['frequencies']:.2f}); DeepNorm of the same size {f['deepnorm_8']:.2f}, {f['deepnorm_32']:.2f}, "
        f"{f['deepnorm_64']:.2f}.",
        f"手册的网络对 32 行输入给出 {f['rows']:.0f}×{f['columns']:.0f} 的输出；矩阵全部归零后，它对输入的导数为 "
        f"{power(f['printed_jacobian_silenced'])}，而 DeepNorm 块仍有 {f['deepnorm_jacobian_silenced']:.2f}。在 8、"
        f"32、64 "
        f"层时新样本上的损失：手册的网络 {f['printed_8']:.2f}、{f['printed_32']:.2f}、{f['printed_64']:.2f}（只知类"
        f"别频率"
        f"为 {f['frequencies']:.2f}），同样大小的 DeepNorm {f['deepnorm_8']:.2f}、{f['deepnorm_32']:.2f}、"
        f"{f['deepnorm_64']:.2f}。",
    )


QUESTION = Question(
    number=45,
    tier="seconds",
    claim=Text(
        "A PyTorch class named DeepNorm: a list of linear layers and a list of LayerNorms, run through as linear, "
        "norm, ReLU, then an output layer; the example maps 100 inputs over 64 and 32 to 10. Other norms, BatchNorm "
        "among them, could stand in.",
        "一个名为 DeepNorm 的 PyTorch 类：一组线性层加一组 LayerNorm，逐层执行线性、归一化、ReLU，最后接输出层；示例把 "
        "100 维输入经 64、32 映到 10 维。又说换成 BatchNorm 等别的归一化也行。",
    ),
    correction=Text(
        "That is a multi-layer perceptron with LayerNorm: no residual, no α, no β, no attention. In DeepNorm every "
        "sublayer ends with x = norm(α·x + part(x)), and the initial weights of value, output and feed-forward are "
        "multiplied by β while query and key are left; α = β = 1 is Post-LN. The norm is LayerNorm: BatchNorm would "
        "tie the rows of a batch together and compute another function at test.",
        "那只是带 LayerNorm 的多层感知机：没有残差，没有 α 与 β，也没有注意力。DeepNorm 的每个子层都以 "
        "x = norm(α·x + part(x)) 收尾，值、输出、前馈各矩阵的初始权重乘以 β，查询与键不乘；α = β = 1 便退回 Post-LN。其"
        "归一化即 LayerNorm：若换成 BatchNorm，一批样本会彼此牵连，测试时算的也不再是同一个函数。",
    ),
    run=Text(
        "The printed code, rebuilt, on its own example; all weight matrices at 0, in it and in a block of ours, and "
        "what derivative is left; BatchNorm in its place; ours with α = β = 1 against Post-LN, and its initial "
        "weights; both trained for 45 steps at 8, 32 and 64 layers with parameters equal within 2 %, three seeds.",
        "重建手册的代码并跑它自己的例子；把它与本库的块的权重矩阵全部归零，看还剩多少导数；换上 BatchNorm；以 α = β "
        "= 1 "
        "的本库实现对照 Post-LN，并核对初始权重；再让两者在 8、32、64 层上各训练 45 步，参数量相差不超过 2%，三个种"
        "子。",
    ),
    papers=(
        "Wang et al. 2022, DeepNet: Scaling Transformers to 1,000 Layers, figure 2, arXiv 2203.00555",
        "He et al. 2015, Deep Residual Learning, arXiv 1512.03385",
        "Ioffe & Szegedy 2015, Batch Normalization, arXiv 1502.03167",
    ),
    errors={"E45.1": "W", "E45.2": "M"},
    claims=(
        Claim(
            "skip",
            "this code is DeepNorm",
            "这段代码就是 DeepNorm",
            (
                Check(
                    "printed_jacobian_silenced",
                    "==",
                    0.0,
                    "printed code, matrices at 0: derivative by the input",
                    "手册代码，矩阵归零：对输入的导数",
                ),
                Check("printed_jacobian", ">", 0.01, "the same with its weights", "同上，权重保留"),
                Check(
                    "deepnorm_jacobian_silenced",
                    ">",
                    0.1,
                    "DeepNorm, matrices at 0: derivative by the input",
                    "DeepNorm，矩阵归零：对输入的导数",
                ),
            ),
            Verdict.REFUTED,
            errors=("E45.1",),
        ),
        Claim(
            "depth",
            "it does what DeepNorm does: deep networks train",
            "它有 DeepNorm 之效：深层网络训得动",
            (
                Check("printed_learnt", "<", 0.1, "64 layers as printed: nats learnt", "照手册的 64 层：学到的奈特数"),
                Check("deepnorm_learnt", ">", 0.3, "64 sublayers of DeepNorm: the same", "DeepNorm 的 64 个子层：同上"),
                Check("apart_32_lower", ">", 0.0, "loss apart at 32, 95 % bound", "32 层时损失之差，95% 下界"),
                Check("apart_64_lower", ">", 0.0, "loss apart at 64, 95 % bound", "64 层时损失之差，95% 下界"),
            ),
            Verdict.REFUTED,
        ),
        Claim(
            "BatchNorm",
            "BatchNorm would do in its place",
            "换成 BatchNorm 也可",
            (
                Check(
                    "rows_heard_batch",
                    ">",
                    0.01,
                    "BatchNorm: one row edited, the others' change",
                    "BatchNorm：改一行，其余行的变化",
                ),
                Check(
                    "train_test_gap_batch", ">", 0.1, "BatchNorm: training against testing", "BatchNorm：训练与测试之差"
                ),
                Check("rows_heard_layer", "==", 0.0, "LayerNorm: the others' change", "LayerNorm：其余行的变化"),
                Check(
                    "train_test_gap_layer",
                    "==",
                    0.0,
                    "LayerNorm: training against testing",
                    "LayerNorm：训练与测试之差",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E45.2",),
        ),
        Claim(
            "runs",
            "the example runs",
            "示例能够运行",
            (
                Check("rows", "==", 32.0, "rows of the answer", "输出的行数"),
                Check("columns", "==", 10.0, "columns", "列数"),
            ),
            kind="aside",
        ),
        Claim(
            "the real one",
            "with α = β = 1 ours is Post-LN, and its initial weights have the paper's β",
            "α = β = 1 时即为 Post-LN，初始权重带论文的 β",
            (
                Check(
                    "post_gap", "<", EXACT, "α = β = 1 against Post-LN: logits", "α = β = 1 与 Post-LN 的 logits 之差"
                ),
                Check("deepnorm_from_post", ">", 0.01, "with the paper's α and β: the same", "取论文的 α、β：同上"),
                Check(
                    "scaled_lowest",
                    ">",
                    0.95,
                    "value, output, feed-forward: smallest over β",
                    "值、输出、前馈：最小者与 β 之比",
                ),
                Check("scaled_highest", "<", 1.05, "largest over β", "最大者与 β 之比"),
                Check("left_lowest", ">", 0.95, "query and key: smallest", "查询与键：最小者"),
                Check("left_highest", "<", 1.05, "largest", "最大者"),
            ),
            kind="control",
        ),
    ),
    figures=figures,
    evidence=evidence,
    uses=("llmlab/handbook/literal/deepnorm.py", "llmlab/model/block.py", "llmlab/model/initial.py"),
    settings={
        "example": [ROWS, INPUTS, *HIDDEN, OUTPUTS],
        "trained": [DIM, CLASSES, STEPS, BATCH, HELD_OUT, RATE],
        "depths": list(DEPTHS),
        "seeds": SEEDS,
    },
)
