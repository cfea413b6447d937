"""Batches: what follows what, and padding that cannot be mistaken for text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.data.batch import IGNORE, Batch, Sequences, collate, collate_pairs

SEQUENCES = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=6).map(
        lambda pairs: ([id for id, _ in pairs], [learn for _, learn in pairs])
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=200)
@given(SEQUENCES, st.sampled_from(["left", "right"]), st.integers(0, 9), st.integers(0, 3))
def test_rows_as_a_loop_would_lay_them(sequences: list, side: str, pad: int, more: int) -> None:  # type: ignore[type-arg]
    """`pad` may be an id of the text: the mask comes from lengths (trap 9)."""
    width = max(len(ids) for ids, _ in sequences) + more
    batch = collate(sequences, pad, width, side)
    for row, (ids, learn) in enumerate(sequences):
        left = width - len(ids) if side == "left" else 0
        expected_ids, expected_targets = [pad] * width, [IGNORE] * width
        for t, id in enumerate(ids):
            expected_ids[left + t] = id
            if t + 1 < len(ids) and learn[t + 1]:
                expected_targets[left + t] = ids[t + 1]
        assert batch.ids_BT[row].tolist() == expected_ids
        assert batch.targets_BT[row].tolist() == expected_targets
        assert batch.at.real[row].sum() == len(ids)
        assert batch.at.position[row, left : left + len(ids)].tolist() == list(range(len(ids)))
    assert batch.tokens == sum(len(ids) for ids, _ in sequences)
    assert batch.learnt == sum(sum(learn[1:]) for _, learn in sequences)


def test_pairs_are_stacked_and_last_tokens_known() -> None:
    chosen = [([1, 2, 3], [False, True, True]), ([4], [False])]
    rejected = [([1, 5], [False, True]), ([4, 6, 7, 8], [False, True, True, True])]
    for side, last in (("right", [2, 0, 1, 3]), ("left", [3, 3, 3, 3])):
        batch = collate_pairs(chosen, rejected, None, ["a", "b"], side=side)
        assert batch.pairs == 2
        assert batch.last_B.tolist() == last
        assert batch.ids_BT[torch.arange(4), batch.last_B].tolist() == [3, 4, 5, 8]
        assert batch.to(torch.device("cpu")).tags == ("a", "b")
        assert isinstance(batch, Batch)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: collate([], 0), "at least one token"),
        (lambda: collate([([], [])], 0), "at least one token"),
        (lambda: collate([([1, 2], [True, True])], 0, length=1), "2 tokens does not fit into 1"),
        (lambda: collate([([1, 2], [True])], 0), "2 ids but 1 learn marks"),
        (lambda: collate_pairs([([1], [True])], [], 0), "1 chosen but 0 rejected"),
    ],
)
def test_impossible_batches(call, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=says):
        call()


@settings(deadline=None, max_examples=50)
@given(SEQUENCES)
def test_sequences_come_back(sequences: list) -> None:  # type: ignore[type-arg]
    rows = Sequences(sequences)
    assert [(ids.tolist(), learn.tolist()) for ids, learn in (rows[i] for i in range(len(rows)))] == sequences
    assert rows.fingerprint == Sequences(sequences).fingerprint
    changed = [([sequences[0][0][0] + 1, *sequences[0][0][1:]], sequences[0][1]), *sequences[1:]]
    assert rows.fingerprint != Sequences(changed).fingerprint
