"""Question 13: inference on a GPU against a CPU. One ratio does not exist: reading a prompt waits for arithmetic,
writing an answer waits for memory. Measured here on the CPU; the GPU's column is a prediction from its data sheet."""

import statistics
from collections.abc import Mapping

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmlab.handbook import gpu_on_paper, speeds
from llmlab.handbook.question import Check, Claim, Figures, Question, Table, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.handbook.roofline import Roofline, decode_work, prefill_work
from llmlab.handbook.smollm2_shape import SMOLLM2, VOCABULARY
from llmlab.inference.cache import DenseCache
from llmlab.model.attention import GroupedQuery
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture
from llmlab.stages import Session

CLOSE = 1.5  # times the roofline
SMALL = Architecture(layers=2, dim=96, context=64, attention=GroupedQuery(heads=6, kv_heads=2))
SMALL_VOCABULARY, READ = 160, 20
BATCHES, KINDS = speeds.BATCHES, speeds.KINDS


def _intensities() -> Figures:
    found: Figures = {}
    for rows in BATCHES:
        found[f"decode_intensity_{rows}"] = decode_work(SMOLLM2, VOCABULARY, "fp32", rows, 128, 4).intensity
        found[f"prefill_intensity_{rows}"] = prefill_work(SMOLLM2, VOCABULARY, "fp32", rows, 128, 4).intensity
    return found


def _counts(seed: int) -> Figures:
    """Operations by the formula against those that torch counts, a prompt and then a token."""
    model = SMALL.build(SMALL_VOCABULARY, seed).eval()
    ids, at, cache = torch.ones(1, READ + 1, dtype=torch.int64), Places.causal(1, READ + 1), DenseCache(READ + 1)
    counted = []
    with sdpa_kernel(SDPBackend.MATH):  # of the fused kernel torch counts nothing
        for piece in (slice(0, READ), slice(READ, READ + 1)):
            with FlopCounterMode(display=False) as counter:
                model.logits(model.hidden(ids[:, piece], at[:, piece], cache)[:, -1])
            counted.append(counter.get_total_flops())
    width = SMALL.keyed.heads * SMALL.attention.width(SMALL.dim)
    hidden = 4 * SMALL.layers * width * READ * (READ - 1) / 2  # what the mask hides is multiplied all the same
    read = prefill_work(SMALL, SMALL_VOCABULARY, "fp32", 1, READ, 4).flops + hidden
    written = decode_work(SMALL, SMALL_VOCABULARY, "fp32", 1, READ + 1, 4).flops
    return {"operations_gap": max(abs(counted[0] / read - 1), abs(counted[1] / written - 1))}


@torch.no_grad()
def figures(session: Session) -> Figures:
    return _intensities() | gpu_on_paper.ceilings() | _counts(session.seed)


# ---------------------------------------------------------------- timed


