"""How much texts repeat themselves, one another, and their prompts. Pure functions on rows of ids.

Two phenomena that are easily mixed up have measures of their own: `repetition` and `inference.loops.loop_in` see a text
that repeats itself (degeneration, Holtzman et al. 2020), `copied` one that repeats its prompt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Ids = Sequence[int]


def repetition(ids: Ids, n: int = 4) -> float:
    """rep-n: share of n-grams that repeat an earlier one (Welleck et al. 2020); 0 for text shorter than n."""
    grams = _grams(ids, n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(texts: Sequence[Ids], n: int = 2) -> float:
    """distinct-n over a set of answers: different n-grams over all n-grams (Li et al. 2016); 0 if there are none."""
    new, every = distinct_parts(texts, n)
    return sum(new) / sum(every) if sum(every) else 0.0


def distinct_parts(texts: Sequence[Ids], n: int = 2) -> tuple[list[int], list[int]]:
    """Of each text: how many different n-grams it has that no text before it had, and how many it has at all."""
    seen, new, every = set[tuple[int, ...]](), list[int](), list[int]()
    for ids in texts:
        grams, before = _grams(ids, n), len(seen)
        seen.update(grams)
        new.append(len(seen) - before)
        every.append(len(grams))
    return new, every


def copied(ids: Ids, prompt: Ids, n: int = 4) -> float:
    """Share of a text's tokens that stand in an n-gram of the prompt; 0 for no text."""
    known, covered = set(_grams(prompt, n)), [False] * len(ids)
    for start, gram in enumerate(_grams(ids, n)):
        if gram in known:
            covered[start : start + n] = [True] * n
    return sum(covered) / len(ids) if ids else 0.0


def self_bleu(texts: Sequence[Ids], n: int = 4) -> float:
    """Mean BLEU of each text against all the others (Zhu et al. 2018, Texygen, arXiv 1802.01886): 1 where all are one
    text, near 0 where they share nothing. A precision of 0 counts as half a match (Chen & Cherry 2014, method 1, with
    a half as their constant). 0 for fewer than two texts."""
    return sum(self_bleus(texts, n)) / len(texts) if texts else 0.0


def self_bleus(texts: Sequence[Ids], n: int = 4) -> list[float]:
    """The same of each text; 0 of a text that stands alone."""
    if len(texts) < 2:
        return [0.0 for _ in texts]
    counts = [[Counter(_grams(ids, order)) for order in range(1, n + 1)] for ids in texts]
    return [_bleu(row, texts, counts) for row in range(len(texts))]


def _bleu(row: int, texts: Sequence[Ids], counts: Sequence[Sequence[Counter[tuple[int, ...]]]]) -> float:
    """Of one text against the others, orders that it is too short for left out."""
    others = [other for other in range(len(texts)) if other != row]
    length, logs = len(texts[row]), list[float]()
    for order, mine in enumerate(counts[row]):
        total = sum(mine.values())
        if not total:
            break
        matches = sum(min(count, max(counts[o][order][gram] for o in others)) for gram, count in mine.items())
        logs.append(math.log((matches or 0.5) / total))
    if not logs:
        return 0.0
    closest = min((len(texts[other]) for other in others), key=lambda size: (abs(size - length), size))
    return min(1.0, math.exp(1 - closest / length)) * math.exp(sum(logs) / len(logs))


def _grams(ids: Ids, n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
