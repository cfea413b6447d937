"""Question 49: the formula of the feed-forward block. It stands; its input is the hidden state of each position."""

from collections.abc import Mapping

import torch
from torch import Tensor

from llmlab.handbook.costs import spread
from llmlab.handbook.measures import draw, filled, gap, parameters, power
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.model.feedforward import FeedForward, ReLU
from llmlab.stages import Session

EXACT = 1e-12
DIM, ROWS, LENGTH = 32, 2, 7
WIDTHS = {1: "relu, width 1", 2: "relu, width 2", 4: "relu", 8: "relu, width 8"}  # arms by width over model width
DOUBLED = (1, 2, 4)


def _cross_and_own(block: FeedForward, x_TD: Tensor) -> tuple[float, float]:
    """The largest derivative of one position's output by another position's input, and by its own."""
    jacobian_TDTD: Tensor = torch.autograd.functional.jacobian(block, x_TD)  # type: ignore[no-untyped-call]
    own = torch.eye(x_TD.shape[0], dtype=torch.bool)[:, None, :, None]
    return float(jacobian_TDTD.masked_fill(own, 0).abs().max()), float(jacobian_TDTD.masked_fill(~own, 0).abs().max())


def figures(session: Session) -> Figures:
    built = filled(ReLU(bias=True).build(DIM), session.seed, "q49.block")
    assert isinstance(built, FeedForward)
    x_BTD = draw(session.seed, "q49.x", ROWS, LENGTH, DIM)
    w1, b1, w2, b2 = built.up.weight, built.up.bias, built.down.weight, built.down.bias
    y_BTD = built(x_BTD)
    smallest = min(float(g.abs().max()) for g in torch.autograd.grad(y_BTD.square().sum(), (w1, b1, w2, b2)))
    order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(session.seed))
    same = built(x_BTD[:1, :1].expand(1, LENGTH, DIM))
    cross, own = _cross_and_own(built, x_BTD[0])
    return {
        "formula_gap": gap(y_BTD, torch.clamp(x_BTD @ w1.T + b1, min=0) @ w2.T + b2),
        "smallest_gradient": smallest,
        "parameters": float(parameters(built)),
        "count_gap": abs(parameters(built) - (8 * DIM**2 + 5 * DIM)),
        "cross_jacobian": cross,
        "own_jacobian": own,
        "permutation_gap": gap(built(x_BTD[:, order]), y_BTD[:, order]),
        "position_spread": gap(same, same[:, :1].expand_as(same)),
    }


def raced(told: Mapping[str, Told]) -> Figures:
    """What the block and each doubling of its width are worth. Wider blocks have more parameters: that is the point."""
    race, measure = told["feedforward"], "bits_per_byte"
    figures = {
        **race.bounds("none_cost", "none", WIDTHS[4], measure),
        **race.bounds("least_worth", "none", WIDTHS[1], measure),
        **race.bounds("widening", WIDTHS[1], WIDTHS[8], measure),
    }
    for narrow in DOUBLED:
        figures |= race.bounds(f"doubling_{narrow}", WIDTHS[narrow], WIDTHS[2 * narrow], measure)
    return figures


def evidence(f: Mapping[str, float]) -> Text:
    en, zh = "", ""
    if "none_cost" in f:
        doublings = [spread(f, f"doubling_{narrow}") for narrow in DOUBLED]
        en = (
            f" Trained, a model without the block is worse by {spread(f, 'none_cost')} bits per byte; widening it from "
            f"d to 2d, 4d and 8d saves {', '.join(doublings)}."
        )
        zh = (
            f"实际训练，去掉前馈块每字节多费 {spread(f, 'none_cost')} 比特；宽度由 d 依次增至 2d、4d、8d，分别省下 "
            f"{'、'.join(doublings)}。"
        )
    return Text(
        f"Within {power(f['formula_gap'])} of W2·ReLU(W1x + b1) + b2, with {f['parameters']:.0f} = 8d² + 5d "
        f"parameters at d = {DIM}; no position touches another (largest cross derivative "
        f"{power(f['cross_jacobian'])}, own {f['own_jacobian']:.2f}).{en}",
        f"与 W2·ReLU(W1x + b1) + b2 相差 {power(f['formula_gap'])}；d = {DIM} 时参数共 {f['parameters']:.0f} 个，即 "
        f"8d² + 5d；各位置互不影响（跨位置导数最大 {power(f['cross_jacobian'])}，本位置 {f['own_jacobian']:.2f}）。"
        f"{zh}",
    )


