"""Question 31: what a position encoding is. Self-attention needs one; other nets, and a causal mask, tell order too."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmlab.handbook.measures import draw, filled, gap, power
from llmlab.handbook.order_task import SETTINGS, VOCABULARY, accuracy, trained
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.handbook.sinusoids import added, built, line, shift, sinusoids
from llmlab.model.attention import MultiHead
from llmlab.model.encoding import PositionPart
from llmlab.model.masks import Bidirectional, Causal
from llmlab.model.positions import Learned, NoPosition, Sinusoidal
from llmlab.model.recurrent import GRU
from llmlab.model.relative import XL, Alibi, Shaw, T5Bias
from llmlab.model.rotary import Rope
from llmlab.model.transformer import Architecture
from llmlab.runtime import generator
from llmlab.stages import Session

EXACT = 1e-10  # float64 identities, at positions up to 4096
SINGLE = 1e-4  # our angles are float32, at positions up to 128
SEEN = 1e-3  # a change of the output, whose entries are about 1, that no rounding makes
KNOWS, GUESSES = 0.9, 0.6  # accuracies of who can tell the order, and of who cannot and is right half of the time
ABOVE_CHANCE = 0.7
DIM, HEADS, ROW = 32, 2, 10
WIDTH, POSITIONS, OFFSETS = 64, 4096, (1, 7, 64, 512)
OTHERS: tuple[PositionPart, ...] = (Sinusoidal(), Learned(), Rope(), Alibi(), T5Bias(), Shaw(), XL())


class Convolution(nn.Module):
    """Two convolutions over seven tokens each, the largest value of each channel, and a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, DIM)
        self.first, self.second = (nn.Conv1d(DIM, DIM, 7, padding=3) for _ in range(2))
        self.head = nn.Linear(DIM, VOCABULARY)
        for name, parameter in self.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator(seed, "handbook", "q31.convolution", name))
            parameter.data = 0.1 * noise

    def forward(self, ids_BT: Tensor) -> Tensor:
        """[B, 1, V] of the whole row."""
        x = self.second(self.first(self.embedding(ids_BT).transpose(1, 2)).relu()).relu()
        y: Tensor = self.head(x.amax(-1))[:, None]
        return y


def _model(position: PositionPart, both_ways: bool, seed: int) -> nn.Module:
    architecture = Architecture(
        layers=2,
        dim=DIM,
        context=ROW,
        mask=Bidirectional() if both_ways else Causal(),
        position=position,
        attention=MultiHead(heads=HEADS),
    )
    return filled(architecture.build(VOCABULARY, seed), seed, "q31.model")


@torch.no_grad()
def _moved(position: PositionPart, both_ways: bool, seed: int) -> float:
    """How far the outputs of a shuffled row are from the shuffled outputs of the row: 0 where order is not seen."""
    model = _model(position, both_ways, seed)
    ids = torch.arange(ROW)[None]
    order = torch.randperm(ROW, generator=generator(seed, "handbook", "q31.order"))
    return gap(model(ids[:, order]), model(ids)[:, order])


def _formula(seed: int) -> Figures:
    """The sinusoid: ours against the paper's, a shift as a rotation, inner products by offset."""
    vectors = sinusoids(torch.arange(POSITIONS), WIDTH)
    moved = max(gap(vectors[:-k] @ shift(k, WIDTH).T, vectors[k:]) for k in OFFSETS)
    products = [(vectors[:-k] * vectors[k:]).sum(-1) for k in OFFSETS]
    near = torch.arange(128)
    ours = added(built(Sinusoidal(), WIDTH), line(len(near)), WIDTH)
    return {
        "formula_gap": gap(ours.double(), sinusoids(near, WIDTH)),
        "rotation_gap": moved,
        "gram_spread": max(float(product.max() - product.min()) for product in products),
    }


def _reordering(seed: int) -> Figures:
    x_D = draw(seed, "q31.words", 3, WIDTH)
    rope = built(Rope(), WIDTH)
    return {
        "shuffled_none": _moved(NoPosition(), True, seed),
        "shuffled_encoded": min(_moved(part, True, seed) for part in OTHERS),
        "shuffled_causal": _moved(NoPosition(), False, seed),
        "rope_adds": gap(rope.embed(x_D[None], line(3))[0], x_D),
    }


