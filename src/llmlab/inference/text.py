"""Ids to text while they come: never half a character, never a stop text or the beginning of one."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Protocol


class Bytes(Protocol):
    """What is asked of a tokenizer."""

    @property
    def special_ids(self) -> frozenset[int]: ...
    def token_bytes(self, id: int) -> bytes: ...


class TextStream:
    """`push(id)` answers the text that is certain by now, `finish()` the rest.

    However the ids are cut into pieces, the answers joined are the same text: all bytes decoded, up to the stop text
    that is complete first (of those complete at the same character, the one that began first). Special tokens have no
    text. Bytes that are no UTF-8 become U+FFFD; the beginning of a character that never ends is left out. `start`: the
    text goes on from nothing, so a space that belongs to the first token's spelling alone is left out.
    """

    def __init__(self, tokenizer: Bytes, stops: Sequence[str] = (), start: bool = False) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = start
        self._held = ""  # decoded, but perhaps the beginning of a stop text
        self.stopped = False  # whether a stop text came; nothing is answered from then on

    def push(self, token: int) -> str:
        if self.stopped or token in self._tokenizer.special_ids:
            return ""
        new = self._decoder.decode(self._tokenizer.token_bytes(token))
        if self._at_start and new:
            self._at_start, new = False, new.removeprefix(" ")
        text = self._held + new
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def copy(self) -> TextStream:
        """One that goes on from here by itself."""
        other = TextStream(self._tokenizer, self._stops, self._at_start)
        other._decoder.setstate(self._decoder.getstate())
        other._held, other.stopped = self._held, self.stopped
        return other

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


def text_of(tokenizer: Bytes, ids: Iterable[int], stops: Sequence[str] = (), start: bool = False) -> str:
    """The whole text of these ids at once, as `TextStream` would have streamed it."""
    stream = TextStream(tokenizer, stops, start)
    return "".join([stream.push(token) for token in ids]) + stream.finish()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without being all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