def raced(told: Mapping[str, Told]) -> Figures:
    """Medians over the rounds; gains are paired within a round."""
    race = told["speed"]

    def middle(kind: str, measure: str) -> float:
        return statistics.median(race.values(kind, measure))

    def ratio(above: tuple[str, str], below: tuple[str, str]) -> float:
        pairs = zip(race.values(*above), race.values(*below), strict=True)
        return statistics.median(a / b for a, b in pairs)

    out = {f"{kind}: {measure}": middle(kind, measure) for kind in KINDS for measure in speeds.MEASURES}
    bandwidth = 1e9 * statistics.median(value for kind in KINDS for value in race.values(kind, "gigabytes/s"))
    here = {kind: Roofline(bandwidth, 1e9 * out[f"{kind}: gigaflops/s"]) for kind in KINDS}
    one = decode_work(SMOLLM2, VOCABULARY, "fp32", 1, 128, 4)
    works = gpu_on_paper.seven()
    phases = [gpu_on_paper.A100.seconds(work.bytes, work.flops) for work in works]
    ours = [here["bf16"].seconds(work.bytes, work.flops) for work in works]
    prefill, decode = (cpu / gpu for cpu, gpu in zip(ours, phases, strict=True))
    return out | {
        "bandwidth": bandwidth,
        "ridge_fp32": here["fp32"].ridge,
        "memory_over_arithmetic": here["fp32"].ridge / one.intensity,
        "batch_gain": ratio(("fp32", "decode tokens/s@16"), ("fp32", "decode tokens/s@1")),
        "narrow_gain": ratio(("int4", "decode tokens/s@1"), ("fp32", "decode tokens/s@1")),
        "bits_gain": ratio(("int4", "decode tokens/s@1"), ("bf16", "decode tokens/s@1")),
        "prefill_over_decode": ratio(("fp32", "prefill tokens/s@1"), ("fp32", "decode tokens/s@1")),
        "gpu_prefill": prefill,
        "gpu_decode": decode,
        "phases_apart": prefill / decode,
    }


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"For 7B weights in two bytes, memory alone allows an A100 {f['a100_7b_tokens']:.0f} tokens/s of one text and "
        f"a desktop of 51.2 GB/s {f['desktop_7b_tokens']:.1f} (predicted from published figures). SmolLM2's "
        f"{f['operations_a_token']:.0f} operations a token, launched one by one, would take an A100 "
        f"{f['launches_over_memory']:.0f} times as long as reading its memory: {f['launched_tokens']:.0f} tokens/s "
        f"(predicted)."
    )
    zh = (
        f"7B 权重按每个两字节计，单条文本每秒词元数，显存带宽只容 A100 {f['a100_7b_tokens']:.0f} 个，51.2 GB/s 的台式机"
        f"只容 {f['desktop_7b_tokens']:.1f} 个（据公开规格推算）。SmolLM2 每个词元要 {f['operations_a_token']:.0f} 次"
        f"操作，若在 A100 上逐个启动，耗时是读显存的 {f['launches_over_memory']:.0f} 倍，每秒 "
        f"{f['launched_tokens']:.0f} 个词元（推算）。"
    )
    if "bandwidth" in f:
        gigabytes, reached = f["bandwidth"] / 1e9, 1 / f["fp32: decode over roofline@1"]
        en += (
            f" One thread of this CPU reads {gigabytes:.0f} GB/s, and from {f['ridge_fp32']:.1f} operations a byte on "
            "fp32 waits for arithmetic. Writing one text, SmolLM2 in four bits does "
            f"{f['int4: decode tokens/s@1']:.0f} tokens/s here, {f['bits_gain']:.1f} times what bf16 does in the same "
            f"step, and {f['narrow_gain']:.1f} times fp32, which runs on PyTorch's plain products and writes at "
            f"{reached:.0%} of what memory would allow. Sixteen texts at once give fp32 {f['batch_gain']:.1f} times "
            f"the tokens. Predicted for 7B in bf16, an A100 against this thread: reading {f['gpu_prefill']:,.0f} "
            f"times as fast, writing {f['gpu_decode']:.0f} times."
        )
        zh += (
            f"本机 CPU 单线程每秒读内存 {gigabytes:.0f} GB；fp32 要到每字节 {f['ridge_fp32']:.1f} 次运算，才轮到等算力"
            f"。写一条文本，四位的 SmolLM2 在此每秒 {f['int4: decode tokens/s@1']:.0f} 个词元，是同一原生步里 bf16 的 "
            f"{f['bits_gain']:.1f} 倍，是 fp32 的 {f['narrow_gain']:.1f} 倍；fp32 走的是 PyTorch 的普通乘法，只达到内存"
            f"所容许速度的 {reached:.0%}。十六条一起写，fp32 每秒词元数是一条的 "
            f"{f['batch_gain']:.1f} 倍。推算 7B（bf16），A100 比这一个线程：读快 {f['gpu_prefill']:,.0f} 倍，写快 "
            f"{f['gpu_decode']:.0f} 倍。"
        )
    return Text(en, zh)


def tables(f: Mapping[str, float]) -> list[Table]:
    phases = {"decode": Text("writing", "写"), "prefill": Text("reading", "读")}
    named = [
        (f"{phase}_intensity_{rows}", Text(f"{said.en}, {rows}", f"{said.zh} {rows} 条"))
        for phase, said in phases.items()
        for rows in BATCHES
    ]
    work = Table(
        Text(
            "SmolLM2 in fp32, texts of 128 tokens, one, four or sixteen: operations a byte",
            "SmolLM2（fp32），128 个词元的文本，一、四、十六条：每读一字节所做的运算",
        ),
        (Text("operations a byte", "每字节运算"), *(said for _, said in named)),
        ((Text("counted", "清点"), *(f"{f[name]:.1f}" for name, _ in named)),),
    )
    if "bandwidth" not in f:
        return [work]
    waits = tuple(
        Text("memory", "内存") if f[name] < f["ridge_fp32"] else Text("arithmetic", "算力") for name, _ in named
    )
    work = work._replace(rows=(*work.rows, (Text("waits here for", "在此等的是"), *waits)))
    asked = [(phase, rows) for phase in phases for rows in BATCHES]
    speed = Table(
        Text(
            "One thread of this CPU: tokens/s, in brackets the time over the roofline's; * by the native step",
            "本机 CPU 单线程：每秒词元数，括号内为用时比屋顶线下限；* 为原生步",
        ),
        (
            Text("weights", "权重"),
            *(said for _, said in named),
            "GFLOP/s",
        ),
        tuple(
            (
                kind + "*" * (f[f"{kind}: native"] > 0.5),
                *(
                    f"{f[f'{kind}: {phase} tokens/s@{rows}']:,.0f} ({f[f'{kind}: {phase} over roofline@{rows}']:.2f})"
                    for phase, rows in asked
                ),
                f"{f[f'{kind}: gigaflops/s']:.0f}",
            )
            for kind in KINDS
        ),
    )
    return [work, speed]


