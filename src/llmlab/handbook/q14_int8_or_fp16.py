"""Question 14: int8 against fp16. The method, the phase and the instruction set decide; width, not range, is what pays;
and what each precision costs a model in loss."""

from collections.abc import Mapping
from functools import partial

import torch

from llmlab.compression.int8_products import OutlierLinear, W8A8Linear, quantize_tokens
from llmlab.evaluation import statistics
from llmlab.handbook.costs import MARGIN
from llmlab.handbook.measures import draw, relative
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.stages import Session

EXACT = 1e-6  # of W8A8 against the same codes multiplied in float64, relative
NEAR = 1.5  # times by which a fused decode may miss its roofline
POWERS = range(-38, 39)  # of ten, that a format holds or loses
ROWS, OUTPUTS, INPUTS, OUTLIERS = 24, 48, 64, 4
METHODS = ("fp32", "bf16", "fp16", "W8A16", "W8A8", "LLM.int8()", "W4A16")
KINDS = ("bf16", "int8", "int4")
ONE, EIGHT = "1 text", "8 texts"
# What is compared, a over b, in milliseconds: above 1, a is the slower.
RATIOS = {
    "fp16_over_fp32": ("fp16", "fp32"),
    "fp32_over_bf16": ("fp32", "bf16"),
    "fp16_over_w8a8": ("fp16", "W8A8"),
    "bf16_over_w8a8": ("bf16", "W8A8"),
    "split_over_w8a8": ("LLM.int8()", "W8A8"),
    "split_over_bf16": ("LLM.int8()", "bf16"),
    "split_over_fp16": ("LLM.int8()", "fp16"),
    "bf16_over_int8": ("native bf16", "native int8"),
    "int8_over_int4": ("native int8", "native int4"),
}


def _formats(seed: int) -> Figures:
    """Powers of ten that a format turns into infinity or zero, and how coarsely it rounds between."""
    tens = torch.tensor([10.0**power for power in POWERS], dtype=torch.float64).float()
    usual = draw(seed, "q14.usual", 4096).float()
    out: Figures = {}
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        kept = tens.to(dtype).float()
        out[f"{name}_lost"] = float((kept.isinf() | (kept == 0)).sum())
        out[f"{name}_rounding"] = relative(usual.to(dtype).double(), usual.double())
    return {
        **out,
        "bf16_over_fp16_rounding": out["bf16_rounding"] / out["fp16_rounding"],
    }


def _products(seed: int) -> Figures:
    """Our integer products against exact arithmetic, and what they lose with outliers, apart and not."""
    weight = draw(seed, "q14.weight", OUTPUTS, INPUTS).float()
    x = draw(seed, "q14.x", ROWS, INPUTS).float()
    x[:, :OUTLIERS] *= 20
    plain, split = W8A8Linear(weight), OutlierLinear(weight)
    codes, scale = quantize_tokens(x)
    by_hand = (codes.double() @ plain.codes.double().T) * scale.double() * plain.scale.double()
    apart = OutlierLinear(weight, threshold=0.0)  # all columns are outliers: nothing is left to the integers
    exact = x.double() @ plain.weight.double().T
    return {
        "w8a8_gap": relative(plain(x).double(), by_hand),
        "apart_gap": relative(apart(x.double()), exact),
        "w8a8_lost": relative(plain(x).double(), exact),
        "split_lost": relative(split(x).double(), exact),
    }


@torch.no_grad()
def figures(session: Session) -> Figures:
    return _formats(session.seed) | _products(session.seed)


# ---------------------------------------------------------------- raced


def _compared(race: Told, arm: str, phase: str, name: str, a: str, b: str) -> Figures:
    """Milliseconds of a over those of b, by repetition: mean and 95 % interval; nothing where either was not timed."""
    first, second = f"{phase} {a}", f"{phase} {b}"
    if race.fails(arm, first) is not None or race.fails(arm, second) is not None:
        return {}
    pairs = zip(race.values(arm, first), race.values(arm, second), strict=True)
    found = statistics.mean([x / y for x, y in pairs])
    told = f"{phase}_{name}" if arm == ONE else f"{phase}_{name}, {arm}"
    return {told: found.value, f"{told}_lower": found.low, f"{told}_upper": found.high}


