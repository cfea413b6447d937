"""Question 34: the idea of RoPE. Queries and keys turn, not position vectors, and certainly not the order of words."""

from collections.abc import Mapping

import torch
from torch import Tensor

from llmlab.evaluation import statistics
from llmlab.families.mapping import pair_halves
from llmlab.handbook import order_task, recall_task
from llmlab.handbook.literal.positions import RotatedVectors, RotatedVectorsEncoding
from llmlab.handbook.measures import draw, filled, gap, power
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.handbook.sinusoids import built, frequencies, line, shift, sinusoids
from llmlab.model.attention import MultiHead
from llmlab.model.block import Block
from llmlab.model.encoding import Encoding, PositionPart
from llmlab.model.masks import Bidirectional
from llmlab.model.positions import NoPosition
from llmlab.model.rotary import Rope, RopeInterleaved
from llmlab.model.transformer import Architecture, Transformer
from llmlab.runtime import generator
from llmlab.stages import Session

EXACT = 1e-8  # float64, at positions up to 100,003
SINGLE = 1e-4  # our angles are float32, at positions up to 128
KNOWS, GUESSES = 0.9, 0.6
CHANGED = 0.2  # share of what any shuffle changes that rotating the order of words must change
LAYOUT = 0.1  # nats a token that a wrong layout must cost, 95 % bound; knowing nothing costs 2.8
WIDTH, NEAR, OFFSET = 64, 128, 7
PLACES = (3, 50, 1_003, 100_003)
DIM, HEADS, ROW, VOCABULARY = 32, 2, 12, 24
TEXTS = 64


def matrix(encoding: Encoding, position: int) -> Tensor:
    """float64 [K, K]: what the encoding multiplies the vectors of this position with."""
    at = line(1, start=position)
    basis = torch.eye(WIDTH, dtype=torch.float64)[None, None]
    turned = encoding.key(basis.transpose(1, 2), encoding.prepare(at, at))  # a head for each vector of the basis
    return turned[0, :, 0].T


def _by_formula(x_K: Tensor, position: int) -> Tensor:
    """Neighbouring pairs as complex numbers, times exp(i m theta): Su et al. 2021, in double precision."""
    pairs = torch.view_as_complex(x_K.view(-1, 2).contiguous())
    angle = position * frequencies(WIDTH)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten()


def _idea(seed: int) -> Figures:
    q_K, k_K = draw(seed, "q34.q", WIDTH), draw(seed, "q34.k", WIDTH)
    told = [float(_by_formula(q_K, m + OFFSET) @ _by_formula(k_K, m)) for m in PLACES]
    ours, halves = built(RopeInterleaved(), WIDTH), built(Rope(), WIDTH)
    m, n = 20, NEAR - 1
    turn_m, turn_n, between = matrix(ours, m), matrix(ours, n), matrix(ours, n - m)
    return {
        "score": told[0],
        "score_spread": max(told) - min(told),
        "composed_gap": gap(turn_m.T @ turn_n, between),
        "complex_gap": gap(turn_n @ q_K, _by_formula(q_K, n)),
        "norm_gap": abs(float((turn_n @ q_K).norm() / q_K.norm()) - 1),
        "layout_gap": gap(matrix(halves, n) @ pair_halves(q_K, 1), pair_halves(turn_n @ q_K, 1)),
    }


def _literal() -> Figures:
    """What comes of turning the position's own vector, either way."""
    position = torch.arange(NEAR)
    vectors = sinusoids(position, WIDTH)
    forth = torch.stack([shift(int(p), WIDTH) @ v for p, v in zip(position, vectors, strict=True)])
    back = torch.stack([shift(-int(p), WIDTH) @ v for p, v in zip(position, vectors, strict=True)])
    part = built(RotatedVectors(), WIDTH)
    assert isinstance(part, RotatedVectorsEncoding)
    ours = part.vectors(position[None])[0]
    return {
        "literal_spread": gap(back, back[:1].expand_as(back)),
        "literal_part_spread": gap(ours, ours[:1].expand_as(ours)),
        "doubled_gap": gap(forth, sinusoids(2 * position, WIDTH)),
        "sinusoid_shift_gap": gap(vectors[:-OFFSET] @ shift(OFFSET, WIDTH).T, vectors[OFFSET:]),
    }


