"""Question 12: why memory swells during inference and stays occupied. The ledger of SmolLM2, term by term: the cache of
keys and values, which the answer leaves out, is what grows; ids are nothing, and intermediates do not stay."""

from collections.abc import Mapping

import torch

from llmlab.handbook.costs import over_seeds
from llmlab.handbook.ledger import (
    MIB,
    Pass,
    cached_bytes,
    fill,
    holes,
    in_pieces,
    lengths,
    one_more,
    reserved,
    shaped,
    wasted,
    whole,
    without_data,
)
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.handbook.release import MEASURES
from llmlab.handbook.roofline import cache_bytes
from llmlab.handbook.smollm2_shape import LLAMA_7B, SMOLLM2, VOCABULARY
from llmlab.inference.cache import DenseCache
from llmlab.inference.int8_cache import Int8Cache
from llmlab.model.attention import MultiHead
from llmlab.model.places import Places
from llmlab.model.transformer import Transformer
from llmlab.runtime import generator
from llmlab.stages import Session

LENGTHS = (128, 2048, 8192)
PARAMETERS = 134_515_008  # of SmolLM2, by the header of its published file
WIDE, HALF, ID = 4, 2, 8  # bytes of a number in fp32, in fp16, of an id
CHECKED, CHECKED_LAYERS = 700, 2  # tokens and layers of what is run with data and without
TEXTS, CONTEXT = 200, 8192
ROWS = 4
LONGER = "1024 tokens"  # the arm that the claim on release reads


def _sizes(model: Transformer, length: int) -> Figures:
    """What SmolLM2 takes for one text of a length; activations with a graph, without, and as the engine reads it."""
    ids, cache = torch.zeros(1, length, dtype=torch.int64), DenseCache(length)
    pieces = in_pieces(model, length, cache)
    graph, plain = whole(model, length, grad=True), whole(model, length, grad=False)
    with torch.no_grad():
        last = model.logits(torch.zeros(1, 1, SMOLLM2.dim)).nbytes
        full = model.logits(torch.zeros(1, length, SMOLLM2.dim)).nbytes
    return {
        f"ids_{length}": float(ids.nbytes),
        f"kv_{length}": float(cached_bytes(cache)),
        f"pieces_{length}": float(pieces.peak),
        f"whole_{length}": float(plain.peak),
        f"graph_{length}": float(graph.peak),
        f"kept_{length}": float(max(pieces.kept, plain.kept)),
        f"logits_last_{length}": float(last),
        f"logits_full_{length}": float(full),
    }


def _ledger() -> Figures:
    model = shaped(SMOLLM2, VOCABULARY)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    found: Figures = {"weights": float(weights), "weights_gap": float(abs(weights - WIDE * PARAMETERS))}
    with without_data(model) as empty:
        for length in LENGTHS:
            found |= _sizes(empty, length)
        early, late = (one_more(empty, DenseCache(length), length - 1) for length in (LENGTHS[0], LENGTHS[-1]))
    each = cache_bytes(SMOLLM2, WIDE)
    totals = {length: sum(_terms(found, length).values()) for length in LENGTHS}
    plain = found["whole_2048"]
    return found | {
        "weights_share_128": weights / totals[128],
        "kv_share_8192": found["kv_8192"] / totals[8192],
        "ids_share_largest": max(found[f"ids_{length}"] / totals[length] for length in LENGTHS),
        "ids_bytes_a_token": found["ids_8192"] / 8192,
        "kept_largest": max(found[f"kept_{length}"] for length in LENGTHS),
        "graph_over_plain_2048": found["graph_2048"] / plain,
        "logits_over_activations_2048": found["logits_full_2048"] / found["pieces_2048"],
        "kv_bytes_a_token": each,
        "kv_gap": max(abs(found[f"kv_{length}"] - length * each) for length in LENGTHS),
        "llama_kv_bytes_a_token": cache_bytes(LLAMA_7B, HALF),
        "step_growth_share": (late.peak - early.peak) / (LENGTHS[-1] - LENGTHS[0]) / each,
    }


def _terms(f: Mapping[str, float], length: int) -> dict[str, float]:
    """The rows of the ledger while one text is read as the engine reads it."""
    return {"weights": f["weights"], **{name: f[f"{name}_{length}"] for name in ("kv", "ids", "pieces", "logits_last")}}


