"""Question 39: ALiBi's bias matrix. It is added to the scores; multiplied with the weights it empties the diagonal."""

from collections.abc import Mapping

import torch

from llmlab.handbook.lengths import MULTIPLES, TRAINED
from llmlab.handbook.literal.positions import MultipliedWeights
from llmlab.handbook.measures import gap, parameters, power
from llmlab.handbook.one_layer import Layer, penalties
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.model.places import Places
from llmlab.model.relative import Alibi, AlibiEncoding
from llmlab.stages import Session

EXACT = 1e-12
SHOWN = 1e-5  # where attention shows its weights, its softmax is in float32
HEADS, HEAD_DIM, TOKENS = 8, 16, 48
TIMES = MULTIPLES[-1]
MARGIN = 0.02  # bits per byte by which a loss may grow and still count as no worse, upper 95 % bound
NO_NUMBER = 8.0  # bits per byte by which an arm counts as worse that diverged: as bad as guessing bytes
LITERAL = {"weights": "multiplied weights", "scores": "multiplied scores"}


def _identities(session: Session) -> Figures:
    """Our attention against the four ways of writing it."""
    layer, bias = Layer(session.seed, "q39", TOKENS, HEADS, HEAD_DIM), penalties(HEADS, TOKENS)
    ours = layer.read(Alibi())
    row_H1T = bias[:, -1:] - bias[:, -1:, :1]  # m j: the last row, begun at 0

    def renormalised(scores: torch.Tensor) -> torch.Tensor:
        weights = scores.softmax(-1) * bias.exp()
        return weights / weights.sum(-1, keepdim=True)

    plain, added = layer.scores().softmax(-1), (layer.scores() + bias).softmax(-1)
    seen = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    return {
        "added_gap": gap(ours, layer.written(lambda scores: (scores + bias).softmax(-1))),
        "renormalised_gap": gap(ours, layer.written(renormalised)),
        "row_gap": gap(ours, layer.written(lambda scores: (scores + row_H1T).softmax(-1))),
        "raised_share": float((added > plain)[:, seen].double().mean()),
    }


def _literal(session: Session) -> Figures:
    """The handbook's product: what it does to the weights, and to the output of the first token."""
    layer, bias = Layer(session.seed, "q39", TOKENS, HEADS, HEAD_DIM), penalties(HEADS, TOKENS)
    product = layer.scores().softmax(-1) * bias
    sums = product.sum(-1)[:, 1:]  # the first token sees itself alone, and weighs it with 0
    turned = layer.scores() * bias
    past = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril(-1)
    literal = layer.read(MultipliedWeights())
    return {
        "literal_gap": gap(literal, layer.written(lambda scores: scores.softmax(-1) * bias)),
        "self_weight": float(product.diagonal(dim1=1, dim2=2).abs().max()),
        "highest_sum": float(sums.max()),
        "steepest_highest": float(sums[0].max()),
        "steepest_lowest": float(sums[0].min()),
        "first_output": float(literal[0].abs().max()),
        "scores_turned": float((turned.sign() == -layer.scores().sign())[:, past].double().mean()),
    }


def _matrix() -> Figures:
    """What our encoding adds, as it meets the scores."""
    layer = Layer(0, "q39", TOKENS, HEADS, HEAD_DIM)
    encoding, at = Alibi().build(layer.shape), Places.causal(1, TOKENS)
    assert isinstance(encoding, AlibiEncoding)
    bias_HTT = encoding.bias(encoding.prepare(at, at))[0].double()
    distinct = torch.unique(bias_HTT.flatten(1), dim=0)
    seen = at.sees(at)[0]
    return {
        "matrices": float(len(distinct)),
        "toeplitz_gap": gap(bias_HTT[:, 1:, 1:], bias_HTT[:, :-1, :-1]),
        "highest_entry": float(bias_HTT.max()) + 0.0,  # not -0
        "positive_entries": float((bias_HTT > 0).sum()),
        "seen_ahead": float(seen.triu(1).sum()),
        "learnable": float(parameters(encoding)),
    }


def figures(session: Session) -> Figures:
    return {**_identities(session), **_literal(session), **_matrix()}


