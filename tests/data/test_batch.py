"""Batches: what follows what, and padding that cannot be mistaken for text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.data.batch import IGNORE, Batch, Sequences, collate, collate_pairs, pack
from llmlab.model.transformer import Architecture
from llmlab.objectives.language import NextToken
from llmlab.recipe import parse

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


@settings(deadline=None, max_examples=200)
@given(SEQUENCES, st.integers(0, 9))
def test_packing_keeps_every_sequence_whole(sequences: list, pad: int) -> None:  # type: ignore[type-arg]
    batch, rows = pack(sequences, pad), collate(sequences, pad)
    assert batch.tokens == rows.tokens
    assert batch.learnt == rows.learnt
    assert len(batch.ids_BT) <= len(sequences)
    for number, (ids, learn) in enumerate(sequences):
        row, columns = (batch.at.document == number).nonzero().T
        assert set(row.tolist()) == {row[0].item()}  # in one row, side by side
        assert columns.tolist() == list(range(columns[0], columns[0] + len(ids)))
        assert batch.ids_BT[row, columns].tolist() == list(ids)
        assert batch.at.position[row, columns].tolist() == list(range(len(ids)))
        follow = [ids[t + 1] if learn[t + 1] else IGNORE for t in range(len(ids) - 1)]
        assert batch.targets_BT[row, columns].tolist() == [*follow, IGNORE]
    assert (batch.ids_BT[~batch.at.real] == pad).all()
    assert (batch.targets_BT[~batch.at.real] == IGNORE).all()


def test_packed_loss_and_gradient_are_those_of_separate_rows(position_kind: type) -> None:
    """Traps 15 and 16, for every position encoding."""
    chance = torch.Generator().manual_seed(0)
    sizes = [9, 3, 5, 4, 1, 7]
    sequences = [(torch.randint(20, (n,), generator=chance).tolist(), [t % 3 > 0 for t in range(n)]) for n in sizes]
    model = parse(Architecture, {"layers": 2, "dim": 32, "initial_std": 0.2, "position": position_kind()}).build(20)
    found = []
    for batch in (pack(sequences, None), collate(sequences, None)):
        model.zero_grad()
        loss = NextToken()(model, batch).sums["cross_entropy"]
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
