"""Question 12: why memory swells during inference and stays occupied. The ledger of SmolLM2, term by term: the cache of
keys and values, which the answer leaves out, is what grows; ids are nothing, and intermediates do not stay."""

from collections.abc import Mapping

from llmlab.handbook import smollm2_ledger as ledger
from llmlab.handbook.costs import over_seeds
from llmlab.handbook.question import Check, Claim, Figures, Question, Table, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.handbook.release import MEASURES
from llmlab.handbook.smollm2_ledger import LENGTHS
from llmlab.stages import Session

ARMS = SHORTER, LONGER = "128 tokens", "1024 tokens"  # of the race of release; its claim reads the longer
SIZES = {  # the rows of the ledger that grow with the text
    "kv": Text("keys and values", "键值缓存"),
    "ids": Text("ids", "输入编号"),
    "pieces": Text("activations, read in pieces", "激活，分段读"),
    "whole": Text("activations, read at once", "激活，一次读完"),
    "graph": Text("the same with gradients", "激活，一次读完且记梯度"),
    "logits_last": Text("logits of the last token", "末位的 logits"),
    "logits_full": Text("logits of all tokens", "全部 logits"),
}


def figures(session: Session) -> Figures:
    found = ledger.sizes()
    remedies = ledger.caches(session.seed) | ledger.pages(session.seed)
    return found | ledger.without_data_gap() | remedies | ledger.on_a_gpu(found)


# ---------------------------------------------------------------- resident memory


def raced(told: Mapping[str, Told]) -> Figures:
    """Of the most a process took: what it still holds when all is deleted, and how much of that a trim gives back."""
    race = told["release"]
    found: Figures = {}
    for arm in ARMS:
        found |= {f"{arm}: {measure}": race.mean(arm, measure) for measure in MEASURES}
        peak, deleted = (race.values(arm, measure) for measure in ("peak", "deleted"))
        found |= {
            f"{arm}: lives": float(len(deleted)),
            f"{arm}: holding": float(sum(left > most / 2 for left, most in zip(deleted, peak, strict=True))),
            f"{arm}: least": min(deleted),
            f"{arm}: most": max(deleted),
        }
    peak, deleted, trimmed = (race.values(LONGER, measure) for measure in ("peak", "deleted", "trimmed"))
    found |= over_seeds("held", [left / most for left, most in zip(deleted, peak, strict=True)])
    return found | over_seeds("given_back", [1 - b / a for a, b in zip(deleted, trimmed, strict=True)])


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"Keys and values take {f['kv_bytes_a_token']:,.0f} bytes a token in SmolLM2 (fp32), {f['kv_gap']:.0f} off the "
        f"formula, and are {f['kv_share_8192']:.0%} of all at 8,192 tokens; ids at most {f['ids_share_largest']:.3%}. "
        f"Beside its output a pass without gradients leaves {f['kept_largest']:.0f} bytes, and a token more adds "
        f"{f['step_growth_share']:.2%} of its cache's bytes to the activations; logits of all 2,048 tokens take "
        f"{f['logits_over_activations_2048']:.0f} times what the activations do. Heads apart need "
        f"{f['mha_over_gqa']:.0f} times the cache of grouped ones, 32 bits {f['fp32_over_int8']:.2f} times that of "
        f"eight (hidden states off by {f['int8_error']:.1%}). Of all places {f['contiguous_waste']:.0%} stay empty "
        f"where each text reserves the whole context, {f['paged_waste']:.1%} in pages. Predicted for a GPU in fp16: "
        f"after a request of 2,048 tokens that made logits of all of them, {f['gpu_reserved_mib']:,.0f} MiB stay "
        f"reserved, {f['gpu_idle_share']:.0%} of them idle."
    )
    zh = (
        f"SmolLM2（fp32）的键值缓存每词元占 {f['kv_bytes_a_token']:,.0f} 字节，与公式相差 {f['kv_gap']:.0f}，到 8,192 "
        f"个词元时占总量的 {f['kv_share_8192']:.0%}；输入编号至多占 {f['ids_share_largest']:.3%}。不记梯度的一遍计算，"
        f"除输出外留下 {f['kept_largest']:.0f} 字节；每多一个词元，激活只增加其缓存字节数的 "
        f"{f['step_growth_share']:.2%}；2,048 个词元的全部 logits 是激活的 {f['logits_over_activations_2048']:.0f} 倍。"
        f"各头分开时，缓存是分组共享的 {f['mha_over_gqa']:.0f} 倍；32 位的缓存是八位的 {f['fp32_over_int8']:.2f} 倍"
        f"（八位使隐状态偏差 {f['int8_error']:.1%}）。若每条文本预留整个上下文，{f['contiguous_waste']:.0%} 的位置空着"
        f"，分页则为 {f['paged_waste']:.1%}。推算 GPU（fp16）：一次 2,048 个词元、算出全部 logits 的请求之后，仍保留 "
        f"{f['gpu_reserved_mib']:,.0f} MiB，其中 {f['gpu_idle_share']:.0%} 闲置。"
    )
    if "held" in f:
        lives, holding, least, most, trimmed = (
            f"{f[f'{LONGER}: {name}']:,.0f}" for name in ("lives", "holding", "least", "most", "trimmed")
        )
        en += (
            f" On this CPU, once everything is deleted, {least} to {most} MB stay with the process, more than half of "
            f"what it took at most in {holding} of {lives} processes: the C library gives back the end of its heap, "
            f"and whatever lives there holds all that lies below. After malloc_trim(0) {trimmed} MB are left."
        )
        zh += (
            f"在本机 CPU 上，全部删除之后，进程仍占 {least} 至 {most} MB，{lives} 个进程中有 {holding} 个超过其最高占用"
            f"的一半：C 库只归还堆的末端，末端若有存活之物，压在下面的便都还不了。malloc_trim(0) 之后剩 {trimmed} MB。"
        )
    return Text(en, zh)


