"""Tokenizers compared: bytes a token on text that was held out."""

from __future__ import annotations

from itertools import islice

import pytest

from llmlab.data.sources import Bundled, Reading, read
from llmlab.errors import InputError
from llmlab.evaluation.tokenizers import compare_tokenizers, table


def texts() -> dict[str, list[str]]:
    books = {"en": Bundled(piece=1000), "zh": Bundled(name="sanguo_yanyi", piece=400)}
    return {name: [one.text for one in islice(read((book,), Reading()), 60)] for name, book in books.items()}


def test_larger_vocabularies_hold_more_bytes_a_token() -> None:
    rows = compare_tokenizers(texts(), ["bpe", "unigram"], [600, 1500])
    assert [(row["kind"], row["vocab_size"]) for row in rows] == [
        (kind, size) for kind in ("bpe", "unigram") for size in (600, 1500)
    ]
    (bpe, more_bpe), (unigram, more_unigram) = (
        [row["bytes_per_token"] for row in part] for part in (rows[:2], rows[2:])
    )
    for name in ("en", "zh"):
        assert more_bpe[name] > bpe[name] > 1
        assert more_unigram[name] > 0.99 * unigram[name]  # pieces go where they pay most, here to one language
    assert sum(more_unigram.values()) > sum(unigram.values())
    assert len(table(rows).splitlines()) == 6


def test_what_is_measured_was_not_trained_on() -> None:
    """A text that stands in the training part only is no better cut than any other."""
    same = {"a": ["x" * 40, "y" * 40]}
    assert compare_tokenizers(same, ["bpe"], [264])[0]["bytes_per_token"]["a"] == 1


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"unknown value 'bp' .*did you mean 'bpe'"):
        compare_tokenizers(texts(), ["bp"], [400])
    with pytest.raises(InputError, match="is one document"):
        compare_tokenizers({"a": ["alone"]}, ["bpe"], [400])
