"""Question 36: what length extrapolation is. Two causes, and two ways in which a figure flatters long inputs."""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmlab.data.batch import Batch
from llmlab.data.shards import TokenShards, write_shards
from llmlab.evaluation import statistics
from llmlab.evaluation.extrapolation import bits_beyond
from llmlab.handbook.lengths import HEAD_DIM, MULTIPLES, TRAINED, unmet_pairs
from llmlab.handbook.measures import draw, filled, relative
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.model.attention import MultiHead
from llmlab.model.encoding import Shape
from llmlab.model.places import Places
from llmlab.model.rotary import Linear, LogN, NoScaling, Rope, YaRN
from llmlab.model.transformer import Architecture
from llmlab.objectives.language import NextToken
from llmlab.stages import Session
from llmlab.tokenization.train import BPE, train_tokenizer

TIMES = MULTIPLES[-1]
PERIOD, DOCUMENTS = 64, 4  # texts that repeat a random line of this many characters
CLOSED_FORM = 1e-4  # bits per token in float32
MARGIN = 0.02  # bits per byte by which a loss may grow and still count as no worse, upper 95 % bound
SHARE = 0.9  # of the attention at the trained length that falls on the token that matters
LAYERS, WINDOW, FAR = 2, 16, 64


class CopyFromBack(nn.Module):
    """Half of its belief on the token PERIOD back, the rest spread evenly; it knows nothing else and reads no farther.

    Where no such token is in sight all are equally likely. So each token's loss is known: 1 bit, or log2 V.
    """

    def __init__(self, vocabulary: int, begin: int) -> None:
        super().__init__()
        self.vocabulary, self.begin = vocabulary, begin
        self.anchor = nn.Parameter(torch.zeros(1))  # says which device this is on

    def hidden(self, ids_BT: Tensor, at: Places, **role: Any) -> Tensor:
        """[B, T, V] log-probabilities. ids[t] is the token before target t: PERIOD - 1 steps back stands the copy."""
        back = PERIOD - 1
        belief = torch.full((*ids_BT.shape, self.vocabulary), 1 / self.vocabulary)
        copied_BT = ids_BT[:, :-back]
        sure = torch.full((*copied_BT.shape, self.vocabulary), 0.5 / (self.vocabulary - 1))
        sure.scatter_(2, copied_BT[..., None], 0.5)
        belief[:, back:] = torch.where((copied_BT != self.begin)[..., None], sure, belief[:, back:])
        return belief.log()

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def _early_tokens(session: Session) -> Figures:
    """One model, one text, two protocols: windows laid side by side, and the same scored tokens at every length."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-+"
    picks = (draw(session.seed, "q36.lines", DOCUMENTS, PERIOD).abs() * 1e6).long() % len(letters)
    whole = TIMES * TRAINED
    lines = ["".join(letters[int(i)] for i in row) for row in picks]
    texts = [(line * (whole // PERIOD + 1))[: whole + TRAINED // 2] for line in lines]
    tokenizer = train_tokenizer(BPE(vocab_size=260), iter("x"))
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(iter(texts), tokenizer, Path(folder) / "text")
        model, bits = CopyFromBack(tokenizer.vocab_size, shards.begin_id), math.log2(tokenizer.vocab_size)
        same = bits_beyond(model, tokenizer, shards, TRAINED)
        beside = {times: _side_by_side(model, shards, times) for times in MULTIPLES}
    # The first window of a document begins one token earlier, with the token that begins it: one more is unknown.
    unknown = {times: (TIMES // times) * (PERIOD - 1) + 1 for times in MULTIPLES}
    formula = {times: 1 + (bits - 1) * unknown[times] / whole for times in MULTIPLES}
    figures = {f"beside_{times}x": beside[times] for times in MULTIPLES}
    for times, value in same.items():
        assert isinstance(value, float)
        figures[f"same_{times}x"] = value
    return figures | {
        "formula_gap": max(abs(beside[times] - formula[times]) for times in MULTIPLES),
        "beside_gain": beside[2] - beside[TIMES],
        "same_gain": abs(figures["same_2x"] - figures[f"same_{TIMES}x"]),
    }


def _side_by_side(model: nn.Module, shards: TokenShards, times: int) -> float:
    """Bits per token of each document's first TIMES * TRAINED tokens, cut into windows that do not overlap."""
    window, whole = times * TRAINED, TIMES * TRAINED
    ids = np.stack([shards.document(number)[:whole] for number in range(shards.documents)]).astype(np.int64)
    begin = np.full((len(ids), 1), shards.begin_id)
    before = np.concatenate([begin, ids[:, :-1]], 1)
    ids_BT, targets_BT = (torch.from_numpy(side.reshape(-1, window)) for side in (before, ids))
    with torch.no_grad():
        nats = NextToken()(model, Batch(ids_BT, targets_BT, Places.causal(*ids_BT.shape))).sums["cross_entropy"]
    return float(nats) / math.log(2) / (shards.documents * whole)


