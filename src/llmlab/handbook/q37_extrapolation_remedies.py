"""Question 37: remedies for length extrapolation. What the handbook names, and what it leaves out."""

import math
from collections.abc import Mapping

import torch

from llmlab.errors import InputError
from llmlab.handbook.lengths import HEAD_DIM, MULTIPLES, TRAINED, step_angles, unmet, unmet_pairs
from llmlab.handbook.measures import filled, gap, power
from llmlab.handbook.question import Check, Claim, Figures, Question, Table, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.inference.cache import DenseCache
from llmlab.model.attention import MultiHead
from llmlab.model.encoding import Shape
from llmlab.model.places import Places
from llmlab.model.positions import Learned, Position, Sinusoidal
from llmlab.model.relative import T5Bias, T5Encoding
from llmlab.model.rotary import NTK, Linear, NoScaling, Rope, Scaling, YaRN
from llmlab.model.transformer import Architecture, Transformer
from llmlab.stages import Session

TIMES = MULTIPLES[-1]
ROTARY = ("rope", "linear", "ntk", "yarn")  # arms that are tuned
ALIKE = 0.05  # bits per byte within which two tuned ways count as equal, the whole interval
EXACT = 1e-9
DIM, VOCABULARY, SHORT = 128, 32, 16
WIDE = 64  # a head's width in the race's model of twice the width
PAPER_HEAD = 128  # LLaMA's head, for which bases are quoted
NTK_8, YARN_8 = 82_685.0, 1.2079  # of 8 times the length, computed for the specification


def _absolute() -> Figures:
    """Whether absolute positions can be had past the table, and which of their waves are new there."""
    refused = 0
    learned = Architecture(layers=1, dim=16, context=TRAINED, position=Learned(), attention=MultiHead(heads=2)).build(8)
    for times in MULTIPLES[1:]:
        try:
            learned(torch.zeros(1, times * TRAINED, dtype=torch.int64))
        except InputError:
            refused += 1
    waves = Sinusoidal().build(Shape(DIM, 1, DIM, TRAINED, 1))
    tokens = TIMES * TRAINED
    wave_SD = waves.embed(torch.zeros(1, tokens, DIM), Places.causal(1, tokens))[0].double()
    angle_SP = torch.atan2(wave_SD[:, 0::2], wave_SD[:, 1::2]) % (2 * math.pi)
    return {"learned_refusals": float(refused), "sinusoidal_unmet": float(unmet(angle_SP[1], angle_SP))}


def _buckets() -> Figures:
    """T5's buckets for the distances of a long text: how many there are, and how many training never used."""
    table = T5Bias().build(Shape(DIM, 1, DIM, TRAINED, 1))
    assert isinstance(table, T5Encoding)
    bucket_S = table.bucket(torch.arange(TIMES * TRAINED))
    met = set(bucket_S[:TRAINED].tolist())
    return {
        "t5_met": float(len(met)),
        "t5_unmet": float(len(set(bucket_S.tolist()) - met)),
    }


