"""Ids to text while they come: never half a character, never a stop text or the beginning of one."""

from __future__ import annotations

import codecs
import copy
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
        self._stops = _Stops(stops)
        self._decoder = _decoder()
        self._at_start = start
        self._held = ""  # decoded, but perhaps the beginning of a stop text, of which `_node` is the longest
        self._node = 0
        self.stopped = False  # whether a stop text came; nothing is answered from then on

    def push(self, token: int) -> str:
        if self.stopped or token in self._tokenizer.special_ids:
            return ""
        new = self._decoder.decode(self._tokenizer.token_bytes(token))
        if self._at_start and new:
            self._at_start, new = False, new.removeprefix(" ")
        text = self._held + new
        for end, letter in enumerate(new, len(self._held) + 1):
            self._node = self._stops.after(self._node, letter)
            if size := self._stops.complete[self._node]:
                self.stopped, self._held = True, ""
                return text[: end - size]
        keep = self._stops.depth[self._node]
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def copy(self) -> TextStream:
        """One that goes on from here by itself."""
        other = copy.copy(self)
        other._decoder = _decoder()
        other._decoder.setstate(self._decoder.getstate())
        return other

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


def text_of(tokenizer: Bytes, ids: Iterable[int], stops: Sequence[str] = (), start: bool = False) -> str:
    """The whole text of these ids at once, as `TextStream` would have streamed it."""
    stream = TextStream(tokenizer, stops, start)
    return "".join([stream.push(token) for token in ids]) + stream.finish()


class _Stops:
    """Which stop texts a text ends in, or in the beginning of which: one step a letter, however many there are (Aho &
    Corasick 1975, "Efficient string matching"). Nodes are the beginnings of stop texts, 0 the empty one."""

    def __init__(self, stops: Iterable[str]) -> None:
        self.depth = [0]  # letters of each beginning
        self._next: dict[tuple[int, str], int] = {}
        whole = []
        for stop in stops:
            node = 0
            for letter in stop:
                if (node, letter) not in self._next:
                    self._next[node, letter] = len(self.depth)
                    self.depth.append(self.depth[node] + 1)
                node = self._next[node, letter]
            whole.append(node)
        self.complete = [0] * len(self.depth)  # letters of the longest stop text that it ends in
        for node in whole:
            self.complete[node] = self.depth[node]
        self._shorter = [0] * len(self.depth)  # the longest other beginning that it ends in
        for (before, letter), node in sorted(self._next.items(), key=lambda item: self.depth[item[1]]):
            self._shorter[node] = self.after(self._shorter[before], letter) if before else 0
            self.complete[node] = self.complete[node] or self.complete[self._shorter[node]]

    def after(self, node: int, letter: str) -> int:
        """The longest beginning that a text ends in which ended in `node` and goes on with `letter`."""
        while (found := self._next.get((node, letter))) is None and node:
            node = self._shorter[node]
        return found or 0
