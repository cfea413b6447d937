"""Measuring models on labelled tasks, and choosing one by what was measured: the experiment of question 9."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from llmlab.handbook.label_tasks import LABELS, TOPICS, Example, Task, task
from llmlab.handbook.readers import Reader, balanced, probe, pulled, trained_here, tuned
from llmlab.inference.cache import PromptCache
from llmlab.language_model import LanguageModel
from llmlab.model.places import Places

KINDS = ("encoder", "decoder", "untrained", "minilm", "smollm2")
STEPS = 400  # of pretraining
SHOTS = 6  # examples in a prompt, of each topic as many
TIMED = 20  # texts
ALL = [(name, how, count) for name, counts in LABELS.items() for how in ("probe", "tuned") for count in counts]
MEASURES = (
    *(f"{name} {how}@{count}" for name, how, count in ALL),
    *("first names tuned@1000", "second names tuned@1000", "topics zero-shot", "topics few-shot"),
    *("megaflops", "prompt megaflops", "milliseconds", "prompt milliseconds", "megabytes"),
    *("english tokens", "chinese tokens"),
)
Life = dict[str, float | str]

# Told in both languages by the authors of llmlab, sentence by sentence.
PARALLEL = (
    ("The ship left the harbour before sunrise.", "天亮之前，船就离开了港口。"),
    ("Please send me the report by Friday afternoon.", "请在周五下午之前把报告发给我。"),
    ("My daughter is learning to play the violin.", "我女儿正在学拉小提琴。"),
    ("The price of rice has doubled since last year.", "米价比去年涨了一倍。"),
    ("He could not find his keys, so he climbed through the window.", "他找不到钥匙，只好从窗户爬了进去。"),
    ("A small model can often do the work of a large one.", "小模型常常能干大模型的活。"),
    ("We waited two hours for the train in the cold.", "我们在寒风里等了两个小时的火车。"),
    ("If it rains tomorrow, the match will be put off.", "明天要是下雨，比赛就推迟。"),
)


def measured(kind: str, seed: int) -> Life:
    """A figure or a reason for each of `MEASURES`. InputError where weights were not pulled."""
    out: Life = dict.fromkeys(MEASURES, "not asked of this model")
    if kind in ("minilm", "smollm2"):
        reader, lm = pulled(kind)
        return out | _pulled(kind, reader, lm, seed)
    reader = trained_here("encoder" if kind == "untrained" else kind, 0 if kind == "untrained" else STEPS, seed)
    for name in LABELS:
        out |= _labelled(reader, name, task(name, seed), seed, LABELS[name])
    return out | _cost(reader, task("topics", seed).test)


def _labelled(reader: Reader, name: str, given: Task, seed: int, counts: Sequence[int]) -> Life:
    out, vectors = _probed(reader, name, given, counts), given.test
    for count in counts:
        said_N = tuned(reader, given.train[:count], vectors, given.classes, seed)
        out[f"{name} tuned@{count}"] = balanced(said_N, given.test)
        if name == "entities" and count == max(counts):
            for which, first in (("first", True), ("second", False)):
                rows = [place for place, one in enumerate(given.test) if (one.before == "") == first]
                out[f"{which} names tuned@{count}"] = balanced(said_N[rows], [given.test[row] for row in rows])
    return out


def _probed(reader: Reader, name: str, given: Task, counts: Sequence[int]) -> Life:
    train_ND, test_ND = reader.read(given.train[: max(counts)]), reader.read(given.test)
    told = {count: probe(train_ND[:count], given.train[:count], test_ND, given.classes) for count in counts}
    return {f"{name} probe@{count}": balanced(said_N, given.test) for count, said_N in told.items()}


def _pulled(kind: str, reader: Reader, lm: LanguageModel, seed: int) -> Life:
    about = task("topics", seed)
    out = _probed(reader, "topics", about, LABELS["topics"]) | _cost(reader, about.test)
    if kind == "minilm":
        return out | _probed(reader, "entities", task("entities", seed), (10, 100))
    shots = _shots(about)
    zero, few = _Asking(lm, _question), _Asking(lm, lambda text: _continued(lm, shots, text))
    return out | {
        "topics zero-shot": zero.told(about.test),
        "topics few-shot": few.told(about.test),
        "prompt megaflops": 2e-6 * reader.weights_met() * zero.tokens,
        "prompt milliseconds": zero.milliseconds,
        "english tokens": float(sum(len(lm.tokenizer.encode(english)) for english, _ in PARALLEL)),
        "chinese tokens": float(sum(len(lm.tokenizer.encode(chinese)) for _, chinese in PARALLEL)),
    }


@torch.no_grad()
def _cost(reader: Reader, texts: Sequence[Example]) -> Life:
    """Of reading one text: multiplications and additions in the blocks (two a weight and token), time, memory."""
    times = []
    for one in texts[:TIMED]:
        begin = time.perf_counter()
        reader.vectors([one])
        times.append(1e3 * (time.perf_counter() - begin))
    return {
        "megaflops": 2e-6 * reader.weights_met() * reader.tokens(texts),
        "milliseconds": statistics.median(times),
        "megabytes": 4e-6 * sum(parameter.numel() for parameter in reader.model.parameters()),
    }


# ---------------------------------------------------------------- prompting


class _Asking:
    """A language model that is asked for a topic: of their first tokens the likeliest."""

    def __init__(self, lm: LanguageModel, prompt: Callable[[str], str | list[dict[str, str]]]) -> None:
        self.lm, self.prompt = lm, prompt
        spelt = [(f" {name}", name, name.capitalize()) for name in TOPICS]
        self.ids = [sorted({lm.tokenizer.encode(word)[0] for word in words}) for words in spelt]
        self.tokens, self.milliseconds = 0.0, 0.0

    @torch.inference_mode()
    def told(self, examples: Sequence[Example]) -> float:
        """The share of topics told; what prompts share is computed once, but `tokens` counts whole prompts."""
        memory, said, sizes, times = PromptCache(self.lm.context), list[int](), list[int](), list[float]()
        for one in examples:
            ids = self.lm.prompt(self.prompt(one.before))
            begin, done = time.perf_counter(), memory.reuse(ids)
            at = Places.causal(1, len(ids))[:, done:]
            hidden_BTD = self.lm.model.hidden(torch.tensor([ids[done:]]), at, memory.dense)
            memory.ids.extend(ids[done:])
            logits_V = self.lm.model.logits(hidden_BTD[:, -1])[0]
            said.append(max(range(len(self.ids)), key=lambda c: float(logits_V[self.ids[c]].max())))
            times.append(1e3 * (time.perf_counter() - begin))
            sizes.append(len(ids))
        self.tokens, self.milliseconds = sum(sizes) / len(sizes), statistics.median(times)
        return balanced(torch.tensor(said), examples)


def _question(text: str) -> list[dict[str, str]]:
    topics = f"{', '.join(list(TOPICS)[:-1])} or {list(TOPICS)[-1]}"
    asks = f"Which topic does this text belong to: {topics}? Answer with one word.\n\nText: {text}"
    return [{"role": "user", "content": asks}]


def _shots(about: Task) -> list[Example]:
    each = SHOTS // about.classes
    return [one for turn in range(each) for c in range(about.classes) for one in [_of(about.train, c)[turn]]]


def _of(examples: Sequence[Example], label: int) -> list[Example]:
    return [one for one in examples if one.label == label]


def _continued(lm: LanguageModel, shots: Sequence[Example], text: str) -> str:
    names = list(TOPICS)
    shown = "".join(f"Text: {one.before}\nTopic: {names[one.label]}\n\n" for one in shots)
    return f"{shown}Text: {text}\nTopic:"


# ---------------------------------------------------------------- choosing


class Chosen(NamedTuple):
    """A model and the row that speaks for it."""

    model: str
    how: str
    accuracy: float
    megaflops: float


def choose(figures: Mapping[str, float], about: str, labels: int, most_megaflops: float = math.inf) -> Chosen:
    """The model that told `about` best with so many labels and no more work a text. `figures` are `model: measure`.

    With 0 labels only what is prompted remains. Errors: ValueError where nothing was measured for that.
    """
    ways = [f"{how}@{labels}" for how in ("probe", "tuned")] if labels else ["zero-shot"]
    rows = []
    for kind in KINDS:
        for how in ways:
            found = figures.get(f"{kind}: {about} {how}")
            work = figures.get(f"{kind}: {'megaflops' if labels else 'prompt megaflops'}")
            if found is not None and work is not None and work <= most_megaflops:
                rows.append(Chosen(kind, how, found, work))
    if not rows:
        raise ValueError(f"nothing was measured for {about} with {labels} labels within {most_megaflops} megaflops")
    return max(rows, key=lambda row: row.accuracy)
