"""Noise that belongs to rows: the same for any size of step and any cut, new each epoch, or the same every n."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from llmlab.data.batch import Batch, SourceBatch
from llmlab.data.corruption import FOLLOWING, Corruption, Noise, Rows, batch_of, held_out_noise, row_noise
from llmlab.data.pack import EvalBatches, PackedBatches
from llmlab.data.shards import Documents
from llmlab.errors import InputError

LENGTH = 8
CORPUS = Documents([[*range(20 * n + 1, 20 * n + 2 + n % 5), 0] for n in range(12)], 30, 0, 0)


def _noted(rows: Rows, noise: Noise) -> Batch:
    """Targets that tell the noise of their place."""
    shown = np.floor(noise[0] * 1e6).astype(np.int64)
    position_BT = rows.position_BT
    return batch_of(rows.tokens_BT, shown, rows.document_BT >= 0, position_BT, position_BT, rows.document_BT)


def noted(copies: int | None = None) -> Corruption:
    return Corruption(_noted, 1, "noted", copies)


def epochs(corruption: Corruption, count: int, seed: int = 0) -> list[Counter[str]]:
    """The rows of each epoch, with what was drawn for them."""
    rows = -(-CORPUS.tokens // LENGTH)
    batches = PackedBatches(CORPUS, LENGTH, rows, 1, seed, corruption=corruption)
    return [
        Counter(str((b.ids_BT.tolist(), b.targets_BT.tolist(), b.at.document.tolist())) for b in batches.next())
        for _ in range(count)
    ]


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_static_epochs_take_turns(copies: int) -> None:
    """So many different epochs and no more, each again in its turn, rows in another order."""
    seen = epochs(noted(copies), 2 * copies + 1)
    assert all(seen[epoch] == seen[epoch % copies] for epoch in range(len(seen)))
    assert all(seen[a] != seen[b] for a in range(copies) for b in range(a))
    assert seen[0] != epochs(noted(copies), 1, seed=1)[0]


def test_dynamic_epochs_all_differ() -> None:
    seen = epochs(noted(), 7)
    assert len({str(sorted(epoch)) for epoch in seen}) == 7
    drawn = [row for epoch in seen for row in epoch]
    assert len(set(drawn)) == len(drawn)


def flat(steps: list[list[Batch]]) -> torch.Tensor:
    return torch.cat([torch.stack([b.ids_BT, b.targets_BT], 1) for step in steps for b in step])


def test_neither_step_nor_cut_changes_the_noise() -> None:
    """The rows taken so far and what was drawn for them, whatever they are taken in."""
    runs = [
        PackedBatches(CORPUS, LENGTH, size, micro, 5, corruption=noted()) for size, micro in ((6, 6), (6, 1), (4, 3))
    ]
    taken = [flat([run.next() for _ in range(12 // run.batch_size)]) for run in runs]
    assert torch.equal(taken[0], taken[1])
    assert torch.equal(taken[0], taken[2])


def test_resumed_anywhere_is_unbroken() -> None:
    """The state is a count, and other settings are refused."""
    whole = PackedBatches(CORPUS, LENGTH, 3, 2, 1, corruption=noted(2))
    steps = [whole.next() for _ in range(9)]
    for at in range(9):
        first = PackedBatches(CORPUS, LENGTH, 3, 2, 1, corruption=noted(2))
        for _ in range(at):
            first.next()
        again = PackedBatches(CORPUS, LENGTH, 3, 2, 1, corruption=noted(2))
        again.load(first.state())
        assert torch.equal(flat([again.next() for _ in range(9 - at)]), flat(steps[at:]))
    with pytest.raises(InputError, match="read differently"):
        PackedBatches(CORPUS, LENGTH, 3, 2, 1).load(whole.state())


def test_held_out_rows_are_the_same_for_all() -> None:
    """No seed and no size of batch changes what is asked."""
    asked = [flat([list(EvalBatches(CORPUS, LENGTH, size, corruption=noted()))]) for size in (1, 3, 50)]
    assert torch.equal(asked[0], asked[1])
    assert torch.equal(asked[0], asked[2])
    np.testing.assert_array_equal(held_out_noise(2, 4, [3])[:, 0], held_out_noise(2, 4, [1, 3])[:, 1])


def test_noise_is_uniform_and_a_rows_own() -> None:
    noise = row_noise(2, 500, range(40), 0, "x")
    assert noise.shape == (2, 40, 500)
    assert 0 <= noise.min() <= noise.max() < 1
    assert abs(noise.mean() - 0.5) < 5 / (12 * noise.size) ** 0.5
    assert len(np.unique(noise)) == noise.size
    assert row_noise(0, 5, range(3), 0).shape[0] == 0


def test_what_follows_needs_no_noise() -> None:
    """The causal batch of before: each token from the one before it, each document from the begin token."""
    (batch,) = PackedBatches(Documents([[5, 6, 0], [7, 0]], 3, 9, 0), 5, 1, 1, 0, corruption=FOLLOWING).next()
    assert sorted(zip(batch.ids_BT[0].tolist(), batch.targets_BT[0].tolist(), strict=True)) == [
        (5, 6), (6, 0), (7, 0), (9, 5), (9, 7)
    ]  # fmt: skip


def test_a_part_and_a_move_keep_every_field() -> None:
    made: dict[str, Any] = {}

    def with_source(rows: Rows, noise: Noise) -> Batch:
        plain = FOLLOWING.learn(rows, noise)
        made["whole"] = SourceBatch(
            plain.ids_BT, plain.targets_BT, plain.at, source_BS=plain.ids_BT + 1, source_at=plain.at.bidirectional()
        )
        return made["whole"]  # type: ignore[no-any-return]

    first, second = PackedBatches(CORPUS, LENGTH, 4, 3, 0, corruption=Corruption(with_source, name="s")).next()
    assert isinstance(second, SourceBatch)
    assert torch.equal(second.source_BS, made["whole"].source_BS[3:])
    assert torch.equal(second.to(torch.device("cpu")).source_at.document, made["whole"].source_at.document[3:])
    assert second.where.startswith("training documents")
    assert first.tokens == 2 * int(first.at.real.sum())