def figures(session: Session) -> Figures:
    seed, none = session.seed, NoPosition()
    return {
        **_formula(seed),
        **_reordering(seed),
        "encoder_none": accuracy("none", seed, none, both_ways=True),
        "encoder_sinusoidal": accuracy("sinusoidal", seed, Sinusoidal(), both_ways=True),
        "encoder_rope": accuracy("rope", seed, Rope(), both_ways=True),
        "causal_none": accuracy("causal", seed, none, both_ways=False),
        "recurrent_none": accuracy("gru", seed, none, both_ways=False, mixer=GRU()),
        "convolution_none": trained(Convolution(seed), "convolution", seed),
    }


def raced(told: Mapping[str, Told]) -> Figures:
    return told["positions"].bounds("none_minus_rope", "none", "rope", "bits_per_byte")


def evidence(f: Mapping[str, float]) -> Text:
    en, zh = "", ""
    if "none_minus_rope" in f:
        interval = f"[{f['none_minus_rope_lower']:+.3f}, {f['none_minus_rope_upper']:+.3f}]"
        en = f" Trained on text, a causal model without any loses {f['none_minus_rope']:+.3f} {interval} bits per byte."
        zh = f"在真实文本上训练，不带编码的因果模型每字节多用 {f['none_minus_rope']:+.3f} {interval} 比特。"
    return Text(
        "Which mark came first? Right without any encoding: a two-way attention encoder "
        f"{f['encoder_none']:.0%}, a causal one {f['causal_none']:.0%}, a GRU {f['recurrent_none']:.0%}, a "
        f"convolution {f['convolution_none']:.0%}; the encoder with sinusoids {f['encoder_sinusoidal']:.0%}, with "
        f"RoPE, which adds no vector, {f['encoder_rope']:.0%}. A shift by k is one rotation for all positions (error "
        f"{power(f['rotation_gap'])}).{en}",
        f"判断两个标记谁在前，都不带位置编码时的正确率：双向注意力编码器 {f['encoder_none']:.0%}，因果解码器 "
        f"{f['causal_none']:.0%}，GRU {f['recurrent_none']:.0%}，卷积 {f['convolution_none']:.0%}；编码器加上正弦编码"
        f"为 {f['encoder_sinusoidal']:.0%}，改用并不相加任何向量的 RoPE 为 {f['encoder_rope']:.0%}。平移 k 位对所有位"
        f"置都是同一个旋转（误差 {power(f['rotation_gap'])}）。{zh}",
    )