def _tiny(position: PositionPart, seed: int) -> Transformer:
    attention, mask = MultiHead(heads=HEADS), Bidirectional()
    architecture = Architecture(layers=1, dim=DIM, context=ROW, mask=mask, position=position, attention=attention)
    model = filled(architecture.build(VOCABULARY, seed), seed, "q34.model")
    assert isinstance(model, Transformer)
    return model


@torch.no_grad()
def _words(seed: int) -> Figures:
    """A sentence whose words are rotated, against other shuffles of it; and values, which are not turned."""
    rope, none = _tiny(Rope(), seed), _tiny(NoPosition(), seed)
    ids = torch.arange(ROW)[None]
    source = generator(seed, "handbook", "q34.orders")

    def change(order: Tensor) -> float:
        return float((rope(ids[:, order]).mean(1) - rope(ids).mean(1)).norm())

    cyclic = [change(torch.arange(ROW).roll(k)) for k in range(1, ROW)]
    shuffled = [change(torch.randperm(ROW, generator=source)) for _ in cyclic]
    for model in (rope, none):
        block = model.blocks[0]
        assert isinstance(block, Block)
        block.attention.get_submodule("query").get_parameter("weight").zero_()  # every key is then taken alike
    return {"rotated_words": sum(cyclic) / sum(shuffled), "values_gap": gap(rope(ids), none(ids))}


def halves_paired(model: Transformer, rows_too: bool = True) -> Transformer:
    """A model of the interleaved layout as one that pairs halves; without `rows_too` its rows stay as they lie."""
    changed = replace_position(model, Rope())
    if rows_too:
        with torch.no_grad():
            for block in changed.blocks:
                assert isinstance(block, Block)
                for name in ("query", "key"):
                    weight = block.attention.get_submodule(name).get_parameter("weight")
                    weight.copy_(pair_halves(weight.clone(), model.architecture.attention.heads))
    return changed


def replace_position(model: Transformer, position: PositionPart) -> Transformer:
    architecture = model.architecture.model_copy(update={"position": position})
    changed = architecture.build(model.vocab_size).double()
    changed.load_state_dict(model.state_dict())
    return changed.eval()


def _layouts(seed: int) -> Figures:
    """A trained model written with neighbours paired, read by code that pairs halves."""
    model = recall_task.trained(RopeInterleaved(), seed)
    texts = recall_task.rows(TEXTS, recall_task.LENGTH, seed)
    right = recall_task.nats(model, texts)
    again = recall_task.nats(halves_paired(model), texts)
    skipped = recall_task.nats(halves_paired(model, rows_too=False), texts)
    lost = statistics.mean((skipped - right).mean(1).tolist())
    assert lost.interval[0] is not None
    return {
        "layout_loss": float(right.mean()),
        "converted_gap": gap(again, right),
        "skipped_lost": lost.value,
        "skipped_lost_lower": lost.interval[0],
    }


def figures(session: Session) -> Figures:
    seed = session.seed
    return {
        **_idea(seed),
        **_literal(),
        **_words(seed),
        **_layouts(seed),
        "order_literal": order_task.accuracy("literal", seed, RotatedVectors(), both_ways=True),
        "order_rope": order_task.accuracy("rope", seed, Rope(), both_ways=True),
    }


def raced(told: Mapping[str, Told]) -> Figures:
    race = told["positions"]
    return {
        **race.bounds("rotated_minus_rope", "rotated vectors", "rope", "bits_per_byte"),
        **race.bounds("rotated_minus_none", "rotated vectors", "none", "bits_per_byte"),
    }


