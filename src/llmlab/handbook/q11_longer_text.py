"""Question 11: how to process longer text. Cutting, overlap and levels do what is said of them; a plain Transformer and
more layers do not, and what does was left out."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.handbook.depth import slope
from llmlab.handbook.mixing_costs import KINDS, LENGTHS, WINDOW, kept, mixed
from llmlab.handbook.needle_figures import needle_figures, needle_tables, said_of_needles
from llmlab.handbook.question import Check, Claim, Figures, Question, Table, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.handbook.smollm2_shape import SMOLLM2, VOCABULARY
from llmlab.handbook.tiled_attention import TILE, tiled
from llmlab.inference.cache import DenseCache
from llmlab.interpret.live_bytes import LiveBytes
from llmlab.longtext.chunk import spans, split_probability, whole
from llmlab.model.attention import Attention, MultiHead
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.runtime import generator
from llmlab.stages import Session

FACT, SIZE = 20, 256  # tokens of a fact and of a chunk, as the specification has them
DRAWN = 100_000  # placements
HEADS, HEAD_DIM, TILED = 2, 16, (512, 1024, 2048)  # of the attention by tiles; tokens
UNEVEN = ((300, 300, True, None), (300, 300, True, 50), (70, 300, True, 90), (65, 300, False, None))
TOKENS, DIM = 24, 16  # of the model whose attention is taken out


# ---------------------------------------------------------------- cutting


def _cut(seed: int) -> Figures:
    """How often a chunk's edge splits a fact: counted over every place in a stride, and drawn."""

    def counted(width: int, overlap: int) -> float:
        stride = SIZE - overlap
        chunks = spans(4 * SIZE, SIZE, overlap)
        return 1 - float(whole(chunks, torch.arange(3 * stride).numpy(), width).mean())

    gaps = [
        abs(counted(width, overlap) - split_probability(width, SIZE, overlap))
        for width in (1, 2, FACT, 64, SIZE)
        for overlap in (0, 1, FACT - 2, FACT - 1, 128)
    ]
    length = 1000 * SIZE
    place = torch.randint(length - SIZE, (DRAWN,), generator=generator(seed, "handbook", "cuts"))
    share = 1 - float(whole(spans(length, SIZE), place.numpy(), FACT).mean())
    law = split_probability(FACT, SIZE)
    return {
        "split": counted(FACT, 0),
        "split_drawn": share,
        "split_sigmas": abs(share - law) / math.sqrt(law * (1 - law) / DRAWN),
        "split_gap": max(gaps),
        "split_overlap": counted(FACT, FACT - 1),
        "split_overlap_less": counted(FACT, FACT - 2),
        "overlap_work": SIZE / (SIZE - FACT + 1),
    }


# ---------------------------------------------------------------- what attention costs


def _mixing() -> Figures:
    """Exponents of operations and of bytes kept, over the tokens of a text."""
    found: Figures = {}
    for kind in KINDS:
        operations, held = zip(*(mixed(kind, tokens) for tokens in LENGTHS), strict=True)
        found |= {
            f"exponent_{kind}": slope(LENGTHS, operations),
            f"kept_{kind}": slope(LENGTHS, held),
            f"kilo_{kind}": operations[-1] / LENGTHS[-1] / 1e3,
        }
    return found


def _written_out(q: Tensor, k: Tensor, v: Tensor, sees: Tensor) -> Tensor:
    return (q @ k.mT / math.sqrt(HEAD_DIM)).masked_fill(~sees, -torch.inf).softmax(-1) @ v


@torch.no_grad()
def _tiles(seed: int) -> Figures:
    """Attention by tiles against PyTorch's own on odd sizes, and the most bytes of either beside its inputs."""
    draws = generator(seed, "handbook", "tiles")

    def drawn(tokens: int) -> Tensor:
        return torch.randn(1, HEADS, tokens, HEAD_DIM, generator=draws)

    gaps, peaks = [], dict[str, list[float]](tiled=[], plain=[])
    for queries, keys, causal, window in UNEVEN:
        q, k, v = drawn(queries), drawn(keys), drawn(keys)
        back = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
        sees = ((back >= 0) | (not causal)) & (back < (window or keys))
        want = F.scaled_dot_product_attention(q, k, v, sees)
        gaps.append(float((tiled(q, k, v, causal, window) - want).abs().max()))
    for tokens in TILED:
        q, k, v = (drawn(tokens) for _ in range(3))
        sees = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        for name in peaks:
            with LiveBytes([q, k, v, sees]) as live:
                tiled(q, k, v) if name == "tiled" else _written_out(q, k, v, sees)
            peaks[name].append(float(live.peak))
    answer = 4 * HEADS * HEAD_DIM
    return {
        "tiled_gap": max(gaps),
        "tiled_exponent": slope(TILED, peaks["tiled"]),
        "plain_exponent": slope(TILED, peaks["plain"]),
        "tiled_beside": peaks["tiled"][-1] - answer * TILED[-1] - (peaks["tiled"][0] - answer * TILED[0]),
        "plain_over_tiled": peaks["plain"][-1] / peaks["tiled"][-1],
    }