QUESTION = Question(
    number=31,
    tier="seconds",
    claim=Text(
        "Neural networks of the usual kinds do not notice where in a sequence a token stands, so a vector fixed for "
        "each position is added to the word vectors: sines and cosines of many frequencies (the printed formula is "
        "missing).",
        "一般的神经网络察觉不到词元处在序列的什么地方，因此要给每个位置配一个固定的向量，加到词向量上：由多种频率的正"
        "弦、余弦组成（手册里公式处是空白）。",
    ),
    correction=Text(
        "It is self-attention without a mask that is blind: shuffle its input and its output is shuffled alike. "
        "Recurrent and convolutional nets tell order by their construction. An encoding need not be a fixed vector "
        "nor be added: tables are learnt, relative biases and rotations act inside attention, and a causal mask alone "
        "lets a decoder learn order. The missing formula: PE(p, 2i) = sin(p/10000^{2i/d}), PE(p, 2i+1) = "
        "cos(p/10000^{2i/d}).",
        "真正看不见次序的，是不加掩码的自注意力：输入打乱，输出只是跟着同样打乱。循环网络与卷积网络从结构上就分得清先"
        "后。位置编码也不必是固定向量，更不必相加：位置表可以学习，相对偏置和旋转直接作用在注意力内部；单凭因果掩码，"
        "解码器也能学到次序。所缺公式为 PE(p, 2i) = sin(p/10000^{2i/d})，PE(p, 2i+1) = cos(p/10000^{2i/d})。",
    ),
    run=Text(
        "A row is shuffled before models of ours with random weights, with and without each of seven encodings. Small "
        "nets are trained to say which of two marks stands first and which last, the tokens between being the same "
        "either way. The sinusoid against the formula, against a rotation, and its inner products.",
        "把一行词元打乱后送进随机权重的模型，分别不带编码、带七种编码之一。再训练几个小网络，判断两个标记孰首孰尾，中间"
        "的词元两种情形完全相同。另外核对正弦编码的公式、它与旋转的关系以及内积。",
    ),
    papers=(
        "Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762",
        "Haviv et al. 2022, Transformer Language Models without Positional Encodings Still Learn Positional "
        "Information, arXiv 2203.16634",
        "Kazemnejad et al. 2023, The Impact of Positional Encoding on Length Generalization in Transformers, arXiv "
        "2305.19466",
    ),
    errors={"E31.1": "I", "E31.2": "W", "E31.3": "M"},
    races=("positions",),
    raced=raced,
    claims=(
        Claim(
            "need",
            "attention needs to be told positions",
            "注意力需要有人告诉它位置",
            (
                Check(
                    "shuffled_none",
                    "<",
                    EXACT,
                    "two-way attention, no encoding: what shuffling changes",
                    "双向注意力不带编码：打乱造成的改变",
                ),
                Check(
                    "shuffled_encoded",
                    ">",
                    SEEN,
                    "the same with an encoding, least of seven",
                    "带编码（七种中最小的）",
                ),
                Check("encoder_none", "<", GUESSES, "order task without encoding", "次序任务，不带编码"),
                Check("encoder_sinusoidal", ">", KNOWS, "order task with sinusoids", "次序任务，带正弦编码"),
            ),
        ),
        Claim(
            "other nets",
            "ordinary neural nets cannot see positions",
            "普通神经网络看不到位置",
            (
                Check("recurrent_none", ">", KNOWS, "a GRU in the order task, no encoding", "GRU 做次序任务，不带编码"),
                Check("convolution_none", ">", KNOWS, "a convolution, no encoding", "卷积网络，不带编码"),
                Check("encoder_none", "<", GUESSES, "only two-way attention cannot", "唯独双向注意力做不到"),
            ),
            Verdict.CORRECTED,
            errors=("E31.2",),
        ),
        Claim(
            "fixed vector",
            "each position gets a fixed vector, added to the words",
            "每个位置配一个固定向量，与词向量相加",
            (
                Check("rope_adds", "==", 0.0, "what RoPE adds to word vectors", "RoPE 给词向量加了多少"),
                Check("encoder_rope", ">", KNOWS, "an encoder with RoPE in the order task", "编码器用 RoPE 做次序任务"),
                Check(
                    "shuffled_causal",
                    ">",
                    SEEN,
                    "causal mask alone: what shuffling changes",
                    "单用因果掩码：打乱造成的改变",
                ),
                Check(
                    "causal_none", ">", ABOVE_CHANCE, "causal mask alone in the order task", "只有因果掩码做次序任务"
                ),
            ),
            Verdict.CORRECTED,
            errors=("E31.3",),
        ),
        Claim(
            "formula",
            "our sinusoid is the paper's, and a shift of it a rotation",
            "本库的正弦编码与论文一致，平移即旋转",
            (
                Check(
                    "formula_gap", "<", SINGLE, "distance from the formula, 128 positions", "与公式之差（128 个位置）"
                ),
                Check(
                    "rotation_gap",
                    "<",
                    EXACT,
                    "PE(p+k) from M PE(p), 4096 positions",
                    "PE(p+k) 与 M PE(p) 之差（4096 个位置）",
                ),
                Check("gram_spread", "<", EXACT, "spread of PE(p)·PE(p+k) over p", "PE(p)·PE(p+k) 随 p 的波动"),
            ),
            kind="control",
            errors=("E31.1",),
        ),
        Claim(
            "text",
            "an encoding helps a causal language model too",
            "位置编码对因果语言模型也有帮助",
            (
                Check(
                    "none_minus_rope_lower",
                    ">",
                    0.0,
                    "bits per byte lost without RoPE, 95 % bound",
                    "不用 RoPE 每字节多用的比特（95% 下界）",
                ),
            ),
            kind="aside",
            race="positions",
        ),
    ),
    figures=figures,
    evidence=evidence,
    uses=(
        "llmlab/model/positions.py",
        "llmlab/model/encoding.py",
        "llmlab/model/masks.py",
        "llmlab/model/recurrent.py",
    ),
    settings={"model": [DIM, HEADS, ROW], "sinusoid": [WIDTH, POSITIONS, *OFFSETS], **SETTINGS},
)
