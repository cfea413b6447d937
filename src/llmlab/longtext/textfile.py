"""A file of text that need not fit into memory: read as a stream, its passages by their places.

Places are characters of the decoded text, as `Path(file).read_text(encoding)` gives it: line ends of Windows count as
the one newline they are read as, and so `text == content[start:end]` holds for every file. A byte order mark is no
character of the text (as with `utf-8-sig`); a .gz file is what is packed in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmlab.data.files import chunks, find
from llmlab.errors import InputError
from llmlab.longtext.bm25 import CJK
from llmlab.longtext.chunk import check, spans_at
from llmlab.longtext.hierarchy import Int64, sentence_ends

MARGIN = 64  # characters past a chunk that tell where its last sentence ends


@dataclass(frozen=True)
class Chunk:
    """A piece of a file: where it begins, and its text."""

    start: int
    text: str

    @property
    def end(self) -> int:
        return self.start + len(self.text)


@dataclass(frozen=True)
class TextFile:
    """A user's file of text. `TextFile.of` looks whether it is one."""

    path: Path
    encoding: str = "utf-8"

    @classmethod
    def of(cls, path: str | Path, encoding: str = "utf-8") -> TextFile:
        """Errors: InputError for a folder, a missing file, and an encoding that is not known."""
        place = Path(path).expanduser()
        try:
            "a".encode(encoding)
        except (LookupError, UnicodeError):
            raise InputError("encoding", f"{encoding!r} is no text encoding known here", "as utf-8, gb18030") from None
        if place.is_dir():
            raise InputError(str(path), "is a folder", "name one file in it")
        if not place.is_file():
            find(str(path))  # says what is near
            raise InputError(str(path), "names no one file")
        return cls(place, encoding)

    def blocks(self) -> Iterator[str]:
        """The text from its beginning, about a million characters at a time. Errors: InputError for binary content,
        bytes that the encoding does not have, and a file with nothing but blanks."""
        some = False
        for block in chunks(self.path, self.encoding):
            some = some or bool(block.strip())
            yield block
        if not some:
            raise InputError(str(self.path), "holds no text")

    def is_dense(self) -> bool:
        """Whether half of the beginning's letters are Chinese, Japanese or Korean."""
        beginning = next(self.blocks(), "")[:20_000]
        letters = sum(map(str.isalpha, beginning))
        return 2 * len(CJK.findall(beginning)) > letters

    def chunks(self, size: int, overlap: int) -> Iterator[list[Chunk]]:
        """All of the text in chunks of at most `size` characters, cut between sentences where one ends in reach
        (`chunk.spans_at`), without blanks around; those of a block at once. Memory is that of two blocks.

        Errors: as `chunk.check` and `blocks`.
        """
        check(size, overlap)
        start, held = 0, ""  # where `held` begins, which is not cut yet
        for block in self.blocks():
            text = held + block
            last = len(text) - size - MARGIN  # chunks that begin before it are not moved by what comes
            if last <= 0:
                held = text
                continue
            spans = spans_at(sentence_ends(text), len(text), size, overlap)
            whole = int(np.searchsorted(spans[:, 0], last))
            yield _cut(text, start, spans[:whole])
            begin = int(spans[whole, 0]) if whole < len(spans) else len(text)
            start, held = start + begin, text[begin:]
        yield _cut(held, start, spans_at(sentence_ends(held), len(held), size, overlap))

    def texts(self, spans: Sequence[tuple[int, int]]) -> list[str]:
        """The text of each span, in one reading of the file up to the last of them."""
        order = sorted(range(len(spans)), key=lambda number: spans[number])
        pieces: list[list[str]] = [[] for _ in spans]
        waiting, open_, before = 0, list[int](), 0
        for block in self.blocks():
            after = before + len(block)
            while waiting < len(order) and spans[order[waiting]][0] < after:
                open_.append(order[waiting])
                waiting += 1
            for number in open_:
                start, end = spans[number]
                pieces[number].append(block[max(0, start - before) : max(0, end - before)])
            open_ = [number for number in open_ if spans[number][1] > after]
            before = after
            if waiting == len(order) and not open_:
                break
        return ["".join(piece) for piece in pieces]


def _cut(text: str, start: int, spans: Int64) -> list[Chunk]:
    """The chunks of a text that begins at `start` in its file, without blanks around; none of blanks alone."""
    found = []
    for first, last in spans.tolist():
        if piece := text[first:last].lstrip():
            found.append(Chunk(start + last - len(piece), piece.rstrip()))
    return found