def _without_data_gap() -> Figures:
    """Tensors with data against tensors without: the same bytes, pass by pass."""

    def passes(model: Transformer) -> list[Pass]:
        cache = DenseCache(CHECKED)
        return [
            whole(model, CHECKED, grad=True),
            whole(model, CHECKED, grad=False),
            in_pieces(model, CHECKED, cache),
            one_more(model, DenseCache(CHECKED), CHECKED - 1),
            Pass(cached_bytes(cache), 0),
        ]

    model = shaped(SMOLLM2, VOCABULARY, layers=CHECKED_LAYERS)
    real = passes(model)
    with without_data(model) as empty:
        empties = passes(empty)
    apart = [abs(one.peak - other.peak) + abs(one.kept - other.kept) for one, other in zip(real, empties, strict=True)]
    return {"without_data_gap": float(max(apart))}


def _caches(seed: int) -> Figures:
    """Heads apart against grouped, eight bits against 32, four texts against one; two layers of SmolLM2."""
    apart = MultiHead(heads=SMOLLM2.keyed.heads, head_dim=SMOLLM2.keyed.head_dim)
    grouped = shaped(SMOLLM2, VOCABULARY, layers=CHECKED_LAYERS)
    models = {"mha": shaped(SMOLLM2, VOCABULARY, layers=CHECKED_LAYERS, attention=apart), "gqa": grouped}
    held = {}
    for name, model in models.items():
        fill(model, cache := DenseCache(LENGTHS[0]))
        held[name] = cached_bytes(cache)
    fill(grouped, many := DenseCache(LENGTHS[0]), ROWS)
    narrow, exact = Int8Cache(LENGTHS[0]), DenseCache(LENGTHS[0])
    ids = torch.randint(VOCABULARY, (1, LENGTHS[0]), generator=generator(seed, "handbook", "memory", "ids"))
    with torch.no_grad():
        wide, close = (grouped.hidden(ids, Places.causal(*ids.shape), cache) for cache in (exact, narrow))
    return {
        "mha_over_gqa": held["mha"] / held["gqa"],
        "fp32_over_int8": cached_bytes(exact) / cached_bytes(narrow),
        "int8_error": float((wide - close).norm() / wide.norm()),
        "rows_over_one": cached_bytes(many) / held["gqa"],
    }


def _pages(seed: int) -> Figures:
    texts = lengths(seed, TEXTS, CONTEXT)
    contiguous, paged = wasted(texts, CONTEXT)
    hole, usable = holes(texts)
    return {"contiguous_waste": contiguous, "paged_waste": paged, "largest_hole": hole, "paged_usable": usable}


