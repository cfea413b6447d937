"""Repeated training data: passages that stand in many documents are learnt by heart, and said before others are.

Lee et al. 2022 (arXiv 2107.06499) and Kandpal et al. 2022 (arXiv 2202.06539): what stands ten times in the text is
said about a thousand times as often. With the training text at hand, it is read for such passages, and the model is
asked to go on with them and with passages that stand there once. Without it the model's own free texts are read: two
that were drawn from other noise share no long passage unless it was learnt by heart (Carlini et al. 2021, arXiv
2012.07805), and what was learnt by heart is said with almost no surprise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmlab.data.batch import Ids
from llmlab.degeneration.cause import Cause
from llmlab.degeneration.grams import Grams, grams, sharing
from llmlab.degeneration.voice import Said, Voice
from llmlab.evaluation import statistics
from llmlab.evaluation.statistics import Estimate, wilson
from llmlab.runtime import derive

NAME = "repeated_training_data"
COPIES = 4  # a passage is a duplicate where it stands in so many documents
SHARE = 0.005  # of the training text in such passages,
BY_HEART = 0.1  # and so much more of them completed than of what stands there once,
EASIER = 0.1  # or so much less surprise at them, as a share: the cause is likely
FREE = 0.01  # of free texts that share a passage or hold one by heart, at least and beyond what people do
SURE = 0.15  # nats a token: so little surprise means by heart
_GIVEN = 16  # tokens of a passage that are given, of 2 x so many


class Counted:
    """The passages of a text, and in how many of its documents each stands."""

    def __init__(self, documents: Sequence[Ids]) -> None:
        self.documents = documents
        self.grams = grams(documents, 2 * _GIVEN)
        self.counts_N = self.grams.texts_with()

    def single(self) -> list[Ids]:
        """Documents of which nothing stands in another one."""
        shared = set(self.grams.text_N[self.counts_N > 1].tolist())
        return [ids for row, ids in enumerate(self.documents) if row not in shared]


def in_training(voice: Voice, text: Counted, asked: int, seed: int) -> Cause:
    """With the training text at hand."""
    all_, counts = text.grams, text.counts_N
    often = counts >= COPIES
    share = float(often.mean()) if len(often) else 0.0
    figures: dict[str, Any] = {
        "tokens_read": len(all_.ids),
        "documents": len(text.documents),
        "duplicated_share": share,
        "most_documents_with_one_passage": int(counts.max(initial=0)),
    }
    passages = _passages(all_, often, asked)
    if not passages:
        return Cause(NAME, 0.0, f"no passage of {2 * _GIVEN} tokens stands in {COPIES} documents", figures)
    once = _spread(all_, np.flatnonzero(counts == 1), len(passages))
    if len(once) < len(passages):
        passages = passages[: len(once)]
    if not once:
        return Cause(NAME, share / SHARE, f"every passage of the text stands in {COPIES} documents", figures)
    repeated, single = _completed(voice, passages), _completed(voice, once)
    nats, nats_once = _surprise(voice, passages), _surprise(voice, once)
    more = statistics.paired_bootstrap(repeated, single, derive(seed, NAME, "completed"))
    less = statistics.paired_bootstrap(nats_once, nats, derive(seed, NAME, "nats"))
    figures |= {
        "passages_asked": len(passages),
        "completed_of_duplicates": float(np.mean(repeated)),
        "completed_of_single": float(np.mean(single)),
        "completed_difference_interval": more.interval,
        "nats_of_duplicates": float(np.mean(nats)),
        "nats_of_single": float(np.mean(nats_once)),
        "nats_difference_interval": less.interval,
    }
    evidence = (
        f"{share:.1%} of the training text stands in {COPIES} documents or more; the model finds {np.mean(nats):.2f} "
        f"nats a token in that, {np.mean(nats_once):.2f} in what stands there once, and goes on word for word with "
        f"{np.mean(repeated):.0%} of the next {_GIVEN} tokens against {np.mean(single):.0%}"
    )
    learnt = max(_low(more) / BY_HEART, _low(less) / (EASIER * float(np.mean(nats_once))))
    return Cause(NAME, min(share / SHARE, learnt), evidence, figures)


def _low(difference: Estimate) -> float:
    """What the difference is at least; nothing where one pair is all there is."""
    return max(0.0, difference.low)


def _surprise(voice: Voice, passages: Sequence[list[int]]) -> list[float]:
    """Mean nats of the second half of each passage, the first being given."""
    return [float(np.mean(row[_GIVEN - 1 :])) for row in voice.read(passages)]


def _passages(all_: Grams, often: np.ndarray, most: int) -> list[list[int]]:
    """Beginnings of runs of duplicated windows, each once, those in most documents first, then spread."""
    follows = np.r_[False, (all_.text_N[1:] == all_.text_N[:-1]) & often[:-1]] if len(often) else often
    places = np.flatnonzero(often & ~follows)
    _, first = np.unique(all_.hash_N[places], return_index=True)
    return _spread(all_, np.sort(places[first]), most)


def _spread(all_: Grams, places: np.ndarray, most: int) -> list[list[int]]:
    chosen = places[np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)] if len(places) else []
    return [all_.window(int(place)) for place in chosen]


def _completed(voice: Voice, passages: Sequence[list[int]]) -> list[float]:
    """Of each passage's second half, how much the likeliest tokens after the first one are before they go astray."""
    sampling = voice.unending(temperature=0, max_new_tokens=_GIVEN)
    said = voice.say([ids[:_GIVEN] for ids in passages], sampling, "completed")
    return [_agree(one.ids, ids[_GIVEN:]) for one, ids in zip(said, passages, strict=True)]


