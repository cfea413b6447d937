"""Streamed pieces joined are the text returned at once: whole characters, no stop text, no beginning of one."""

from __future__ import annotations

import time

from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmlab.inference.text import TextStream, text_of


class Pieces:
    """A tokenizer whose token i stands for the i-th of some pieces of bytes."""

    special_ids = frozenset({1_000_000})

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def token_bytes(self, id: int) -> bytes:
        return self.pieces[id]


LETTERS = "abc \n三国演义😀👩‍👩‍👧é\u0301ß\ufffd"
texts = st.one_of(st.text(st.sampled_from(LETTERS), max_size=30), st.text(max_size=30))
stop_texts = st.lists(st.text(st.sampled_from(LETTERS), min_size=1, max_size=4), max_size=3)


def chunks(data: st.DataObject, content: bytes) -> list[bytes]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=12)))
    return [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]


def streamed(pieces: list[bytes], stops: list[str]) -> tuple[list[str], bool]:
    stream = TextStream(Pieces(pieces), stops)
    parts = [stream.push(token) for token in range(len(pieces))]
    return [*parts, stream.finish()], stream.stopped


def first_complete(text: str, stops: list[str]) -> str | None:
    """Brute force: the text before the stop that is complete first; None where none ever is."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return None


@settings(max_examples=300, deadline=None)
@given(data=st.data(), text=texts, stops=stop_texts)
def test_any_cut_gives_the_same_text(data: st.DataObject, text: str, stops: list[str]) -> None:
    expected = first_complete(text, stops)
    parts, stopped = streamed(chunks(data, text.encode()), stops)
    assert "".join(parts) == (text if expected is None else expected)
    assert stopped == (expected is not None)
    one_by_one, _ = streamed([bytes([byte]) for byte in text.encode()], stops)
    assert "".join(one_by_one) == "".join(parts)
    for part in parts:
        part.encode()  # no surrogate, so never half of anything


@settings(max_examples=200, deadline=None)
@given(data=st.data(), text=texts, stops=stop_texts.filter(bool))
def test_at_every_moment_what_was_said_stands_and_no_stop_is_in_it(
    data: st.DataObject, text: str, stops: list[str]
) -> None:
    parts, _ = streamed(chunks(data, text.encode()), stops)
    said = ""
    for part in parts:
        said += part
        assert text.startswith(said)
        assert not any(stop in said for stop in stops)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), content=st.binary(max_size=40))
@example(data=None, content="😀".encode()[:3])
@example(data=None, content=b"\xffabc\xe4\xb8")
def test_bytes_that_are_no_text_do_not_depend_on_the_cut(data: st.DataObject | None, content: bytes) -> None:
    pieces = chunks(data, content) if data else [bytes([byte]) for byte in content]
    assert "".join(streamed(pieces, [])[0]) == text_of(Pieces([content]), [0])


def test_a_character_comes_when_its_last_byte_does() -> None:
    parts, _ = streamed([bytes([byte]) for byte in "a😀中".encode()], [])
    assert parts == ["a", "", "", "", "😀", "", "", "中", ""]


def test_the_beginning_of_a_character_that_never_ends_is_left_out() -> None:
    assert "".join(streamed(["中".encode(), "国".encode()[:2]], [])[0]) == "中"


def test_text_waits_only_while_a_stop_is_possible() -> None:
    parts, stopped = streamed([b"x<", b"|e", b"y", b"<|", b"end", b"|>", b"z"], ["<|end|>"])
    assert parts == ["x", "", "<|ey", "", "", "", "", ""]
    assert stopped


def test_what_was_held_back_comes_at_the_end() -> None:
    assert streamed([b"one\n"], ["\n\n"])[0] == ["one", "\n"]


def test_a_stop_that_is_complete_first_wins_over_one_that_began_first() -> None:
    assert streamed([b"abc"], ["b", "abc"]) == (["a", ""], True)
    assert streamed([b"a", b"b", b"c"], ["b", "abc"]) == (["", "a", "", ""], True)
    assert streamed([b"xab"], ["b", "ab"]) == (["x", ""], True)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), text=st.text("ab三😀", max_size=40))
def test_many_stops_that_begin_and_hold_each_other(data: st.DataObject, text: str) -> None:
    stops = data.draw(st.lists(st.text("ab三😀", min_size=3, max_size=7), min_size=5, max_size=30))
    expected = first_complete(text, stops)
    parts, stopped = streamed(chunks(data, text.encode()), stops)
    assert "".join(parts) == (text if expected is None else expected)
    assert stopped == (expected is not None)


def test_a_thousand_stops_cost_as_much_as_one() -> None:
    """Searching for each of them took 3 ms a token."""
    stops = [f"{'ab' * 9}{number}" for number in range(1000)]
    stream = TextStream(Pieces([b"abab", b"xab"]), stops)
    began = time.process_time()
    said = "".join(stream.push(number % 2) for number in range(2000)) + stream.finish()
    assert time.process_time() - began < 1
    assert said == "ababxab" * 1000


def test_a_stop_ends_inside_of_a_token_that_goes_on_with_half_a_character() -> None:
    face = "😀".encode()
    assert streamed([b"one" + face[:1], face[1:]], ["e"]) == (["on", "", ""], True)
    assert streamed([b"on" + face[:3], face[3:] + b"x"], ["😀"]) == (["on", "", ""], True)
    assert streamed(["👩‍👩‍👧".encode()], ["👩‍👧"]) == (["👩‍", ""], True)


def test_special_tokens_have_no_text() -> None:
    assert text_of(Pieces([b"a", b"b"]), [0, 1_000_000, 1]) == "ab"


def test_at_the_start_a_space_of_spelling_is_left_out_once() -> None:
    assert text_of(Pieces([b" Once", b" upon"]), [0, 1], start=True) == "Once upon"
    assert text_of(Pieces([b" Once", b" upon"]), [0, 1]) == " Once upon"
    assert text_of(Pieces([b"Once", b" upon"]), [0, 1], start=True) == "Once upon"