def evidence(f: Mapping[str, float]) -> Text:
    en, zh = "", ""
    if "rotated_minus_rope" in f:
        rope = f"[{f['rotated_minus_rope_lower']:+.3f}, {f['rotated_minus_rope_upper']:+.3f}]"
        none = f"[{f['rotated_minus_none_lower']:+.3f}, {f['rotated_minus_none_upper']:+.3f}]"
        en = (
            f" On text the literal recipe costs {f['rotated_minus_rope']:+.3f} {rope} bits per byte against RoPE and "
            f"{f['rotated_minus_none']:+.3f} {none} against no encoding."
        )
        zh = (
            f"真实文本上，照字面的做法比 RoPE 每字节多用 {f['rotated_minus_rope']:+.3f} {rope} 比特，比不带编码多用 "
            f"{f['rotated_minus_none']:+.3f} {none} 比特。"
        )
    return Text(
        f"A query and a key {OFFSET} apart score {f['score']:.8f} at positions {PLACES[0]} to {PLACES[-1]:,} (spread "
        f"{power(f['score_spread'])}). A sinusoid turned by its own angle is the same everywhere (spread "
        f"{power(f['literal_spread'])}): an encoder so made is right on order {f['order_literal']:.0%} of the time, "
        f"with RoPE {f['order_rope']:.0%}. A model trained with neighbours paired, read with halves paired: exact to "
        f"{power(f['converted_gap'])} when the rows are reordered, {f['skipped_lost']:+.2f} nats a token when that "
        f"is forgotten.{en}",
        f"相距 {OFFSET} 位的查询与键，在位置 {PLACES[0]} 到 {PLACES[-1]:,} 上得分都是 {f['score']:.8f}（波动 "
        f"{power(f['score_spread'])}）。正弦编码按自身角度旋转后处处相同（波动 {power(f['literal_spread'])}）：这样做"
        f"成的编码器判断次序的正确率为 {f['order_literal']:.0%}，换成 RoPE 为 {f['order_rope']:.0%}。以相邻配对训练的"
        f"模型改用前后半配对来读：行重排后误差只有 {power(f['converted_gap'])}，忘了重排则每个词元多损失 "
        f"{f['skipped_lost']:.2f} 奈特。{zh}",
    )