def _agree(said: Sequence[int], wanted: Sequence[int]) -> float:
    wrong = next((at for at, (a, b) in enumerate(zip(said, wanted, strict=False)) if a != b), len(said))
    return wrong / len(wanted)


# ---------------------------------------------------------------- without the training text


def in_free_texts(free: Sequence[Said], human: Sequence[Said], n: int) -> Cause:
    """By texts that were drawn from nothing at temperature 1, beside as many human ones of the same lengths."""
    shared, theirs = sharing([one.ids for one in free], n), sharing([one.ids for one in human], n)
    heart, theirs_by_heart = [_by_heart(one, n) for one in free], [_by_heart(one, n) for one in human]
    of_shared, of_heart = wilson(sum(shared), len(free)), wilson(sum(heart), len(free))
    figures = {
        "free_texts": len(free),
        "passage_tokens": n,
        "sharing": of_shared.value,
        "sharing_interval": of_shared.interval,
        "human_sharing": _share(theirs),
        "by_heart": of_heart.value,
        "by_heart_interval": of_heart.interval,
        "human_by_heart": _share(theirs_by_heart),
    }
    evidence = (
        f"of {len(free)} texts drawn from nothing {sum(shared)} share {n} tokens with another one and {sum(heart)} "
        f"say {n} in a row by heart; of human texts {sum(theirs)} and {sum(theirs_by_heart)}"
    )
    strength = max(_over(of_shared, _share(theirs)), _over(of_heart, _share(theirs_by_heart)))
    return Cause(NAME, strength, evidence, figures)


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def _over(share: Estimate, human: float) -> float:
    return max(0.0, share.low - human) / FREE


def _by_heart(one: Said, n: int) -> bool:
    """Whether n tokens in a row came with almost no surprise, half of them new to the text: a text that only repeats
    itself is sure of what comes, too."""
    if len(one.ids) < n:
        return False
    nats, ids = np.asarray(one.nats), one.ids
    seen, old = set[tuple[int, ...]](), np.zeros(len(ids))
    for at in range(3, len(ids)):
        gram = tuple(ids[at - 3 : at + 1])
        old[at] = gram in seen
        seen.add(gram)
    window = np.ones(n)
    surprise = np.convolve(nats, window, "valid") / n
    repeated = np.convolve(old, window, "valid") / n
    return bool(((surprise < SURE) & (repeated < 0.5)).any())