# ---------------------------------------------------------------- attention, and size


@torch.no_grad()
def _there(seed: int) -> Figures:
    """Blocks of SmolLM2 that attend; how far the last token's state moves with the first token, with attention and
    with every block's taken out."""
    with torch.device("meta"):
        real = Transformer(SMOLLM2, VOCABULARY)
    a = Architecture(layers=2, dim=DIM, context=TOKENS, attention=MultiHead(heads=HEADS))
    model = a.build(8, seed).double().eval()
    ids = torch.randint(8, (2, TOKENS), generator=generator(seed, "handbook", "attention there"))
    ids[1] = ids[0]
    ids[1, 0] = (ids[0, 0] + 1) % 8

    def moved() -> float:
        first, other = model.hidden(ids, Places.causal(*ids.shape))[:, -1]
        return float((first - other).abs().max())

    with_it = moved()
    for module in model.modules():
        if isinstance(module, Attention):
            nn.init.zeros_(module.output.weight)
    return {
        "attending": float(sum(isinstance(module, Attention) for module in real.modules())),
        "reach_with": with_it,
        "reach_without": moved(),
    }


@torch.no_grad()
def _layers() -> Figures:
    """Bytes of the cache of twice the layers over those of one stack, and over those of twice the width."""

    def held(layers: int, dim: int) -> int:
        a = Architecture(layers=layers, dim=dim, context=TOKENS, attention=MultiHead(heads=HEADS))
        cache = DenseCache(TOKENS)
        a.build(8).hidden(torch.zeros(1, TOKENS, dtype=torch.int64), Places.causal(1, TOKENS), cache)
        return kept(cache)

    once = held(2, DIM)
    return {"cache_by_layers": held(4, DIM) / once, "cache_by_width": held(2, 2 * DIM) / once}


def figures(session: Session) -> Figures:
    return {
        **_cut(session.seed),
        **_mixing(),
        **_tiles(session.seed),
        **_there(session.seed),
        **_layers(),
    }


# ---------------------------------------------------------------- races