def _dilution(session: Session) -> Figures:
    """Attention of one query over ever more keys: one that matters, ahead of the rest by a fixed score."""
    ahead = math.log(SHARE / (1 - SHARE) * (TRAINED - 1))
    keys, noise = TIMES * TRAINED, draw(session.seed, "q36.scores", 64, TIMES * TRAINED)
    at = Places.causal(1, keys)
    encoding = Rope(scaling=LogN(trained=TRAINED)).build(Shape(HEAD_DIM, 1, HEAD_DIM, TRAINED, 1))
    grown_by = encoding.prepare(at[:, -1:], at).query
    assert grown_by is not None
    factor = float(grown_by)

    def share(length: int, by: float) -> float:
        scores = torch.zeros(length, dtype=torch.float64)
        scores[0] = ahead * by
        return float(scores.softmax(0)[0])

    def entropy(length: int, by: float) -> float:
        logs = (noise[:, :length] * by).log_softmax(-1)
        return float(-(logs.exp() * logs).sum(-1).mean())

    return {
        "share_trained": share(TRAINED, 1),
        "share_long": share(keys, 1),
        "share_long_logn": share(keys, factor),
        "logn_factor": factor,
        "entropy_growth": entropy(keys, 1) - entropy(TRAINED, 1),
        "entropy_growth_logn": entropy(keys, factor) - entropy(TRAINED, 1),
    }


@torch.no_grad()
def _use(session: Session) -> Figures:
    """How far a change of the first token is felt, with a window and without one."""
    found: Figures = {}
    for name, window in (("window", WINDOW), ("whole", None)):
        attention = MultiHead(heads=2, window=window)
        model = Architecture(layers=LAYERS, dim=16, context=TIMES * TRAINED, attention=attention).build(
            32, session.seed
        )
        filled(model, session.seed, "q36.model")
        ids = torch.arange(FAR)[None] * 7 % 32
        other = ids.clone()
        other[0, 0] += 1
        found[f"felt_{name}"] = relative(model(other)[:, -1], model(ids)[:, -1])
    return found


def figures(session: Session) -> Figures:
    return {
        "unmet_plain": float(unmet_pairs(NoScaling(), TIMES)),
        "unmet_linear": float(unmet_pairs(Linear(by=TIMES), TIMES)),
        "unmet_yarn": float(unmet_pairs(YaRN(by=TIMES, trained=TRAINED), TIMES)),
        **_dilution(session),
        **_early_tokens(session),
        **_use(session),
    }


def raced(told: Mapping[str, Told]) -> Figures:
    race = told["positions"]
    return {
        **race.grown("rope", TIMES),
        **race.bounds("yarn_minus_rope", "rope", "rope", f"yarn@{TIMES}x", f"bits_per_byte@{TIMES}x"),
        **race.grown("none", TIMES, 2),
        **race.grown("alibi", TIMES, 2),
        **race.grown("t5", TIMES, 2),
        "learned_refuses": float(race.fails("learned", "bits_per_byte@2x") is not None),
        **_extended(told["extended"]),
    }