def _roofline(race: Told) -> Figures:
    """Milliseconds of a fused decode step of one text over what its bytes need at the measured bandwidth."""
    from llmlab.families import llama
    from llmlab.handbook import roofline
    from llmlab.handbook.q04_architecture import SMOLLM2

    if any(race.fails(ONE, f"decode native {kind}") is not None for kind in KINDS):
        return {}
    architecture, vocabulary = llama.read_config(SMOLLM2)
    length = 256 + 6  # half of the new tokens behind the prompt
    bandwidth = race.mean(ONE, "bandwidth") * 1e9
    out: Figures = {}
    for kind in KINDS:
        work = roofline.decode_work(architecture, vocabulary, kind, 1, length, 2.0)
        out[f"roofline_{kind}"] = race.mean(ONE, f"decode native {kind}") / 1e3 / (work.bytes / bandwidth)
        out[f"gigabytes_per_second_{kind}"] = work.bytes / race.mean(ONE, f"decode native {kind}") / 1e6
    moved = [out[f"gigabytes_per_second_{kind}"] for kind in KINDS]
    return {
        **out,
        "roofline_worst": max(out[f"roofline_{kind}"] for kind in KINDS),
        "bytes_spread": max(moved) / min(moved),
    }


def raced(told: Mapping[str, Told]) -> Figures:
    speed, loss = told["precision_speed"], told["precision_loss"]
    out: Figures = {}
    for arm in (ONE, EIGHT):
        for phase in ("prefill", "decode"):
            for name, (a, b) in RATIOS.items():
                out |= _compared(speed, arm, phase, name, a, b)
    measures = [f"{part}{phase} {m}" for part in ("layer ", "") for phase in ("prefill", "decode") for m in METHODS]
    measures += [f"{phase} native {kind}" for phase in ("prefill", "decode") for kind in KINDS]
    measures += [*(f"megabytes {m}" for m in METHODS), "outlier columns", "bandwidth"]
    for arm in (ONE, EIGHT):
        out |= {f"{arm}: {m}": speed.mean(arm, m) for m in measures if speed.fails(arm, m) is None}
    for name in ("", "planted "):
        base = f"{name}fp32"
        out[f"loss {base}"] = loss.mean("trained", base)
        for method in METHODS[1:]:
            out |= loss.bounds(f"cost {name}{method}", "trained", "trained", f"{name}{method}", base)
    worth = loss.bounds("worth", "trained", "trained", "planted W8A8", "planted LLM.int8()")
    fewer = loss.bounds("int4_beyond_int8", "trained", "trained", "W4A16", "W8A16")
    return out | _roofline(speed) | {f"split_{k}": v for k, v in worth.items()} | fewer


