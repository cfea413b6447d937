"""The user's own rows as examples: read, converted, counted, and stopped when too many are broken."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from llmlab.data.files import TABLES, ending, find
from llmlab.data.rows import Problem, rows
from llmlab.data.sources import Reading
from llmlab.errors import InputError
from llmlab.recipe import Section

X = TypeVar("X")
Convert = Callable[[Mapping[str, Any]], X | Problem]


class Table(Section):
    """Files of rows: jsonl, json, csv, parquet, arrow, also packed; a file, a folder or a pattern."""

    path: str = Field(min_length=1, description="A file, a folder (read with all below it), or a pattern with *.")
    columns: dict[str, str] = Field({}, description="Where your columns have other names: {prompt: my_question}.")
    encoding: str = Field("utf-8", description="Of files that have no byte order mark, as in gb18030 or cp1252.")
    bad_rows: float = Field(0.01, ge=0, le=1, description="Share of a file's rows that may be unusable; else stop.")
    limit: int | None = Field(None, ge=1, description="Take so many rows of each file at most, from its start.")

    def files(self) -> list[Path]:
        """The files meant, sorted. `InputError` where there is none."""
        found = [path for path in find(self.path) if ending(path) in TABLES]
        if not found:
            raise InputError(self.path, "has no file with rows", f"allowed: {', '.join(TABLES)}")
        return found

    def read(self, convert: Convert[X], reading: Reading) -> Iterator[tuple[str, X]]:
        """(`file:line`, example) of each row that `convert` can use; the others are counted and named in `reading`."""
        root = Path(self.path).expanduser()
        for path in self.files():
            name = path.relative_to(root).as_posix() if root.is_dir() else path.name
            reading.files += 1
            yield from self._file(path, name, convert, reading)

    def _file(self, path: Path, name: str, convert: Convert[X], reading: Reading) -> Iterator[tuple[str, X]]:
        here, seen, reasons = Reading(), dict[str, None](), dict[str, int]()
        for number, row in rows(path, self.encoding, ()):
            if here.rows == self.limit:
                break
            here.rows += 1
            if isinstance(row, Mapping):
                seen.update(dict.fromkeys(map(str, row)))
            made = row if isinstance(row, Problem) else self._made(row, convert)
            if isinstance(made, Problem):
                here.skip(made.what)
                reasons.setdefault(made.what, number)
                reading.skip(f"{name}:{number} {made.what}")
            else:
                yield f"{name}:{number}", made
        reading.rows += here.rows
        if not here.rows:
            raise InputError(str(path), "holds no rows")
        if here.skipped > self.bad_rows * here.rows:
            raise self._too_many(path, here, list(seen), reasons)

    def _made(self, row: Any, convert: Convert[X]) -> X | Problem:
        if not isinstance(row, Mapping):
            return Problem(f"is {type(row).__name__}, not an object with columns")
        missing = [theirs for theirs in self.columns.values() if theirs not in row]
        if missing:
            return Problem(f"has no field {missing[0]!r}")
        return convert({**row, **{ours: row[theirs] for ours, theirs in self.columns.items()}})

    def _too_many(self, path: Path, here: Reading, seen: list[str], reasons: dict[str, int]) -> InputError:
        listed = "; ".join(f"line {number} {what}" for what, number in list(reasons.items())[:3])
        hint = f"mend them, or allow more: bad_rows is {self.bad_rows:g}"
        if here.skipped == here.rows and seen:
            wrong = [theirs for theirs in self.columns.values() if theirs not in seen]
            near = difflib.get_close_matches(wrong[0], seen, n=1) if wrong else []
            guess = f"did you mean {near[0]!r}? " if near else ""
            hint = f"{guess}the columns are {', '.join(seen)}; name yours by columns"
        return InputError(str(path), f"{here.skipped} of {here.rows} rows cannot be used: {listed}", hint)