def _megabytes(bytes: float) -> str:
    return f"{bytes / 1e6:.2g}" if bytes < 1e6 else f"{bytes / 1e6:,.{int(bytes < 1e8)}f}"


def tables(f: Mapping[str, float]) -> list[Table]:
    rows: list[tuple[Text | str, ...]] = [(Text("weights", "权重"), *[_megabytes(f["weights"])] * len(LENGTHS))]
    for name, said in SIZES.items():
        rows.append((said, *(_megabytes(f[f"{name}_{length}"]) for length in LENGTHS)))
    sizes = Table(
        Text("SmolLM2 in fp32, megabytes by tokens of one text", "SmolLM2（fp32），单位 MB，按一条文本的词元数"),
        (Text("tokens", "词元数"), *(f"{length:,}" for length in LENGTHS)),
        tuple(rows),
    )
    if "held" not in f:
        return [sizes]
    resident = Table(
        Text(
            "Resident memory above the start, megabytes: mean over the processes, and the least and most at the end",
            "常驻内存比开始时多出的 MB：各进程的均值，末了所占的最小与最大值",
        ),
        (
            Text("texts of up to", "文本至多"),
            Text("loaded", "载入"),
            Text("at most", "最高"),
            Text("answered", "应答后"),
            Text("deleted", "删除后"),
            Text("least", "最小"),
            Text("most", "最大"),
            Text("over half held", "仍占过半"),
            Text("trimmed", "整理后"),
        ),
        tuple(
            (
                Text(arm, arm.replace("tokens", "个词元")),
                *(f"{f[f'{arm}: {name}']:,.0f}" for name in (*MEASURES[:4], "least", "most")),
                f"{f[f'{arm}: holding']:.0f} / {f[f'{arm}: lives']:.0f}",
                f"{f[f'{arm}: trimmed']:.1f}",
            )
            for arm in ARMS
        ),
    )
    return [sizes, resident]