def raced(told: Mapping[str, Told]) -> Figures:
    positions, long = told["positions"], told["long_text"]
    found = needle_figures(told["needles"], told["needles_past"])
    found |= positions.grown("rope, wide", 8)
    found |= positions.bounds("wide_minus_window", "rope, wide", "rope", "bits_per_byte@8x", "window@8x")
    found["wide_times_parameters"] = positions.mean("rope, wide", "parameters") / positions.mean("rope", "parameters")
    bins = [f"nats_{place}k" for place in (6, 7, 8)]
    apart = [long.mean("begun later", name) - long.mean("whole", name) for name in bins]
    return found | {
        "partial_nats": sum(apart) / len(apart),
        "yarn_nats_12k": long.mean("whole, yarn", "nats_12k") - long.mean("whole", "nats_12k"),
    }


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"A fact of {FACT} tokens is split by chunks of {SIZE} in {f['split']:.1%} of all places "
        f"({f['split_drawn']:.1%} of {DRAWN:,} drawn), with {FACT - 1} tokens of overlap in {f['split_overlap']:.0%}. "
        f"Operations grow with the text's length to the power {f['exponent_full']:.2f} in attention, "
        f"{f['exponent_window']:.2f} in a window, {f['exponent_linear']:.2f} in linear attention, "
        f"{f['exponent_recurrent']:.2f} in a GRU. Attention by tiles differs by {f['tiled_gap']:.0e} and needs 1 part "
        f"in {f['plain_over_tiled']:.0f} of the memory at {TILED[-1]:,} tokens. Twice the layers keep "
        f"{f['cache_by_layers']:.0f} times the bytes a token. Without attention a token moves later ones by "
        f"{f['reach_without']:.0f}."
    )
    zh = (
        f"长 {FACT} 个词元的事实，以 {SIZE} 为块长，会在 {f['split']:.1%} 的位置上被切断（随机抽 {DRAWN:,} 处，得 "
        f"{f['split_drawn']:.1%}）；重叠 {FACT - 1} 个词元后为 {f['split_overlap']:.0%}。运算量随文本长度增长的幂次："
        f"注意力 {f['exponent_full']:.2f}，窗口 {f['exponent_window']:.2f}，线性注意力 {f['exponent_linear']:.2f}，"
        f"GRU {f['exponent_recurrent']:.2f}。按瓦片计算的注意力相差 {f['tiled_gap']:.0e}，在 {TILED[-1]:,} 个词元处只需"
        f"内存的 {f['plain_over_tiled']:.0f} 分之一。层数加倍，每词元的缓存为 {f['cache_by_layers']:.0f} 倍。去掉注意"
        f"力，前面的词元对后面的影响为 {f['reach_without']:.0f}。"
    )
    if "partial_nats" not in f:
        return Text(en, zh)
    more = said_of_needles(f)
    en += (
        f"{more.en} Trained at 128 tokens, a model of {f['wide_times_parameters']:.1f} times the weights loses "
        f"{f['rope_wide_8x_minus_1x']:.2f} bits per byte by 8 times the length, and is then "
        f"{f['wide_minus_window']:+.2f} from the small one with a window. SmolLM2 goes on with a text that it read "
        f"from the middle as well as from the start ({f['partial_nats']:+.3f} nats a token)."
    )
    zh += (
        f"{more.zh}以 128 个词元训练，参数为 {f['wide_times_parameters']:.1f} 倍的模型到 8 倍长度时每字节多损失 "
        f"{f['rope_wide_8x_minus_1x']:.2f} 比特，与加了窗口的小模型相差 {f['wide_minus_window']:+.2f}。SmolLM2 从中间读"
        f"起，续写与从头读起一样好（每词元相差 {f['partial_nats']:+.3f} 奈特）。"
    )
    return Text(en, zh)


def tables(f: Mapping[str, float]) -> list[Table]:
    costs = Table(
        Text(
            f"One layer by its mixer: how its work and what it keeps grow with the length, and thousand operations a "
            f"token at {LENGTHS[-1]:,} tokens (width 16, window {WINDOW})",
            f"单层的不同混合方式：运算量与所存状态随长度增长的幂次，以及 {LENGTHS[-1]:,} 个词元时每词元的运算量（千次；"
            f"宽 16，窗口 {WINDOW}）",
        ),
        (
            Text("mixer", "混合方式"),
            Text("work", "运算幂次"),
            Text("kept", "所存幂次"),
            Text("thousand a token", "每词元千次"),
        ),
        tuple(
            (said, *(f"{f[f'{name}_{kind}']:.2f}" for name in ("exponent", "kept")), f"{f[f'kilo_{kind}']:,.1f}")
            for kind, said in SAID.items()
        ),
    )
    return [costs, *needle_tables(f)]


SAID = {  # the rows of the table of costs
    "full": Text("full attention", "完整注意力"),
    "window": Text("window and sinks", "窗口加汇点"),
    "linear": Text("linear attention", "线性注意力"),
    "recurrent": Text("GRU", "循环网络 GRU"),
}


