"""What is done to rows, by hand on small ones, and by property on any."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.objectives import corrupt
from llmlab.objectives.corrupt import Spans

# Two documents and padding: letters a to h, then three of another.
TOKENS = np.array([[10, 11, 12, 13, 14, 15, 16, 17, 20, 21, 22, 0]])
DOCUMENT = np.array([[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, -1]])
HIDDEN = np.array([[0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 1, 0]], bool)
START = np.array([[0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0]], bool)
SPANS = Spans(HIDDEN, START)


def rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Random rows of packed documents, with padding."""
    sizes = [draw(st.lists(st.integers(1, 9), min_size=0, max_size=4)) for _ in range(draw(st.integers(1, 4)))]
    width = max(1, max(map(sum, sizes)))
    document = np.full((len(sizes), width), -1)
    for row, lengths in enumerate(sizes):
        document[row, : sum(lengths)] = np.repeat(np.arange(len(lengths)), lengths)
    tokens = np.where(document >= 0, 100 + np.arange(document.size).reshape(document.shape), 0)
    return tokens, document, np.random.default_rng(draw(st.integers(0, 1 << 30)))


packed = st.composite(rows)()


# ---------------------------------------------------------------- by hand


def test_pieces_by_hand() -> None:
    two = np.concatenate([DOCUMENT, np.array([[0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])])
    number, index, size = corrupt.pieces(two)
    assert number.tolist() == [[0] * 8 + [1] * 3 + [-1], [2] * 2 + [3] * 10]
    assert index[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 0]
    assert size[0].tolist() == [8] * 8 + [3] * 3 + [0]
    without = corrupt.pieces(DOCUMENT, TOKENS != 14)
    assert without.number_BT.tolist() == [[0, 0, 0, 0, -1, 1, 1, 1, 2, 2, 2, -1]]
    assert without.size_BT[0, 5] == 3


def test_prefixes_by_hand() -> None:
    noise = np.full((1, 12), 0.99)
    noise[0, 0], noise[0, 8] = 0.3, 0.0  # only a document's first number counts
    document = corrupt.pieces(DOCUMENT)
    assert corrupt.prefix_lengths(document, noise, None).tolist() == [[3] * 8 + [1] * 3 + [1]]  # 1 + floor(.3 * 8)
    assert corrupt.prefix_lengths(document, noise, 5).tolist() == [[5] * 8 + [3] * 3 + [0]]


def test_permutation_by_hand() -> None:
    noise = np.array([[0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.7, 0.6, 0.9, 0.1, 0.5, 0.0]])
    assert corrupt.permuted(corrupt.pieces(DOCUMENT), noise).tolist() == [[3, 0, 7, 2, 1, 6, 5, 4, 2, 0, 1, 0]]


def test_spans_by_hand() -> None:
    """Half of eight tokens in two spans: the hidden four are cut before their third token, the kept before their
    second. Of three tokens two are hidden (1.5, to the even number), in one span."""
    noise = np.array([[0.0, 0.9, 0.1, 0.5, 0.0, 0.3, 0.8, 0.7, 0.5, 0.5, 0.5, 0.0]])
    found = corrupt.whole_spans(corrupt.pieces(DOCUMENT), noise, 0.5, 2.0)
    assert found.hidden_BT[0].astype(int).tolist() == [0, 1, 1, 0, 0, 0, 1, 1, 0, 1, 1, 0]
    assert found.start_BT[0].astype(int).tolist() == [0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0]


def test_masks_by_hand() -> None:
    """Mask, random, kept; a span has the fate of its first token, each of its tokens its own random word."""
    fate = np.full((1, 12), 0.95)
    fate[0, [1, 6, 10]] = 0.79, 0.85, 0.9
    draw = np.linspace(0, 0.99, 12)[None]
    words = np.arange(30, 40)
    ids = corrupt.masked(TOKENS, SPANS, fate, draw, (0.8, 0.1), 99, words)
    drawn = words[(draw[0] * 10).astype(int)]
    assert ids.tolist() == [[10, 99, 99, 13, 14, 15, drawn[6], drawn[7], 20, 21, 22, 0]]


def test_sentinels_by_hand() -> None:
    """Documents stay apart: each counts its own sentinels, and starts and ends by itself."""
    source, said = corrupt.to_sentinels(TOKENS, DOCUMENT, SPANS, np.array([900, 901, 902]), 7, 8)
    assert source.ids_BW.tolist() == [[10, 900, 13, 14, 15, 901, 20, 21, 900]]
    assert source.document_BW.tolist() == [[0] * 6 + [1] * 3]
    assert source.position_BW.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2]]
    assert said.targets_BW.tolist() == [[900, 11, 12, 901, 16, 17, 8, 900, 22, 8]]
    assert said.ids_BW.tolist() == [[7, 900, 11, 12, 901, 16, 17, 7, 900, 22]]
    assert said.position_BW.tolist() == said.order_BW.tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2]]
    assert said.document_BW.tolist() == [[0] * 7 + [1] * 3]


