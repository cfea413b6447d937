"""What the objectives of pretraining do to rows of tokens: pure functions of arrays and of uniform noise.

B rows, T tokens, N the tokens of all rows that are looked at, in reading order, E entries of what is laid out anew.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Noise = npt.NDArray[np.float64]


class Pieces(NamedTuple):
    """Runs of one document in a row, [B, T]: the number of the run (all rows counted on; -1: in none), a token's place
    in its run, and how many tokens that has."""

    number_BT: Int64
    index_BT: Int64
    size_BT: Int64


def pieces(document_BT: Int64, inside_BT: Bool | None = None) -> Pieces:
    """The runs of tokens that are real, and `inside` where that is given."""
    there_BT = document_BT >= 0 if inside_BT is None else (document_BT >= 0) & inside_BT
    fresh_BT = there_BT.copy()
    fresh_BT[:, 1:] &= ~there_BT[:, :-1] | (document_BT[:, 1:] != document_BT[:, :-1])
    number_BT = np.cumsum(fresh_BT).reshape(fresh_BT.shape) - 1
    place_BT = np.arange(fresh_BT.size).reshape(fresh_BT.shape)
    first_BT = np.maximum.accumulate(np.where(fresh_BT, place_BT, 0).ravel()).reshape(fresh_BT.shape)
    size_R = np.bincount(number_BT[there_BT], minlength=1)
    return Pieces(
        np.where(there_BT, number_BT, -1),
        np.where(there_BT, place_BT - first_BT, 0),
        np.where(there_BT, size_R[number_BT.clip(0)], 0),
    )


def ranks(group_N: Int64, noise_N: Noise) -> Int64:
    """Each one's place, from 0, among those of its group in the order of the noise."""
    order = np.lexsort((noise_N, group_N))
    sorted_N: Int64 = group_N[order]
    rank_N: Int64 = np.empty(len(group_N), np.int64)
    rank_N[order] = _count(sorted_N)
    return rank_N


# ---------------------------------------------------------------- who sees whom


def prefix_lengths(document: Pieces, noise_BT: Noise, length: int | None) -> Int64:
    """[B, T]: of each token's document, how many tokens are its prefix. Drawn evenly from 1 to all of them, by the
    noise at its first token; or `length`, where the document has so many."""
    if length is not None:
        return document.size_BT.clip(max=length)
    row_BT = np.arange(len(noise_BT))[:, None]
    first_BT = np.maximum(np.arange(noise_BT.shape[1]) - document.index_BT, 0)
    drawn_BT: Int64 = np.floor(noise_BT[row_BT, first_BT] * document.size_BT).astype(np.int64)
    return drawn_BT + 1


def permuted(document: Pieces, noise_BT: Noise) -> Int64:
    """[B, T]: each token's rank in an order of its document's tokens, any order as likely as another."""
    there_BT = document.number_BT >= 0
    rank_BT = np.zeros(there_BT.shape, np.int64)
    rank_BT[there_BT] = ranks(document.number_BT[there_BT], noise_BT[there_BT])
    return rank_BT


# ---------------------------------------------------------------- what is hidden


class Spans(NamedTuple):
    """[B, T]: the tokens that are hidden, and those of them with which a span begins."""

    hidden_BT: Bool
    start_BT: Bool


def single_tokens(hideable_BT: Bool, noise_BT: Noise, rate: float) -> Spans:
    """Each token by itself, with probability `rate`."""
    hidden_BT = hideable_BT & (noise_BT < rate)
    return Spans(hidden_BT, hidden_BT)


def spans_in(tokens: int | Int64, rate: float, mean: float) -> tuple[Int64, Int64]:
    """How many of a run's tokens are hidden, and in how many spans: T5's numbers. A single token is never hidden."""
    size = np.asarray(tokens)
    hidden = np.where(size < 2, 0, np.clip(np.rint(size * rate), 1, np.maximum(size - 1, 1))).astype(np.int64)
    most = np.minimum(hidden, size - hidden)
    return hidden, np.clip(np.rint(hidden / mean).astype(np.int64), np.minimum(1, hidden), most)