QUESTION = Question(
    number=34,
    tier="seconds",
    claim=Text(
        "RoPE, read as rotation position encoding, captures how positions rotate against one another, as when a "
        "sentence's words are put in another order; older methods saw linear relations only. Each position's own "
        "vector is multiplied with a rotation matrix.",
        "RoPE（手册作 Rotation Position Encoding）刻画位置与位置之间怎样“旋转”，例如句子里的词换了次序；以前的方法只看"
        "到线性关系。做法是用旋转矩阵去乘每个位置自己的向量。",
    ),
    correction=Text(
        "Rotary Position Embedding turns queries and keys, not position vectors, of which there are none. Coordinates "
        "are taken in pairs; at position m pair i turns by m·θ_i, θ_i = base^{-2i/d}. Since ⟨R_m q, R_n k⟩ = "
        "qᵀR_{n-m}k it is absolute in form and relative in effect; norms stay, and values are not turned. It knows "
        "nothing of reordered words. Pairs may be neighbours or halves of a head: the same up to a permutation of "
        "weight rows, which a converter must not forget. A shift of sinusoids was a rotation before.",
        "RoPE 全称 Rotary Position Embedding，旋转的是查询和键；位置向量在这里根本不存在。坐标两两成对，在位置 m 上第 "
        "i 对转过 m·θ_i，其中 θ_i = base^{-2i/d}。由于 ⟨R_m q, R_n k⟩ = qᵀR_{n-m}k，它形式上是绝对的，效果上是相对"
        "的；模长不变，值不旋转。它与词序调换毫无关系。成对的坐标可以相邻，也可以分处一个头的前后两半，两种布局只差权重行的一"
        "个置换，转换权重时不可漏掉。至于旋转，正弦编码的平移早就是旋转了。",
    ),
    run=Text(
        "Our rotary encoding against complex numbers, for both layouts; scores at one offset far and near. The recipe "
        "taken literally, in formula and as a part trained on the order task of question 31, beside RoPE. A sentence "
        "with its words rotated against other shuffles. A small model trained in one layout and read in the other, "
        "with and without reordering its rows.",
        "用复数乘法核对本库的旋转编码，两种布局都查；比较远近不同位置上同一偏移的分数。把手册的做法照字面实现，既算公式，"
        "也训练去做第 31 题的次序任务，与 RoPE 并列。比较词序循环移位与任意打乱的影响。再用一种布局训练一个小模型，换"
        "另一种布局读取，分别重排与不重排权重行。",
    ),
    papers=(
        "Su et al. 2021, RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv 2104.09864",
        "Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762",
    ),
    errors={"E34.1": "W", "E34.2": "W", "E34.3": "M", "E34.4": "I"},
    races=("positions",),
    raced=raced,
    claims=(
        Claim(
            "rotated words",
            "RoPE captures the rotation of word order",
            "RoPE 刻画的是词序的旋转",
            (
                Check(
                    "rotated_words",
                    ">",
                    CHANGED,
                    "what rotating the words changes, as a share of any shuffle's",
                    "词序循环移位造成的变化，与任意打乱之比",
                ),
                Check("score_spread", "<", EXACT, "spread of the score at one offset", "同一偏移上分数的波动"),
                Check("composed_gap", "<", SINGLE, "R_mᵀR_n from R_{n-m}", "R_mᵀR_n 与 R_{n-m} 之差"),
            ),
            Verdict.REFUTED,
            errors=("E34.1",),
        ),
        Claim(
            "position vectors",
            "each position's vector is multiplied with its rotation",
            "用旋转矩阵乘每个位置的向量",
            (
                Check("literal_spread", "<", EXACT, "spread of such vectors over positions", "所得向量随位置的波动"),
                Check("literal_part_spread", "<", SINGLE, "the same of the trained part", "参与训练的部件：同上"),
                Check(
                    "doubled_gap",
                    "<",
                    EXACT,
                    "turned the other way: from sin 2a, cos 2a",
                    "反向旋转：与 sin 2a、cos 2a 之差",
                ),
                Check("order_literal", "<", GUESSES, "an encoder so made, order task", "这样做成的编码器，次序任务"),
                Check("order_rope", ">", KNOWS, "an encoder with RoPE", "用 RoPE 的编码器"),
            ),
            Verdict.REFUTED,
            errors=("E34.2",),
        ),
        Claim(
            "linear before",
            "older encodings knew no rotation",
            "以前的编码里没有旋转",
            (
                Check(
                    "sinusoid_shift_gap",
                    "<",
                    EXACT,
                    "shifted sinusoids from rotated ones",
                    "平移后的正弦编码与旋转所得之差",
                ),
            ),
            Verdict.REFUTED,
            kind="aside",
            errors=("E34.3",),
        ),
        Claim(
            "formula",
            "our RoPE turns queries and keys as the paper has it, in either layout",
            "本库的 RoPE 按论文旋转查询与键，两种布局皆然",
            (
                Check("complex_gap", "<", SINGLE, "distance from complex numbers", "与复数写法之差"),
                Check("norm_gap", "<", SINGLE, "change of a vector's norm", "向量模长的变化"),
                Check(
                    "layout_gap", "<", SINGLE, "halves from neighbours, permuted", "前后半配对与相邻配对（置换后）之差"
                ),
                Check("values_gap", "<", EXACT, "change where only values matter", "只有值起作用时的变化"),
                Check("converted_gap", "<", 1e-6, "loss after reordering rows: change", "重排权重行后损失的变化"),
                Check(
                    "skipped_lost_lower",
                    ">",
                    LAYOUT,
                    "nats lost without reordering, 95 % bound",
                    "不重排时损失的奈特数（95% 下界）",
                ),
            ),
            kind="control",
            errors=("E34.4",),
        ),
        Claim(
            "text",
            "the literal recipe serves a language model as RoPE does",
            "照字面的做法用于语言模型与 RoPE 无异",
            (
                Check(
                    "rotated_minus_rope_lower",
                    ">",
                    0.0,
                    "bits per byte it costs, 95 % bound",
                    "每字节多用的比特（95% 下界）",
                ),
            ),
            Verdict.REFUTED,
            kind="aside",
            race="positions",
        ),
    ),
    figures=figures,
    evidence=evidence,
    uses=("llmlab/model/rotary.py", "llmlab/families/mapping.py", "llmlab/handbook/literal/positions.py"),
    settings={
        "rotation": [WIDTH, NEAR, OFFSET, *PLACES],
        "model": [DIM, HEADS, ROW, VOCABULARY],
        "texts": TEXTS,
        **order_task.SETTINGS,
        **recall_task.SETTINGS,
    },
)
