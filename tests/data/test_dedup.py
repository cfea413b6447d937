"""Exact duplicates, found by content."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmlab.data.dedup import Seen, key


@given(st.lists(st.text(st.sampled_from("ab \n字")), max_size=30))
def test_the_first_of_equal_texts_stays(texts: list[str]) -> None:
    seen = Seen()
    kept = [text for text in texts if seen.new(key(text))]
    plain = [" ".join(text.split()) for text in texts]
    assert [" ".join(text.split()) for text in kept] == list(dict.fromkeys(plain))


def test_keys_stay_what_they_are() -> None:
    """The split and finished runs stand on them."""
    assert key("Call me Ishmael.") == key(" Call  me\nIshmael.\n") == KEY
    assert key("Call me ishmael.") != KEY


KEY = 0x38A5B843AF2352C2