def _gpu(f: Mapping[str, float]) -> Figures:
    """What PyTorch's allocator would hold on a GPU after a request of 2,048 tokens in fp16 with logits of all of them
    in fp32, the request's own tensors gone: reserved bytes, and the share of them that nobody uses."""
    weights = [HALF * parameter.numel() for parameter in shaped(SMOLLM2, VOCABULARY).parameters()]
    cache = [int(f["kv_2048"]) // (4 * SMOLLM2.layers)] * (2 * SMOLLM2.layers)
    request = [*cache, int(f["logits_full_2048"]), int(f["pieces_2048"]) // 2]
    total = reserved([*weights, *request])
    return {"gpu_reserved_mib": total / MIB, "gpu_idle_share": 1 - sum(weights) / total}


def figures(session: Session) -> Figures:
    found = _ledger()
    return found | _without_data_gap() | _caches(session.seed) | _pages(session.seed) | _gpu(found)


# ---------------------------------------------------------------- resident memory


def raced(told: Mapping[str, Told]) -> Figures:
    """Of the most a process took: what it still holds when all is deleted, and how much of that a trim gives back."""
    race: Told = told["release"]
    found: Figures = {}
    for arm in ("128 tokens", LONGER):
        found |= {f"{arm}: {measure}": race.mean(arm, measure) for measure in MEASURES}
    peak, deleted, trimmed = (race.values(LONGER, measure) for measure in ("peak", "deleted", "trimmed"))
    found |= {
        "lives": float(len(deleted)),
        "lives_holding": float(sum(left > most / 2 for left, most in zip(deleted, peak, strict=True))),
        "deleted_least": min(deleted),
        "deleted_most": max(deleted),
    }
    found |= over_seeds("held", [left / most for left, most in zip(deleted, peak, strict=True)])
    return found | over_seeds("given_back", [1 - b / a for a, b in zip(deleted, trimmed, strict=True)])


def _megabytes(bytes: float) -> str:
    return f"{bytes / 1e6:.2g}" if bytes < 1e6 else f"{bytes / 1e6:,.{int(bytes < 1e8)}f}"


def evidence(f: Mapping[str, float]) -> Text:
    def row(name: str) -> str:
        return ", ".join(_megabytes(f[f"{name}_{length}"]) for length in LENGTHS)

    def listed(name: str) -> str:
        return row(name).replace(", ", "、")

    en = (
        f"SmolLM2 in fp32, megabytes at 128, 2,048 and 8,192 tokens: weights {_megabytes(f['weights'])} always; keys "
        f"and values {row('kv')}, {f['kv_bytes_a_token']:,.0f} bytes a token, {f['kv_gap']:.0f} off the formula; ids "
        f"{row('ids')}; activations at their peak, read in pieces as the engine does, {row('pieces')}, at once without "
        f"gradients {row('whole')}, with them {row('graph')}; logits of the last token "
        f"{_megabytes(f['logits_last_128'])}, of all {row('logits_full')}. Beside its output a pass without gradients "
        f"leaves {f['kept_largest']:.0f} bytes. A token more adds {f['step_growth_share']:.2%} of its cache's bytes to "
        f"the activations. Heads apart take {f['mha_over_gqa']:.0f} times the cache of grouped ones; eight bits "
        f"{f['fp32_over_int8']:.2f} times less than 32 (hidden states off by {f['int8_error']:.1%}); "
        f"{f['contiguous_waste']:.0%} of places stay empty where each text reserves the whole context, "
        f"{f['paged_waste']:.1%} in pages. Predicted for a GPU: after a request {f['gpu_reserved_mib']:,.0f} MiB stay "
        f"reserved, {f['gpu_idle_share']:.0%} of them idle."
    )
    zh = (
        f"SmolLM2（fp32）在 128、2,048、8,192 个词元时，单位 MB：权重始终 {_megabytes(f['weights'])}；键值缓存 "
        f"{listed('kv')}，每词元 {f['kv_bytes_a_token']:,.0f} 字节，与公式相差 {f['kv_gap']:.0f}；输入编号 "
        f"{listed('ids')}；激活峰值：按引擎分段读 {listed('pieces')}，一次读完且不记梯度 {listed('whole')}，记梯度 "
        f"{listed('graph')}；logits 只取末位 {_megabytes(f['logits_last_128'])}，全取 {listed('logits_full')}。不记梯度"
        f"的一遍计算，除输出外留下 {f['kept_largest']:.0f} 字节。每多一个词元，激活只增加其缓存字节数的 "
        f"{f['step_growth_share']:.2%}。各头分开时缓存是分组共享的 {f['mha_over_gqa']:.0f} 倍；八位比 32 位省到 "
        f"1/{f['fp32_over_int8']:.2f}（隐状态偏差 {f['int8_error']:.1%}）；若每条文本预留整个上下文，"
        f"{f['contiguous_waste']:.0%} 的位置空着，分页则为 {f['paged_waste']:.1%}。推算 GPU：一次请求之后仍保留 "
        f"{f['gpu_reserved_mib']:,.0f} MiB，其中 {f['gpu_idle_share']:.0%} 闲置。"
    )
    if "held" in f:
        told = [f"{f[f'{LONGER}: {measure}']:,.0f}" for measure in MEASURES]
        en += (
            f" Resident memory above the start, megabytes: {told[0]} with the weights, {told[1]} at most while texts "
            f"of up to 1,024 tokens are answered, and once everything is deleted {f['deleted_least']:,.0f} to "
            f"{f['deleted_most']:,.0f}, more than half of it in {f['lives_holding']:.0f} of {f['lives']:.0f} lives: "
            f"the heap keeps what lies below anything alive. After malloc_trim(0): {told[4]}."
        )
        zh += (
            f"常驻内存比开始时多出（MB）：载入权重后 {told[0]}；应答至多 1,024 个词元的文本时最高 {told[1]}；全部删除后"
            f" {f['deleted_least']:,.0f} 至 {f['deleted_most']:,.0f}，{f['lives']:.0f} 个进程中有 "
            f"{f['lives_holding']:.0f} 个仍占一半以上：堆里凡压在存活之物下面的都还不了。malloc_trim(0) 之后 "
            f"{told[4]}。"
        )
    return Text(en, zh)


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
    races=("release",),
    raced=raced,
    uses=(
        "llmlab/handbook/ledger.py",
        "llmlab/handbook/live_bytes.py",
        "llmlab/inference/int8_cache.py",
        "llmlab/handbook/release.py",
        "llmlab/inference/cache.py",
        "llmlab/inference/pages.py",
    ),
    settings={
        "lengths": list(LENGTHS),
        "checked": [CHECKED, CHECKED_LAYERS],
        "texts": [TEXTS, CONTEXT],
        "rows": ROWS,
    },
)