QUESTION = Question(
    number=11,
    tier="seconds",
    claim=Text(
        "Cut the text into chunks, with some overlap so that context goes on; model it in levels (paragraphs, "
        "sentences, clauses), so that each unit is short; give a part and let the rest be generated; bring in "
        "attention, which attends to what matters; and improve the structure: more layers or parameters, or a more "
        "efficient architecture such as the Transformer.",
        "把文本切块，块间留些重叠；按段、句、子句分层，使每次处理的单元变短；只给一部分，其余让模型写；引入注意力，以便"
        "抓住要点；改进结构：加层、加参数，或换用 Transformer 这类效率更高的架构。",
    ),
    correction=Text(
        "Cutting, overlap and levels help where the answer stands in one place and the levels know what is asked; "
        "an overlap of a fact's tokens less one splits no fact. But attention over all pairs is itself the quadratic "
        "cost; what is cheaper is a window (Longformer), a memory carried on (Transformer-XL) or a state (linear "
        "attention). More layers lengthen nothing and enlarge the cache. Left out: rescaled positions (PI, NTK, YaRN), "
        "sinks and a window, retrieval, exact attention in linear memory (FlashAttention), short tuning on long text "
        "(LongLoRA), and that what stands in the middle may be lost.",
        "若答案只在一处，且分层时知道要问什么，分块、重叠和分层确实有用；重叠达到事实的词元数减一，便不会切断任何事实。"
        "但两两相看的注意力正是平方开销的来源；更省的是窗口（Longformer）、向后携带的记忆（Transformer-XL）或固定大小的"
        "状态（线性注意力）。层数再多也不会变长，只会让缓存变大。未提到的有：改写位置（PI、NTK、YaRN），窗口加汇点，检"
        "索，内存随长度线性增长的精确注意力（FlashAttention），长文上的短暂微调（LongLoRA），以及中段内容可能被忽略。",
    ),
    run=Text(
        "Facts that chunks split, counted over every place and drawn; operations and kept bytes of four mixers, "
        "counted from 256 to 2,048 tokens; attention by tiles against PyTorch's, with its bytes; a model whose "
        "attention is taken out. Races: SmolLM2 (int8; by the window bf16) goes on with the sentences of ten made-up "
        "facts, hidden in Moby Dick, in documents of 6,144 and of 12,288 tokens (it was trained for 8,192); "
        "MiniLM picks sentences and passages. Sizes are compared on models trained at 128 tokens, read at 1,024.",
        "清点各处被切断的事实，并随机抽查；256 至 2,048 个词元，清点四种混合方式的运算与所存字节；按瓦片计算的注意力对"
        "照 PyTorch，并计其字节；再把一个模型的注意力拿掉。竞赛：SmolLM2（int8，窗口一项为 bf16）续写十个虚构事实的"
        "句子，它们藏在《白鲸》里，文档长 6,144 与 12,288 个词元（训练长度 8,192）；句子与段落由 MiniLM 挑"
        "选。大小之别，用以 128 个词元训练、读到 1,024 的模型比较。",
    ),
    papers=(
        "Dai et al. 2019, Transformer-XL, arXiv 1901.02860",
        "Beltagy et al. 2020, Longformer, arXiv 2004.05150",
        "Katharopoulos et al. 2020, Transformers are RNNs, arXiv 2006.16236",
        "Dao et al. 2022, FlashAttention, arXiv 2205.14135",
        "Anil et al. 2022, Exploring Length Generalization in Large Language Models, arXiv 2207.04901",
        "Chen et al. 2023, Extending Context Window via Positional Interpolation, arXiv 2306.15595",
        "Liu et al. 2023, Lost in the Middle, arXiv 2307.03172",
        "Peng et al. 2023, YaRN, arXiv 2309.00071",
        "Chen et al. 2023, LongLoRA, arXiv 2309.12307",
        "Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453",
    ),
    errors={"E11.1": "W", "E11.2": "W", "E11.3": "M", "E11.4": "I"},
    claims=(
        Claim(
            "overlap",
            "chunks should overlap",
            "分块应有重叠",
            (
                Check(
                    "split",
                    ">",
                    0.07,
                    "20 tokens, chunks of 256: split, of all places",
                    "20 个词元，块长 256：被切断的比例",
                ),
                Check("split_overlap", "==", 0.0, "the same, 19 tokens of overlap", "重叠 19 个词元：同上"),
                Check("split_overlap_less", ">", 0.004, "the same, 18 tokens of overlap", "重叠 18 个词元：同上"),
            ),
        ),
        Claim(
            "overlap, read",
            "chunks that overlap find what an edge splits",
            "重叠后能找到被边界切断的事实",
            (
                Check(
                    "overlap_on_edges_lower",
                    ">",
                    0.0,
                    "facts on edges: recall, with overlap minus without, lower",
                    "事实在边界上：找到的比例，有重叠减无重叠，下界",
                ),
            ),
            race="needles",
        ),
        Claim(
            "chunks",
            "chunks let a model process a longer text",
            "分块使模型能处理更长的文本",
            (
                Check(
                    "overlapping_minus_truncated_lower",
                    ">",
                    0.0,
                    "recall, chunks minus the beginning alone, lower",
                    "找到的比例，分块减只读开头，下界",
                ),
                Check("6k overlapping: recall", ">=", 0.8, "recall", "找到的比例"),
                Check("chunk_share", "<", 0.125, "tokens read at once, of all", "一次读入的词元占全文之比"),
            ),
            race="needles",
        ),
        Claim(
            "levels",
            "levels let a model process a longer text",
            "分层使模型能处理更长的文本",
            (
                Check(
                    "hierarchy_minus_truncated_lower",
                    ">",
                    0.0,
                    "recall, levels minus the beginning alone, lower",
                    "找到的比例，分层减只读开头，下界",
                ),
                Check("6k hierarchy: recall", ">=", 0.5, "recall", "找到的比例"),
                Check("hierarchy_share", "<", 0.125, "tokens read at once, of all", "一次读入的词元占全文之比"),
            ),
            race="needles",
        ),
        Claim(
            "a part",
            "to go on with a text, a part of it will do",
            "续写只需给出一部分",
            (Check("partial_nats", "<", 0.05, "loss, half of it read minus all, nats", "损失，只读一半减全读，奈特"),),
            race="long_text",
        ),
        Claim(
            "efficient",
            "the Transformer is a more efficient architecture for long text",
            "Transformer 是处理长文更高效的架构",
            (
                Check("exponent_full", ">", 1.9, "attention: exponent of its operations", "注意力：运算量的幂次"),
                Check("exponent_window", "<", 1.1, "a window: the same", "窗口：同上"),
                Check("exponent_linear", "<", 1.1, "linear attention: the same", "线性注意力：同上"),
                Check("exponent_recurrent", "<", 1.1, "a GRU: the same", "GRU：同上"),
                Check("kept_full", ">", 0.9, "attention: exponent of what it keeps", "注意力：所存的幂次"),
                Check("kept_window", "<", 0.1, "a window: the same", "窗口：同上"),
            ),
            Verdict.REFUTED,
            errors=("E11.1",),
        ),
        Claim(
            "size",
            "more layers or parameters process longer text",
            "加层、加参数便能处理更长的文本",
            (
                Check(
                    "rope_wide_8x_minus_1x_lower",
                    ">",
                    0.0,
                    "larger model's loss, 8x minus 1x, lower bound",
                    "大模型的损失，8 倍减 1 倍，下界",
                ),
                Check(
                    "wide_minus_window_lower",
                    ">",
                    0.0,
                    "at 8x: minus the small model's with a window, lower",
                    "8 倍处减加了窗口的小模型，下界",
                ),
            ),
            Verdict.REFUTED,
            errors=("E11.2",),
            race="positions",
        ),
        Claim(
            "layers, kept",
            "more layers (their memory is not spoken of)",
            "加层（未提内存）",
            (
                Check("cache_by_layers", "==", 2.0, "cache bytes, twice the layers", "层数加倍：缓存字节之比"),
                Check("cache_by_width", "==", 2.0, "cache bytes, twice the width", "宽度加倍：缓存字节之比"),
            ),
            Verdict.CORRECTED,
            errors=("E11.2",),
        ),
        Claim(
            "attention",
            "bring in attention",
            "引入注意力",
            (
                Check(
                    "attending", "==", 30.0, "SmolLM2: blocks with attention, of 30", "SmolLM2：带注意力的块数，共 30"
                ),
                Check("reach_with", ">", 1e-3, "what a first token moves in the last", "首词元对末词元的影响"),
                Check("reach_without", "==", 0.0, "the same without attention", "去掉注意力：同上"),
            ),
            Verdict.CORRECTED,
            errors=("E11.3",),
        ),
        Claim(
            "by tiles",
            "the list is whole (no exact attention in linear memory)",
            "办法即此数条（未提线性内存的精确注意力）",
            (
                Check("tiled_gap", "<", 1e-5, "by tiles against PyTorch's", "按瓦片计算与 PyTorch 之差"),
                Check("tiled_exponent", "<", 1.1, "by tiles: exponent of its bytes", "按瓦片：字节数的幂次"),
                Check("plain_exponent", ">", 1.9, "scores written out: the same", "写出全部分数：同上"),
            ),
            Verdict.CORRECTED,
            errors=("E11.4",),
        ),
        Claim(
            "retrieval",
            "the list is whole (no retrieval)",
            "办法即此数条（未提检索）",
            (
                Check(
                    "retrieved_minus_whole_lower",
                    ">",
                    0.0,
                    "past the length: recall, retrieval minus all of it, lower",
                    "超出训练长度：找到的比例，检索减整读，下界",
                ),
                Check("retrieved_work", "<", 0.5, "its operations, of all read", "其运算量与整读之比"),
            ),
            Verdict.CORRECTED,
            errors=("E11.4",),
            race="needles_past",
        ),
        Claim(
            "positions",
            "the list is whole (no rescaled positions)",
            "办法即此数条（未提改写位置）",
            (
                Check(
                    "stretched_minus_whole_lower",
                    ">",
                    0.0,
                    "past the length: recall, NTK minus as it is, lower",
                    "超出训练长度：找到的比例，NTK 减原样，下界",
                ),
                Check(
                    "yarn_nats_12k",
                    "<",
                    -0.5,
                    "loss of the last thousand, YaRN minus plain",
                    "末千词元的损失，YaRN 减原样",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E11.4",),
            race="needles_past",
        ),
        Claim(
            "window and sinks",
            "the list is whole (no window with sinks)",
            "办法即此数条（未提窗口加汇点）",
            (
                Check("streamed_share", "<", 0.25, "keys held, of all read at once", "所存键值与整读之比"),
                Check("12k streamed: recall_5", ">=", 0.8, "recall of the last fifth", "末五分之一找到的比例"),
                Check("12k streamed: recall_1", "<=", 0.2, "recall of the first fifth", "首五分之一找到的比例"),
            ),
            Verdict.CORRECTED,
            errors=("E11.4",),
            race="needles_past",
        ),
        Claim(
            "lost in the middle",
            "a text that fits is read alike everywhere",
            "放得下的文本，各处读得一样好",
            (
                Check(
                    "middle_minus_first_upper",
                    "<",
                    0.0,
                    "recall, middle minus first fifth, upper",
                    "找到的比例，中段减首段，上界",
                ),
                Check("middle_minus_last_upper", "<", 0.0, "the same, minus last fifth", "减末段：同上"),
            ),
            Verdict.CORRECTED,
            kind="aside",
            errors=("E11.4",),
            race="needles",
        ),
        Claim(
            "summaries",
            "levels work whatever is asked later",
            "无论之后问什么，分层都有效",
            (
                Check("6k summaries: recall", "<", 0.2, "recall from summaries of chunks", "由各块摘要找到的比例"),
                Check(
                    "hierarchy_minus_summaries_lower",
                    ">",
                    0.0,
                    "levels that know the question, minus these, lower",
                    "知道问题的分层减之，下界",
                ),
            ),
            Verdict.REFUTED,
            kind="aside",
            race="needles",
        ),
        Claim(
            "the law",
            "a fact of w tokens is split with probability (w - 1 - overlap) / stride",
            "w 个词元的事实被切断的概率为 (w - 1 - 重叠) / 步长",
            (
                Check("split_gap", "<", 1e-9, "counted against the law, 25 settings", "清点与公式之差，25 种设置"),
                Check("split_sigmas", "<", 4.0, "drawn against the law, standard errors", "抽查与公式之差，以标准误计"),
            ),
            kind="control",
        ),
        Claim(
            "short",
            "the model can answer at all",
            "模型答得出这些问题",
            (Check("6k short: recall", ">=", 0.8, "recall in 512 tokens", "512 个词元中找到的比例"),),
            kind="control",
            race="needles",
        ),
    ),
    figures=figures,
    evidence=evidence,
    tables=tables,
    races=("needles", "needles_past", "positions", "long_text"),
    raced=raced,
    uses=(
        "llmlab/longtext/chunk.py",
        "llmlab/model/attention.py",
        "llmlab/handbook/needle_ways.py",
        "llmlab/handbook/needles.py",
        "llmlab/inference/rolling_cache.py",
        "llmlab/handbook/tiled_attention.py",
        "llmlab/handbook/mixing_costs.py",
    ),
    settings={
        "cut": [FACT, SIZE, DRAWN],
        "lengths": list(LENGTHS),
        "window": WINDOW,
        "tiles": [TILE, HEADS, HEAD_DIM, list(TILED)],
        "tokens": TOKENS,
        "dim": DIM,
    },
)