def _rescaling() -> Figures:
    """The arithmetic of the rescaled angles, at LLaMA's head width and at the race's."""
    pairs = PAPER_HEAD // 2
    figures: Figures = {}
    for by in MULTIPLES[1:]:
        slowest = float(NTK(by=by).frequencies(pairs, 10_000.0)[-1])
        figures[f"ntk_base_{by}"] = slowest ** (-pairs / (pairs - 1))
        figures[f"yarn_factor_{by}"] = YaRN(by=by, trained=TRAINED).factor()
    ways: dict[str, Scaling] = {
        "plain": NoScaling(),
        "linear": Linear(by=TIMES),
        "ntk": NTK(by=TIMES),
        "yarn": YaRN(by=TIMES, trained=TRAINED),
    }
    for name, scaling in ways.items():
        figures[f"unmet_{name}"] = float(unmet_pairs(scaling, TIMES))
        figures[f"fastest_{name}"] = float(step_angles(scaling, 2)[1, 0])
    return figures | {
        "ntk_base_error": abs(figures["ntk_base_8"] / NTK_8 - 1),
        "yarn_factor_error": abs(figures["yarn_factor_8"] / YARN_8 - 1),
        "unmet_share": figures["unmet_plain"] / (HEAD_DIM // 2),
        "unmet_share_wide": unmet_pairs(NoScaling(), TIMES, WIDE) / (WIDE // 2),
    }


def _tiny(position: Position, seed: int) -> Transformer:
    a = Architecture(layers=2, dim=16, context=SHORT, position=position, attention=MultiHead(heads=2))
    model = a.build(VOCABULARY, seed)
    filled(model, seed, "q37.model")
    return model


@torch.no_grad()
def _iterating(session: Session) -> Figures:
    """Text fed back in pieces against the text at once; then a table of SHORT positions asked for TIMES as many."""
    tokens = TIMES * SHORT
    ids, at = torch.arange(tokens)[None] * 7 % VOCABULARY, Places.causal(1, tokens)
    rope, cache = _tiny(Rope(), session.seed), DenseCache(tokens)
    pieces = [rope(ids[:, cut], at[:, cut], cache) for cut in (slice(i, i + SHORT) for i in range(0, tokens, SHORT))]
    return {
        "pieces_gap": gap(torch.cat(pieces, 1), rope(ids)),
        "fed_back_unbounded": _written(_tiny(Learned(), session.seed), None),
        "fed_back_sliding": _written(_tiny(Learned(), session.seed), SHORT),
    }


def _written(model: Transformer, window: int | None) -> float:
    """How many tokens are written behind SHORT given ones, up to TIMES * SHORT in all, each from the last `window`."""
    text, wanted = [1] * SHORT, TIMES * SHORT
    while len(text) < wanted:
        seen = text if window is None else text[-window:]
        try:
            text.append(int(model(torch.tensor([seen]))[0, -1].argmax()))
        except InputError:
            break
    return float(len(text) - SHORT)


def figures(session: Session) -> Figures:
    return {**_absolute(), **_buckets(), **_rescaling(), **_iterating(session)}


def raced(told: Mapping[str, Told]) -> Figures:
    race, short = told["positions"], told["short_alibi"]
    found: Figures = {}
    for arm in ("sinusoidal", "rope", "rope, wide", "alibi"):
        found |= race.grown(arm, TIMES)
    for arm in ("alibi", "t5"):
        found |= race.grown(arm, TIMES, 2)
    for way in ("ntk", "dynamic", "yarn", "window", "sinks"):
        name = f"{way}_minus_rope"
        found |= race.bounds(name, "rope", "rope", f"{way}@{TIMES}x", f"bits_per_byte@{TIMES}x")
    for way, other in (("ntk", "linear"), ("yarn", "linear"), ("sinks", "window")):
        found |= race.bounds(f"{way}_minus_{other}", "rope", "rope", f"{way}@4x", f"{other}@4x")
    found |= race.bounds("alibi_minus_rope", "alibi", "rope", f"bits_per_byte@{TIMES}x")
    found |= race.bounds("wide_minus_alibi", "rope, wide", "alibi", f"bits_per_byte@{TIMES}x")
    found |= short.bounds("long_minus_short", "sinusoidal, 128", "sinusoidal, 64", "bits_per_byte@context")
    found |= _extended(told["extended"])
    found["wide_times_parameters"] = race.mean("rope, wide", "parameters") / race.mean("rope", "parameters")
    return found


def _extended(race: Told) -> Figures:
    """A little model, its angles rescaled for four times its length: as it is, and tuned there for a few steps."""
    found: Figures = {}
    for arm in ROTARY:
        for what in ("bits", "needle"):
            found |= race.bounds(f"{what}_{arm}_gained", arm, arm, f"tuned {what}@4x", f"{what}@4x")
        for when in ("", "tuned "):
            for what in ("bits", "needle"):
                for times in MULTIPLES:
                    found[f"{when}{what}_{arm}_{times}x"] = race.mean(arm, f"{when}{what}@{times}x")
    for when, name in (("", "untuned"), ("tuned ", "tuned")):
        for a, b in (("yarn", "linear"), ("ntk", "linear"), ("yarn", "rope")):
            found |= race.bounds(f"{name}_{a}_minus_{b}", a, b, f"{when}bits@4x")
    found |= race.bounds("untuned_linear_recall", "linear", "rope", "needle@4x")
    found |= race.bounds("tuned_rope_onward", "rope", "rope", "tuned bits@8x", "tuned bits@4x")
    return found


def tables(f: Mapping[str, float]) -> tuple[Table, ...]:
    """Loss and recall of each way, before and after the tuning, at each length."""
    if "tuned bits_rope_4x" not in f:
        return ()
    heads: tuple[Text | str, ...] = (
        Text("bits per byte (codes recalled)", "每字节比特（代码找回率）"),
        *(f"{times}x" for times in MULTIPLES),
    )
    names = {"rope": Text("plain RoPE", "原样 RoPE"), "linear": "PI", "ntk": "NTK", "yarn": "YaRN"}
    rows: list[tuple[Text | str, ...]] = []
    for when, told in (("", Text("untuned", "未微调")), ("tuned ", Text("tuned at 4x", "在 4 倍处微调"))):
        for arm, name in names.items():
            en, zh = (name.en, name.zh) if isinstance(name, Text) else (name, name)
            cells = [
                f"{f[f'{when}bits_{arm}_{times}x']:.2f} ({f[f'{when}needle_{arm}_{times}x']:.0%})"
                for times in MULTIPLES
            ]
            rows.append((Text(f"{en}, {told.en}", f"{zh}，{told.zh}"), *cells))
    title = Text("Trained at 32 tokens, angles rescaled for 128", "以 32 个词元训练，角度按 128 改写")
    return (Table(title, heads, tuple(rows)),)


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"A learnt table refuses {f['learned_refusals']:.0f} of 3 longer texts; {f['sinusoidal_unmet']:.0f} of "
        f"{DIM // 2} sinusoids and {f['unmet_plain']:.0f} of {HEAD_DIM // 2} rotary pairs reach values new at "
        f"{TIMES}x, in a head of twice the width {f['unmet_share_wide']:.0%} as against {f['unmet_share']:.0%}; with "
        f"PI {f['unmet_linear']:.0f}, YaRN {f['unmet_yarn']:.0f}, T5 {f['t5_unmet']:.0f} buckets. Feeding text back "
        f"equals reading it at once ({power(f['pieces_gap'])}); past its table a model gets "
        f"{f['fed_back_unbounded']:.0f} token far, with a sliding window {f['fed_back_sliding']:.0f}. NTK's base for "
        f"8x: {f['ntk_base_8']:,.0f}, YaRN's factor {f['yarn_factor_8']:.4f}."
    )
    zh = (
        f"可学习的位置表对 3 种更长的文本拒绝了 {f['learned_refusals']:.0f} 种；到 {TIMES} 倍时，{DIM // 2} 组正弦波中"
        f"有 {f['sinusoidal_unmet']:.0f} 组、{HEAD_DIM // 2} 对旋转坐标中有 {f['unmet_plain']:.0f} 对取到新值，头宽加"
        f"倍后该比例为 {f['unmet_share_wide']:.0%}（原为 {f['unmet_share']:.0%}）；PI 剩 {f['unmet_linear']:.0f} 对，"
        f"YaRN 剩 {f['unmet_yarn']:.0f} 对，T5 有 {f['t5_unmet']:.0f} 个新桶。分段回填与一次读完结果相同（差 "
        f"{power(f['pieces_gap'])}）；表用尽后还能写 {f['fed_back_unbounded']:.0f} 个词元，改用滑动窗口可写 "
        f"{f['fed_back_sliding']:.0f} 个。8 倍长度的 NTK 底数为 {f['ntk_base_8']:.0f}，YaRN 系数为 "
        f"{f['yarn_factor_8']:.4f}。"
    )
    if "rope_8x_minus_1x" in f:
        en += (
            f" Trained at {TRAINED}, bits per byte from 1x to 8x: sinusoidal {f['sinusoidal_8x_minus_1x']:+.2f}, RoPE "
            f"{f['rope_8x_minus_1x']:+.2f}, RoPE with {f['wide_times_parameters']:.1f} times the weights "
            f"{f['rope_wide_8x_minus_1x']:+.2f}, ALiBi {f['alibi_8x_minus_1x']:+.2f}. At 8x against RoPE: NTK "
            f"{f['ntk_minus_rope']:+.2f}, dynamic {f['dynamic_minus_rope']:+.2f}, YaRN {f['yarn_minus_rope']:+.2f}, "
            f"window {f['window_minus_rope']:+.2f}, with sinks {f['sinks_minus_rope']:+.2f}. Sinusoidal trained at 128 "
            f"and not at 64, read at 128: {f['long_minus_short']:+.2f}. A "
            f"smaller model, 50 steps at 4x: RoPE {f['bits_rope_gained']:+.2f} bits, PI "
            f"{f['bits_linear_gained']:+.2f}, "
            f"NTK {f['bits_ntk_gained']:+.2f}, YaRN {f['bits_yarn_gained']:+.2f}; against PI YaRN is at "
            f"{f['untuned_yarn_minus_linear']:+.2f} before and {f['tuned_yarn_minus_linear']:+.2f} after."
        )
        zh += (
            f"以 {TRAINED} 个词元训练，从 1 倍到 8 倍每字节变化（比特）：正弦 {f['sinusoidal_8x_minus_1x']:+.2f}，"
            f"RoPE {f['rope_8x_minus_1x']:+.2f}，参数为 {f['wide_times_parameters']:.1f} 倍的 RoPE "
            f"{f['rope_wide_8x_minus_1x']:+.2f}，ALiBi {f['alibi_8x_minus_1x']:+.2f}。8 倍处与 RoPE 相比：NTK "
            f"{f['ntk_minus_rope']:+.2f}，动态 NTK {f['dynamic_minus_rope']:+.2f}，YaRN {f['yarn_minus_rope']:+.2f}，"
            f"窗口 {f['window_minus_rope']:+.2f}，窗口加汇点 {f['sinks_minus_rope']:+.2f}。正弦编码以 128 而非 64 训"
            f"练，在 128 处评测：{f['long_minus_short']:+.2f}。更小的模型在 4 倍处微调 50 步：RoPE "
            f"{f['bits_rope_gained']:+.2f} 比特，PI {f['bits_linear_gained']:+.2f}，NTK {f['bits_ntk_gained']:+.2f}，"
            f"YaRN {f['bits_yarn_gained']:+.2f}；YaRN 与 PI 之差，微调前 {f['untuned_yarn_minus_linear']:+.2f}，微调后 "
            f"{f['tuned_yarn_minus_linear']:+.2f}。"
        )
    return Text(en, zh)


QUESTION = Question(
    number=37,
    tier="formula",
    claim=Text(
        "Six remedies: an architecture that copes with varying length, such as the Transformer; a fitting position "
        "encoding, relative (RoPE) or absolute; longer training texts; generative models such as GANs; a model of more "
        "capacity; and iteration, in which what was generated is fed back as input.",
        "共列六条：选用善于应付变长输入的结构，例如 Transformer；选对编码，相对式（RoPE）或绝对式均可；训练语料里加入"
        "更长的样本；借助 GAN 之类的生成式方法；把模型做大；以及迭代，即把已写出的片段再作为输入。",
    ),
    correction=Text(
        "Longer training texts do help. Absolute encodings do not: a learnt table has no further rows, and sinusoids "
        "fail after some tens of tokens (Press 2022). Neither does size (Anil 2022), nor a GAN. That a Transformer "
        "takes any length is the problem, not its solution, and feeding text back is ordinary autoregression: it "
        "meets the same new positions unless the window slides. What does help: biases by distance (ALiBi, T5, "
        "KERPLE, FIRE), xPos, rescaled rotary angles (PI, NTK and dynamic NTK, YaRN, a larger base), logN, randomised "
        "positions, windows with attention sinks (StreamingLLM, LM-Infinite), short fine-tuning on long text "
        "(LongLoRA).",
        "加长训练样本确实有效。绝对式编码无效：可学习的位置表没有更多的行，正弦编码只能多撑几十个词元（Press 2022）；"
        "做大模型（Anil 2022）和 GAN 也都无效。Transformer 对长度来者不拒，这恰是问题所在，并非答案；回填则不过是寻常"
        "的自回归，窗口若不滑动，照样碰上没见过的位置。真正有效的是：按距离加偏置（ALiBi、T5、KERPLE、FIRE）、xPos、改"
        "写旋转角（PI、NTK 与动态 NTK、YaRN、换更大的底数）、logN、随机化位置、带注意力汇点的窗口（StreamingLLM、"
        "LM-Infinite），以及在长文上短暂微调（LongLoRA）。",
    ),
    run=Text(
        "Positions, angles and buckets that training at 128 tokens meets against those of 1024, for each remedy and "
        "for a wider head; the rescaled bases and temperatures; text fed back in pieces, with and without a sliding "
        "window. The races read trained models at up to 8 times their length, as they are and in seven other ways; "
        "a smaller one is tuned at 4 times its length, its angles rescaled or not.",
        "就每种对策以及更宽的头，比较 128 个词元的训练与 1024 个词元的测试各碰到哪些位置、角度和桶；计算改写后的底数与"
        "温度；分段回填文本，窗口滑动与否各试一次。竞赛把训练好的模型读到 8 倍长度，除原样之外另有七种读"
        "法；更小的模型则在 4 倍长度处微调，角度改写与否各试。",
    ),
    papers=(
        "Press, Smith & Lewis 2022, Train Short, Test Long, arXiv 2108.12409",
        "Anil et al. 2022, Exploring Length Generalization in Large Language Models, arXiv 2207.04901",
        "Caccia et al. 2018, Language GANs Falling Short, arXiv 1811.02549",
        "Chi et al. 2022, KERPLE, arXiv 2205.09921",
        "Sun et al. 2022, A Length-Extrapolatable Transformer (xPos), arXiv 2212.10554",
        "Ruoss et al. 2023, Randomized Positional Encodings, arXiv 2305.16843",
        "Chen et al. 2023, Extending Context Window via Positional Interpolation, arXiv 2306.15595",
        "Han et al. 2023, LM-Infinite, arXiv 2308.16137",
        "Peng et al. 2023, YaRN, arXiv 2309.00071",
        "Chen et al. 2023, LongLoRA, arXiv 2309.12307",
        "Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453",
        "Liu et al. 2023, Scaling Laws of RoPE-based Extrapolation, arXiv 2310.05209",
        "Li et al. 2023, Functional Interpolation for Relative Positions (FIRE), arXiv 2310.04418",
    ),
    errors={"E37.1": "W", "E37.2": "W", "E37.3": "W", "E37.4": "M", "E37.5": "I"},
    on_paper={
        "E37.3": Text(
            "GANs: a text GAN trails maximum likelihood on quality and diversity together (Caccia 2018), and a "
            "generator that was trained on short text meets the same new positions",
            "GAN：文本 GAN 的质量与多样性合起来看不及最大似然（Caccia 2018），况且以短文训练的生成器同样会碰上新位置",
        )
    },
    claims=(
        Claim(
            "absolute",
            "absolute encodings help a model past its length",
            "绝对式编码有助于外推",
            (
                Check(
                    "learned_refusals", "==", 3.0, "learnt table: texts refused, of 3", "可学习的表：拒绝的文本数，共 3"
                ),
                Check("sinusoidal_unmet", ">", 30.0, "sinusoids at new values, of 64", "取到新值的正弦波组数，共 64"),
            ),
            Verdict.REFUTED,
            errors=("E37.1",),
        ),
        Claim(
            "capacity",
            "more capacity helps",
            "把模型做大有助于外推",
            (
                Check("unmet_share", ">", 0.5, "share of pairs at new angles", "取到新角度的坐标对比例"),
                Check("unmet_share_wide", ">", 0.5, "the same, heads twice as wide", "头宽加倍：同上"),
            ),
            Verdict.REFUTED,
            errors=("E37.2",),
        ),
        Claim(
            "iterating",
            "a Transformer copes with any length; feeding text back extends it",
            "Transformer 本就适应变长输入，回填可再延长",
            (
                Check("pieces_gap", "<", EXACT, "fed back in pieces against at once", "分段回填与一次读完之差"),
                Check("fed_back_unbounded", "==", 1.0, "tokens written past the table", "位置用尽后写出的词元数"),
                Check("fed_back_sliding", "==", 112.0, "the same, window sliding", "窗口滑动：同上"),
            ),
            Verdict.CORRECTED,
            errors=("E37.4",),
        ),
        Claim(
            "left out",
            "the six are the remedies",
            "对策即此六条",
            (
                Check("unmet_linear", "==", 0.0, "PI: pairs at new angles", "PI：取到新角度的对数"),
                Check("unmet_yarn", "==", 0.0, "YaRN: the same", "YaRN：同上"),
                Check("t5_unmet", "==", 0.0, "T5: new buckets", "T5：新桶的个数"),
                Check(
                    "fastest_linear", "<", 0.2, "PI: step of the fastest pair (was 1)", "PI：最快一对的步进（原为 1）"
                ),
                Check("fastest_yarn", ">", 0.9, "YaRN: the same", "YaRN：同上"),
            ),
            Verdict.CORRECTED,
            errors=("E37.5",),
        ),
        Claim(
            "arithmetic",
            "our rescaled angles are the published ones",
            "本库改写的角度与论文一致",
            (
                Check("ntk_base_error", "<", 1e-4, "NTK's base for 8x: relative error", "8 倍 NTK 底数的相对误差"),
                Check("yarn_factor_error", "<", 1e-4, "YaRN's factor for 8x: the same", "8 倍 YaRN 系数的相对误差"),
                Check("fastest_ntk", ">", 0.9, "NTK: step of the fastest pair", "NTK：最快一对的步进"),
            ),
            kind="control",
        ),
        Claim(
            "absolute, trained",
            "a trained sinusoidal model reads on",
            "训练好的正弦编码模型能够外推",
            (Check("sinusoidal_8x_minus_1x_lower", ">", 0.0, "loss, 8x minus 1x, lower bound", "8 倍减 1 倍，下界"),),
            Verdict.REFUTED,
            errors=("E37.1",),
            race="positions",
        ),
        Claim(
            "rope, trained",
            "a trained RoPE model reads on",
            "训练好的 RoPE 模型能够外推",
            (Check("rope_8x_minus_1x_lower", ">", 0.0, "loss, 8x minus 1x, lower bound", "8 倍减 1 倍，下界"),),
            Verdict.REFUTED,
            race="positions",
        ),
        Claim(
            "capacity, trained",
            "a larger RoPE model reads on",
            "更大的 RoPE 模型能够外推",
            (
                Check("rope_wide_8x_minus_1x_lower", ">", 0.0, "loss, 8x minus 1x, lower bound", "8 倍减 1 倍，下界"),
                Check(
                    "wide_minus_alibi_lower",
                    ">",
                    0.0,
                    "8x: minus a small ALiBi model's, lower",
                    "8 倍处减小 ALiBi 模型，下界",
                ),
            ),
            Verdict.REFUTED,
            errors=("E37.2",),
            race="positions",
        ),
        Claim(
            "longer texts",
            "training on longer texts helps",
            "加长训练样本有效",
            (
                Check(
                    "long_minus_short_upper",
                    "<",
                    0.0,
                    "trained at 128 minus at 64, upper",
                    "以 128 训练减以 64 训练，上界",
                ),
            ),
            race="short_alibi",
        ),
        Claim(
            "what helps, trained",
            "what the handbook leaves out helps",
            "遗漏的办法确有效果",
            (
                Check(
                    "alibi_minus_rope_upper",
                    "<",
                    0.0,
                    "ALiBi minus RoPE, 8x, upper bound",
                    "8 倍处 ALiBi 减 RoPE，上界",
                ),
                Check("yarn_minus_rope_upper", "<", 0.0, "YaRN minus RoPE, the same", "YaRN 减 RoPE，同上"),
                Check(
                    "dynamic_minus_rope_upper", "<", 0.0, "dynamic NTK minus RoPE, the same", "动态 NTK 减 RoPE，同上"
                ),
                Check("window_minus_rope_upper", "<", 0.0, "window minus none, the same", "加窗口减不加，同上"),
            ),
            Verdict.CORRECTED,
            errors=("E37.5",),
            race="positions",
        ),
        Claim(
            "bases",
            "a larger base of the angles helps untuned",
            "不经微调，换大底数也有效",
            (
                Check("ntk_minus_rope_upper", "<", 0.0, "NTK minus RoPE, 8x, upper bound", "8 倍处 NTK 减 RoPE，上界"),
                Check(
                    "dynamic_minus_rope_upper", "<", 0.0, "dynamic NTK minus RoPE, the same", "动态 NTK 减 RoPE，同上"
                ),
            ),
            kind="aside",
            race="positions",
        ),
        Claim(
            "interpolation alone",
            "untuned, NTK and YaRN do better than PI",
            "不经微调，NTK 与 YaRN 优于 PI",
            (
                Check("ntk_minus_linear_upper", "<", 0.0, "NTK minus PI, 4x, upper bound", "4 倍处 NTK 减 PI，上界"),
                Check("yarn_minus_linear_upper", "<", 0.0, "YaRN minus PI, the same", "YaRN 减 PI，同上"),
            ),
            kind="aside",
            race="positions",
        ),
        Claim(
            "sinks",
            "a window needs the first tokens kept",
            "滑动窗口须保留开头几个词元",
            (
                Check(
                    "sinks_minus_window_upper",
                    "<",
                    0.0,
                    "with sinks minus without, 4x, upper",
                    "4 倍处有汇点减无汇点，上界",
                ),
            ),
            kind="aside",
            race="positions",
        ),
        Claim(
            "t5",
            "T5's buckets are never new, yet its loss rises from 2x on",
            "T5 没有新桶，2 倍之后损失仍上升",
            (Check("t5_8x_minus_2x_lower", ">", 0.0, "loss, 8x minus 2x, lower bound", "8 倍减 2 倍，下界"),),
            kind="aside",
            race="positions",
        ),
        Claim(
            "longer texts, tuned",
            "training on longer texts helps, even briefly and late",
            "在更长的样本上训练有效，哪怕短暂而晚",
            (
                Check(
                    "bits_rope_gained_upper",
                    "<",
                    0.0,
                    "RoPE tuned at 4x: loss there, upper",
                    "RoPE 在 4 倍处微调：损失变化，上界",
                ),
                Check("needle_rope_gained_lower", ">", 0.0, "codes recalled there, lower", "代码找回率的变化，下界"),
            ),
            race="extended",
        ),
        Claim(
            "rescaled, untuned",
            "rescaled angles read on untuned, NTK and YaRN better than PI",
            "改写角度不经微调即可外推，NTK 与 YaRN 优于 PI",
            (
                Check(
                    "untuned_yarn_minus_rope_upper", "<", 0.0, "YaRN minus RoPE, 4x, upper", "4 倍处 YaRN 减 RoPE，上界"
                ),
                Check("untuned_yarn_minus_linear_upper", "<", 0.0, "YaRN minus PI, the same", "YaRN 减 PI，同上"),
                Check("untuned_ntk_minus_linear_upper", "<", 0.0, "NTK minus PI, the same", "NTK 减 PI，同上"),
            ),
            kind="aside",
            race="extended",
        ),
        Claim(
            "rescaled, tuned",
            "after a short tuning PI and YaRN are alike",
            "短暂微调之后，PI 与 YaRN 相当",
            (
                Check(
                    "tuned_yarn_minus_linear_lower", ">", -ALIKE, "YaRN minus PI, 4x, lower", "4 倍处 YaRN 减 PI，下界"
                ),
                Check("tuned_yarn_minus_linear_upper", "<", ALIKE, "the same, upper", "同上，上界"),
            ),
            kind="aside",
            race="extended",
        ),
        Claim(
            "finding, untuned",
            "where PI costs likelihood, it keeps what is far to be found",
            "PI 虽损似然，远处的内容仍找得到",
            (
                Check(
                    "untuned_linear_recall_lower",
                    ">",
                    0.0,
                    "codes recalled, PI minus RoPE, 4x",
                    "4 倍处代码找回率，PI 减 RoPE",
                ),
            ),
            kind="aside",
            race="extended",
        ),
        Claim(
            "only so far",
            "a tuning at 4x does not reach 8x",
            "在 4 倍处微调到不了 8 倍",
            (
                Check(
                    "tuned_rope_onward_lower",
                    ">",
                    0.0,
                    "tuned RoPE: 8x minus 4x, lower",
                    "微调后的 RoPE：8 倍减 4 倍，下界",
                ),
            ),
            kind="aside",
            race="extended",
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("positions", "short_alibi", "extended"),
    raced=raced,
    tables=tables,
    uses=(
        "llmlab/model/positions.py",
        "llmlab/model/rotary.py",
        "llmlab/model/relative.py",
        "llmlab/evaluation/rescaled.py",
        "llmlab/handbook/lengths.py",
        "llmlab/handbook/extended.py",
        "llmlab/handbook/races/short_alibi.py",
    ),
    settings={
        "trained": TRAINED,
        "times": TIMES,
        "head_dims": [HEAD_DIM, WIDE, PAPER_HEAD],
        "dim": DIM,
        "iterating": [SHORT, VOCABULARY],
    },
)