def _extended(race: Told) -> Figures:
    """A little model past its length: loss and recall apart, both protocols, and how attention spreads."""
    far = f"{TIMES}x"
    beside, same = (
        [a - b for a, b in zip(race.values("alibi", f"{what}@1x"), race.values("alibi", f"{what}@{far}"), strict=True)]
        for what in ("beside", "bits")
    )
    flattery = statistics.mean([a - b for a, b in zip(beside, same, strict=True)])
    return {
        **race.bounds("sinks_bits_grown", "sinks", "sinks", f"bits@{far}", "bits@1x"),
        **race.bounds("sinks_recall_grown", "sinks", "sinks", f"needle@{far}", "needle@1x"),
        "sinks_recall_near": race.mean("sinks", "needle@1x"),
        "sinks_recall_far": race.mean("sinks", f"needle@{far}"),
        **race.bounds("alibi_bits_grown", "alibi", "alibi", f"bits@{far}", "bits@1x"),
        **race.bounds("alibi_recall_grown", "alibi", "alibi", f"needle@{far}", "needle@1x"),
        "alibi_recall_near": race.mean("alibi", "needle@1x"),
        "alibi_recall_far": race.mean("alibi", f"needle@{far}"),
        "alibi_beside_gain": sum(beside) / len(beside),
        "alibi_same_gain": sum(same) / len(same),
        "flattery": flattery.value,
        "flattery_lower": flattery.low,
        **race.bounds("rope_entropy_grown", "rope", "rope", f"entropy@{far}", "entropy@1x"),
    }


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"At {TIMES} times the trained length {f['unmet_plain']:.0f} of {HEAD_DIM // 2} rotary pairs turn to angles "
        f"that training never met (YaRN: {f['unmet_yarn']:.0f}); a token that held {f['share_trained']:.0%} of the "
        f"attention keeps {f['share_long']:.0%} (logN: {f['share_long_logn']:.0%}). A model that reads {PERIOD} "
        f"tokens back and no farther seems to gain {f['beside_gain']:.2f} bits a token from 2x to {TIMES}x when "
        f"windows lie side by side, and {f['same_gain']:.2f} on the same tokens."
    )
    zh = (
        f"长度为训练的 {TIMES} 倍时，RoPE 的 {HEAD_DIM // 2} 对坐标中有 {f['unmet_plain']:.0f} 对转到训练中从未出现的"
        f"角度（YaRN 为 {f['unmet_yarn']:.0f} 对）；原先占 {f['share_trained']:.0%} 注意力的词元只剩 "
        f"{f['share_long']:.0%}（logN 可保住 {f['share_long_logn']:.0%}）。一个只回看 {PERIOD} 个词元的模型，窗口首尾"
        f"相接地评测时，从 2 倍到 {TIMES} 倍每词元似乎赚了 {f['beside_gain']:.2f} 比特，换成同一批词元则为 "
        f"{f['same_gain']:.2f}。"
    )
    if "rope_8x_minus_1x" in f:
        en += (
            f" Trained at {TRAINED}: RoPE {f['rope_8x_minus_1x']:+.2f} bits per byte from 1x to 8x, YaRN changes it by "
            f"{f['yarn_minus_rope']:+.2f}; from 2x to 8x no encoding {f['none_8x_minus_2x']:+.2f}, T5 "
            f"{f['t5_8x_minus_2x']:+.2f}, ALiBi {f['alibi_8x_minus_2x']:+.3f}. A smaller "
            f"model, 32 tokens: behind a window with sinks its loss changes by {f['sinks_bits_grown']:+.2f} to 8x, and "
            f"codes hidden in the text are recalled in {f['sinks_recall_far']:.0%} instead of "
            f"{f['sinks_recall_near']:.0%}; ALiBi's loss changes by {f['alibi_bits_grown']:+.2f}, recall from "
            f"{f['alibi_recall_near']:.0%} to {f['alibi_recall_far']:.0%}; its windows side by side show a gain of "
            f"{f['alibi_beside_gain']:.2f}, the same tokens {f['alibi_same_gain']:+.2f}; the entropy of plain RoPE's "
            f"attention grows by {f['rope_entropy_grown']:.2f} nats."
        )
        zh += (
            f"以 {TRAINED} 个词元训练：RoPE 从 1 倍到 8 倍每字节 {f['rope_8x_minus_1x']:+.2f} 比特，改用 YaRN 读法变化 "
            f"{f['yarn_minus_rope']:+.2f}；从 2 倍到 8 倍，无编码 {f['none_8x_minus_2x']:+.2f}，T5 "
            f"{f['t5_8x_minus_2x']:+.2f}，ALiBi {f['alibi_8x_minus_2x']:+.3f}。更小的模型以 32 个词元训"
            f"练：用带汇点的窗口读到 8 倍，损失变化 {f['sinks_bits_grown']:+.2f}，文中所藏代码的找回率却由 "
            f"{f['sinks_recall_near']:.0%} 变为 {f['sinks_recall_far']:.0%}；ALiBi 损失变化 "
            f"{f['alibi_bits_grown']:+.2f}，找回率由 {f['alibi_recall_near']:.0%} 变为 {f['alibi_recall_far']:.0%}；"
            f"用首尾相接的窗口评测，它似乎赚了 {f['alibi_beside_gain']:.2f} 比特，对同一批词元则为 "
            f"{f['alibi_same_gain']:+.2f}；原样的 RoPE 注意力熵增加 {f['rope_entropy_grown']:.2f} 奈特。"
        )
    return Text(en, zh)


