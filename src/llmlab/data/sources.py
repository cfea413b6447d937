"""Where text comes from: the bundled books or the user's own files, read as a stream of documents.

txt and md files are cut into pieces; jsonl, json, csv, parquet and arrow give one document a row, from a column that
the recipe names; a dialogue becomes plain text. Any of them may be packed. Only a json file, which has no smaller unit,
is held in memory whole.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from llmlab.data import bundled
from llmlab.data.cut import cut
from llmlab.data.files import TABLES, chunks, ending, find
from llmlab.data.layouts import SEVERAL, Layout, first_row, layout_of
from llmlab.data.plain import plain
from llmlab.data.rows import Columns, Problem, Rows, rows, text_of
from llmlab.errors import InputError
from llmlab.recipe import KINDS, Section

EXAMPLES = 20  # skipped rows that are named, of all that are counted


@dataclass(frozen=True)
class Document:
    """A text and where it comes from: `file:line` of a row, `file:n` of the n-th piece."""

    text: str
    source: str
    origin: int = 0  # the number of its source in the recipe


@dataclass
class Reading:
    """What a reader saw on the way: files, rows (the pieces of a text count as rows), rows it had to skip."""

    files: int = 0
    rows: int = 0
    skipped: int = 0
    examples: list[str] = field(default_factory=list)  # the first skipped ones, each with its line and reason

    def skip(self, what: str) -> None:
        self.skipped += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(what)


class Bundled(Section):
    """A book that ships with llmlab."""

    kind: Literal["bundled"] = "bundled"
    name: Literal["moby_dick", "sanguo_yanyi"] = Field("moby_dick", description="Which book.")
    piece: int = Field(4000, ge=1, description="Characters a document has at most; cut at paragraphs where possible.")

    @property
    def told(self) -> tuple[str, str]:
        """Its name and licence, for the data card."""
        return self.name, "public domain"

    def files(self) -> list[Path]:
        return [bundled.path(self.name)]

    def read(self, reading: Reading) -> Iterator[Document]:
        """The book in pieces."""
        reading.files += 1
        return _pieces(self.files()[0], self.name, "utf-8", self.piece, reading)


class Files(Section):
    """Your own files: txt, md, jsonl, json, csv, parquet, arrow, each also packed (.gz, .bz2, .xz, .zst), and folders
    that Hugging Face datasets saved. Rows without the column of the text are read as the dialogues they hold."""

    kind: Literal["files"] = "files"
    path: str = Field(min_length=1, description="A file, a folder (read with all below it), or a pattern with *.")
    text: str | Columns = Field("text", description="Column of the text; of several, joined by an empty line.")
    encoding: str = Field("utf-8", description="Of files that have no byte order mark, as in gb18030 or cp1252.")
    piece: int = Field(4000, ge=1, description="Characters a document of a txt or md file has at most.")
    bad_rows: float = Field(0.01, ge=0, le=1, description="Share of a file's rows that may be unreadable; else stop.")

    licence: str = Field("", description="For the data card: under what licence the text is used.")

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str) -> str:
        try:
            "a".encode(name)
        except (LookupError, UnicodeError):
            raise ValueError(f"{name!r} is no text encoding known here, as utf-8, gb18030 or cp1252 are") from None
        return name

    @property
    def told(self) -> tuple[str, str]:
        """Its path and licence, for the data card."""
        return self.path, self.licence

    def files(self) -> list[Path]:
        """The files meant, sorted. Raises `InputError` where there is none."""
        return find(self.path)

    def read(self, reading: Reading) -> Iterator[Document]:
        """All documents, file by file. Raises `InputError` at what cannot be read."""
        root = Path(self.path).expanduser()
        for path in self.files():
            name = path.relative_to(root).as_posix() if root.is_dir() else path.name
            reading.files += 1
            if ending(path) in TABLES:
                yield from self._rows(path, name, reading)
            else:
                yield from _pieces(path, name, self.encoding, self.piece, reading)

    def _rows(self, path: Path, name: str, reading: Reading) -> Iterator[Document]:
        """One document a row; a row without text is skipped and counted, too many of them are an error."""
        columns = (self.text,) if isinstance(self.text, str) else self.text
        here, names = Reading(), set[str]()
        unit = "line" if ending(path) in ("jsonl", "csv") else "row"
        layout, found = self._opened(path, columns)
        for number, row in found:
            here.rows += 1
            text = text_of(row, columns) if layout is None or not isinstance(row, dict) else plain(row, layout)
            if text is None:
                continue  # an answer marked bad
            if isinstance(text, Problem):
                here.skip(f"{unit} {number} {text.what}")
                reading.skip(f"{name}:{number} {text.what}")
                names.update(row if isinstance(row, dict) else ())
            else:
                yield Document(text, f"{name}:{number}")
        reading.rows += here.rows
        if here.skipped > self.bad_rows * here.rows:
            raise self._too_many(path, here, sorted(names - {*columns}))

    def _opened(self, path: Path, columns: Columns) -> tuple[Layout | None, Rows]:
        """The rows, and the layout that the first of them has where the columns of the text are not among its own."""
        if ending(path) in ("csv", "parquet", "arrow"):  # all rows have the same columns, and only some need be read
            first = first_row(rows(path, self.encoding, ()))
            layout = None if first is None or _has(first, columns) else layout_of(first)
            return layout, rows(path, self.encoding, columns if layout is None else ())
        found = rows(path, self.encoding, columns)
        head = list(islice(found, SEVERAL))
        first = first_row(head)
        layout = None if first is None or _has(first, columns) else layout_of(first)
        return layout, chain(head, found)

    def _too_many(self, path: Path, here: Reading, others: list[str]) -> InputError:
        listed = "; ".join(here.examples[:3]) + ("; ..." if here.skipped > 3 else "")
        hint = f"mend them, or allow more: bad_rows is {self.bad_rows:g}"
        if here.skipped == here.rows and others:
            near = difflib.get_close_matches(str(self.text), others, n=1, cutoff=0.5) or others[:1]
            hint = f"did you mean text: {near[0]}? the columns are {', '.join(others)}"
        return InputError(str(path), f"{here.skipped} of {here.rows} rows have no text: {listed}", hint)


def _has(row: Mapping[str, Any], columns: Columns) -> bool:
    return all(column in row for column in columns)


Source = Annotated[Bundled | Files, *KINDS]


def read(sources: Iterable[Bundled | Files], reading: Reading) -> Iterator[Document]:
    """The documents of all sources, in order; `reading` is filled on the way."""
    for number, source in enumerate(sources):
        found = source.read(reading)
        yield from (replace(document, origin=number) for document in found) if number else found


def texts_of(source: Files, limit: int | None = None) -> list[str]:
    """The texts of a user's own file, the first `limit` of them. InputError where there is none."""
    found = [document.text for document in islice(read((source,), Reading()), limit)]
    if not found:
        raise InputError(source.path, "holds no text")
    return found


def _pieces(path: Path, name: str, encoding: str, piece: int, reading: Reading) -> Iterator[Document]:
    for number, text in enumerate(cut(chunks(path, encoding), piece), 1):
        reading.rows += 1
        yield Document(text, f"{name}:{number}")
