"""Rows of jsonl, json, csv, parquet, arrow, numbered as in the file; a broken row is a `Problem`, not an end."""

import csv
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab.data import files
from llmlab.data.files import LongLine, blocks, chunks, ending, lines, packed
from llmlab.errors import InputError, unknown

Columns = tuple[str, ...]
BATCH = 1024  # rows of a columnar file that are made at a time


@dataclass(frozen=True)
class Problem:
    """Why a row cannot be used, to be read after its number: `has no field 'text'`."""

    what: str


Rows = Iterator[tuple[int, Any]]  # line (jsonl, csv) or row (others) from 1; its JSON value or a Problem


def rows(path: Path, encoding: str, columns: Columns) -> Rows:
    """The rows of a table. Where the format names its columns at the top, a missing one is an `InputError`, and no
    others are read than `columns`, or all where none is named."""
    return READERS[ending(path)](path, encoding, columns)


def text_of(row: Any, columns: Columns) -> str | Problem:
    """The text of one row: a string is its own, of an object the columns, joined by an empty line."""
    if isinstance(row, str | Problem):
        return row
    if not isinstance(row, dict):
        return Problem(f"is {_kind(row)}, not an object with columns")
    parts = []
    for column in columns:
        value = row.get(column)
        if isinstance(value, list) and all(isinstance(line, str) for line in value):
            value = "\n".join(value)
        if column not in row:
            return Problem(f"has no field {column!r}")
        if not isinstance(value, str):
            return Problem(f"field {column!r} is {_kind(value)}, not text")
        parts.append(value)
    return "\n\n".join(parts)


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "an object")


# ---------------------------------------------------------------- formats


def _jsonl(path: Path, encoding: str, columns: Columns) -> Rows:
    for number, line in enumerate(lines(path, encoding), 1):
        if isinstance(line, LongLine):
            yield number, Problem(line.problem)
            continue
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            row = Problem(f"is not JSON: {error.msg} at column {error.colno}")
        except (ValueError, RecursionError):  # a number of ten thousand digits, lists a thousand deep
            row = Problem("is not JSON that can be read")
        yield number, row


def _json(path: Path, encoding: str, columns: Columns) -> Rows:
    try:
        value = json.loads("".join(chunks(path, encoding)))
    except json.JSONDecodeError as error:
        hint = "with one object a line its name ends in .jsonl" if error.msg == "Extra data" else ""
        raise InputError(f"{path}:{error.lineno}", f"is not JSON: {error.msg}", hint) from None
    except (ValueError, RecursionError):
        raise InputError(str(path), "is not JSON that can be read") from None
    yield from enumerate(value if isinstance(value, list) else [value], 1)


def _csv(path: Path, encoding: str, columns: Columns) -> Rows:
    csv.field_size_limit(sys.maxsize)  # the default of 128 kB is less than a long article
    held = 0  # characters of the row that is being read

    def bounded() -> Iterator[str]:
        nonlocal held
        for number, line in enumerate(lines(path, encoding), 1):
            size = line.characters if isinstance(line, LongLine) else len(line)
            held += size
            if isinstance(line, LongLine) or held > files.LONGEST:
                # Where the row ends is known by its quotes only, so it cannot be passed over unread.
                hint = "a quote that opens and is never closed? else write long texts as jsonl"
                raise InputError(f"{path}:{number}", LongLine(held).problem, hint)
            yield line

    reader = csv.reader(bounded(), strict=True)
    header: list[str] | None = None
    while True:
        start, held = reader.line_num + 1, 0
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if "end of data" in str(error):  # it swallowed all that follows, so it is not one bad row
                raise InputError(f"{path}:{start}", "a quote that opens here is never closed") from None
            yield start, Problem(f"is not CSV: {error}")
            continue
        if fields is None:
            return
        if header is None:
            header = fields
            _require(path, columns, header)
        elif len(fields) == len(header):
            yield start, dict(zip(header, fields, strict=True))
        elif fields:
            yield start, Problem(f"has {len(fields)} fields, not {len(header)}")


def _parquet(path: Path, encoding: str, columns: Columns) -> Rows:
    import pyarrow.parquet

    def batches(file: Any) -> Iterator[Any]:
        table = pyarrow.parquet.ParquetFile(file)
        _require(path, columns, table.schema_arrow.names)
        return iter(table.iter_batches(batch_size=BATCH, columns=list(columns) or None))

    return _columnar(path, batches)


def _arrow(path: Path, encoding: str, columns: Columns) -> Rows:
    """Arrow's IPC streams, as `datasets` saves them, and IPC files."""
    import pyarrow
    import pyarrow.ipc

    def batches(file: Any) -> Iterator[Any]:
        source = pyarrow.memory_map(str(path)) if isinstance(file, Path) else pyarrow.PythonFile(file, "r")
        try:
            opened = pyarrow.ipc.open_stream(source)
            _require(path, columns, opened.schema.names)
            stream = iter(opened)
        except pyarrow.ArrowInvalid:
            source.seek(0)
            whole = pyarrow.ipc.open_file(source)
            _require(path, columns, whole.schema.names)
            stream = (whole.get_batch(number) for number in range(whole.num_record_batches))
        for batch in stream:
            chosen = batch.select(list(columns)) if columns else batch
            yield from (chosen.slice(start, BATCH) for start in range(0, len(chosen), BATCH))

    return _columnar(path, batches)


def _columnar(path: Path, batches: Callable[[Any], Iterator[Any]]) -> Rows:
    """The rows of record batches; a packed file is unpacked to the disk first, since it is not read from its start."""
    import pyarrow

    with tempfile.TemporaryFile() as unpacked:
        for block in blocks(path) if packed(path) else ():
            unpacked.write(block)
        unpacked.seek(0)
        try:
            found = batches(unpacked if packed(path) else path)
            yield from enumerate((row for batch in found for row in batch.to_pylist()), 1)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            problem = f"is no whole {ending(path)} file: {str(error).partition(chr(10))[0]}"
            raise InputError(str(path), problem) from None


def _require(path: Path, columns: Columns, header: list[str]) -> None:
    for column in columns:
        if column not in header:
            raise unknown(f"{path}: column", column, header)


READERS: dict[str, Callable[[Path, str, Columns], Rows]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
    "arrow": _arrow,
}
