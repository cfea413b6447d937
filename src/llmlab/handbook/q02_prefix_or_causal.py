"""Question 2: prefix LM and causal LM. The mask, cell by cell; what is learnt from; what a conversation may keep."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from llmlab.data.corruption import Rows
from llmlab.handbook.instruction_task import HOPS, LENGTH
from llmlab.handbook.measures import draw, filled, gap, relative
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.model.masks import Bidirectional, Causal, Mask, Prefix
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.objectives import pretraining
from llmlab.objectives.kind import Setting
from llmlab.recipe import parse
from llmlab.runtime import generator
from llmlab.stages import Session
from llmlab.tokenization.train import BPE, train_tokenizer

TOKENS, PREFIX = 10, 4
DIM, HEADS, LAYERS, VOCABULARY = 32, 4, 3, 64
ROWS, LONG = 256, 128  # documents whose learnt tokens are counted, and their length
TURNS, TURN = 6, 16  # of a conversation, and the tokens of each
DEPTHS = (1, 2, 4)  # of the models that are trained
CHANGED = 0.01  # relative change of keys and values that no rounding makes


def _model(seed: int, layers: int, mask: Mask, streams: int = 1) -> Transformer:
    """Ours in double precision, its matrices as large as a trained model's."""
    told = {"layers": layers, "dim": DIM, "context": TURNS * TURN, "attention": {"kind": "mha", "heads": HEADS}}
    architecture = parse(Architecture, {**told, "streams": streams}).model_copy(update={"mask": mask})
    model = architecture.build(VOCABULARY, seed)
    filled(model, seed, "q02.model")
    return model.eval()


def _ids(seed: int, count: int) -> Tensor:
    return torch.randint(VOCABULARY, (1, count), generator=generator(seed, "handbook", "q02.ids"))


# ---------------------------------------------------------------- who sees whom


def _depends(model: Transformer, at: Places, seed: int) -> Tensor:
    """bool [T, T]: whether what is said at i changes with the embedding at j, by the Jacobian. A model with a query
    stream speaks through that."""
    x_TD = draw(seed, "q02.x", TOKENS, DIM).requires_grad_()
    hook = model.embedding.register_forward_hook(lambda *_: x_TD[None])
    try:
        ids = torch.zeros(1, TOKENS, dtype=torch.long)
        hidden_BTD = model.queries(ids, at) if model.architecture.streams == 2 else model.hidden(ids, at)
    finally:
        hook.remove()
    said_T = hidden_BTD[0] @ draw(seed, "q02.direction", DIM)
    rows = [torch.autograd.grad(one, x_TD, retain_graph=True)[0].abs().sum(-1) > 0 for one in said_T]
    return torch.stack(rows)


def _masks(seed: int) -> Figures:
    """Cells in which one layer of ours and the definition of a mask disagree, and what two of the masks let see."""
    i, j = torch.arange(TOKENS)[:, None], torch.arange(TOKENS)[None]
    rank_T = torch.randperm(TOKENS, generator=generator(seed, "handbook", "q02.order"))
    line = Places.causal(1, TOKENS)
    ids = torch.zeros(1, TOKENS, dtype=torch.long)
    cases: dict[str, tuple[Transformer, Places, Tensor]] = {
        name: (_model(seed, 1, mask), mask.places(ids), sees)
        for name, mask, sees in (
            ("causal", Causal(), j <= i),
            ("prefix", Prefix(length=PREFIX), (j <= i) | (j < PREFIX)),
            ("bidirectional", Bidirectional(), (j <= i) | (j > i)),
        )
    }
    order = Places(line.position, rank_T[None], line.document)
    cases["permutation"] = (_model(seed, 1, Bidirectional(), 2), order, rank_T[None, :] < rank_T[:, None])
    found = {name: _depends(model, at, seed) for name, (model, at, _) in cases.items()}
    figures = {f"cells_wrong_{name}": float((found[name] != cases[name][2]).sum()) for name in cases}
    for name in ("causal", "prefix"):
        figures[f"cells_ahead_{name}"] = float((found[name] & (j > i)).sum())
        figures[f"past_seen_{name}"] = float(found[name][PREFIX:][(j <= i)[PREFIX:]].double().mean())
    ids = _ids(seed, TOKENS)
    none, causal = _model(seed, LAYERS, Prefix(length=0))(ids), _model(seed, LAYERS, Causal())(ids)
    some = _model(seed, LAYERS, Prefix(length=PREFIX))(ids)
    return figures | {"empty_prefix_gap": gap(none, causal), "prefix_gap": relative(some, causal)}