def _row(f: Mapping[str, float], arm: str, measure: str, names: tuple[str, ...], digits: int) -> str:
    """`fp32 12.3, bf16 7.8`, those that were timed."""
    told = ((name, f.get(f"{arm}: {measure} {name}")) for name in names)
    return ", ".join(f"{name} {value:.{digits}f}" for name, value in told if value is not None)


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"Of {len(POWERS)} powers of ten fp16 turns {f['fp16_lost']:.0f} into infinity or zero, bf16 "
        f"{f['bf16_lost']:.0f}; where both hold, bf16 rounds {f['bf16_over_fp16_rounding']:.1f} times as coarsely. "
        f"With columns 20 times as large W8A8 is off by {f['w8a8_lost']:.1%}, with them apart by {f['split_lost']:.1%}."
    )
    zh = (
        f"{len(POWERS)} 个 10 的幂中，fp16 有 {f['fp16_lost']:.0f} 个变成无穷或零，bf16 有 {f['bf16_lost']:.0f} 个；"
        f"两者都容得下时，bf16 的舍入粗 {f['bf16_over_fp16_rounding']:.1f} 倍。若有几列大 20 倍，W8A8 误差 "
        f"{f['w8a8_lost']:.1%}，离群列单算则为 {f['split_lost']:.1%}。"
    )
    if "loss fp32" not in f:
        return Text(en, zh)
    row = partial(_row, f)
    costs = ", ".join(f"{m} {f[f'cost {m}']:+.4f}" for m in METHODS[1:])
    planted = ", ".join(f"{m} {f[f'cost planted {m}']:+.4f}" for m in METHODS[1:])
    en += (
        f" SmolLM2 on one thread, milliseconds. Reading 256 tokens: {row(ONE, 'prefill', METHODS, 0)}. A new token: "
        f"{row(ONE, 'decode', METHODS, 1)}; by the native step {row(ONE, 'decode native', KINDS, 1)}. A new "
        f"token for each of 8 texts: {row(EIGHT, 'decode', METHODS, 1)}. Megabytes: "
        f"{row(ONE, 'megabytes', METHODS, 0)}. One layer of 1536 x 576, microseconds: reading "
        f"{row(ONE, 'layer prefill', METHODS, 0)}; decoding {row(ONE, 'layer decode', METHODS, 0)}. A model trained "
        f"here, bits a byte beyond fp32's {f['loss fp32']:.3f}: {costs}; with outliers planted: {planted}."
    )
    zh += (
        f"SmolLM2 单线程，毫秒。读入 256 个词元：{row(ONE, 'prefill', METHODS, 0)}。生成一个词元："
        f"{row(ONE, 'decode', METHODS, 1)}；原生融合步：{row(ONE, 'decode native', KINDS, 1)}。八条文本各生成"
        f"一个词元：{row(EIGHT, 'decode', METHODS, 1)}。兆字节：{row(ONE, 'megabytes', METHODS, 0)}。单层 1536 x 576，"
        f"微秒：读入 {row(ONE, 'layer prefill', METHODS, 0)}；解码 {row(ONE, 'layer decode', METHODS, 0)}。此处训练的"
        f"模型，每字节比特数比 fp32 的 {f['loss fp32']:.3f} 多出：{costs}；植入离群列之后：{planted}。"
    )
    if "decode_split_over_fp16" in f:
        r = {name: f"{f[name]:.2f}" for name in f if "_over_" in name}
        reads, beside = r["prefill_fp16_over_w8a8"], r["prefill_bf16_over_w8a8"]
        apart, low, high = (r[f"decode_split_over_fp16{end}"] for end in ("", "_lower", "_upper"))
        other, eight = r["decode_split_over_bf16"], r["decode_split_over_fp16, 8 texts"]
        half_reads, half = r["prefill_fp16_over_fp32"], r["decode_fp16_over_fp32"]
        brain = f"{1 / f['decode_fp32_over_bf16']:.2f}"
        en += (
            f" So method, phase and batch decide between int8 and fp16: W8A8 reads {reads} times as fast as fp16 and "
            f"{beside} times as fast as bf16; LLM.int8() decodes one text in {apart} [{low}, {high}] times fp16's time "
            f"and in {other} times bf16's, eight texts in {eight} times fp16's. Beside fp32, fp16 takes {half_reads} "
            f"times as long to read and {half} times to decode; bf16, eagerly in PyTorch, decodes in {brain} times."
        )
        zh += (
            f"可见 int8 与 fp16 孰快，取决于方法、阶段与批量：读入时 W8A8 的速度是 fp16 的 {reads} 倍、bf16 的 "
            f"{beside} 倍；解码单条时 LLM.int8() 用时是 fp16 的 {apart} 倍（{low} 至 {high}）、bf16 的 {other} 倍，"
            f"八条时是 fp16 的 {eight} 倍。与 fp32 相比，fp16 读入用时 {half_reads} 倍，解码 {half} 倍；PyTorch 逐算子"
            f"执行的 bf16 解码用时 {brain} 倍。"
        )
    if "roofline_worst" in f:
        en += (
            f" Native decoding takes {f['roofline_bf16']:.2f} (bf16), {f['roofline_int8']:.2f} (int8) and "
            f"{f['roofline_int4']:.2f} (int4) times what its bytes need at {f[f'{ONE}: bandwidth']:.0f} GB/s."
        )
        zh += (
            f"原生步解码所需时间，是按 {f[f'{ONE}: bandwidth']:.0f} GB/s 搬完权重的 {f['roofline_bf16']:.2f}（bf16）、"
            f"{f['roofline_int8']:.2f}（int8）、{f['roofline_int4']:.2f}（int4）倍。"
        )
    if f"{ONE}: decode W8A8" not in f or "roofline_worst" not in f:
        en += " Not all could be timed here: this CPU lacks integer or bf16 dot products, or a C++ compiler is missing."
        zh += "有几项此处未能计时：本机 CPU 缺少整数或 bf16 点积指令，或没有 C++ 编译器。"
    return Text(en, zh)