@pytest.mark.parametrize("axes", [1, 2])
def test_blanks_by_hand(axes: int) -> None:
    """The second span is said first; the blanks stand at places 1 and 5 of the text."""
    shuffle = np.zeros((1, 12))
    shuffle[0, 1], shuffle[0, 6] = 0.9, 0.4
    laid = corrupt.to_blanks(TOKENS, DOCUMENT, SPANS, shuffle, (90, 91, 92), axes)
    assert laid.ids_BW.tolist() == [[10, 90, 13, 14, 15, 90, 91, 16, 17, 91, 11, 12, 20, 21, 90, 91, 22]]
    assert laid.learnt_BW.astype(int).tolist() == [[0] * 6 + [1] * 6 + [0] * 3 + [1] * 2]
    assert laid.targets_BW[laid.learnt_BW].tolist() == [16, 17, 92, 11, 12, 92, 22, 92]
    assert laid.order_BW.tolist() == [[0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 1, 2]]
    assert laid.document_BW.tolist() == [[0] * 12 + [1] * 5]
    if axes == 1:
        assert laid.position_BW.tolist() == [[*range(12), *range(5)]]
    else:
        first = [0, 1, 2, 3, 4, 5, 5, 5, 5, 1, 1, 1, 0, 1, 2, 2, 2]
        second = [0, 0, 0, 0, 0, 0, 1, 2, 3, 1, 2, 3, 0, 0, 0, 1, 2]
        assert laid.position_BW.tolist() == [list(map(list, zip(first, second, strict=True)))]


# ---------------------------------------------------------------- by property


@settings(deadline=None, max_examples=60)
@given(packed, st.sampled_from([0.15, 0.3, 0.5]), st.sampled_from([1.0, 2.0, 3.0]))
def test_spans_have_their_numbers(rows: tuple, rate: float, mean: float) -> None:
    """Each run hides what T5 would, in as many spans; it begins with what is kept and ends with what is hidden."""
    _, document, noise = rows
    spans = corrupt.whole_spans(corrupt.pieces(document), noise.random(document.shape), rate, mean)
    for row in range(len(document)):
        for number in range(document[row].max() + 1):
            here = document[row] == number
            size, hidden, starts = here.sum(), spans.hidden_BT[row, here], spans.start_BT[row, here]
            count = min(max(round(size * rate), 1), size - 1)
            assert hidden.sum() == count
            if count:
                assert starts.sum() == min(max(round(count / mean), 1), count, size - count)
                assert not hidden[0]
                assert hidden[-1]
            assert (starts == hidden & ~np.append(False, hidden[:-1])).all()
    assert not spans.hidden_BT[document < 0].any()