@torch.no_grad()
def _depth(seed: int) -> Figures:
    """How far what is said after the prompt moves when the prompt is read both ways, by depth."""
    ids = _ids(seed, TOKENS)
    figures: Figures = {}
    for layers in (1, 2):
        model = _model(seed, layers, Causal())
        causal = Places.causal(1, TOKENS)
        read, both = (model.hidden(ids, at)[:, TOKENS - 1 :] for at in (causal, causal.prefix([TOKENS])))
        figures[f"answer_moved_{layers}"] = relative(both, read)
    return figures


# ---------------------------------------------------------------- what is learnt from


def _supervised(seed: int) -> Figures:
    """Share of tokens that have a loss, by our objectives: one document a row, prefixes drawn evenly."""
    tokenizer = train_tokenizer(BPE(vocab_size=260), iter("x"))
    tokens = np.ones((ROWS, LONG), dtype=np.int64)
    line = np.broadcast_to(np.arange(LONG), (ROWS, LONG)).copy()
    rows = Rows(tokens, tokens, line, np.zeros_like(tokens), tokens > 0)
    figures: Figures = {}
    for name, objective in (("causal", pretraining.Causal()), ("prefix", pretraining.Prefix())):
        told = {"mask": name, "dim": DIM, "layers": 1}
        corruption = objective.corruption(Setting(parse(Architecture, told), tokenizer, LONG))
        noise = torch.rand(corruption.planes, ROWS, LONG, generator=generator(seed, "handbook", "q02.prefixes"))
        figures[f"supervised_{name}"] = corruption.learn(rows, noise.double().numpy()).learnt / tokens.size
    return figures | {"supervised_instruction": 1 / LENGTH}


# ---------------------------------------------------------------- what a conversation may keep


