"""The parts of a text: sections under their headings, paragraphs, sentences. English and Chinese.

All spans are character offsets, first and one after the last, without the blanks around. Rules and no model: a full
stop after a title (Mr.) or an initial (J.) ends no sentence, nor does one that a small letter follows. N spans.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

_TITLES = "".join(rf"(?<!\b{title})" for title in ("Mr", "Mrs", "Ms", "Dr", "St", "Capt", "No", "vs", "[A-Z]"))
# Sentences end before a blank, Chinese ones need none; an empty line ends whatever there is.
_END = re.compile(
    rf"""(?:(?:{_TITLES}\.+|[!?…]+)[.!?…]*[”’"'»)\]]*(?=\s[^a-z])"""
    r"""|[。！？]+[”’」』）]*|\n(?=[ \t]{0,8}\n))"""
)
_EMPTY_LINE = re.compile(r"\n[ \t]*\n\s*")
_HEADING = re.compile(
    r"^(?:#{1,6}[ \t]+\S.*"  # Markdown
    r"|(?:CHAPTER|Chapter|BOOK|Book|PART|Part|SECTION|Section|ACT|SCENE)[ \t]+(?:[0-9]{1,4}|[IVXLC]{1,9})\b[^\n]{0,100}"
    r"|第[0-9零〇一二三四五六七八九十百千两]{1,9}[回章节卷部篇][^\n]{0,60})$",
    re.MULTILINE,
)


def sentence_ends(text: str) -> Int64:
    """[N]: the places where a sentence or a paragraph ends, each before the blanks that follow, in order."""
    return np.fromiter((match.end() for match in _END.finditer(text)), np.int64)


def sentences(text: str) -> Int64:
    """[N, 2]: the sentences of a text."""
    ends = sentence_ends(text)
    return stripped(text, np.stack([np.concatenate([[0], ends]), np.concatenate([ends, [len(text)]])], axis=1))


def paragraphs(text: str) -> Int64:
    """[N, 2]: what empty lines part; where there are none, what lines part."""
    breaks = [match.span() for match in _EMPTY_LINE.finditer(text.rstrip())]
    if not breaks:
        breaks = [match.span() for match in re.finditer(r"\n\s*", text)]
    starts, ends = [0, *(end for _, end in breaks)], [*(start for start, _ in breaks), len(text)]
    return stripped(text, np.array([starts, ends], np.int64).T)


def stripped(text: str, spans_N2: Int64) -> Int64:
    """The spans without blanks at their ends; those of blanks only are left out."""
    found = [
        (end - len(piece), end - len(piece) + len(piece.rstrip()))
        for start, end in spans_N2.tolist()
        if (piece := text[start:end].lstrip())
    ]
    return np.array(found, np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class Part:
    """A section: its heading ("" before the first one), and where it begins and ends in the file."""

    title: str
    start: int
    end: int


def headings(blocks: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Place and text of each heading of a text that comes in blocks: lines of Markdown (`# ...`), CHAPTER 1, Part II,
    第一回. A line that two blocks share is seen whole; no line of more than 200 characters is a heading."""
    before, rest = 0, ""  # characters before `rest`, the line that is not over
    for block in blocks:
        text = rest + block
        whole = text.rfind("\n") + 1
        yield from ((before + match.start(), match.group().strip()) for match in _HEADING.finditer(text[:whole]))
        rest = text[whole:]
        kept = rest[-200:] if len(rest) > 400 else rest  # what cannot be a heading need not be remembered
        before, rest = before + len(text) - len(kept), ("\0" + kept[1:] if len(kept) < len(rest) else kept)
    yield from ((before + match.start(), match.group().strip()) for match in _HEADING.finditer(rest))


def sections(blocks: Iterable[str]) -> list[Part]:
    """The sections of a text that comes in blocks, each with its heading; one without a title where there is none."""
    length = 0

    def counted() -> Iterator[str]:
        nonlocal length
        for block in blocks:
            length += len(block)
            yield block

    found = list(headings(counted()))
    if not found or found[0][0] > 0:
        found.insert(0, (0, ""))
    ends = [start for start, _ in found[1:]] + [length]
    return [Part(title, start, end) for (start, title), end in zip(found, ends, strict=True) if end > start]