QUESTION = Question(
    number=36,
    tier="formula",
    claim=Text(
        "The model has to predict or generate at lengths outside its training range, since data or means limited what "
        "it was trained on. Remedies: a fitting encoder and decoder, a fitting position encoding such as RoPE, longer "
        "training inputs, and generative adversarial networks that produce longer sequences.",
        "即要求模型在超出训练范围的长度上作预测或续写，根源在于语料或算力有限。对策有：挑选合适的编解码结构，采用 "
        "RoPE 一类的位置编码，加长训练输入，乃至用 GAN 产出更长的文本。",
    ),
    correction=Text(
        "Train short, test long, and the loss per token is no worse than at the trained length (Press 2022): a matter "
        "of conditioning on a longer context, not of emitting more tokens. Two causes: positions or angles that "
        "training never met, and attention that thins out over ever more keys. RoPE alone fails; RoPE with rescaled "
        "angles (PI, NTK, YaRN) does not. Score the same tokens at every length, since side-by-side windows give early "
        "tokens more context the longer they are; and a flat loss is not yet use: a window has one by ignoring what "
        "lies outside it.",
        "定义应为：训练用短文、测试用长文，而每个词元的损失不高于训练长度处（Press 2022）；要紧的是以更长的上文为条"
        "件，而不是多吐几个词。成因有二：位置或角度在训练中从未出现，以及键越多注意力越稀薄。RoPE 本身并不能外推，改写"
        "角度（PI、NTK、YaRN）之后才行。各长度须对同一批词元计分，否则首尾相接的窗口越长，靠前的词元得到的上文就越多；"
        "损失平稳也不等于用上了远处：滑动窗口只要不看窗外，损失同样平稳。",
    ),
    run=Text(
        "Rotary angles met in training against those at eight times the length; one token's share of the attention "
        "among ever more keys; a model whose loss at every token is known in closed form, scored by two protocols; a "
        "first token changed, felt behind a window or not. The race trains encodings at 128 tokens and reads them at "
        "up to 1024; another trains at 32, and looks for hidden codes besides.",
        "比较训练时与八倍长度下出现的旋转角；看键增多时单个词元所占的注意力；取一个逐词元损失有闭式解的模型，用两种办"
        "法计分；改动第一个词元，看窗口之外能否察觉。竞赛以 128 个词元训练各种编码，最长读到 1024；另一"
        "场以 32 个词元训练，还要找回藏在文中的代码。",
    ),
    papers=(
        "Press, Smith & Lewis 2022, Train Short, Test Long, arXiv 2108.12409",
        "Caccia et al. 2018, Language GANs Falling Short, arXiv 1811.02549",
        "Chiang & Cholak 2022, Overcoming a Theoretical Limitation of Self-Attention, arXiv 2202.12172",
        "Chen et al. 2023, Extending Context Window via Positional Interpolation, arXiv 2306.15595",
        "Peng et al. 2023, YaRN, arXiv 2309.00071",
    ),
    errors={"E36.1": "W", "E36.2": "M", "E36.3": "M", "E36.4": "I"},
    on_paper={
        "E36.1": Text(
            "GANs are no remedy: on text they trail plain maximum likelihood over the whole range of quality and "
            "diversity (Caccia 2018), and they leave positions as they are",
            "GAN 不是对策：在文本上，无论看质量还是看多样性都不及普通的最大似然训练（Caccia 2018），而且根本不触及位置",
        )
    },
    claims=(
        Claim(
            "rope",
            "a position encoding such as RoPE is the remedy",
            "换用 RoPE 一类的编码即可外推",
            (
                Check(
                    "unmet_plain", ">", 4.0, "RoPE: pairs at angles never met, of 16", "RoPE：取到新角度的对数，共 16"
                ),
                Check("unmet_linear", "==", 0.0, "positions interpolated: the same", "位置插值：同上"),
                Check("unmet_yarn", "==", 0.0, "YaRN: the same", "YaRN：同上"),
            ),
            Verdict.CORRECTED,
            errors=("E36.2",),
        ),
        Claim(
            "dilution",
            "the trouble is limited training data alone",
            "问题只出在训练数据有限",
            (
                Check(
                    "share_long", "<", 0.6, "share of a token that had 90 %, 8x", "原占九成的词元在 8 倍长度处的份额"
                ),
                Check("share_long_logn", ">", 0.9, "the same with logN", "加 logN 后的份额"),
                Check("entropy_growth", ">", 1.5, "growth of the entropy, nats", "注意力熵的增量（奈特）"),
            ),
            Verdict.CORRECTED,
            errors=("E36.3",),
        ),
        Claim(
            "surviving is not using",
            "generating longer text is extrapolating",
            "能写得更长就算外推",
            (
                Check("felt_window", "==", 0.0, "window: effect of a far token", "有窗口：远处词元的影响"),
                Check("felt_whole", ">", 1e-5, "no window: the same", "无窗口：同上"),
            ),
            Verdict.CORRECTED,
            errors=("E36.3",),
        ),
        Claim(
            "measuring",
            "the problem is told without a measure of it",
            "只提问题，不提怎样度量",
            (
                Check("formula_gap", "<", CLOSED_FORM, "distance from the closed form, bits", "与闭式解之差（比特）"),
                Check("beside_gain", ">", 0.3, "seeming gain, windows side by side", "窗口首尾相接时的虚假收益"),
                Check("same_gain", "<", CLOSED_FORM, "change on the same tokens", "对同一批词元计分时的变化"),
            ),
            Verdict.CORRECTED,
            errors=("E36.4",),
        ),
        Claim(
            "rope, trained",
            "trained RoPE reads eight times its length",
            "训练好的 RoPE 可读八倍长度",
            (
                Check(
                    "rope_8x_minus_1x_lower",
                    ">",
                    0.0,
                    "RoPE: loss, 8x minus 1x, lower bound",
                    "RoPE：8 倍减 1 倍，下界",
                ),
                Check(
                    "yarn_minus_rope_upper", "<", 0.0, "YaRN minus RoPE, 8x, upper bound", "8 倍处 YaRN 减 RoPE，上界"
                ),
            ),
            Verdict.CORRECTED,
            errors=("E36.2",),
            race="positions",
        ),
        Claim(
            "no positions, trained",
            "where no position is encoded, none is new, and loss grows all the same",
            "不编码位置就没有新位置，损失却照样上升",
            (Check("none_8x_minus_2x_lower", ">", 0.0, "none: loss, 8x minus 2x, lower", "无编码：8 倍减 2 倍，下界"),),
            Verdict.CORRECTED,
            kind="aside",
            race="positions",
        ),
        Claim(
            "extrapolation exists",
            "some encodings do read on",
            "确有编码能够外推",
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
        Claim(
            "surviving is not using, trained",
            "a model whose loss stays down has extrapolated",
            "损失不升即为外推",
            (
                Check(
                    "alibi_bits_grown_upper", "<", 0.1, "ALiBi: loss, 8x minus 1x, upper", "ALiBi：8 倍减 1 倍，上界"
                ),
                Check("alibi_recall_grown_upper", "<", 0.0, "codes recalled, the same", "代码找回率，同上"),
            ),
            Verdict.CORRECTED,
            errors=("E36.3",),
            race="extended",
        ),
        Claim(
            "a window survives",
            "behind a window with sinks the loss stays down, and far codes are lost",
            "加窗口与汇点后损失不升，而远处的代码丢失",
            (
                Check("sinks_bits_grown_upper", "<", 0.1, "loss, 8x minus 1x, upper", "8 倍减 1 倍，上界"),
                Check("sinks_recall_grown_upper", "<", 0.0, "codes recalled, the same", "代码找回率，同上"),
            ),
            kind="aside",
            race="extended",
        ),
        Claim(
            "measuring, trained",
            "windows laid side by side tell how a model reads long texts",
            "用首尾相接的窗口即可衡量长文能力",
            (
                Check(
                    "flattery_lower",
                    ">",
                    0.0,
                    "ALiBi: gain side by side minus on the same tokens, lower",
                    "ALiBi：首尾相接的收益减同一批词元的，下界",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E36.4",),
            race="extended",
        ),
        Claim(
            "dilution, trained",
            "attention spreads as a text grows",
            "文本越长，注意力越分散",
            (
                Check(
                    "rope_entropy_grown_lower", ">", 0.5, "entropy, 8x minus 1x, nats, lower", "熵，8 倍减 1 倍，下界"
                ),
            ),
            kind="aside",
            race="extended",
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("positions", "extended"),
    raced=raced,
    uses=(
        "llmlab/model/rotary.py",
        "llmlab/evaluation/extrapolation.py",
        "llmlab/handbook/lengths.py",
        "llmlab/handbook/races/positions.py",
        "llmlab/handbook/extended.py",
    ),
    settings={
        "trained": TRAINED,
        "times": TIMES,
        "head_dim": HEAD_DIM,
        "text": [PERIOD, DOCUMENTS],
        "window": [LAYERS, WINDOW, FAR],
    },
)
