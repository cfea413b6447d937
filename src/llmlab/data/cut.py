"""Cutting a long text into documents, at the best boundary near the wanted size."""

import re
from collections.abc import Iterable, Iterator

# Best first. A document begins after the match, so what is cut off at its end is at most white space.
BOUNDARIES = (
    re.compile(r"\n[^\S\n]*\n\s*"),  # an empty line: the end of a paragraph
    re.compile(r"\n"),  # the end of a line
    re.compile(r"[。！？…]+[」』”’）]*|[.!?]+[\"'”’)\]]*\s+"),  # the end of a sentence
    re.compile(r"\s+"),  # the end of a word
)


def cut(chunks: Iterable[str], piece: int) -> Iterator[str]:
    """Documents of at most `piece` characters, at least half of that but for the last; joined they are the whole text.

    Each ends at the last paragraph of its second half, else at the last line, sentence or word there, else hard.
    """
    rest, start = "", 0
    for chunk in chunks:
        rest, start = rest[start:] + chunk, 0
        while len(rest) - start > piece:
            end = _boundary(rest, start, piece)
            yield rest[start:end]
            start = end
    if start < len(rest):
        yield rest[start:]


def _boundary(text: str, start: int, piece: int) -> int:
    half, limit = start + (piece + 1) // 2, start + piece
    for boundary in BOUNDARIES:
        end = max((match.end() for match in boundary.finditer(text, start, limit)), default=0)
        if end >= half:
            return end
    return limit
