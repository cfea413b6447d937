"""What is said against repetition, tried on the model itself: how much less it repeats itself, and what that costs.

The cost is told by two figures: distinct-2 of all texts together, and the nats a token that the model itself finds in
what was said. Both are to be read beside those of people: far fewer nats than theirs is dull, far more is wild.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmlab.degeneration.cause import rounded
from llmlab.degeneration.voice import Said, Voice, mean_nats
from llmlab.evaluation import statistics
from llmlab.evaluation.repetition import distinct, repetition
from llmlab.evaluation.statistics import Estimate
from llmlab.inference.contrastive import Contrastive
from llmlab.inference.front import DecoderFront
from llmlab.inference.on_loop import Resample
from llmlab.inference.sampling import Sampling
from llmlab.language_model import Ways
from llmlab.model.transformer import Architecture
from llmlab.runtime import derive

WILD = 1.25  # times the nats of human text: what needs more for its texts is no help

SETTINGS: dict[str, dict[str, Any]] = {
    "sampling": {"temperature": 1.0},
    "top_p_0.9": {"temperature": 1.0, "top_p": 0.9},
    "min_p_0.1": {"temperature": 1.0, "min_p": 0.1},
    "repetition_penalty_1.1": {"temperature": 0.0, "repetition_penalty": 1.1},
    "repetition_penalty_1.2": {"temperature": 0.0, "repetition_penalty": 1.2},
    "presence_penalty_1": {"temperature": 0.0, "presence_penalty": 1.0},
    "frequency_penalty_0.5": {"temperature": 0.0, "frequency_penalty": 0.5},
    "no_repeat_3_gram": {"temperature": 0.0, "no_repeat_ngram_size": 3},
}


@dataclass(frozen=True)
class Remedy:
    """One way to speak beside the greedy one, on the same prompts."""

    name: str
    rep_4: float
    difference: Estimate
    distinct_2: float
    nats: float
    helps: bool

    def json(self) -> dict[str, Any]:
        told = {
            "remedy": self.name,
            "rep_4": self.rep_4,
            "difference": self.difference.value,
            "interval": self.difference.interval,
            "distinct_2": self.distinct_2,
            "nats": self.nats,
            "texts": self.difference.n,
        }
        return {name: rounded(value) for name, value in told.items()} | {"helps": self.helps}


def tried(
    voice: Voice, prompts: Sequence[list[int]], greedy: Sequence[Said], human_nats: float, searched: int, seed: int
) -> Iterator[tuple[Remedy, list[Said]]]:
    """Each remedy with what was said under it. Search is dear: it is tried on the first `searched` prompts."""
    new = len(greedy[0].ids)

    def judged(name: str, said: list[Said]) -> tuple[Remedy, list[Said]]:
        ours, before = ([repetition(one.ids) for one in texts] for texts in (said, greedy[: len(said)]))
        difference = statistics.paired_bootstrap(ours, before, derive(seed, "remedy", name))
        nats = mean_nats(said)
        helps = difference.high < 0 and nats <= WILD * human_nats
        return Remedy(name, float(np.mean(ours)), difference, distinct([one.ids for one in said]), nats, helps), said

    for name, settings in SETTINGS.items():
        sampling = voice.unending(max_new_tokens=new, **settings)
        yield judged(name, voice.say(prompts, sampling, name))
    plain = voice.unending(max_new_tokens=new, temperature=0)
    yield judged("on_loop_resample", _resampled(voice, prompts, plain))
    if _keeps_states(voice.lm.bundle.architecture):
        yield judged("contrastive_search", _contrastive(voice, prompts[:searched], plain))


def best(remedies: Sequence[Remedy], human_rep_4: float, human_nats: float) -> str | None:
    """Of those that help the one that leaves least more repetition than people have; among equals, to a fiftieth, the
    one whose surprise is nearest to that of human text."""
    helping = [one for one in remedies if one.helps]
    if not helping:
        return None
    rank = {one.name: (round(max(0.0, one.rep_4 - human_rep_4) * 50), abs(one.nats - human_nats)) for one in helping}
    return min(helping, key=lambda one: rank[one.name]).name


def _resampled(voice: Voice, prompts: Sequence[list[int]], sampling: Sampling) -> list[Said]:
    """Under `on_loop=resample`. The texts are asked for by turns, so that what makes many at once does."""
    ways = Ways(on_loop=Resample())
    replies = [voice.lm.reply(prompt, sampling, ways=ways) for prompt in prompts]
    going = list(replies)
    while going:
        going = [reply for reply in going if next(reply, None) is not None]
    return _heard(voice, prompts, [reply.ids for reply in replies])


def _contrastive(voice: Voice, prompts: Sequence[list[int]], sampling: Sampling) -> list[Said]:
    front = DecoderFront(voice.lm.model)
    found = Contrastive().find(front, prompts, sampling, (), [0] * len(prompts))
    return _heard(voice, prompts, [hypotheses[0].ids for hypotheses in found])


def _heard(voice: Voice, prompts: Sequence[list[int]], texts: Sequence[list[int]]) -> list[Said]:
    nats = voice.read([[*prompt, *ids] for prompt, ids in zip(prompts, texts, strict=True)])
    return [Said(ids, row[len(row) - len(ids) :]) for ids, row in zip(texts, nats, strict=True)]


def _keeps_states(architecture: Architecture) -> bool:
    """Whether texts of the model can be doubled on the way, which search does: those of all that keep keys."""
    return architecture.attention.scores
