"""The figures of question 17 that a wrong part would move."""

import pytest
import torch

from llmlab.handbook import distilling, rank_bytes, savers_figures
from llmlab.handbook.savers_figures import accumulation, csr_bytes
from llmlab.handbook.savers_tables import CHINESE
from llmlab.handbook.training_rows import BY_NAME, LEDGER
from llmlab.runtime import generator
from llmlab.training import step


@pytest.mark.parametrize("seed", range(3))
def test_sparse_bytes_are_the_formula(seed: int) -> None:
    noise = generator(seed, "savers test")
    rows, columns = (int(torch.randint(5, 40, (), generator=noise)) for _ in range(2))
    weight = torch.randn(rows, columns, generator=noise)
    for sparsity in (0.1, 0.5, 0.9):
        kept = round(rows * columns * (1 - sparsity))
        for dtype, size in ((torch.float32, 4), (torch.float16, 2)):
            assert csr_bytes(weight, sparsity, dtype) == kept * (size + 4) + 4 * (rows + 1)


def test_means_of_means_are_right_for_rows_of_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savers_figures, "LENGTHS", (21, 21, 21))
    assert accumulation(1)["mean_of_means_gap"] < 1e-6  # a loss is divided in float32


def test_a_loop_that_counts_too_little_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "added", lambda parts: dict(parts[0]))  # of the first micro-batch alone
    assert accumulation(0)["accumulated_gap"] > 0.1


def test_what_ranks_hold_adds_up_to_what_one_holds() -> None:
    alone = rank_bytes.foretold("ddp", 1)
    for ranks in (2, 4):
        held = rank_bytes.foretold("fsdp", ranks)
        assert all(alone[kind] <= ranks * held[kind] < 1.1 * alone[kind] for kind in alone)
    assert rank_bytes.foretold("ddp", 8) == alone


def test_a_teacher_is_in_memory_too() -> None:
    more = distilling.training_bytes("small", "large") - distilling.training_bytes("small")
    assert more > distilling.weight_bytes("large")


def test_rows_have_names_and_something_to_be_held_against() -> None:
    assert CHINESE.keys() <= BY_NAME.keys()
    assert len(BY_NAME) == len(LEDGER)
    assert all(row.against in BY_NAME for row in LEDGER)