class _Kept:
    """A cache that holds one forward pass."""

    def __init__(self) -> None:
        self.layers: list[Tensor] = []  # keys beside values, [B, G, T, 2 K]

    def extend(self, at: Places) -> Places:
        return at

    def update(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        self.layers.append(torch.cat([k_BGTK, v_BGTK], -1))
        return k_BGTK, v_BGTK

    def recall(self, layer: int) -> tuple[Tensor, ...] | None:
        return None

    def remember(self, layer: int, state: tuple[Tensor, ...]) -> None: ...


@torch.no_grad()
def _conversation(seed: int) -> Figures:
    """Turn by turn, keys and values of the turns before, against what they were before the last one came. All passes
    have one shape, what is not said yet being padding, so that unchanged means equal to the last bit."""
    whole = TURNS * TURN
    ids = _ids(seed, whole)
    figures: Figures = {}
    for name in ("causal", "prefix"):
        model = _model(seed, LAYERS, Causal())
        before: list[Tensor] = []
        encoded, first, deep = 0, 0.0, 0.0
        for turn in range(1, TURNS + 1):
            said = turn * TURN
            at = Places.of_lengths([said], whole)
            kept = _Kept()
            model.hidden(ids, at.prefix([said]) if name == "prefix" else at, cache=kept)
            old = said - TURN
            changed_T = torch.zeros(old, dtype=torch.bool)
            for layer, was in enumerate(before):
                now, then = kept.layers[layer][:, :, :old], was[:, :, :old]
                changed_T |= (now != then).flatten(0, 1).any(-1).any(0)
                if layer:
                    deep = max(deep, relative(now, then))
                else:
                    first = max(first, gap(now, then))
            encoded += int(changed_T.sum()) + TURN
            before = kept.layers
        figures |= {f"first_layer_changed_{name}": first, f"kept_changed_{name}": deep, f"encoded_{name}": encoded}
    return figures | {"encoded_ratio": figures["encoded_prefix"] / figures["encoded_causal"]}


def figures(session: Session) -> Figures:
    seed = session.seed
    return {**_masks(seed), **_depth(seed), **_supervised(seed), **_conversation(seed)}


def raced(told: Mapping[str, Told]) -> Figures:
    race, measure = told["instruction_last"], f"accuracy, {HOPS[-1]} arrows"
    figures: Figures = {}
    for layers in DEPTHS:
        prefix, causal = f"prefix, {layers}", f"causal, {layers}"
        figures |= race.bounds(f"prefix_minus_causal_{layers}", prefix, causal, measure)
        figures |= {f"prefix_{layers}": race.mean(prefix, measure), f"causal_{layers}": race.mean(causal, measure)}
    return figures


def evidence(f: Mapping[str, float]) -> Text:
    en = (
        f"Of {TOKENS * TOKENS} cells, the Jacobian and the definition of the mask disagree in "
        f"{f['cells_wrong_causal'] + f['cells_wrong_prefix']:.0f}; ahead of themselves, tokens see "
        f"{f['cells_ahead_causal']:.0f} others under the causal mask and {f['cells_ahead_prefix']:.0f} under a prefix "
        f"of {PREFIX}. What comes after the prefix sees {f['past_seen_causal']:.0%} and {f['past_seen_prefix']:.0%} of "
        f"its past. Tokens with a loss: {f['supervised_causal']:.0%} and {f['supervised_prefix']:.0%}. When a turn is "
        f"added to a conversation, kept keys and values change by {f['kept_changed_causal']:.0f} and by "
        f"{f['kept_changed_prefix']:.0%} of their size, so that {TURNS} turns cost {f['encoded_causal']:.0f} and "
        f"{f['encoded_prefix']:.0f} tokens read. One layer deep, the mask moves what is said after the prompt by "
        f"{f['answer_moved_1']:.0f}; two layers deep by {f['answer_moved_2']:.0%}."
    )
    zh = (
        f"在 {TOKENS * TOKENS} 个格子里，雅可比矩阵与掩码定义不一致的有 "
        f"{f['cells_wrong_causal'] + f['cells_wrong_prefix']:.0f} 格；词元能看到自己后方的格子，因果掩码下有 "
        f"{f['cells_ahead_causal']:.0f} 个，前缀长 {PREFIX} 时有 {f['cells_ahead_prefix']:.0f} 个。前缀之后的词元所能看"
        f"到的上文，二者分别为 {f['past_seen_causal']:.0%} 与 {f['past_seen_prefix']:.0%}。计入损失的词元分别占 "
        f"{f['supervised_causal']:.0%} 与 {f['supervised_prefix']:.0%}。对话每添一轮，已缓存的键和值分别变动 "
        f"{f['kept_changed_causal']:.0f} 与 {f['kept_changed_prefix']:.0%}，因而 {TURNS} 轮共须读入 "
        f"{f['encoded_causal']:.0f} 与 {f['encoded_prefix']:.0f} 个词元。只有一层时，换掩码使提示之后的输出变动 "
        f"{f['answer_moved_1']:.0f}；两层时变动 {f['answer_moved_2']:.0%}。"
    )
    if "prefix_1" in f:
        gained = [tuple(f[f"prefix_minus_causal_{n}{end}"] for end in ("", "_lower", "_upper")) for n in DEPTHS]
        en += (
            " Trained, the instruction last and three arrows to follow, a prefix answers "
            + ", ".join(f"{f[f'prefix_{n}']:.0%}" for n in DEPTHS)
            + " at depth 1, 2, 4, the causal model "
            + ", ".join(f"{f[f'causal_{n}']:.0%}" for n in DEPTHS)
            + "; the gain and its 95 % interval: "
            + ", ".join(f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" for mean, low, high in gained)
            + "."
        )
        zh += (
            "实际训练，指令在后，沿三个箭头走，层数 1、2、4 时前缀模型答对 "
            + "、".join(f"{f[f'prefix_{n}']:.0%}" for n in DEPTHS)
            + "，因果模型 "
            + "、".join(f"{f[f'causal_{n}']:.0%}" for n in DEPTHS)
            + "；前缀的增益及其 95% 区间为 "
            + "、".join(f"{mean:+.2f}（{low:+.2f} 至 {high:+.2f}）" for mean, low, high in gained)
            + "。"
        )
    return Text(en, zh)


QUESTION = Question(
    number=2,
    tier="seconds",
    claim=Text(
        "They differ in how text is generated and in the training objective. A prefix LM may use the context so far "
        "for each word and goes on from a given prefix; it serves generation and translation. A causal LM predicts "
        "each word from those before it and cannot look ahead; it serves generation and language modelling.",
        "训练目标不同，生成方式也不同：前缀一类每步可利用已有上文，从给定的前缀往下写，用于生成与翻译；因果语言模型"
        "由前文逐词预测，看不到后文，用于生成与语言建模。",
    ),
    correction=Text(
        "Both go on from what stands before, with all of it in sight. The difference is the mask: position i sees j "
        "where j ≤ i, or, in a prefix LM, where j < P too, so that the P tokens of the prefix see one another both "
        "ways. Mostly only the suffix is learnt from, in a causal LM every token. Two consequences: fewer tokens "
        "teach, and keys and values of a prefix change when it grows, so that a conversation is read again from its "
        "start at every turn, while a causal model reads only what is new. Which is better depends on the training: "
        "after language modelling alone causal models do best without examples, after tuning on many tasks those that "
        "read their input both ways (Wang 2022).",
        "两者都是接着前文往下写，且都看得到全部前文。区别在掩码：位置 i 可见 j 的条件是 j ≤ i；前缀语言模型再加上 "
        "j < P，即前缀的 P 个词元彼此双向可见。前缀语言模型通常只在后缀上计损失，因果语言模型则处处计损失。后果有二："
        "一是受监督的词元更少；二是前缀一变长，其键和值就全变，多轮对话每轮都得从头重读，因果模型只需读新增部分。孰优孰劣"
        "取决于训练方式：只做语言建模时，因果模型的零样本能力最好；经过多任务微调后，输入双向可见者占优（Wang 2022）。",
    ),
    run=Text(
        "Jacobians of one layer against four masks by their definition, cell by cell; a prefix of none against the "
        "causal mask; the share of tokens that our two objectives learn from; a conversation of six turns, each time "
        "the keys and values of the earlier ones compared with what they were. Trained: arrows are told first, then "
        "which of them to follow; one, two and four layers, 800 steps each.",
        "以单层的雅可比矩阵逐格对照四种掩码的定义；前缀长度取零，与因果掩码比较；统计两种训练目标各从多少词元上学；一"
        "段六轮的对话，每添一轮就比较先前各轮的键和值有无变动。另有训练：先给出若干箭头，再指示沿哪几个走，层数取一、"
        "二、四，各训练 800 步。",
    ),
    papers=(
        "Dong et al. 2019, Unified Language Model Pre-training (UniLM), arXiv 1905.03197",
        "Raffel et al. 2020, Exploring the Limits of Transfer Learning (T5), arXiv 1910.10683",
        "Du et al. 2022, GLM, arXiv 2103.10360",
        "Wang et al. 2022, What Language Model Architecture and Pretraining Objective Work Best, arXiv 2204.05832",
        "Tay et al. 2022, UL2, arXiv 2205.05131",
    ),
    errors={"E2.1": "M", "E2.2": "M", "E2.3": "I"},
    claims=(
        Claim(
            "difference",
            "one goes on from a prefix, the other from the text before",
            "一个接着前缀写，一个接着上文写",
            (
                Check(
                    "cells_wrong_causal", "==", 0.0, "causal mask: cells unlike j ≤ i", "因果掩码：与 j ≤ i 不符的格数"
                ),
                Check(
                    "cells_wrong_prefix",
                    "==",
                    0.0,
                    "prefix mask: cells unlike j ≤ i or j < P",
                    "前缀掩码：与“j ≤ i 或 j < P”不符的格数",
                ),
                Check("cells_ahead_causal", "==", 0.0, "causal: cells seen ahead", "因果：看到后方的格数"),
                Check(
                    "cells_ahead_prefix",
                    "==",
                    PREFIX * (PREFIX - 1) / 2,
                    "prefix: cells seen ahead, P (P - 1) / 2",
                    "前缀：看到后方的格数，即 P (P - 1) / 2",
                ),
                Check("prefix_gap", ">", 0.1, "what a prefix changes in the logits", "加前缀后输出的变化"),
            ),
            Verdict.CORRECTED,
            errors=("E2.1",),
        ),
        Claim(
            "context",
            "that each step may use what stands before marks the prefix LM",
            "每一步都能用上文，是前缀语言模型的特点",
            (
                Check("past_seen_prefix", "==", 1.0, "prefix: share of the past in sight", "前缀：可见上文的比例"),
                Check("past_seen_causal", "==", 1.0, "causal: the same", "因果：同上"),
            ),
            Verdict.CORRECTED,
            errors=("E2.2",),
        ),
        Claim(
            "consequences",
            "the two merely suit different uses",
            "二者只是适用的场景不同",
            (
                Check(
                    "kept_changed_causal",
                    "==",
                    0.0,
                    "causal: change of kept keys and values, a turn",
                    "因果：添一轮后缓存的变动",
                ),
                Check("kept_changed_prefix", ">", CHANGED, "prefix: the same, relative", "前缀：同上，相对值"),
                Check(
                    "encoded_causal", "==", TURNS * TURN, "causal: tokens read in six turns", "因果：六轮共读入的词元"
                ),
                Check(
                    "encoded_prefix",
                    "==",
                    TURN * TURNS * (TURNS + 1) / 2,
                    "prefix: the same, all of the history each time",
                    "前缀：同上，每轮都重读全部历史",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E2.3",),
        ),
        Claim(
            "objective",
            "their training objectives differ",
            "训练目标有别",
            (
                Check("supervised_causal", "==", 1.0, "causal: share of tokens with a loss", "因果：计损失词元的比例"),
                Check("supervised_prefix", "<", 0.6, "prefix, evenly drawn: the same", "前缀（长度均匀抽取）：同上"),
            ),
            kind="aside",
        ),
        Claim(
            "one layer",
            "reading the prompt both ways changes what is said after it",
            "双向读提示会改变其后的输出",
            (
                Check("answer_moved_1", "==", 0.0, "one layer: it does not", "一层：毫无改变"),
                Check("answer_moved_2", ">", CHANGED, "two layers: relative change", "两层：相对变化"),
                Check("first_layer_changed_prefix", "==", 0.0, "keys of the first layer", "首层的键和值"),
            ),
            Verdict.CORRECTED,
            kind="aside",
        ),
        # Expected beforehand, and the specification too: ahead with two layers, level with four.
        Claim(
            "instruction last",
            "where the instruction follows the content, a prefix helps shallow models most",
            "指令在内容之后时，层数越少，前缀的好处越大",
            (
                Check(
                    "prefix_minus_causal_1_lower",
                    "==",
                    0.0,
                    "one layer: gain of a prefix, lower",
                    "一层：前缀的增益，下界",
                ),
                Check("prefix_minus_causal_1_upper", "==", 0.0, "one layer: the same, upper", "一层：同上，上界"),
                Check("prefix_minus_causal_2_lower", ">", 0.0, "two layers: the same, lower", "两层：同上，下界"),
            ),
            Verdict.CORRECTED,
            kind="aside",
            race="instruction_last",
        ),
        Claim(
            "masks",
            "our masks are the papers'",
            "本库的掩码与论文一致",
            (
                Check("cells_wrong_bidirectional", "==", 0.0, "bidirectional: wrong cells", "双向掩码：不符的格数"),
                Check("cells_wrong_permutation", "==", 0.0, "permutation: the same", "排列掩码：同上"),
                Check("empty_prefix_gap", "==", 0.0, "a prefix of none against causal", "前缀为空与因果之差"),
            ),
            kind="control",
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("instruction_last",),
    raced=raced,
    uses=(
        "llmlab/model/masks.py",
        "llmlab/model/places.py",
        "llmlab/objectives/pretraining.py",
        "llmlab/handbook/instruction_task.py",
    ),
    settings={
        "tokens": [TOKENS, PREFIX],
        "model": [DIM, HEADS, LAYERS, VOCABULARY],
        "counted": [ROWS, LONG],
        "turns": [TURNS, TURN],
    },
)