def raced(told: Mapping[str, Told]) -> Figures:
    race = told["positions"]
    found = race.grown("alibi", TIMES, 2)
    for name, arm in LITERAL.items():
        for times in (1, TIMES):
            measure, figure = f"bits_per_byte@{times}x", f"{name}_minus_alibi_{times}x"
            if race.fails(arm, measure) is None:
                found |= race.bounds(figure, arm, "alibi", measure)
            else:
                found |= {figure: NO_NUMBER, f"{figure}_lower": NO_NUMBER, f"{figure}_upper": NO_NUMBER}
    return found


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"Added to the scores, the matrix is our attention to {power(f['added_gap'])}; so is exp of it multiplied "
        f"with the weights and normalised again ({power(f['renormalised_gap'])}), and one row m·j for all tokens "
        f"({power(f['row_gap'])}). Multiplied as told, each token weighs itself with {f['self_weight']:.0f}, weights "
        f"add up to {f['steepest_lowest']:.2f} … {f['steepest_highest']:.2f} in the steepest head, and the first "
        f"token's output is {f['first_output']:.0f}. There are {f['matrices']:.0f} matrices for {HEADS} heads, no "
        f"entry above {f['highest_entry']:.0f}; {f['raised_share']:.0%} of the weights rise, by the softmax alone."
    )
    zh = (
        f"加到得分上，与本库的注意力只差 {power(f['added_gap'])}；取 exp 后乘上权重再归一化亦然"
        f"（{power(f['renormalised_gap'])}），所有词元共用一行 m·j 亦然（{power(f['row_gap'])}）。若照手册相乘，每个词"
        f"元给自己的权重为 {f['self_weight']:.0f}，最陡的头各行之和在 {f['steepest_lowest']:.2f} 至 "
        f"{f['steepest_highest']:.2f} 之间，首个词元的输出为 {f['first_output']:.0f}。{HEADS} 个头有 "
        f"{f['matrices']:.0f} 个矩阵，最大元素为 {f['highest_entry']:.0f}；有 {f['raised_share']:.0%} 的权重上升，那"
        "是 softmax 所致。"
    )
    if "weights_minus_alibi_1x" in f:
        en += (
            f" Trained at {TRAINED}, against ALiBi: weights multiplied {f['weights_minus_alibi_1x']:+.3f} bits per "
            f"byte at 1x and {f['weights_minus_alibi_8x']:+.2f} at 8x, scores multiplied "
            f"{f['scores_minus_alibi_1x']:+.3f} and {f['scores_minus_alibi_8x']:+.2f}."
        )
        zh += (
            f"以 {TRAINED} 个词元训练，与 ALiBi 相比每字节：乘权重者 1 倍处 {f['weights_minus_alibi_1x']:+.3f} 比特、"
            f"8 倍处 {f['weights_minus_alibi_8x']:+.2f}，乘得分者分别为 {f['scores_minus_alibi_1x']:+.3f} 与 "
            f"{f['scores_minus_alibi_8x']:+.2f}。"
        )
    return Text(en, zh)