QUESTION = Question(
    number=14,
    tier="formula",
    claim=Text(
        "Both are faster than fp32: they take less memory and work, int8 because more numbers fit in the same room, "
        "fp16 because its range is smaller. fp16 is less precise, yet enough for pictures or speech. Hardware and "
        "implementation matter. Which of the two is faster is not said.",
        "二者都比 FP32 快：省内存、省计算；int8 是因为同样的空间装得下更多的数，fp16 据说是因为范围较小。fp16 精度稍低"
        "，但对图像、语音之类已够。快慢还要看硬件与实现。至于两者孰快，没有说。",
    ),
    correction=Text(
        "It depends on the method, the phase and the instruction set. Integers times integers (W8A8) win where "
        "arithmetic is waited for, if the CPU or GPU has integer dot products; weights alone in integers win where "
        "bytes are waited for, which is decoding, if the kernel is fused. LLM.int8(), which keeps outliers apart, was "
        "15 to 23 % slower than fp16 on BLOOM-176B. What makes a format fast is its width; bf16 has the range of fp32 "
        "and half its bytes. fp16's own trouble is its range (at most 65,504), and without fp16 arithmetic it is "
        "slower than fp32 where arithmetic is waited for.",
        "要看方法、阶段与指令集。整数乘整数（W8A8）胜在等计算的场合，前提是 CPU 或 GPU 有整数点积；只把权重存成整数，胜"
        "在等数据的场合，即解码，前提是内核已融合。LLM.int8() 把离群列另算，在 BLOOM-176B 上比 fp16 慢 15% 至 23%。决定"
        "快慢的是位宽：bf16 范围与 fp32 相当，字节只有一半。fp16 自身的毛病正是范围（最大 65504）；没有 fp16 运算指令时"
        "，凡等计算处都比 fp32 慢。",
    ),
    run=Text(
        "Range and rounding of fp16 and bf16; our integer products against exact arithmetic. Timed in turn, five "
        "times over: SmolLM2 and layers of its shape in fp32, bf16, fp16, W8A16, W8A8, LLM.int8() and W4A16, and the "
        "native step in bf16, int8 and int4, reading and decoding, one text and eight. Loss: five small models trained "
        "here in fp32, since SmolLM2 as shipped is of four bits already; again with outliers planted, which changes "
        "nothing in fp32.",
        "考察 fp16 与 bf16 的范围与舍入；本库整数乘法与精确算术对照。轮流计时，重复五次：SmolLM2 及同尺寸的单层，fp32、"
        "bf16、fp16、W8A16、W8A8、LLM.int8()、W4A16，外加原生步的 bf16、int8、int4，分读入与解码、单条与八条。损失：在"
        "此以 fp32 训练五个小模型（SmolLM2 发布时已是四比特，不能用）；再植入离群列重测，这对 fp32 毫无影响。",
    ),
    papers=(
        "Dettmers et al. 2022, LLM.int8(), arXiv 2208.07339",
        "Xiao et al. 2022, SmoothQuant, arXiv 2211.10438",
        "Micikevicius et al. 2017, Mixed Precision Training, arXiv 1710.03740",
        "Kalamkar et al. 2019, A Study of BFLOAT16 for Deep Learning Training, arXiv 1905.12322",
        "Pope et al. 2022, Efficiently Scaling Transformer Inference, arXiv 2211.05102",
    ),
    errors={"E14.1": "M", "E14.2": "M", "E14.3": "I", "E14.4": "M"},
    claims=(
        Claim(
            "range",
            "fp16 is only somewhat less precise",
            "fp16 只是精度稍低",
            (
                Check("fp16_lost", ">", 0.0, "powers of ten that fp16 loses", "fp16 丢失的 10 的幂"),
                Check("bf16_lost", "==", 0.0, "powers of ten that bf16 loses", "bf16 丢失的 10 的幂"),
                Check("bf16_over_fp16_rounding", ">", 4.0, "rounding, bf16 over fp16", "舍入误差，bf16 比 fp16"),
            ),
            Verdict.CORRECTED,
            errors=("E14.3",),
        ),
        Claim(
            "int8 or fp16",
            "no comparison: both are faster than fp32",
            "未作比较：只说都比 fp32 快",
            (
                Check(
                    "prefill_fp16_over_w8a8_lower",
                    ">",
                    1.0,
                    "reading, fp16 over W8A8, 95 % bound",
                    "读入，fp16 比 W8A8，95% 下界",
                ),
                Check(
                    "prefill_bf16_over_w8a8_lower",
                    ">",
                    1.0,
                    "reading, bf16 over W8A8, 95 % bound",
                    "读入，bf16 比 W8A8，95% 下界",
                ),
                Check(
                    "decode_split_over_bf16_lower",
                    ">",
                    1.0,
                    "decoding, LLM.int8() over bf16, 95 % bound",
                    "解码，LLM.int8() 比 bf16，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E14.1", "E14.2"),
            race="precision_speed",
        ),
        Claim(
            "outliers apart",
            "int8 speeds up",
            "int8 能加速",
            (
                Check(
                    "prefill_split_over_w8a8_lower",
                    ">",
                    1.0,
                    "reading, LLM.int8() over W8A8, 95 % bound",
                    "读入，LLM.int8() 比 W8A8，95% 下界",
                ),
                Check(
                    "decode_split_over_w8a8_lower",
                    ">",
                    1.0,
                    "decoding, the same",
                    "解码，同上",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E14.2",),
            race="precision_speed",
        ),
        Claim(
            "width",
            "fp16 is fast for its smaller range",
            "fp16 因范围小而快",
            (
                Check("bf16_lost", "==", 0.0, "powers of ten that bf16 loses", "bf16 丢失的 10 的幂"),
                Check(
                    "prefill_fp32_over_bf16_lower",
                    ">",
                    1.0,
                    "reading, fp32 over bf16, of the same range, 95 % bound",
                    "读入，fp32 比范围相同的 bf16，95% 下界",
                ),
                Check("decode_fp32_over_bf16_lower", ">", 1.0, "decoding, the same", "解码，同上"),
            ),
            Verdict.CORRECTED,
            errors=("E14.4",),
            race="precision_speed",
        ),
        Claim(
            "precise enough",
            "lower precision, yet enough",
            "精度虽低，却已够用",
            (
                Check(
                    "cost fp16_upper",
                    "<",
                    MARGIN,
                    "bits a byte that fp16 costs, 95 % bound",
                    "fp16 的损失代价，95% 上界",
                ),
                Check("cost bf16_upper", "<", MARGIN, "the same of bf16", "bf16：同上"),
                Check("cost W8A16_upper", "<", MARGIN, "the same of W8A16", "W8A16：同上"),
                Check("cost W8A8_upper", "<", MARGIN, "the same of W8A8", "W8A8：同上"),
                Check(
                    "int4_beyond_int8_lower",
                    ">",
                    0.0,
                    "four bits beyond eight, 95 % bound",
                    "四比特比八比特多出的代价，95% 下界",
                ),
            ),
            race="precision_loss",
        ),
        Claim(
            "what outliers cost",
            "int8 is int8",
            "int8 只有一种",
            (
                Check(
                    "split_worth_lower",
                    ">",
                    0.0,
                    "outliers planted: bits a byte that keeping them apart saves, 95 % bound",
                    "植入离群列：另算所省的损失，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E14.2",),
            race="precision_loss",
        ),
        Claim(
            "both accelerate",
            "fp16 is faster than fp32",
            "fp16 比 fp32 快",
            (
                Check(
                    "prefill_fp16_over_fp32_lower",
                    ">",
                    1.0,
                    "reading on a CPU without fp16 arithmetic, fp16 over fp32, 95 % bound",
                    "在没有 fp16 运算的 CPU 上读入，fp16 比 fp32，95% 下界",
                ),
            ),
            Verdict.REFUTED,
            kind="aside",
            errors=("E14.3",),
            race="precision_speed",
        ),
        Claim(
            "weights alone",
            "int8 is fast for more parallel arithmetic",
            "int8 快在并行计算更多",
            (
                Check(
                    "decode_bf16_over_int8_lower",
                    ">",
                    1.0,
                    "fused decoding, bf16 over int8, 95 % bound",
                    "融合解码，bf16 比 int8，95% 下界",
                ),
                Check("decode_int8_over_int4_lower", ">", 1.0, "int8 over int4", "int8 比 int4"),
                Check(
                    "bytes_spread",
                    "<",
                    NEAR,
                    "bytes a second, most over least of the three",
                    "三者每秒搬运的字节数，最大比最小",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E14.2",),
            race="precision_speed",
        ),
        Claim(
            "roofline",
            "operations a second are what counts",
            "关键是每秒运算次数",
            (
                Check(
                    "roofline_worst",
                    "<",
                    NEAR,
                    "fused decoding: time over what its bytes need, the worst of three",
                    "融合解码：用时比搬运字节所需，三者中最差",
                ),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E14.2",),
            race="precision_speed",
        ),
        Claim(
            "products",
            "our integer products are exact",
            "本库的整数乘法准确无误",
            (
                Check(
                    "w8a8_gap",
                    "<",
                    EXACT,
                    "W8A8 against its codes in float64, relative",
                    "W8A8 与其整数码的双精度乘积之相对差",
                ),
                Check(
                    "apart_gap",
                    "<",
                    EXACT,
                    "all columns apart: against the dequantised weights",
                    "所有列都另算时，与反量化权重乘积之差",
                ),
            ),
            kind="control",
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("precision_speed", "precision_loss"),
    raced=raced,
    uses=(
        "llmlab/compression/int8_products.py",
        "llmlab/compression/quantize.py",
        "llmlab/model/quantized.py",
        "llmlab/inference/fast.py",
        "llmlab/handbook/precisions.py",
    ),
    settings={
        "powers": [POWERS.start, POWERS.stop],
        "product": [ROWS, OUTPUTS, INPUTS, OUTLIERS],
    },
)
