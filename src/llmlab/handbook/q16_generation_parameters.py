"""Question 16: setting the generation parameters. What is said of temperature, length and algorithms holds; the list is
short, and the best temperature is the task's."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from llmlab.evaluation import statistics
from llmlab.handbook.measures import draw, filled, gap
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict
from llmlab.handbook.raced import Told
from llmlab.handbook.toy_beam import beam, exhaustive
from llmlab.inference.engine import Completion, generate
from llmlab.inference.processors import penalise_repetition, temper
from llmlab.inference.sampling import Sampling, choose, key_of, process
from llmlab.model.attention import MultiHead
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.stages import Session

ROUNDING = 1e-4  # of float32 logits and log-probabilities
CHANCE = 0.01  # the p-value below which a sampler does not draw from its distribution
VOCABULARY, PROMPT, ANSWER = 24, 5, 12
TINY = Architecture(layers=2, dim=32, context=PROMPT + ANSWER + 1, attention=MultiHead(heads=4))
TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0)
COLD = 1e-6
DRAWS, FACES = 5_000, 8
STOPS = (3, 4, 5, 6)
TOY, TOY_LENGTH, TOY_PROMPTS = 5, 4, 24  # a vocabulary whose texts can all be tried: 5^4
TRIED = ("T = 0", "T = 0.25", "T = 0.5", "T = 0.8", "T = 1", "T = 1.5", "T = 2", "top-k = 20", "top-p = 0.9")
OMITTED: dict[str, dict[str, Any]] = {
    "top_k": {"top_k": 2},
    "top_p": {"top_p": 0.3},
    "repetition_penalty": {"repetition_penalty": 2.0},
}


class Desk:
    """A tiny model with random weights and a prompt, to decode with one setting or another."""

    def __init__(self, seed: int) -> None:
        model = filled(TINY.build(VOCABULARY, seed), seed, "q16.model").float()
        assert isinstance(model, Transformer)
        self.model, self.seed = model, seed
        self.prompts = [[(3 * row + 5 * column + 1) % VOCABULARY for column in range(PROMPT - row)] for row in range(4)]

    def texts(self, *, stops: tuple[int, ...] = (), seed: int | None = None, **settings: Any) -> list[list[int]]:
        return [completion.ids for completion in self.completions(stops=stops, seed=seed, **settings)]

    def completions(self, *, stops: tuple[int, ...] = (), seed: int | None = None, **settings: Any) -> list[Completion]:
        sampling = Sampling(**{"max_new_tokens": ANSWER, **settings})
        seeds = [self.seed if seed is None else seed] * len(self.prompts)
        return generate(self.model, self.prompts, sampling, stops, seeds)


def _differing(a: list[list[int]], b: list[list[int]]) -> float:
    """How many texts are not the same."""
    return float(sum(x != y for x, y in zip(a, b, strict=True)))


def _greedy(desk: Desk, logits_BV: Tensor) -> Figures:
    greedy = desk.texts(temperature=0.0)
    moved = [float(temper(logits_BV, t).argmax(-1).ne(logits_BV.argmax(-1)).sum()) for t in TEMPERATURES]
    return {
        "cold_differs": _differing(desk.texts(temperature=COLD), greedy),
        "top_k_1_differs": max(_differing(desk.texts(top_k=1, temperature=t), greedy) for t in TEMPERATURES[::4]),
        "argmax_moves": max(moved),
    }


def _distribution(desk: Desk, logits_BV: Tensor) -> Figures:
    """Entropy over temperature, frequencies against softmax, and the log-probabilities the engine reports."""
    entropies = []
    for t in TEMPERATURES:
        logprobs_BV = process(logits_BV, Sampling(temperature=t)).log_softmax(-1)
        entropies.append(float(-(logprobs_BV.exp() * logprobs_BV).sum(-1).mean()))
    die = draw(desk.seed, "q16.die", 1, FACES).float()
    ids = choose(die.expand(DRAWS, FACES), False, [key_of(desk.seed)] * DRAWS, range(DRAWS)).ids_B
    expected = DRAWS * die.softmax(-1)[0].double()
    chi_square = ((torch.bincount(ids, minlength=FACES) - expected).square() / expected).sum()
    degrees = torch.tensor((FACES - 1) / 2, dtype=torch.float64)
    answer, prompt = desk.completions(top_p=1.0)[0], desk.prompts[0]
    scored = desk.model(torch.tensor([prompt + answer.ids]))[0, len(prompt) - 1 : -1].log_softmax(-1)
    own = scored.gather(-1, torch.tensor(answer.ids)[:, None])[:, 0]
    return {
        "entropy_coldest": entropies[0],
        "entropy_hottest": entropies[-1],
        "entropy_smallest_rise": min(b - a for a, b in pairwise(entropies)),
        "chi_square_p": float(torch.special.gammaincc(degrees, chi_square / 2)),
        "top_p_1_gap": gap(own, torch.tensor(answer.logprobs)),
    }


def _limits(desk: Desk) -> Figures:
    """Maximum, minimum and stop tokens, counted over several settings."""
    broken = 0
    for longest, shortest in ((1, 0), (7, 0), (ANSWER, 0), (ANSWER, 6), (9, 9)):
        for answer in desk.completions(stops=STOPS, max_new_tokens=longest, min_new_tokens=shortest):
            early = [token for token in answer.ids[:-1] if token in STOPS]
            ended = answer.ids[-1] in STOPS
            right_reason = answer.finish_reason == ("stop" if ended else "length")
            right_length = shortest <= len(answer.ids) <= longest and (ended or len(answer.ids) == longest)
            broken += bool(early) or not right_reason or not right_length
    return {"limits_broken": float(broken)}


def _omitted(desk: Desk) -> Figures:
    """Parameters the handbook leaves out: each must change the text. And the penalty as printed in its paper."""
    plain = desk.texts()
    changed = {name: _differing(desk.texts(**setting), plain) for name, setting in OMITTED.items()}
    changed["stop"] = _differing(desk.texts(stops=STOPS), plain)
    changed["seed"] = _differing(desk.texts(seed=desk.seed + 1), plain)
    negative = torch.tensor([[-1.0, 2.0]])
    everything = torch.ones_like(negative, dtype=torch.bool)
    return {
        "silent_parameters": float(sum(not texts for texts in changed.values())),
        "parameters_tried": float(len(changed)),
        "same_seed_differs": _differing(desk.texts(), plain),
        "penalty_raises": float((penalise_repetition(negative, everything, 2.0) - negative).max()),
    }


def _padding(desk: Desk) -> Figures:
    """A left-padded batch against each prompt alone: logits, and the texts drawn."""
    sizes = [len(prompt) for prompt in desk.prompts]
    padded = torch.tensor([[0] * (PROMPT - len(prompt)) + prompt for prompt in desk.prompts])
    together = desk.model(padded, Places.of_lengths(sizes, PROMPT, "left"))
    alone = [desk.model(torch.tensor([prompt]))[0] for prompt in desk.prompts]
    single = [generate(desk.model, [p], Sampling(max_new_tokens=ANSWER), (), [desk.seed])[0].ids for p in desk.prompts]
    return {
        "padding_gap": max(gap(row[-len(one) :], one) for row, one in zip(together, alone, strict=True)),
        "padding_differs": _differing(desk.texts(), single),
    }


def _beams(seed: int) -> Figures:
    """Beam search on a toy vocabulary against greedy decoding by the engine and against all texts there are."""
    model = filled(TINY.build(TOY, seed), seed, "q16.toy").float()
    assert isinstance(model, Transformer)
    out = {"beam_1_differs": 0.0, "beam_all_differs": 0.0, "greedy_misses": 0.0, "beam_2_misses": 0.0}
    for row in range(TOY_PROMPTS):
        prompt = [row % TOY, row // TOY % TOY, 2]
        (greedy,) = generate(model, [prompt], Sampling(temperature=0, max_new_tokens=TOY_LENGTH), (), [seed])
        best, _ = exhaustive(model, prompt, TOY_LENGTH)
        out["beam_1_differs"] += beam(model, prompt, TOY_LENGTH, 1)[0] != greedy.ids
        out["beam_all_differs"] += beam(model, prompt, TOY_LENGTH, TOY**TOY_LENGTH)[0] != best
        out["greedy_misses"] += greedy.ids != best
        out["beam_2_misses"] += beam(model, prompt, TOY_LENGTH, 2)[0] != best
    return {name: float(count) for name, count in out.items()}


@torch.no_grad()
def figures(session: Session) -> Figures:
    desk = Desk(session.seed)
    logits_BV = desk.model(torch.tensor([desk.prompts[0]]))[0]
    parts = (_greedy(desk, logits_BV), _distribution(desk, logits_BV), _limits(desk), _omitted(desk), _padding(desk))
    return {name: value for part in (*parts, _beams(session.seed)) for name, value in part.items()}


# ---------------------------------------------------------------- raced


def raced(told: Mapping[str, Told]) -> Figures:
    race = told["temperatures"]
    out = {f"exact {name}": race.mean("sums", f"exact {name}") for name in TRIED}
    for mark in ("words", "distinct", "divergence"):
        out |= {f"{mark} {name}": race.mean("stories", f"{mark} {name}") for name in (*TRIED, "human")}

    def bounds(figure: str, arm: str, mark: str, a: str, b: str) -> Figures:
        return race.bounds(figure, arm, arm, f"{mark} {a}", f"{mark} {b}")

    warm = [race.values("stories", f"divergence T = {t}") for t in ("0.8", "1")]
    best = [min(pair) for pair in zip(*warm, strict=True)]
    for figure, name in (("cold_story", "T = 0.5"), ("hot_story", "T = 1.5")):
        other = race.values("stories", f"divergence {name}")
        found = statistics.mean([a - b for a, b in zip(other, best, strict=True)])
        out |= {figure: found.value, f"{figure}_lower": found.low}
    return {
        **out,
        **bounds("greedy_sums", "sums", "exact", "T = 0", "T = 1"),
        **bounds("diversity", "stories", "distinct", "T = 1", "T = 0.25"),
        **bounds("quality", "stories", "words", "T = 0.25", "T = 1.5"),
        **bounds("top_p", "stories", "words", "top-p = 0.9", "T = 1"),
    }


def evidence(f: Mapping[str, float]) -> Text:
    acting = f["parameters_tried"] - f["silent_parameters"]
    told = Text(
        f"From T = {TEMPERATURES[0]:g} to {TEMPERATURES[-1]:g} entropy rises at every step, from "
        f"{f['entropy_coldest']:.2f} to {f['entropy_hottest']:.2f} nats, while temperature changes "
        f"{f['top_k_1_differs']:.0f} greedy texts. Length limits are broken {f['limits_broken']:.0f} times. Of "
        f"{f['parameters_tried']:.0f} parameters the handbook leaves out, {acting:.0f} change the text. Of "
        f"{TOY_PROMPTS} prompts of a toy vocabulary greedy misses the likeliest text {f['greedy_misses']:.0f} times, "
        f"two beams {f['beam_2_misses']:.0f} times, as many beams as there are texts ({TOY**TOY_LENGTH}) "
        f"{f['beam_all_differs']:.0f} times.",
        f"温度由 {TEMPERATURES[0]:g} 升到 {TEMPERATURES[-1]:g}，熵逐级上升，从 {f['entropy_coldest']:.2f} 增至 "
        f"{f['entropy_hottest']:.2f} 奈特；而因温度改变的贪心文本有 {f['top_k_1_differs']:.0f} 条。违反长度限制 "
        f"{f['limits_broken']:.0f} 次。手册未列而在此试过的 {f['parameters_tried']:.0f} 个参数中，有 {acting:.0f} 个"
        f"会改变文本。小词表上 {TOY_PROMPTS} 个提示：贪心有 {f['greedy_misses']:.0f} 次错过最可能的文本，束宽 2 有 "
        f"{f['beam_2_misses']:.0f} 次，束宽取全部 {TOY**TOY_LENGTH} 条文本时 {f['beam_all_differs']:.0f} 次。",
    )
    if "exact T = 0" not in f:
        return told
    exact = ", ".join(f"{f[f'exact {name}']:.0%} ({name})" for name in TRIED)
    marks = "; ".join(
        f"{name}: {f[f'words {name}']:.0%}, {f[f'distinct {name}']:.0%}, {f[f'divergence {name}']:.3f}"
        for name in (*TRIED, "human")
    )
    return Text(
        f"{told.en} Trained here: sums of 8 digits right to the last: {exact}. Stories, share of words that exist, "
        f"share of distinct runs of 8 bytes, divergence from people's text in bits: {marks}.",
        f"{told.zh}此处训练的模型，8 位加法全对的比例：{exact}。故事（真词占比、8 字节片段不重复的占比、与人写文本的散"
        f"度，单位比特；human 为人写文本）：{marks}。",
    )


QUESTION = Question(
    number=16,
    tier="formula",
    claim=Text(
        "To set: the model (an RNN, LSTM, GRU or Transformer), its weights, the decoding algorithm (greedy, beam, "
        "sampling), the temperature (higher: more random and diverse), the maximal or minimal length, and others "
        "such as prompt and batch size; tuned by experiment with human and automatic evaluation.",
        "要设定的有：模型（RNN、LSTM、GRU 或 Transformer）及其权重，解码算法（贪心、束搜索、采样），温度（越高越随机"
        "多样），长度上下限，以及提示、批大小等其余项；靠实验调参，辅以人工和自动评测。",
    ),
    correction=Text(
        "The kind of network is no decoding parameter. Temperature, length and algorithm act as said, but "
        "temperature does nothing to greedy decoding, and what matters most today is missing: top-k, top-p, min-p "
        "and typical sampling, repetition, presence and frequency penalties, n-gram blocking, stop tokens and texts, "
        "new tokens against total length, logit bias, seed. The best temperature is the task's: about 0 where one "
        "answer is right, near 1 for a story.",
        "网络类型不是解码参数。温度、长度和解码算法的作用确如所说，但温度对贪心解码毫无影响；如今最要紧的几项却没有"
        "提：top-k、top-p、min-p 与典型采样，重复、出现与频率惩罚，n 元组屏蔽，停止词元与停止串，新生成长度与总长度"
        "之分，logit 偏置，随机种子。最佳温度视任务而定：答案唯一时取 0 左右，写故事时接近 1。",
    ),
    run=Text(
        "Our engine on a tiny model with random weights: T towards 0 and top-k = 1 against greedy; entropy at five "
        "temperatures; 5,000 draws against softmax by χ²; top-p = 1 against the model's own log-probabilities; "
        "lengths and stops counted; each omitted parameter switched on; seeds; a left-padded batch against single "
        "prompts; beam search on a toy vocabulary against greedy and against all texts. Trained: a model that adds and "
        "one that tells stories, at seven temperatures, with top-k and with top-p.",
        "用随机权重的小模型跑本库的生成引擎：T 趋于 0、top-k = 1 与贪心对照；五档温度下的熵；五千次抽样与 softmax 作 "
        "χ² 检验；top-p = 1 与模型自身对数概率对照；清点长度与停止条件；逐个启用手册未列的参数；随机种子；左填充批次"
        "与单条提示对照；小词表上束搜索与贪心、与穷举对照。另训练一个加法模型和一个讲故事的模型，试七档温度及 top-k、"
        "top-p。",
    ),
    papers=(
        "Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, arXiv 1904.09751",
        "Fan, Lewis & Dauphin 2018, Hierarchical Neural Story Generation, arXiv 1805.04833",
        "Keskar et al. 2019, CTRL, arXiv 1909.05858",
        "Meister et al. 2022, Locally Typical Sampling, arXiv 2202.00666",
    ),
    errors={"E16.1": "W", "E16.2": "I", "E16.3": "I"},
    on_paper={
        "E16.1": Text(
            "RNN, LSTM, GRU or Transformer: a choice made before training, not when generating",
            "选 RNN、LSTM、GRU 还是 Transformer，是训练之前的事，与解码无关",
        )
    },
    claims=(
        Claim(
            "temperature",
            "higher temperature, more randomness",
            "温度越高越随机",
            (
                Check("entropy_smallest_rise", ">", 0.0, "smallest rise of entropy, in nats", "熵的最小升幅（奈特）"),
                Check(
                    "cold_differs",
                    "==",
                    0.0,
                    "texts at T = 1e-6 that are not greedy's",
                    "T = 1e-6 时与贪心不同的文本数",
                ),
            ),
        ),
        Claim(
            "length",
            "maximal and minimal length bound the text",
            "长度上下限约束文本",
            (
                Check(
                    "limits_broken",
                    "==",
                    0.0,
                    "answers that break a limit or run past a stop",
                    "超出限制或越过停止词元的回答数",
                ),
            ),
        ),
        Claim(
            "temperature under greedy",
            "temperature steers the text (with no word on greedy)",
            "温度可调节文本（未提贪心例外）",
            (
                Check(
                    "top_k_1_differs", "==", 0.0, "greedy texts that any temperature changes", "随温度改变的贪心文本数"
                ),
                Check(
                    "argmax_moves", "==", 0.0, "likeliest tokens that any temperature moves", "随温度改变的首选词元数"
                ),
            ),
            Verdict.CORRECTED,
            errors=("E16.3",),
        ),
        Claim(
            "list",
            "these are the parameters to set",
            "要设的参数就是这些",
            (
                Check(
                    "silent_parameters",
                    "==",
                    0.0,
                    "omitted parameters that change nothing",
                    "未列参数中不起作用者的数目",
                ),
                Check(
                    "penalty_raises",
                    "<",
                    0.0,
                    "the penalty lowers negative logits too: largest change",
                    "惩罚同样压低负的 logit，其最大变化",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E16.2",),
        ),
        Claim(
            "algorithms",
            "greedy takes the likeliest token, beam search minds several candidates",
            "贪心只取最可能的词元，束搜索兼顾多个候选",
            (
                Check(
                    "beam_1_differs", "==", 0.0, "one beam: texts that are not greedy's", "束宽 1 时与贪心不同的文本数"
                ),
                Check(
                    "beam_all_differs",
                    "==",
                    0.0,
                    "all beams: texts that are not the likeliest of all",
                    "束宽取全部时并非最可能的文本数",
                ),
                Check("greedy_misses", ">", 0.0, "likeliest texts that greedy misses", "贪心错过的最可能文本数"),
            ),
        ),
        Claim(
            "diverse, trained",
            "higher temperature, more diverse; lower, more of a piece",
            "温度越高越多样，越低越一致",
            (
                Check(
                    "diversity_lower",
                    ">",
                    0.0,
                    "distinct runs, T = 1 minus T = 0.25, 95 % bound",
                    "不重复片段占比，T = 1 减 T = 0.25，95% 下界",
                ),
                Check(
                    "quality_lower",
                    ">",
                    0.0,
                    "words that exist, T = 0.25 minus T = 1.5, 95 % bound",
                    "真词占比，T = 0.25 减 T = 1.5，95% 下界",
                ),
            ),
            race="temperatures",
        ),
        Claim(
            "by task, trained",
            "the best setting is the task's, found by trying",
            "最佳设置视任务而定，靠实验求得",
            (
                Check(
                    "greedy_sums_lower",
                    ">",
                    0.0,
                    "sums that are right, T = 0 minus T = 1, 95 % bound",
                    "加法正确率，T = 0 减 T = 1，95% 下界",
                ),
                Check(
                    "cold_story_lower",
                    ">",
                    0.0,
                    "stories' divergence from people's, T = 0.5 minus the better of 0.8 and 1, 95 % bound",
                    "故事与人写文本的散度，T = 0.5 减 0.8 与 1 中较好者，95% 下界",
                ),
                Check(
                    "hot_story_lower",
                    ">",
                    0.0,
                    "the same of T = 1.5",
                    "T = 1.5：同上",
                ),
            ),
            race="temperatures",
        ),
        Claim(
            "top-p, trained",
            "temperature alone sets diversity",
            "多样性只靠温度调节",
            (
                Check(
                    "top_p_lower",
                    ">",
                    0.0,
                    "words that exist, top-p = 0.9 minus all tokens at T = 1, 95 % bound",
                    "真词占比，T = 1 时 top-p = 0.9 减不截断，95% 下界",
                ),
            ),
            Verdict.CORRECTED,
            errors=("E16.2",),
            race="temperatures",
        ),
        Claim(
            "engine",
            "our sampler draws from what it says",
            "本库的采样器名副其实",
            (
                Check(
                    "chi_square_p",
                    ">",
                    CHANCE,
                    "p-value of frequencies against softmax",
                    "频数与 softmax 的 χ² 检验 p 值",
                ),
                Check(
                    "top_p_1_gap",
                    "<",
                    ROUNDING,
                    "top-p = 1: distance from the model's own log-probabilities",
                    "top-p = 1 时与模型自身对数概率之差",
                ),
                Check(
                    "same_seed_differs",
                    "==",
                    0.0,
                    "texts that the same seed does not repeat",
                    "同一种子未能重现的文本数",
                ),
                Check(
                    "padding_gap",
                    "<",
                    ROUNDING,
                    "logits in a left-padded batch against alone",
                    "左填充批次与单条的 logits 之差",
                ),
                Check("padding_differs", "==", 0.0, "texts that the batch changes", "因成批而改变的文本数"),
            ),
            kind="control",
        ),
    ),
    figures=figures,
    evidence=evidence,
    races=("temperatures",),
    raced=raced,
    uses=("llmlab/inference/sampling.py", "llmlab/inference/engine.py"),
    settings={
        "model": [TINY.layers, TINY.dim, TINY.attention.heads, TINY.norm.kind],
        "vocabulary": VOCABULARY,
        "lengths": [PROMPT, ANSWER],
        "temperatures": [*TEMPERATURES, COLD],
        "draws": [DRAWS, FACES],
        "stops": STOPS,
        "omitted": OMITTED,
        "toy": [TOY, TOY_LENGTH, TOY_PROMPTS],
    },
)
