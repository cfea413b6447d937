"""The filter of repeated sentences: what it cuts, takes and leaves, with and without an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmlab.data import bundled
from llmlab.errors import InputError
from llmlab.inference.postfilter import PostFilter, sentences, words_of
from llmlab.recipe import parse

BOOK = " ".join(bundled.path("moby_dick").read_text(encoding="utf-8")[200_000:206_000].split())


@given(st.text(alphabet="ab .!?\n\"'”。！？」 \t", max_size=80))
def test_sentences_joined_are_the_text(text: str) -> None:
    parts = sentences(text)
    assert "".join(parts) == text
    assert all(part.strip() for part in parts[:-1])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two! Three?", ["One. ", "Two! ", "Three?"]),
        ('He said "Stop." Then he ran.', ['He said "Stop." ', "Then he ran."]),
        ("今天下雨。明天呢？好！", ["今天下雨。", "明天呢？", "好！"]),
        ("a line\nand another\n\nlast", ["a line\n", "and another\n\n", "last"]),
        ("3.14 is one number.", ["3.14 is one number."]),
        ("", []),
        (" \n", [" \n"]),
    ],
)
def test_sentences_by_hand(text: str, parts: list[str]) -> None:
    assert sentences(text) == parts


def test_a_repeat_goes_and_what_it_repeats_is_named() -> None:
    text = "The sea was calm that day. We sailed on. The sea was calm that day! Nobody spoke of it."
    found = PostFilter().of(text)
    assert found.text == "The sea was calm that day. We sailed on. Nobody spoke of it."
    (removed,) = found.removed
    assert text[removed.start : removed.end] == "The sea was calm that day! "
    assert (removed.earlier, found.sentences) == (0, 4)


def test_one_changed_word_is_a_repeat_and_another_sentence_is_none() -> None:
    first = "the old captain walked slowly along the deck of the ship"
    assert PostFilter().repeats([first, first.replace("slowly", "quickly")]) == [None, 0]
    assert PostFilter().repeats([first, "the young mate ran up to the top of the mast"]) == [None, None]
    assert PostFilter().repeats(["他今天早上去了北京的学校", "他今天早上去了北京的学校"]) == [None, 0]


def test_short_sentences_are_said_twice() -> None:
    text = "Yes. Yes. Aye, aye, sir. Aye, aye, sir. Yes."
    assert PostFilter().of(text).text == text
    assert len(PostFilter(words=1).of(text).removed) == 3


def test_repeats_are_held_against_kept_sentences_only() -> None:
    """A chain of small changes: each is near the one before, the last is not near the first, which alone was kept."""
    chain = ["a b c d e f g h i j", "a b c d e f g h i x", "a b c d e f y z i x", "a q w d e f y z i x"]
    found = PostFilter().repeats(chain)
    assert found[:2] == [None, 0]
    assert all(earlier is None or found[earlier] is None for earlier in found)


@given(st.lists(st.sampled_from(sentences(BOOK)[1:-1]), max_size=12))
def test_filtering_twice_changes_nothing_more(parts: Sequence[str]) -> None:
    once = PostFilter().of("".join(parts))
    again = PostFilter().of(once.text)
    assert again.removed == ()
    assert again.text == once.text
    exact = [tuple(words_of(part)) for part in sentences(once.text) if len(words_of(part)) >= 4]
    assert len(set(exact)) == len(exact)


def test_people_are_left_alone() -> None:
    assert PostFilter().of(BOOK).text == BOOK


def by_letters(texts: Sequence[str]) -> Tensor:
    """Two texts mean the same where they have the same letters."""
    return torch.stack([torch.bincount(torch.tensor([ord(c) % 64 for c in text]), minlength=64) for text in texts])


def test_an_encoder_finds_what_words_do_not() -> None:
    parts = ["one two three four five", "five four three two one", "six seven eight nine ten"]
    assert PostFilter().repeats(parts) == [None, None, None]
    assert PostFilter().repeats(parts, by_letters) == [None, 0, None]
    assert PostFilter(cosine=1.0).repeats(parts, by_letters) == [None, None, None]


def test_an_encoder_is_asked_for_long_sentences_only() -> None:
    asked: list[str] = []

    def spy(texts: Sequence[str]) -> Tensor:
        asked.extend(texts)
        return by_letters(texts)

    PostFilter().of("Yes. No. The sea was calm that day.", spy)
    assert asked == ["The sea was calm that day."]
    assert PostFilter().of("Yes. No.", spy).text == "Yes. No."
    assert len(asked) == 1


def test_minilm_finds_the_same_thing_said_otherwise(minilm: Path) -> None:
    from llmlab.language_model import load

    lm = load(minilm)
    text = "The children are playing in the garden. The whale was white and very old. Kids are playing in a garden."
    assert PostFilter().of(text).removed == ()
    assert PostFilter().of(text, lm.embed).text == text[: text.index(" Kids")]


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"overlap": 0}, {"overlap": 1.5}, {"run": 0}, {"cosine": 2}, {"word": 3}):
        with pytest.raises(InputError, match="filter"):
            parse(PostFilter, settings, "filter")


@pytest.mark.parametrize(
    "text", [" " * 200_000, "." * 200_000, "! " * 100_000, "a" * 200_000, ".'" * 100_000, "\n" * 200_000]
)
def test_cutting_takes_no_square_of_the_length(text: str) -> None:
    """Each of these would take minutes if every mark were looked at from every other."""
    assert "".join(sentences(text)) == text