def whole_spans(run: Pieces, noise_BT: Noise, rate: float, mean: float) -> Spans:
    """`rate` of each run in spans of `mean` tokens on average (Raffel et al. 2019, T5's `random_spans_noise_mask`).

    What is hidden and what is kept are each cut at random into as many parts, all ways as likely; then they take turns,
    a kept part first. So a run begins with what is kept and ends with what is hidden, as T5's do.
    """
    there_BT = run.number_BT >= 0
    number_N, index_N, size_N = (part[there_BT] for part in run)
    hidden_N, spans_N = spans_in(size_N, rate, mean)
    # For a moment the first `hidden` tokens of a run stand for the hidden ones, the others for the kept.
    kept_N = index_N >= hidden_N
    half_N = 2 * number_N + kept_N
    may_N = (index_N > 0) & (index_N != hidden_N)  # whether a new part may begin here
    begins_N = np.zeros(len(half_N), bool)
    begins_N[may_N] = ranks(half_N[may_N], noise_BT[there_BT][may_N]) < spans_N[may_N] - 1
    part_N = np.cumsum(begins_N)
    part_N -= part_N[np.searchsorted(half_N, half_N, side="left")]
    order = np.lexsort((~kept_N, part_N, number_N))
    out = Spans(np.zeros(there_BT.shape, bool), np.zeros(there_BT.shape, bool))
    hides_N, parts_N = ~kept_N[order], part_N[order]
    starts_N = hides_N.copy()
    starts_N[1:] &= ~hides_N[:-1] | (parts_N[1:] != parts_N[:-1]) | (number_N[1:] != number_N[:-1])
    out.hidden_BT[there_BT], out.start_BT[there_BT] = hides_N, starts_N
    return out


def masked(
    tokens_BT: Int64,
    spans: Spans,
    fate_BT: Noise,
    draw_BT: Noise,
    shares: tuple[float, float],
    mask_id: int,
    words: Int64,
) -> Int64:
    """The tokens with the hidden ones masked (first of the `shares`), replaced by a random one of `words` (second), or
    left as they are; a span has one fate (Devlin et al. 2018, BERT; Joshi et al. 2019, SpanBERT)."""
    place = np.arange(tokens_BT.size)
    owner = np.maximum.accumulate(np.where(spans.start_BT.ravel(), place, 0)).reshape(tokens_BT.shape)
    fate_BT = fate_BT.ravel()[owner]
    drawn_BT = words[np.floor(draw_BT * len(words)).astype(np.int64)]
    changed_BT = np.where(fate_BT < shares[0], mask_id, np.where(fate_BT < sum(shares), drawn_BT, tokens_BT))
    return np.where(spans.hidden_BT, changed_BT, tokens_BT)


# ---------------------------------------------------------------- what is laid out anew


class Layout:
    """Entries in reading order, each with the row it goes to; `place` puts them there from the left."""

    def __init__(self, row_E: Int64, rows: int) -> None:
        self._row_E, self._column_E = row_E, np.arange(len(row_E)) - np.searchsorted(row_E, row_E, side="left")
        self.shape = rows, int(self._column_E.max(initial=0)) + 1

    def place(self, value_E: Int64, fill: int = 0) -> Int64:
        """[B, W] or [B, W, ...]; `fill` is the padding."""
        out = np.full((*self.shape, *value_E.shape[1:]), fill, np.int64)
        out[self._row_E, self._column_E] = value_E
        return out


class Laid(NamedTuple):
    """What a model reads, [B, W] each: ids, what is to be predicted there, whether it is learnt, and where it stands
    (`position_BW` [B, W, 2] where two axes count)."""

    ids_BW: Int64
    targets_BW: Int64
    learnt_BW: Bool
    position_BW: Int64
    order_BW: Int64
    document_BW: Int64


class _Flat(NamedTuple):
    """The real tokens of all rows in reading order, [N]: what of them, and the number of the span they belong to or
    follow, counted within their document."""

    row_N: Int64
    document_N: Int64
    piece_N: Int64
    token_N: Int64
    hidden_N: Bool
    start_N: Bool
    span_N: Int64


def _flat(tokens_BT: Int64, document_BT: Int64, spans: Spans) -> _Flat:
    run = pieces(document_BT)
    there_BT = run.number_BT >= 0
    piece_N, start_N = run.number_BT[there_BT], spans.start_BT[there_BT]
    count_N: Int64 = np.cumsum(start_N)
    before_N: Int64 = (count_N - start_N)[np.searchsorted(piece_N, piece_N, side="left")]
    row_N = np.nonzero(there_BT)[0]
    hidden_N = spans.hidden_BT[there_BT]
    return _Flat(row_N, document_BT[there_BT], piece_N, tokens_BT[there_BT], hidden_N, start_N, count_N - before_N - 1)


def _count(group_E: Int64) -> Int64:
    """0, 1, 2, ... within each group; equal ones stand together."""
    fresh = np.flatnonzero(np.diff(group_E, prepend=group_E[:1] - 1))
    return np.arange(len(group_E)) - np.repeat(fresh, np.diff(fresh, append=len(group_E)))


