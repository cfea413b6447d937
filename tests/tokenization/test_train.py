"""Training a tokenizer: the same from the same text, whole byte alphabet, honest about what it got."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import InputError
from llmlab.recipe import parse
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import (
    BPE,
    SPECIAL,
    TokenizerRecipe,
    Unigram,
    WordPiece,
    tokenizer_figures,
    train_tokenizer,
)

TEXTS = ["the whale and the sea and the ship", "a ship on the sea in 1851 and 1852", "鲸鱼在海里，鲸鱼在海里。"]


def _vocabulary(tokenizer: Tokenizer) -> list[bytes]:
    return [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]


def test_same_texts_same_tokenizer_in_another_process() -> None:
    """Hash seeds differ from process to process, in Python and in Rust."""
    script = (
        "from llmlab.tokenization.train import *\n"
        f"t = train_tokenizer(BPE(vocab_size=300, min_frequency=1), iter({TEXTS!r}))\n"
        "print([t.token_bytes(i) for i in range(t.vocab_size)])"
    )
    said = {subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout}
    ours = train_tokenizer(BPE(vocab_size=300, min_frequency=1), iter(TEXTS))
    assert said == {f"{_vocabulary(ours)}\n"}


def test_size_is_met_or_said() -> None:
    section = BPE(vocab_size=290, min_frequency=1)
    assert train_tokenizer(section, iter(TEXTS)).vocab_size == 290
    few = train_tokenizer(section.model_copy(update={"vocab_size": 5000}), iter(["ab ab ab"]))
    assert few.vocab_size == 260 + 2  # "ab" and " ab"
    figures = tokenizer_figures(section, few, "ab ab")
    assert figures == {"vocab_size_asked": 290, "vocab_size": 262, "bytes_per_token": 2.5}


@pytest.mark.parametrize(("pre", "number"), [("smollm", [b"1", b"8"]), ("gpt-2", [b"18"])])
def test_digits_stand_alone_only_if_asked(pre: str, number: list[bytes]) -> None:
    section = parse(TokenizerRecipe, {"vocab_size": 280, "pre": pre})
    tokenizer = train_tokenizer(section, iter(["18 18 18 18 18"] * 9))
    assert [tokenizer.token_bytes(id) for id in tokenizer.encode("18")] == number


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_any_text_can_be_learnt_and_is_read_back(texts: list[str]) -> None:
    if any(texts):
        tokenizer = train_tokenizer(BPE(vocab_size=270, min_frequency=1), iter(texts))
        assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts)
        assert [tokenizer.token_id(token) for token in SPECIAL] == [0, 1, 2, 3]


def test_special_names_in_the_corpus_stay_text() -> None:
    tokenizer = train_tokenizer(BPE(vocab_size=300), iter(["<|im_end|> <|im_end|> <|im_end|>"] * 3))
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode("<|im_end|>"))


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_an_empty_corpus_is_named(texts: list[str]) -> None:
    with pytest.raises(InputError, match="no text to learn from"):
        train_tokenizer(BPE(), iter(texts))


def test_too_small_a_vocabulary_is_named() -> None:
    with pytest.raises(InputError, match="259 ids cannot hold 256 bytes and 4 special tokens"):
        train_tokenizer(BPE(vocab_size=259), iter(TEXTS))


def test_surrogates_in_the_corpus_are_named() -> None:
    with pytest.raises(InputError, match="surrogate"):
        train_tokenizer(BPE(vocab_size=260), iter(["good", "bad\ud800"]))


# ---------------------------------------------------------------- the union


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, BPE()),
        ({"vocab_size": 2048}, BPE(vocab_size=2048)),
        ("unigram", Unigram()),
        ({"kind": "wordpiece", "lowercase": False}, WordPiece(lowercase=False)),
    ],
)
def test_a_recipe_without_a_kind_is_bpe(given: object, wanted: object) -> None:
    assert parse(TokenizerRecipe, given) == wanted


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kind": "unigramm"}, "unknown kind 'unigramm' .did you mean 'unigram'"),
        ({"kind": "unigram", "pre": "smollm"}, "no field 'pre'"),
        ({"vocab_sise": 9}, "no field 'vocab_sise' here .did you mean 'vocab_size'"),
        ({"kind": "wordpiece", "vocab_size": True}, "vocab_size is True, where a number belongs"),
    ],
)
def test_bad_sections_are_named(given: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse(TokenizerRecipe, given)


@pytest.mark.parametrize("section", [BPE(), Unigram(), WordPiece()], ids=lambda section: section.kind)
def test_each_kind(section: BPE | Unigram | WordPiece, tmp_path: Path) -> None:
    """What is declared is so; what is saved reads alike; an empty corpus and half a character are named."""
    made = train_tokenizer(section, iter(TEXTS * 3))
    made.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    text = "A ship  on the s\u00e9a\n\n\u9cb8\u9c7c 1851."
    assert again.encode(text) == made.encode(text)
    assert (again.lossless, again.special_ids, again.eos_id) == (section.lossless, made.special_ids, made.eos_id)
    assert (made.decode(made.encode(text)) == text) == section.lossless
    assert made.special_ids.isdisjoint(made.encode("the ship [MASK]<|im_end|></s>")) == section.lossless
    with pytest.raises(InputError, match="no text to learn from"):
        train_tokenizer(section, iter([""]))
    with pytest.raises(InputError, match="surrogate"):
        train_tokenizer(section, iter(["good", "bad\ud800"]))
