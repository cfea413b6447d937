"""Measures of a finished life: what length a text is read in."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmlab.checkpoints.bundle import Bundle
from llmlab.data.pack import Isolated
from llmlab.data.shards import write_shards
from llmlab.evaluation.measures import FAMILIES, MEASURES, Finished, take
from llmlab.model.attention import MultiHead
from llmlab.model.transformer import Architecture
from llmlab.tokenization.train import BPE, train_tokenizer

TEXT = "call me ishmael. some years ago, never mind how long precisely"


def test_every_measure_has_its_family() -> None:
    assert {measure.family for measure in MEASURES.values()} == FAMILIES.keys()


def test_held_out_text_is_read_in_rows_or_in_the_context(tmp_path: Path) -> None:
    """A model of 16 that was trained on rows of 4: bits_per_byte is of rows of 4, bits_per_byte@context of 16."""
    tokenizer = train_tokenizer(BPE(vocab_size=270), iter([TEXT]))
    held_out = write_shards(iter([TEXT] * 2), tokenizer, tmp_path / "held_out")
    a = Architecture(layers=1, dim=16, context=16, attention=MultiHead(heads=2), initial_std=0.4)
    bundle = Bundle(a.build(tokenizer.vocab_size, 1).eval(), tokenizer, a, "made here")

    def read(family: str, length: int) -> float:
        values = take(family, Finished(bundle, held_out, length, Isolated(), []))
        return float(values[{"held_out": "bits_per_byte", "context": "bits_per_byte@context"}[family]])

    assert read("context", 4) == read("context", 16) == read("held_out", 16)
    assert read("held_out", 4) != pytest.approx(read("held_out", 16), rel=1e-3)
