"""Cleaning: normalisations that change a text, rules that drop it, and what each did in documents and bytes.

The rules follow C4 (Raffel et al. 2020) and Gopher (Rae et al. 2021) where they do not depend on English.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from llmlab.recipe import Section

LINE_ENDS = re.compile(r"\r\n?|[\v\f\x85\u2028\u2029]")
CONTROLS = re.compile(r"[\0-\x08\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
SURROGATES = re.compile(r"[\ud800-\udfff]")  # half a character, as JSON may hold; it has no bytes
BLANK_LINES = re.compile(r"\n{3,}")


@dataclass
class Step:
    """One row of the data funnel: what went in and what came out, in documents and UTF-8 bytes."""

    name: str
    documents_in: int = 0
    bytes_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0
    changed: int = 0  # documents that came out with another text

    def count(self, before: int, after: int | None, changed: bool = False) -> None:
        """Note one document of `before` bytes that came out with `after` bytes, or not at all."""
        self.documents_in += 1
        self.bytes_in += before
        if after is not None:
            self.documents_out += 1
            self.bytes_out += after
            self.changed += changed


class Clean(Section):
    """Normalisation, then rules; a text that breaks a rule is dropped whole."""

    unicode: Literal["nfc", "nfkc", "none"] = Field("nfc", description="Normal form; nfkc also unifies widths.")
    min_characters: int = Field(20, ge=1, description="A shorter text is dropped.")
    max_symbols: float = Field(0.5, gt=0, le=1, description="Share of characters that are marks and symbols.")
    max_repeated_lines: float = Field(0.5, gt=0, le=1, description="Share of the text in lines it has before.")
    max_replacements: float = Field(0.01, ge=0, le=1, description="Share of U+FFFD, what a wrong decoding leaves.")

    def build(self) -> "Cleaner":
        return Cleaner(self)


class Cleaner:
    """Applies `Clean` to one text after another; `steps` is the funnel so far."""

    def __init__(self, section: Clean) -> None:
        form = section.unicode
        self._changes: list[tuple[Callable[[str], str], Step]] = [
            (lambda text: LINE_ENDS.sub("\n", text), Step("line ends")),
            (lambda text: CONTROLS.sub("", SURROGATES.sub("\ufffd", text)), Step("control characters")),
            (lambda text: text if form == "none" else _normal(form, text), Step(f"unicode {form}")),
            (lambda text: "\n".join(line.rstrip() for line in text.split("\n")), Step("trailing spaces")),
            (lambda text: BLANK_LINES.sub("\n\n", text).strip("\n"), Step("blank lines")),
        ]
        self._rules: list[tuple[Callable[[str], bool], Step]] = [
            (lambda text: len(text) >= section.min_characters, Step("min_characters")),
            (lambda text: symbols(text) <= section.max_symbols, Step("max_symbols")),
            (lambda text: repeated_lines(text) <= section.max_repeated_lines, Step("max_repeated_lines")),
            (lambda text: text.count("\ufffd") <= section.max_replacements * len(text), Step("max_replacements")),
        ]

    @property
    def steps(self) -> list[Step]:
        return [step for _, step in self._changes] + [step for _, step in self._rules]

    def __call__(self, text: str) -> str | None:
        """The cleaned text, or None where a rule drops it."""
        size = _size(text)
        for change, step in self._changes:
            text, before, same = change(text), size, text
            if text != same:
                size = _size(text)
            step.count(before, size, text != same)
        for keep, step in self._rules:
            kept = keep(text)
            step.count(size, size if kept else None)
            if not kept:
                return None
        return text


def symbols(text: str) -> float:
    """Share of characters that are punctuation, symbols, unassigned or private; 0 of an empty text."""
    # By distinct character: letters of all scripts and their marks have categories L, M and N, white space has Z.
    counts = Counter(text.replace("\n", " ").replace("\t", " "))  # line ends and tabs have category C
    odd = sum(count for letter, count in counts.items() if unicodedata.category(letter)[0] in "PSC")
    return odd / len(text) if text else 0.0


def repeated_lines(text: str) -> float:
    """Share of characters in lines that stood in the text before, empty lines not counted; 0 of an empty text."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    total = sum(map(len, lines))
    return 1 - sum(map(len, set(lines))) / total if total else 0.0


def _normal(form: Literal["nfc", "nfkc"], text: str) -> str:
    return unicodedata.normalize("NFC" if form == "nfc" else "NFKC", text)


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
