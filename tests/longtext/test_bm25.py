from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.longtext.bm25 import BEGINNING, Index, words

some = st.lists(st.sampled_from(["whale", "whaler", "whaling", "ship", "the", "a", "海", "海上"]), max_size=12)


def by_hand(texts: list[str], question: str, k1: float, b: float) -> list[float]:
    """The formula of the module's docstring, a term at a time."""

    def terms(text: str) -> list[str]:
        return [term for word in words(text) for term in (word, word[:BEGINNING] + "*")]

    counts, lengths = [Counter(terms(text)) for text in texts], [len(words(text)) for text in texts]
    mean = max(1.0, sum(lengths) / len(lengths))
    scores = []
    for count, length in zip(counts, lengths, strict=True):
        score = 0.0
        for term in terms(question):
            n = sum(term in other for other in counts)
            idf = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
            score += idf * count[term] / (count[term] + k1 * (1 - b + b * length / mean)) if count[term] else 0.0
        scores.append(score)
    return scores


@settings(deadline=None)
@given(
    texts=st.lists(some, min_size=1, max_size=8),
    question=some,
    lot=st.integers(1, 8),
    k1=st.floats(0.1, 3),
    b=st.floats(0, 1),
)
def test_scores_are_the_formula_however_the_chunks_come(
    texts: list[list[str]], question: list[str], lot: int, k1: float, b: float
) -> None:
    joined = [" ".join(text) for text in texts]
    index = Index(k1, b)
    for first in range(0, len(joined), lot):
        index.add(joined[first : first + lot])
    want = by_hand(joined, " ".join(question), k1, b)
    assert index.scores(" ".join(question)) == pytest.approx(want, rel=1e-4, abs=1e-6)


def test_words() -> None:
    assert words("The Whale’s 2nd ship_log") == ["the", "whale", "s", "2nd", "ship", "log"]
    assert words("海上abc舟") == ["海", "上", "abc", "舟", "海上"]
    assert max(map(len, words("x" * 1000))) == 64


def test_coverage_is_the_share_of_the_question() -> None:
    index = Index()
    index.add(["the white whale", "a ship", "the white ship"])
    assert index.coverage("white whale").argmax() == 0
    assert index.coverage("white whale")[0] == pytest.approx(1)
    assert index.coverage("submarine").max() == 0
    assert 0 < index.coverage("white submarine")[0] < index.coverage("white whale")[2] + 1e-6


def test_the_index_is_what_grows() -> None:
    rng = np.random.default_rng(0)
    index, sizes = Index(), []
    for _ in range(3):
        index.add([" ".join(rng.choice(["whale", "ship", "sea", "rope"], 50)) for _ in range(200)])
        sizes.append(index.nbytes)
    assert sizes[2] - sizes[1] == pytest.approx(sizes[1] - sizes[0], rel=0.05)
    assert len(index) == 600
