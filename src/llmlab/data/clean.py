"""Cleaning: normalisations that change a text, rules that drop it, and what each did in documents and bytes.

A batch of documents goes in, the batch of those that stay and the funnel's counts come out; nothing is remembered from
batch to batch, so batches of any size, in any process, give the same documents and counts.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
from pydantic import Field

from llmlab.data.batches import SCHEMA, raw_texts
from llmlab.data.rules.optional import check_languages, languages, repairer
from llmlab.data.rules.personal import Personal, Unmasked
from llmlab.data.rules.rule import Edit, Filter
from llmlab.data.rules.sets import Rule, expanded
from llmlab.data.rules.view import View, numpy, strings
from llmlab.data.words import Bool
from llmlab.errors import InputError
from llmlab.recipe import Section

LINE_ENDS = re.compile(r"\r\n?|[\v\f\x85\u2028\u2029]")
CONTROLS = re.compile(r"[\0-\x08\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
SURROGATES = re.compile(r"[\ud800-\udfff]")  # half a character, as JSON may hold; it has no bytes
BLANK_LINES = re.compile(r"\n{3,}")


EXAMPLES, EXCERPT = 3, 300  # documents that are shown of those a step dropped, and characters of each


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

    def count_all(self, before: Any, after: Any, changed: int = 0) -> None:
        """The same of many: bytes int64 of what came in, and of what went out."""
        self.documents_in += len(before)
        self.bytes_in += int(before.sum())
        self.documents_out += len(after)
        self.bytes_out += int(after.sum())
        self.changed += changed

    def add(self, other: "Step") -> None:
        """The counts of the same step over other documents."""
        for name in ("documents_in", "bytes_in", "documents_out", "bytes_out", "changed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Funnel:
    """Steps in order; the first documents that each of them dropped, as {"source", "text"}; and how many documents
    there were of each language, where that was asked."""

    steps: list[Step] = field(default_factory=list)
    dropped: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Funnel") -> None:
        """The funnel of later documents."""
        if not self.steps:
            self.steps = [Step(step.name) for step in other.steps]
        for mine, theirs in zip(self.steps, other.steps, strict=True):
            mine.add(theirs)
        for name, examples in other.dropped.items():
            self.dropped[name] = [*self.dropped.get(name, []), *examples][:EXAMPLES]
        self.languages.update(other.languages)

    def drop(self, name: str, source: str, text: str) -> None:
        """Note an example of what a step dropped."""
        examples = self.dropped.setdefault(name, [])
        if len(examples) < EXAMPLES:
            examples.append({"source": source, "text": text[:EXCERPT]})


class Clean(Section):
    """Normalisation, then rules; a text that breaks a rule is dropped whole."""

    unicode: Literal["nfc", "nfkc", "none"] = Field("nfc", description="Normal form; nfkc also unifies widths.")
    min_characters: int = Field(20, ge=1, description="A shorter text is dropped.")
    max_symbols: float = Field(0.5, gt=0, le=1, description="Share of characters that are marks and symbols.")
    max_repeated_lines: float = Field(0.5, gt=0, le=1, description="Share of the text in lines it has before.")
    max_replacements: float = Field(0.01, ge=0, le=1, description="Share of U+FFFD, what a wrong decoding leaves.")
    repair: Literal["none", "ftfy"] = Field("none", description='Mend text that was decoded wrongly, as "donâ€™t".')
    languages: tuple[str, ...] = Field(
        (), description="That stay, as [en, zh, wuu]; all if empty. Some Chinese is told as wuu."
    )
    rules: tuple[Rule, ...] = Field((), description="Sets of rules, as [gopher, c4, fineweb], or single ones.")
    personal: Personal = Field(Unmasked(), description="What happens to e-mail addresses, telephones, IP addresses.")

    def build(self) -> "Cleaner":
        """`InputError` for what needs a package that is not there, and for a rule that is none."""
        if self.repair == "ftfy":
            repairer()
        if self.languages:
            check_languages(self.languages)
        return Cleaner(self)


class Cleaner:
    """`Clean` as a pure function of batches. Called with one text it cleans that, for who has no more."""

    def __init__(self, section: Clean) -> None:
        form = section.unicode
        repair = [("repair", repairer())] if section.repair == "ftfy" else []
        self._changes: list[tuple[str, Callable[[str], str]]] = [
            ("line ends", lambda text: LINE_ENDS.sub("\n", text)),
            *repair,
            ("control characters", lambda text: CONTROLS.sub("", SURROGATES.sub("\ufffd", text))),
            (f"unicode {form}", lambda text: text if form == "none" else _normal(form, text)),
            ("trailing spaces", lambda text: "\n".join(line.rstrip() for line in text.split("\n"))),
            ("blank lines", lambda text: BLANK_LINES.sub("\n\n", text).strip("\n")),
        ]
        self._rules: list[tuple[str, Callable[[str], bool]]] = [
            ("min_characters", lambda text: len(text) >= section.min_characters),
            ("max_symbols", lambda text: symbols(text) <= section.max_symbols),
            ("max_repeated_lines", lambda text: repeated_lines(text) <= section.max_repeated_lines),
            ("max_replacements", lambda text: text.count("\ufffd") <= section.max_replacements * len(text)),
        ]
        self._languages = section.languages
        self._more: list[Filter | Edit] = [*expanded(section.rules), *_personal(section.personal)]

    @property
    def names(self) -> list[str]:
        """Of the steps, in order."""
        plain = [name for name, _ in (*self._changes, *self._rules)]
        return [*plain, *(["languages"] if self._languages else []), *(_name(rule) for rule in self._more)]

    def __call__(self, text: str) -> str | None:
        """The cleaned text, or None where a rule drops it."""
        import pyarrow

        one = text.encode("utf-8", "surrogatepass")
        batch, _ = self.batch(pyarrow.record_batch([[one], [""], [0]], schema=SCHEMA))
        return str(batch["text"][0]) if len(batch) else None

    def batch(self, batch: Any) -> tuple[Any, Funnel]:
        """Documents as they were read (`batches.SCHEMA`) to those that stay, their text being a string then."""
        import pyarrow

        funnel = Funnel([Step(name) for name in self.names])
        sources, texts, kept = batch["source"].to_pylist(), raw_texts(batch), list[int]()
        cleaned = list[str]()
        for number, text in enumerate(texts):  # Python's own Unicode tables and expressions: a text at a time
            made = self._plain(text, sources[number], funnel)
            if made is not None:
                kept.append(number)
                cleaned.append(made)
        rows = np.asarray(kept, np.int64)
        made_texts, rows = self._judge(strings(cleaned), rows, sources, funnel)
        rest = batch.select(["source", "origin"]).take(pyarrow.array(rows))
        return pyarrow.record_batch([made_texts, *rest.columns], names=["text", "source", "origin"]), funnel

    def _plain(self, text: str, source: str, funnel: Funnel) -> str | None:
        steps = iter(funnel.steps)
        size = _size(text)
        for _, change in self._changes:
            text, before, same = change(text), size, text
            if text != same:
                size = _size(text)
            next(steps).count(before, size, text != same)
        for name, keep in self._rules:
            kept = keep(text)
            next(steps).count(size, size if kept else None)
            if not kept:
                funnel.drop(name, source, text)
                return None
        return text

    def _judge(self, texts: Any, rows: Any, sources: Sequence[str], funnel: Funnel) -> tuple[Any, Any]:
        """What is asked of all texts of a batch at once; `rows` are their places in the batch."""
        steps = iter(funnel.steps[len(self._changes) + len(self._rules) :])
        if self._languages:
            told = languages(texts.to_pylist())
            funnel.languages.update(told)
            here = np.isin(np.asarray(told, dtype=object), self._languages)
            texts, rows = _drop(texts, rows, here, next(steps), sources, funnel)
        waiting = list[Filter]()  # filters in a row look at one view, so that words and lines are found once
        for rule in self._more:
            if isinstance(rule, Filter):
                waiting.append(rule)
                continue
            texts, rows = _filter(texts, rows, waiting, steps, sources, funnel)
            waiting = []
            texts, rows = _edit(texts, rows, rule, next(steps), sources, funnel)
        return _filter(texts, rows, waiting, steps, sources, funnel)


def _filter(
    texts: Any, rows: Any, rules: Sequence[Filter], steps: Any, sources: Sequence[str], funnel: Funnel
) -> tuple[Any, Any]:
    """Each rule judges all texts, and drops those that no earlier one has dropped."""
    view = View(texts)
    alive = np.ones(len(texts), bool)
    for rule in rules:
        kept = alive & rule(view) if len(texts) else alive
        count_kept(texts, rows, alive, kept, next(steps), sources, funnel)
        alive = kept
    return texts.filter(alive), rows[alive]


def _drop(texts: Any, rows: Any, kept: Bool, step: Step, sources: Sequence[str], funnel: Funnel) -> tuple[Any, Any]:
    count_kept(texts, rows, np.ones(len(texts), bool), kept, step, sources, funnel)
    return texts.filter(kept), rows[kept]


def count_kept(
    texts: Any, rows: Any, alive: Bool, kept: Bool, step: Step, sources: Sequence[str], funnel: Funnel
) -> None:
    """Note a step that left `kept` of the texts that were `alive`; `rows` are the places of their sources."""
    size = sizes(texts)
    step.count_all(size[alive], size[kept])
    for number in np.flatnonzero(alive & ~kept)[:EXAMPLES]:
        funnel.drop(step.name, sources[rows[number]], str(texts[int(number)]))


def _edit(texts: Any, rows: Any, rule: Edit, step: Step, sources: Sequence[str], funnel: Funnel) -> tuple[Any, Any]:
    import pyarrow.compute as pc

    edited = rule.edit(texts)
    if len(edited) != len(texts):
        raise InputError("clean.rules", f"{step.name} made {len(edited)} texts of {len(texts)}", "one for each")
    kept = numpy(pc.greater(pc.binary_length(edited), 0))
    other = numpy(pc.not_equal(edited, texts)) & kept
    before, after = sizes(texts), sizes(edited)
    step.count_all(before, after[kept], int(other.sum()))
    for number in np.flatnonzero(~kept)[:EXAMPLES]:
        funnel.drop(step.name, sources[rows[number]], str(texts[int(number)]))
    return edited.filter(kept), rows[kept]


def sizes(texts: Any) -> Any:
    """int64 [texts]: bytes of UTF-8."""
    import pyarrow.compute as pc

    return numpy(pc.binary_length(texts)).astype(np.int64)


@cache
def cleaner(section: Clean) -> Cleaner:
    """The cleaner of a section, made once in a process: a language model of letters takes a while to read."""
    return section.build()


def cleaned(section: Clean, batch: Any) -> tuple[Any, Funnel]:
    """Pure: a batch of documents as they were read, to those that stay and what each step did."""
    return cleaner(section).batch(batch)


def _personal(part: Any) -> list[Edit]:
    match part:
        case Unmasked():
            return []
        case Edit():
            return [part]
        case _:
            raise InputError("clean.personal", f"{part.kind} is no Edit of llmlab.data.rules.rule")


def _name(rule: Filter | Edit) -> str:
    return str(rule.kind)  # type: ignore[union-attr]


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