@settings(deadline=None, max_examples=60)
@given(packed)
def test_what_was_hidden_can_be_put_back(rows: tuple) -> None:
    """From sentinels and from blanks each document is found again, whatever the spans and their order."""
    tokens, document, noise = rows
    spans = corrupt.whole_spans(corrupt.pieces(document), noise.random(document.shape), 0.4, 2.0)
    sentinels = np.arange(-10, 0)
    source, said = corrupt.to_sentinels(tokens, document, spans, sentinels, 7, 8)
    laid = corrupt.to_blanks(tokens, document, spans, noise.random(document.shape), (-1, -2, -3), axes=2)
    for row in range(len(document)):
        for number in range(document[row].max() + 1):
            whole = tokens[row, document[row] == number].tolist()
            fill, at = {}, None
            for token in said.targets_BW[row, said.document_BW[row] == number].tolist():
                at = token if token < 0 else at
                fill.setdefault(at, []).extend([token] if token not in (*sentinels, 8) else [])
            read = source.ids_BW[row, source.document_BW[row] == number].tolist()
            assert [word for token in read for word in fill.get(token, [token])] == whole
            here = laid.document_BW[row] == number
            text = laid.ids_BW[row, here & ~laid.learnt_BW[row]].tolist()
            answers: dict[int, list[int]] = {}
            for place, token in zip(
                laid.position_BW[row, here & laid.learnt_BW[row], 0],
                laid.ids_BW[row, here & laid.learnt_BW[row]],
                strict=True,
            ):
                answers.setdefault(int(place), []).extend([int(token)] if token != -2 else [])
            assert [word for place, token in enumerate(text) for word in answers.get(place, [token])] == whole


@settings(deadline=None, max_examples=40)
@given(packed)
def test_a_permutation_is_one_of_each_document(rows: tuple) -> None:
    _, document, noise = rows
    rank = corrupt.permuted(corrupt.pieces(document), noise.random(document.shape))
    for row in range(len(document)):
        for number in range(document[row].max() + 1):
            here = rank[row, document[row] == number]
            assert sorted(here) == list(range(len(here)))


def within(count: int, n: int, p: float) -> bool:
    """Five standard deviations of the binomial: once in two million."""
    return abs(count - n * p) < 5 * math.sqrt(n * p * (1 - p))


def test_rates_are_binomial() -> None:
    """15 % chosen; of those 80 % masked, 10 % random, 10 % kept, each independent of the other."""
    n, words = 200_000, np.arange(1000, 2000)
    noise, tokens = np.random.default_rng(0), np.full((100, 2000), 5)
    spans = corrupt.single_tokens(np.ones(tokens.shape, bool), noise.random(tokens.shape), 0.15)
    chosen = int(spans.hidden_BT.sum())
    assert within(chosen, n, 0.15)
    ids = corrupt.masked(tokens, spans, noise.random(tokens.shape), noise.random(tokens.shape), (0.8, 0.1), 1, words)
    assert (ids[~spans.hidden_BT] == 5).all()
    fate = ids[spans.hidden_BT]
    assert within(int((fate == 1).sum()), chosen, 0.8)
    assert within(int((fate >= 1000).sum()), chosen, 0.1)
    assert within(int((fate == 5).sum()), chosen, 0.1)
    assert within(len(set(fate[fate >= 1000])), 1000, 1 - 0.999 ** int((fate >= 1000).sum()))


def test_every_cut_is_as_likely() -> None:
    """Three of seven in two spans: two ways to cut the hidden, three to cut the kept; six in all."""
    n = 6000
    document = np.zeros((n, 7), np.int64)
    noise = np.random.default_rng(1).random(document.shape)
    spans = corrupt.whole_spans(corrupt.pieces(document), noise, 3 / 7, 1.5)
    found = Counter(map(tuple, spans.start_BT * 2 + spans.hidden_BT * 1))
    assert len(found) == 6
    assert all(within(count, n, 1 / 6) for count in found.values())


def test_prefixes_are_evenly_drawn() -> None:
    n = 8000
    document = corrupt.pieces(np.zeros((n, 4), np.int64))
    lengths = corrupt.prefix_lengths(document, np.random.default_rng(2).random((n, 4)), None)[:, 0]
    assert all(within(count, n, 1 / 4) for count in Counter(lengths.tolist()).values())
    assert set(lengths.tolist()) == {1, 2, 3, 4}