QUESTION = Question(
    number=13,
    tier="seconds",
    claim=Text(
        "A GPU is faster, usually by much: its many parallel units do the matrix products. A CPU is made for general "
        "work and its weak arithmetic makes it slow. GPU libraries such as CUDA or OpenCL bring the speed. It depends "
        "also on the size of the model and of the input, on how complex the operations are, and on the hardware.",
        "GPU 更快，一般快得多：矩阵乘法由它众多的并行单元承担。CPU 面向通用任务，算力不足，所以慢。要提速，就借助 "
        "CUDA、OpenCL 一类的库。快慢还取决于模型多大、输入多长、运算多复杂、硬件好坏。",
    ),
    correction=Text(
        "There is no one ratio. Reading a prompt multiplies every weight with many tokens and waits for arithmetic; "
        "writing multiplies each weight once a token and waits for memory: tokens/s of one text ≤ bandwidth / bytes "
        "read a token. So a GPU leads in writing by its bandwidth, not by its arithmetic. On a CPU, fewer bits a "
        "weight and more texts at once help for the same reason. A small model on a GPU waits for the launch of its "
        "operations, unless they are captured in a graph, and may be slower there than on a CPU.",
        "不存在单一的倍数。读提示时，每个权重要乘许多词元，等的是算力；写答案时，每个词元只乘一次权重，等的是内存：单条"
        "文本的每秒词元数 ≤ 带宽 ÷ 每词元须读的字节数。所以写的时候，GPU 赢在带宽而不是算力。CPU 上减少权重位数、多条"
        "一起写之所以有用，也是同一个道理。小模型在 GPU 上等的是逐个启动操作（除非捕获成 CUDA graph），甚至可能慢过 "
        "CPU。",
    ),
    run=Text(
        "Measured on one thread of this CPU: how fast memory is read, how fast matrices are multiplied, and SmolLM2 "
        "in fp32 (plain path), bf16, int8 and int4 (native step where the machine has it), prompts of 128 tokens, 24 "
        "written, one, four and sixteen texts; five rounds in which the kinds take turns, of each the fastest step, "
        "and the median over rounds. The least time by the roofline (Williams et al. 2009) stands beside each. GPU "
        "figures are predicted from the A100's data sheet (80 GB SXM: 2,039 GB/s, 312 TFLOP/s in bf16), never "
        "measured here; 3.8 µs a launch is from NVIDIA's post on CUDA Graphs (Gray 2019).",
        "在本机 CPU 上以单线程测：读内存有多快，乘矩阵有多快；再测 SmolLM2 的 fp32（普通路径）与 bf16、int8、int4（机"
        "器支持时用原生步），提示 128 个词元，写 24 个，一、四、十六条文本同时；五轮轮流测，每轮取最快的一步，再取各"
        "轮的中位数，旁边列出屋顶线（Williams 等 2009）给出的最短时间。GPU 的数字只按 A100 规格书（80 GB SXM：2,039 "
        "GB/s，bf16 312 TFLOP/s）推算，此处未测；每次启动 3.8 µs 取自 NVIDIA 关于 CUDA Graphs 的文章（Gray 2019）。",
    ),
    papers=(
        "Pope et al. 2022, Efficiently Scaling Transformer Inference, arXiv 2211.05102",
        "Yuan et al. 2024, LLM Inference Unveiled: Survey and Roofline Model Insights, arXiv 2402.16363",
        "Touvron et al. 2023, LLaMA, arXiv 2302.13971",
        "Frantar et al. 2022, GPTQ, arXiv 2210.17323",
    ),
    errors={"E13.1": "I", "E13.2": "M"},
    claims=(
        Claim(
            "a GPU is faster",
            "large models run faster on a GPU",
            "大模型在 GPU 上跑得更快",
            (
                Check(
                    "gpu_prefill",
                    ">",
                    1.0,
                    "7B, reading: A100 over one thread here, predicted",
                    "7B 读提示：A100 比本机单线程，推算",
                ),
                Check("gpu_decode", ">", 1.0, "7B, writing: the same", "7B 写答案：同上"),
            ),
            Verdict.PREDICTED_ONLY,
            race="speed",
        ),
        Claim(
            "one ratio",
            "a GPU is faster, in general (no number, no model of it)",
            "总之 GPU 更快（没有数字，也没有估算方法）",
            (
                Check(
                    "phases_apart",
                    ">",
                    2.0,
                    "7B: the predicted lead in reading over that in writing",
                    "7B：推算的领先倍数，读比写",
                ),
                Check(
                    "prefill_over_decode",
                    ">",
                    3.0,
                    "SmolLM2 in fp32, here: tokens/s reading over writing",
                    "SmolLM2 fp32 在本机：每秒词元数，读比写",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E13.1",),
            race="speed",
        ),
        Claim(
            "weak arithmetic",
            "a CPU is slow because its arithmetic is weak",
            "CPU 慢在算力弱",
            (
                Check(
                    "fp32: decode over roofline@1",
                    "<=",
                    CLOSE,
                    "writing one text, fp32: seconds over the roofline's",
                    "写一条，fp32：实际用时比屋顶线",
                ),
                Check(
                    "memory_over_arithmetic",
                    ">",
                    2.0,
                    "of which memory takes so many times what arithmetic does",
                    "其中内存用时是算力用时的倍数",
                ),
                Check(
                    "batch_gain", ">", 2.0, "tokens/s, sixteen texts over one, fp32", "每秒词元数，十六条比一条，fp32"
                ),
                Check("narrow_gain", ">", 2.0, "tokens/s of one text, int4 over fp32", "单条每秒词元数，int4 比 fp32"),
            ),
            Verdict.CORRECTED,
            errors=("E13.2",),
            race="speed",
        ),
        Claim(
            "narrow weights",
            "a CPU runs large models slowly (nothing is said of fewer bits)",
            "CPU 跑大模型就是慢（未提减少位数）",
            tuple(
                Check(
                    f"{kind}: decode over roofline@1",
                    "<=",
                    CLOSE,
                    f"writing one text, {kind}: seconds over the roofline's",
                    f"写一条，{kind}：实际用时比屋顶线",
                )
                for kind in KINDS[1:]
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E13.2",),
            race="speed",
        ),
        Claim(
            "small models",
            "a GPU library makes a model fast, whatever its size",
            "用上 GPU 库就快（不论模型大小）",
            (
                Check(
                    "launches_over_memory",
                    ">",
                    2.0,
                    "SmolLM2 on an A100, a token: launches one by one over reading memory, predicted",
                    "SmolLM2 在 A100 上每个词元：逐个启动的用时比读显存，推算",
                ),
            ),
            Verdict.PREDICTED_ONLY,
            kind="aside",
            errors=("E13.2",),
        ),
        Claim(
            "sizes",
            "speed depends on the size of the model and of the input",
            "快慢取决于模型多大、输入多长",
            (
                Check(
                    "size_cost",
                    ">",
                    1.0,
                    "bytes that a token reads, LLaMA-7B over SmolLM2, bf16",
                    "每词元须读的字节数，LLaMA-7B 比 SmolLM2，bf16",
                ),
                Check(
                    "length_cost",
                    ">",
                    1.0,
                    "the same of SmolLM2, after 8,192 tokens over after 128",
                    "SmolLM2 的同一数，写到第 8,192 个词元比第 128 个",
                ),
            ),
            kind="aside",
        ),
        Claim(
            "counts",
            "our count of the work is right",
            "本库对工作量的计数正确",
            (
                Check(
                    "operations_gap",
                    "<",
                    1e-9,
                    "operations: formula against torch's count",
                    "运算次数：公式对 torch 计数",
                ),
                Check(
                    "ceilings_gap",
                    "<",
                    0.05,
                    "7B: our ceilings against those of all 6.74 billion weights (151 and 3.8 tokens/s)",
                    "7B：本库的上限与按全部 67.4 亿权重另算的 151、3.8 之差",
                ),
            ),
            kind="control",
        ),
    ),
    figures=figures,
    evidence=evidence,
    tables=tables,
    races=("speed",),
    raced=raced,
    uses=(
        "llmlab/handbook/roofline.py",
        "llmlab/handbook/speeds.py",
        "llmlab/handbook/gpu_on_paper.py",
        "llmlab/inference/engine.py",
        "llmlab/inference/batching.py",
        "llmlab/inference/step.cpp",
    ),
    settings={
        "a100": [gpu_on_paper.A100.bandwidth, gpu_on_paper.A100.peak],
        "desktop": gpu_on_paper.DESKTOP,
        "kernel": gpu_on_paper.KERNEL,
        "lengths": [gpu_on_paper.PROMPT, gpu_on_paper.LENGTH, READ],
        "compared": [gpu_on_paper.SHORT, gpu_on_paper.LONG],
        "batches": list(BATCHES),
    },
)