def to_sentinels(
    tokens_BT: Int64, document_BT: Int64, spans: Spans, sentinels: Int64, begin_id: int, end_id: int
) -> tuple[Laid, Laid]:
    """(what the encoder reads, what the decoder says): each span replaced by a sentinel; each sentinel with its span
    behind it, and the end (Raffel et al. 2019, T5, figure 2; the end is eos there as here, not one more sentinel)."""
    rows, flat = len(tokens_BT), _flat(tokens_BT, document_BT, spans)
    sentinel_N = sentinels[flat.span_N.clip(0)]
    read_N = ~flat.hidden_N | flat.start_N
    row_E, piece_E, document_E = (part[read_N] for part in (flat.row_N, flat.piece_N, flat.document_N))
    layout = Layout(row_E, rows)
    ids_BW = layout.place(np.where(flat.start_N, sentinel_N, flat.token_N)[read_N])
    position_BW, owner_BW = layout.place(_count(piece_E)), layout.place(document_E, -1)
    nothing = np.zeros(layout.shape, bool)
    source = Laid(ids_BW, ids_BW, nothing, position_BW, np.zeros_like(ids_BW), owner_BW)

    said_N = np.flatnonzero(flat.hidden_N)
    last_N = np.zeros(len(flat.row_N), bool)
    last_N[said_N[np.diff(flat.piece_N[said_N], append=-1) != 0]] = True
    said_N3 = np.stack([flat.start_N, flat.hidden_N, last_N], 1)
    value_N3 = np.stack([sentinel_N, flat.token_N, np.full_like(sentinel_N, end_id)], 1)
    row_E, piece_E, document_E = (
        np.repeat(part, said_N3.sum(1)) for part in (flat.row_N, flat.piece_N, flat.document_N)
    )
    target_E, index_E = value_N3[said_N3], _count(piece_E)
    before_E = np.where(index_E == 0, begin_id, np.roll(target_E, 1))
    layout = Layout(row_E, rows)
    position_BW, owner_BW = layout.place(index_E), layout.place(document_E, -1)
    ids_BW, targets_BW = layout.place(before_E), layout.place(target_E)
    return source, Laid(ids_BW, targets_BW, owner_BW >= 0, position_BW, position_BW, owner_BW)


def to_blanks(
    tokens_BT: Int64,
    document_BT: Int64,
    spans: Spans,
    shuffle_BT: Noise,
    marks: tuple[int, int, int],
    axes: int = 1,
) -> Laid:
    """Each document with its spans as blanks, and behind it the spans in shuffled order, to be said token by token (Du
    et al. 2021, GLM, arXiv 2103.10360). `marks` are the ids of the blank, of a span's start and of its end.

    The document sees itself whole, the spans see it and what was said before. With one axis positions count on; with
    two the first stands at the blank and the second counts within the span, its start being 1.
    """
    mask_id, start_id, end_id = marks
    flat = _flat(tokens_BT, document_BT, spans)
    there_BT = document_BT >= 0
    place_N = np.arange(len(flat.row_N))
    kept_N = ~flat.hidden_N | flat.start_N
    seen_N = np.cumsum(kept_N)
    place_in_text_N = seen_N - 1 - (seen_N - kept_N)[np.searchsorted(flat.piece_N, flat.piece_N, side="left")]
    turn_N = np.zeros(len(place_N), np.int64)  # when the span of a token is said
    turn_N[flat.start_N] = ranks(flat.piece_N[flat.start_N], shuffle_BT[there_BT][flat.start_N])
    owner_N = np.maximum.accumulate(np.where(flat.start_N, place_N, 0))
    turn_N, blank_N = turn_N[owner_N], place_in_text_N[owner_N]

    text, start, said = np.flatnonzero(kept_N), np.flatnonzero(flat.start_N), np.flatnonzero(flat.hidden_N)
    of_E = np.concatenate([text, start, said])
    part_E = np.repeat([0, 1, 1], [len(text), len(start), len(said)])  # the text, then what is said
    slot_E = np.repeat([0, 0, 1], [len(text), len(start), len(said)])  # a start before its span
    value_E = np.concatenate(
        [np.where(flat.hidden_N, mask_id, flat.token_N)[text], np.full(len(start), start_id), flat.token_N[said]]
    )
    order = np.lexsort((of_E, slot_E, turn_N[of_E] * part_E, part_E, flat.piece_N[of_E]))
    of_E, part_E, value_E = of_E[order], part_E[order], value_E[order]
    piece_E = flat.piece_N[of_E]
    half_E = 2 * piece_E + part_E
    span_E = np.where(part_E == 1, owner_N[of_E], -1 - piece_E)  # the span of what is said; another number for a text
    goes_on_E = np.append(span_E[1:] == span_E[:-1], False) & (part_E == 1)
    target_E = np.where(goes_on_E, np.roll(value_E, -1), end_id)
    order_E = np.where(part_E == 1, _count(half_E) + 1, 0)
    position_E = _count(piece_E)
    if axes == 2:
        within_E = np.where(part_E == 1, _count(span_E) + 1, 0)
        position_E = np.stack([np.where(part_E == 1, blank_N[of_E], place_in_text_N[of_E]), within_E], -1)
    layout = Layout(flat.row_N[of_E], len(tokens_BT))
    return Laid(
        layout.place(value_E),
        layout.place(target_E),
        layout.place(part_E) == 1,
        layout.place(position_E),
        layout.place(order_E),
        layout.place(flat.document_N[of_E], -1),
    )
