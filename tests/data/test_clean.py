"""Cleaning: what each normalisation and rule does, and that the funnel's counts add up."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.data.clean import Clean, repeated_lines, symbols

ANY = st.text(st.sampled_from("ab \n\r\t\x0c\ufeff\u0301\u3000") | st.characters())
LOOSE = Clean(min_characters=1, max_symbols=1, max_repeated_lines=1, max_replacements=1)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\r\nb\rc\x0bd\u2028e", "a\nb\nc\nd\ne"),
        ("a\0b\x07c\ufeff\x9f", "abc"),
        ("a\ud800b", "a\ufffdb"),
        ("cafe\u0301", "caf\u00e9"),
        ("a  \t\nb\u3000\n", "a\nb"),
        ("\n\na\n\n\n\n  \n\nb\n", "a\n\nb"),
        ("  indented\n\tcode", "  indented\n\tcode"),
        ("fullwidth　（全角）", "fullwidth　（全角）"),
    ],
)
def test_normalisation(text: str, cleaned: str) -> None:
    assert LOOSE.build()(text) == cleaned


def test_nfkc_unifies_widths_and_none_leaves_all() -> None:
    assert LOOSE.model_copy(update={"unicode": "nfkc"}).build()("ＡＢ①") == "AB1"
    assert LOOSE.model_copy(update={"unicode": "none"}).build()("cafe\u0301") == "cafe\u0301"


@given(ANY)
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = LOOSE.build()(text)
    if once is not None:
        assert LOOSE.build()(once) == once
        once.encode()  # no half characters


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("too short", "min_characters"),
        ("$$$ ### @@@ *** >>> <<< word ===", "max_symbols"),
        ("the same line over\n" * 3 + "another one", "max_repeated_lines"),
        ("half of th\ufffds text w\ufffds lost in decoding", "max_replacements"),
    ],
)
def test_each_rule_drops_what_it_is_for(text: str, rule: str) -> None:
    cleaner = Clean().build()
    assert cleaner(text) is None
    lost = {step.name for step in cleaner.steps if step.documents_in > step.documents_out}
    assert lost == {rule}


@pytest.mark.parametrize(
    "text",
    [
        "Call me Ishmael. Some years ago—never mind how long precisely—having little or no money",
        "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。",
        "हिन्दी में लिखा हुआ एक साधारण वाक्य जिसमें मात्राएँ हैं",  # its vowel signs are marks, not symbols
        "def f(x):\n    return {'a': [x, 1]}\n",
    ],
)
def test_ordinary_text_passes(text: str) -> None:
    assert Clean().build()(text) is not None


def test_shares() -> None:
    assert symbols("ab,.") == 0.5
    assert symbols("") == 0
    assert symbols("a\n\t ") == 0
    assert repeated_lines("ab\n\nab\n\ncd") == pytest.approx(1 / 3)
    assert repeated_lines("") == 0


@given(st.lists(ANY, max_size=8))
def test_the_funnel_adds_up(texts: list[str]) -> None:
    cleaner = Clean(min_characters=3).build()
    kept = [text for text in map(cleaner, texts) if text is not None]
    steps = cleaner.steps
    assert steps[0].documents_in == len(texts)
    assert steps[0].bytes_in == sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    for step, after in itertools.pairwise(steps):
        assert (step.documents_out, step.bytes_out) == (after.documents_in, after.bytes_in)
    assert (steps[-1].documents_out, steps[-1].bytes_out) == (len(kept), sum(len(text.encode()) for text in kept))


def test_a_long_run_of_spaces_is_no_trap() -> None:
    assert LOOSE.build()("a" + " " * 500_000 + "b") == "a" + " " * 500_000 + "b"