QUESTION = Question(
    number=49,
    tier="formula",
    claim=Text(
        "Linear map W1, b1, then an activation such as ReLU, then linear map W2, b2, all four learnt; applied at "
        "each position of the encoder layers, to the position-encoded vector.",
        "先经 W1、b1 作线性映射，再过 ReLU 之类的激活，最后经 W2、b2 映射回来，四者皆可学习；作用于编码器层的每个位置，"
        "对象是加了位置编码的向量。",
    ),
    correction=Text(
        "FFN(x) = W2·g(W1x + b1) + b2, usually 4d wide inside, so 8d² + 5d parameters; T5 and LLaMA leave the biases "
        "out. Decoders have it just as encoders do. Its input is the hidden state of a position after attention: the "
        "same weights everywhere, with no knowledge of where it stands.",
        "FFN(x) = W2·g(W1x + b1) + b2，中间层通常宽 4d，故有 8d² + 5d 个参数；T5 与 LLaMA 不设偏置。解码器同样使用它。"
        "输入是注意力之后该位置的隐藏状态：所有位置共用一组权重，它并不知道自己身处何处。",
    ),
    run=Text(
        "Our plain block with biases against the formula; the Jacobian between all pairs of positions; tokens "
        "permuted; one token put at every position; parameters counted. Trained: widths of d, 2d, 4d and 8d, and no "
        "block at all.",
        "拿本库带偏置的普通前馈块与公式对照；求所有位置两两之间的雅可比；打乱词元次序；把同一个词元放到每个位置；清"
        "点参数。另有实际训练：宽度取 d、2d、4d、8d，以及完全去掉前馈块。",
    ),
    papers=(
        "Vaswani et al. 2017, Attention Is All You Need, section 3.3, arXiv 1706.03762",
        "Raffel et al. 2020, T5, arXiv 1910.10683",
        "Touvron et al. 2023, LLaMA, arXiv 2302.13971",
    ),
    errors={"E49.1": "I", "E49.2": "I", "E49.3": "M"},
    on_paper={
        "E49.2": Text(
            "the width 4d, the use in decoders, and that T5 and LLaMA have no biases go unsaid",
            "未提中间宽度 4d、解码器同样使用，以及 T5 与 LLaMA 不设偏置",
        )
    },
    claims=(
        Claim(
            "formula",
            "linear, activation, linear, with learnt weights and biases",
            "线性、激活、再线性，权重与偏置皆可学习",
            (
                Check(
                    "formula_gap", "<", EXACT, "distance from W2·ReLU(W1x + b1) + b2", "与 W2·ReLU(W1x + b1) + b2 之差"
                ),
                Check("count_gap", "==", 0.0, "parameters beyond 8d² + 5d", "参数数目与 8d² + 5d 之差"),
                Check(
                    "smallest_gradient", ">", 0.0, "all four are learnt: smallest gradient", "四者皆有梯度，其中最小者"
                ),
            ),
            errors=("E49.1",),
        ),
        Claim(
            "position-wise",
            "it acts on each position by itself",
            "它逐位置独立作用",
            (
                Check("cross_jacobian", "==", 0.0, "derivative across positions", "跨位置的导数"),
                Check("own_jacobian", ">", 0.01, "derivative at the own position", "本位置的导数"),
                Check("permutation_gap", "<", EXACT, "permuted in, permuted out: gap", "输入换序，输出随之换序：误差"),
            ),
        ),
        Claim(
            "position-encoded",
            "what it transforms is the position-encoded vector",
            "它变换的是带位置编码的向量",
            (
                Check(
                    "position_spread",
                    "<",
                    EXACT,
                    "same hidden state elsewhere: change of the output",
                    "同一隐藏状态换个位置：输出的变化",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E49.3",),
        ),
        Claim(
            "worth, trained",
            "the block earns its place, even when narrow",
            "前馈块不可或缺，窄一些也有用",
            (
                Check(
                    "none_cost_lower",
                    ">",
                    0.0,
                    "bits per byte lost without it, 95 % bound",
                    "去掉它每字节多费的比特，95% 下界",
                ),
                Check(
                    "least_worth_lower",
                    ">",
                    0.0,
                    "the same against a block only d wide",
                    "与宽度仅为 d 的前馈块相比",
                ),
            ),
            kind="aside",
            race="feedforward",
        ),
        Claim(
            "width, trained",
            "how wide the block is inside goes unsaid",
            "未提中间层该有多宽",
            (
                Check(
                    "widening_lower",
                    ">",
                    0.0,
                    "bits per byte saved from d to 8d, 95 % bound",
                    "宽度由 d 增至 8d 每字节省下的比特，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            race="feedforward",
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("feedforward",),
    raced=raced,
    uses=(
        "llmlab/model/feedforward.py",
        "llmlab/handbook/literal/feedforward.py",
        "llmlab/handbook/races/feedforward.py",
    ),
    settings={"dim": DIM, "rows": ROWS, "length": LENGTH},
)
