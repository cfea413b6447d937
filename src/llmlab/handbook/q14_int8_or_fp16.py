"""Question 14: int8 against fp16. The method, the phase and the instruction set decide; width, not range, is what pays;
and what each precision costs a model in loss."""

from collections.abc import Mapping

import torch

from llmlab.compression.int8_products import OutlierLinear, W8A8Linear, quantize_tokens
from llmlab.handbook.costs import MARGIN
from llmlab.handbook.measures import draw, relative
from llmlab.handbook.precision_figures import ONE, raced, tables
from llmlab.handbook.precisions import METHODS
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.stages import Session

EXACT = 1e-6  # of W8A8 against the same codes multiplied in float64, relative
NEAR = 1.5  # times by which a fused decode may miss its roofline
POWERS = range(-38, 39)  # of ten, that a format holds or loses
ROWS, OUTPUTS, INPUTS, OUTLIERS = 24, 48, 64, 4


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
    if "decode_split_over_fp16" in f:
        r = {name: f"{f[name]:.2f}" for name in f if "_over_" in name}
        missed = [f[f"{ONE}: roofline decode {method}"] for method in METHODS]
        en += (
            f" Of {f['compared']:.0f} comparisons of three int8 methods with fp16 and bf16 on SmolLM2, int8 is faster "
            f"in {f['int8_faster']:.0f} and slower in {f['int8_slower']:.0f}: W8A8 reads "
            f"{r['prefill_fp16_over_w8a8']} times as fast as fp16 and {r['prefill_bf16_over_w8a8']} times as fast as "
            f"bf16; LLM.int8() writes one text in {r['decode_split_over_fp16']} times fp16's time and "
            f"{r['decode_split_over_bf16']} times bf16's, eight in {r['decode_split_over_fp16, 8 texts']} times "
            f"fp16's. Beside fp32, fp16 takes {r['prefill_fp16_over_fp32']} times as long to read. Operation by "
            f"operation, as PyTorch runs them, writing one text takes {min(missed):.0f} to {max(missed):.0f} times "
            "the roofline's time: there kernels and calls are compared more than formats. One row is multiplied in "
            f"bf16 at {f['row_gigabytes bf16']:.0f} GB/s, in fp16 at {f['row_gigabytes fp16']:.0f}, where memory "
            f"gives {f[f'{ONE}: bandwidth']:.0f}; bf16 writes in {1 / f['decode_fp32_over_bf16']:.2f} times fp32's "
            "time."
        )
        zh += (
            f"在 SmolLM2 上，三种 int8 方法与 fp16、bf16 相比共 {f['compared']:.0f} 次，int8 更快 "
            f"{f['int8_faster']:.0f} 次，更慢 {f['int8_slower']:.0f} 次：读入时 W8A8 的速度是 fp16 的 "
            f"{r['prefill_fp16_over_w8a8']} 倍、bf16 的 {r['prefill_bf16_over_w8a8']} 倍；写一条时 LLM.int8() 用时是 "
            f"fp16 的 {r['decode_split_over_fp16']} 倍、bf16 的 {r['decode_split_over_bf16']} 倍，写八条时是 fp16 的 "
            f"{r['decode_split_over_fp16, 8 texts']} 倍。与 fp32 相比，fp16 读入用时 {r['prefill_fp16_over_fp32']} 倍"
            f"。PyTorch 逐算子写一条，用时是屋顶线的 {min(missed):.0f} 至 {max(missed):.0f} 倍：那里比的与其说是格式，"
            f"不如说是内核与调用。单行乘法，bf16 每秒只读 {f['row_gigabytes bf16']:.0f} GB，fp16 "
            f"{f['row_gigabytes fp16']:.0f} GB，而内存给得出 {f[f'{ONE}: bandwidth']:.0f} GB；bf16 写一条用时是 fp32 "
            f"的 {1 / f['decode_fp32_over_bf16']:.2f} 倍。"
        )
    if "roofline_worst" in f:
        en += (
            f" Where all is fused, in the native step, width tells: a token in {f[f'{ONE}: decode native bf16']:.1f} "
            f"(bf16), {f[f'{ONE}: decode native int8']:.1f} (int8) and {f[f'{ONE}: decode native int4']:.1f} ms "
            f"(int4), at most {f['roofline_worst']:.2f} times the roofline's."
        )
        zh += (
            f"全部融合之后（原生步），位宽便见分晓：一个词元 {f[f'{ONE}: decode native bf16']:.1f}（bf16）、"
            f"{f[f'{ONE}: decode native int8']:.1f}（int8）、{f[f'{ONE}: decode native int4']:.1f} 毫秒（int4），至多为"
            f"屋顶线的 {f['roofline_worst']:.2f} 倍。"
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
        "15 to 23 % slower than fp16 on BLOOM-176B and took 3.7 times as long on T5-11B, one GPU against two (its "
        "authors' post at Hugging Face, 2022). What makes a format fast is its width; bf16 has the range of fp32 and "
        "half its bytes. fp16's own trouble is its range (at most 65,504), and without fp16 arithmetic it is slower "
        "than fp32 where arithmetic is waited for.",
        "要看方法、阶段与指令集。整数乘整数（W8A8）胜在等计算的场合，前提是 CPU 或 GPU 有整数点积；只把权重存成整数，"
        "胜在等数据的场合，即解码，前提是内核已融合。LLM.int8() 把离群列另算，在 BLOOM-176B 上比 fp16 慢 15% 至 23%，"
        "在 T5-11B 上用时 3.7 倍，不过是一块 GPU 比两块（作者 2022 年在 Hugging Face 的文章）。决定快慢的是位宽："
        "bf16 范围与 fp32 相当，字节只有一半。fp16 自身的毛病正是范围（最大 65504）；没有 fp16 运算指令时，凡等计算处"
        "都比 fp32 慢。",
    ),
    run=Text(
        "Range and rounding of fp16 and bf16; our integer products against exact arithmetic. Timed in turn, five "
        "times over: SmolLM2 and layers of its shape in fp32, bf16, fp16, W8A16, W8A8, LLM.int8() and W4A16, and the "
        "native step in bf16, int8 and int4, reading and writing, one text and eight; beside each time what the "
        "roofline asks for, by the bandwidth of the same race and the arithmetic of the race of speeds (question "
        "13). Loss: five small models trained here in fp32, since SmolLM2 as shipped is of four bits already; again "
        "with outliers planted, which changes nothing in fp32.",
        "考察 fp16 与 bf16 的范围与舍入；本库整数乘法与精确算术对照。轮流计时，重复五次：SmolLM2 及同尺寸的单层，fp32"
        "、bf16、fp16、W8A16、W8A8、LLM.int8()、W4A16，外加原生步的 bf16、int8、int4，分读入与写出、单条与八条；每个"
        "用时旁边是屋顶线的要求，带宽取自同一实验，算力取自第 13 问的测速。损失：在此以 fp32 训练五个小模型（SmolLM2 "
        "发布时已是四比特，不能用）；再植入离群列重测，这对 fp32 毫无影响。",
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
    tables=tables,
    races=("precision_speed", "precision_loss", "speed"),
    raced=raced,
    uses=(
        "llmlab/compression/int8_products.py",
        "llmlab/compression/quantize.py",
        "llmlab/model/quantized.py",
        "llmlab/inference/fast.py",
        "llmlab/handbook/precisions.py",
        "llmlab/handbook/precision_figures.py",
        "llmlab/handbook/roofline.py",
    ),
    settings={
        "powers": [POWERS.start, POWERS.stop],
        "product": [ROWS, OUTPUTS, INPUTS, OUTLIERS],
    },
)