QUESTION = Question(
    number=39,
    tier="formula",
    claim=Text(
        "An (L, L) matrix with one bias for each pair of tokens. Each entry is multiplied with the attention weight at "
        "its place, which can make that weight larger or smaller; by adjusting the entries one controls how sparse or "
        "concentrated the weights are, so that the model suits texts of any length.",
        "是个 (L, L) 的矩阵，每对词元一个偏置。各元素分别乘到对应的权重上，可使之变大，也可使之变小；改动元素的取值，"
        "便能支配权重的疏密，让模型适应长短不一的文本。",
    ),
    correction=Text(
        "It is added to the scores before the softmax. One matrix a head, (H, L, L), with entry −m_h (i − j) for a key "
        "j that is not ahead of the query i: constant along each diagonal, lower triangular, never above 0, and never "
        "learnt; a near token gains through the softmax alone. Multiplied with the weights, it would give each token "
        "no weight of its own and sums below 0. There is one reading in which a product is right: exp of the matrix "
        "times the weights, normalised again. By the softmax's invariance to shifts a row m_h j does for all queries, "
        "which is how BLOOM keeps it.",
        "应在 softmax 之前加到得分上。每个头一个矩阵，即 (H, L, L)；键 j 不在查询 i 之后时，元素为 −m_h (i − j)：沿对"
        "角线不变，下三角，从不大于 0，也不参与学习；近处词元占优，全凭 softmax 归一化。真要与权重相乘，每个词元对自己"
        "的权重就成了 0，各行之和为负。只有一种读法里“乘”是对的：先取 exp，乘上权重，再归一化。由于 softmax 对平移不"
        "变，所有查询共用一行 m_h j 即可，BLOOM 就是这样存的。",
    ),
    run=Text(
        "Our attention written out in four ways: the matrix added, its exp multiplied and normalised, one row for all "
        "queries, and the handbook's product; the entries counted. The race trains both products, after the softmax "
        "and before it.",
        "把本库的注意力按四种写法展开：加矩阵，乘其 exp 再归一化，所有查询共用一行，以及手册的乘法；并清点矩阵的元素。"
        "竞赛把两种乘法（softmax 之后与之前）都训练一遍。",
    ),
    papers=(
        "Press, Smith & Lewis 2022, Train Short, Test Long, arXiv 2108.12409",
        "BigScience 2022, BLOOM, arXiv 2211.05100",
    ),
    errors={"E39.1": "W", "E39.2": "W", "E39.3": "I"},
    claims=(
        Claim(
            "multiplied",
            "the matrix is multiplied with the attention weights",
            "矩阵与注意力权重相乘",
            (
                Check("self_weight", "==", 0.0, "the product: weight of a token for itself", "相乘：词元对自己的权重"),
                Check("highest_sum", "<", 0.0, "the product: highest sum of a row", "相乘：各行之和的最大值"),
                Check("first_output", "==", 0.0, "the product: output of the first token", "相乘：首个词元的输出"),
            ),
            Verdict.REFUTED,
            errors=("E39.1",),
        ),
        Claim(
            "either way",
            "an entry can raise or lower a weight, and is adjusted for that",
            "元素可增可减，随需调整",
            (
                Check("positive_entries", "==", 0.0, "entries above 0", "大于 0 的元素"),
                Check("highest_entry", "==", 0.0, "largest entry", "最大元素"),
                Check("learnable", "==", 0.0, "numbers in it that could be learnt", "其中可学习的数"),
                Check("raised_share", ">", 0.05, "weights that rise by the softmax", "因 softmax 而上升的权重比例"),
            ),
            Verdict.REFUTED,
            errors=("E39.2",),
        ),
        Claim(
            "shape",
            "one matrix of shape (L, L)",
            "一个 (L, L) 矩阵",
            (
                Check("matrices", "==", float(HEADS), "different matrices, for 8 heads", "8 个头的不同矩阵数"),
                Check("toeplitz_gap", "==", 0.0, "change along a diagonal", "沿对角线的变化"),
                Check("seen_ahead", "==", 0.0, "tokens seen ahead", "能看到的后文词元"),
            ),
            Verdict.CORRECTED,
            errors=("E39.3",),
        ),
        Claim(
            "identities",
            "our attention adds the matrix, and the literal part multiplies it",
            "本库的注意力是加，字面版本是乘",
            (
                Check("added_gap", "<", EXACT, "ours against the matrix added", "本库与相加之差"),
                Check("renormalised_gap", "<", EXACT, "against exp multiplied and normalised", "与乘 exp 再归一化之差"),
                Check("row_gap", "<", EXACT, "against one row for all queries", "与共用一行之差"),
                Check("literal_gap", "<", SHOWN, "the literal part against the product", "字面版本与相乘之差"),
            ),
            kind="control",
        ),
        Claim(
            "multiplied, trained",
            "with the product models learn as well and read on",
            "用乘法照样学得好、能外推",
            (
                Check(
                    "weights_minus_alibi_1x_lower",
                    ">",
                    0.0,
                    "weights: minus ALiBi, 1x, lower",
                    "乘权重：1 倍处减 ALiBi，下界",
                ),
                Check(
                    "weights_minus_alibi_8x_lower",
                    ">",
                    0.0,
                    "weights: minus ALiBi, 8x, lower",
                    "乘权重：8 倍处减 ALiBi，下界",
                ),
                Check(
                    "scores_minus_alibi_1x_lower",
                    ">",
                    0.0,
                    "scores: minus ALiBi, 1x, lower",
                    "乘得分：1 倍处减 ALiBi，下界",
                ),
                Check(
                    "scores_minus_alibi_8x_lower",
                    ">",
                    0.0,
                    "scores: minus ALiBi, 8x, lower",
                    "乘得分：8 倍处减 ALiBi，下界",
                ),
            ),
            Verdict.REFUTED,
            errors=("E39.1",),
            race="positions",
        ),
        Claim(
            "what it is for",
            "the matrix lets a model suit longer texts",
            "矩阵使模型适应更长的文本",
            (
                Check(
                    "alibi_8x_minus_2x_upper",
                    "<",
                    MARGIN,
                    "ALiBi: loss, 8x minus 2x, upper",
                    "ALiBi：8 倍减 2 倍，上界",
                ),
            ),
            kind="aside",
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
        "llmlab/handbook/literal/positions.py",
        "llmlab/handbook/one_layer.py",
        "llmlab/handbook/races/positions.py",
    ),
    settings={"layer": [HEADS, HEAD_DIM, TOKENS]},
)