QUESTION = Question(
    number=12,
    tier="seconds",
    claim=Text(
        "Four things take memory and keep it: the parameters; the input, above all a long one; intermediate results, "
        "which must be held for the computation that follows; and the framework, which delays giving memory back to "
        "allocate less often. One may change the batch size, the way memory is allocated, or the hardware.",
        "占着内存的有四样：参数；输入，文本一长尤甚；中间结果，因为后面还要用；再就是框架为减少分配次数而迟迟不归还。对"
        "策是改批大小、换分配方式、换硬件。",
    ),
    correction=Text(
        "What grows is the cache of keys and values, 2 × layers × key/value heads × head width × bytes a number for "
        "each token of each text: half a MiB a token in LLaMA-7B (fp16). The input is 8 bytes a token. Without "
        "gradients a layer's buffers are free for the next layer; large are the logits, where those of all tokens are "
        "made, and the n² mask or scores, where a prompt is read in one piece. Remedies: grouped or single key/value "
        "heads, a cache in fewer bits, pages, eviction, logits of the last token only. On a GPU the allocator reserves "
        "more than is allocated and gives it back only when asked (empty_cache).",
        "真正增长的是键值缓存：每条文本的每个词元占 2 × 层数 × 键值头数 × 头宽 × 每数字节数，LLaMA-7B（fp16）是每词元半"
        " MiB。输入只有每词元 8 字节。不记梯度时，一层的缓冲区随即让给下一层；大的是对全部词元都算出的 logits，以及整段"
        "一次读入时 n² 的掩码或分数。办法：分组或单一键值头，缓存用更少的位，分页，淘汰，只算末位的 logits。GPU 上分配"
        "器保留的多于实际分配的，要明确要求（empty_cache）才归还。",
    ),
    run=Text(
        "SmolLM2's shape, its tensors counted while a text of 128, 2,048 and 8,192 tokens is read: passes run on "
        "tensors without data, held equal to the byte to a run with data (two layers, 700 tokens). Then one token more "
        "after a short and a long text; heads apart, eight bits, four texts; the pages of our engine for 200 texts of "
        "16 to 8,192 tokens. Resident memory of processes of their own, twenty, before and after everything is "
        "deleted and the heap trimmed. GPU figures are predicted from PyTorch's allocator (segments of 2 and 20 MiB), "
        "never measured.",
        "取 SmolLM2 的形状，读 128、2,048、8,192 个词元时清点全部张量：用不含数据的张量走一遍，并与含数据的一遍（两层，"
        "700 个词元）逐字节核对。再看：短文与长文之后各多写一个词元；各头分开、八位缓存、四条文本；本引擎的分页容纳 "
        "200 条 16 至 8,192 个词元的文本。另起二十个进程测常驻内存：全部删除前后，整理堆之后。GPU 的数字按 PyTorch 分配"
        "器的规则（2 与 20 MiB 的段）推算，此处未测。",
    ),
    papers=(
        "Kwon et al. 2023, PagedAttention, arXiv 2309.06180",
        "Ainslie et al. 2023, GQA, arXiv 2305.13245",
        "Shazeer 2019, Fast Transformer Decoding, arXiv 1911.02150",
        "Sheng et al. 2023, FlexGen, arXiv 2303.06865",
        "Dao et al. 2022, FlashAttention, arXiv 2205.14135",
        "Zhang et al. 2023, H2O, arXiv 2306.14048",
    ),
    errors={"E12.1": "I", "E12.2": "W", "E12.3": "M", "E12.4": "I"},
    claims=(
        Claim(
            "parameters",
            "the parameters take much memory",
            "参数占用大量内存",
            (
                Check("weights_gap", "==", 0.0, "bytes off 4 × 134,515,008", "与 4 × 134,515,008 字节之差"),
                Check("weights_share_128", ">", 0.5, "their share of all at 128 tokens", "128 个词元时占总量之比"),
            ),
        ),
        Claim(
            "input",
            "the input takes much memory, above all a long one",
            "输入占用大量内存，文本一长尤甚",
            (
                Check("ids_bytes_a_token", "==", 8.0, "bytes a token", "每词元字节数"),
                Check("ids_share_largest", "<", 1e-4, "largest share of all", "占总量之比，最大者"),
            ),
            Verdict.CORRECTED,
            errors=("E12.2",),
        ),
        Claim(
            "intermediates",
            "intermediate results are held for what follows",
            "中间结果须留着供后面使用",
            (
                Check(
                    "kept_largest",
                    "==",
                    0.0,
                    "bytes that a pass without gradients leaves beside its output",
                    "不记梯度的一遍计算，除输出外留下的字节数",
                ),
                Check(
                    "graph_over_plain_2048",
                    ">",
                    5.0,
                    "activations at 2,048 tokens, with gradients over without",
                    "2,048 个词元的激活，记梯度比不记",
                ),
                Check(
                    "logits_over_activations_2048",
                    ">",
                    1.0,
                    "logits of all 2,048 tokens over all other activations",
                    "2,048 个词元的全部 logits 比其余激活之和",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E12.3",),
        ),
        Claim(
            "keys and values",
            "these are the things that take memory (no word of keys and values)",
            "占内存的就是这几样（未提键值缓存）",
            (
                Check("kv_gap", "==", 0.0, "bytes off the formula, at most", "与公式相差的字节数，最大者"),
                Check(
                    "kv_bytes_a_token", "==", 46_080.0, "SmolLM2 in fp32: bytes a token", "SmolLM2 fp32 每词元字节数"
                ),
                Check("llama_kv_bytes_a_token", "==", 524_288.0, "LLaMA-7B in fp16", "LLaMA-7B fp16 每词元字节数"),
                Check(
                    "step_growth_share",
                    "<",
                    0.2,
                    "all else that a token more adds, over its keys and values",
                    "每多一个词元，其余增长与键值之比",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E12.1",),
        ),
        Claim(
            "late release",
            "memory is given back late",
            "内存迟迟不归还",
            (
                Check(
                    "held_lower",
                    ">",
                    0.01,
                    "held when all is deleted, over the most, 95 % bound",
                    "全部删除后仍占，比最高值，95% 下界",
                ),
                Check(
                    "given_back_lower",
                    ">",
                    0.5,
                    "of which malloc_trim(0) gives back, 95 % bound",
                    "其中 malloc_trim(0) 归还的比例，95% 下界",
                ),
            ),
            race="release",
        ),
        Claim(
            "remedies",
            "change batch size, allocation or hardware (that is all)",
            "办法就是改批大小、换分配方式、换硬件",
            (
                Check("mha_over_gqa", "==", 3.0, "cache of heads apart over grouped", "各头分开的缓存比分组共享"),
                Check("fp32_over_int8", ">", 3.0, "cache in 32 bits over eight", "32 位的缓存比八位"),
                Check("int8_error", "<", 0.02, "what eight bits change in hidden states", "八位缓存给隐状态带来的偏差"),
                Check("contiguous_waste", ">", 0.5, "places empty, the context reserved", "预留整个上下文时空置的比例"),
                Check("paged_waste", "<", 0.04, "places empty, in pages", "分页时空置的比例"),
                Check("largest_hole", "<", 0.5, "free places in one piece, at most", "空位中连成一块的最大比例"),
                Check("paged_usable", "==", 1.0, "free places that pages can use", "分页可用的空位比例"),
            ),
            Verdict.CORRECTED,
            errors=("E12.4",),
        ),
        Claim(
            "batch",
            "the batch size changes it",
            "批大小影响占用",
            (Check("rows_over_one", "==", 4.0, "cache of four texts over one", "四条文本的缓存比一条"),),
            kind="aside",
        ),
        Claim(
            "a GPU's allocator",
            "on a GPU the framework keeps what it took",
            "GPU 上框架占着不放",
            (
                Check(
                    "gpu_idle_share",
                    ">",
                    0.25,
                    "reserved and not in use after a request, predicted",
                    "请求结束后保留而未用的比例，推算",
                ),
            ),
            Verdict.PREDICTED_ONLY,
            kind="aside",
            errors=("E12.4",),
        ),
        Claim(
            "counting",
            "bytes without data are bytes with data",
            "不含数据的清点与含数据的一致",
            (Check("without_data_gap", "==", 0.0, "bytes apart, any pass", "字节数之差，各遍"),),
            kind="control",
        ),
    ),
    figures=figures,
    evidence=evidence,
    tables=tables,
    races=("release",),
    raced=raced,
    uses=(
        "llmlab/handbook/smollm2_ledger.py",
        "llmlab/handbook/ledger.py",
        "llmlab/interpret/live_bytes.py",
        "llmlab/inference/int8_cache.py",
        "llmlab/handbook/release.py",
        "llmlab/inference/cache.py",
        "llmlab/inference/pages.py",
    ),
    settings={
        "lengths": list(LENGTHS),
        "checked": [ledger.CHECKED, ledger.CHECKED_LAYERS],
        "texts": [ledger.TEXTS, ledger.CONTEXT],
        "rows": ledger.ROWS,
    },
)
