"""The user's files as text: which ones are meant, their bytes unpacked and decoded, their lines."""

import bz2
import codecs
import difflib
import glob
import gzip
import io
import itertools
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from llmlab.data import saved
from llmlab.errors import InputError

CHUNK = 1 << 20  # bytes read at a time
LONGEST = 1 << 26  # characters of a line; of a longer one nothing is held, and whoever reads lines is told
TEXTS, TABLES = ("txt", "md"), ("jsonl", "json", "csv", "parquet", "arrow")
PACKED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
ENDINGS = f"{', '.join((*TEXTS, *TABLES))}, each also with {', '.join(PACKED)}; or a folder of datasets' save_to_disk"
MARKS = {  # byte order marks, the longer first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def find(path: str) -> list[Path]:
    """The files that `path` names: itself, those below the folder, or those that match the pattern; sorted. Of a folder
    that `datasets` saved, its shards in their order."""
    place = Path(path).expanduser()
    if place.is_file():
        ending(place)
        return [place]
    if place.is_dir():
        inside = [file for file in sorted(place.rglob("*")) if file.is_file() and _visible(file, place)]
        found = saved.shards([file for file in inside if _known(file)])
        if not found:
            kinds = sorted({file.suffix or file.name for file in inside})
            raise InputError(path, f"has no file to read, only {', '.join(kinds) or 'nothing'}", f"allowed: {ENDINGS}")
        return found
    if glob.has_magic(path):
        found = [Path(name) for name in sorted(glob.glob(str(place), recursive=True))]
        found = [file for file in found if file.is_file() and _known(file)]
        if not found:
            raise InputError(path, "no file matches this pattern", f"allowed: {ENDINGS}")
        return found
    siblings = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
    near = difflib.get_close_matches(place.name, siblings, n=1, cutoff=0.5)
    if not place.parent.is_dir():
        raise InputError(path, "no such file or folder", f"there is no folder {str(place.parent)!r}")
    raise InputError(path, "no such file or folder", f"did you mean {str(place.with_name(near[0]))!r}?" if near else "")


def _visible(file: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(root).parts)


def _known(file: Path) -> bool:
    return _bare(file).rpartition(".")[2] in (*TEXTS, *TABLES)


def packed(file: Path) -> str:
    """By what program the file is packed, from its name; empty where it is not."""
    return PACKED.get(file.suffix.lower(), "")


def _bare(file: Path) -> str:
    """`a.jsonl` of `A.JSONL.gz`."""
    return (file.name[: -len(file.suffix)] if packed(file) else file.name).lower()


def ending(file: Path) -> str:
    """`jsonl` of `A.JSONL.gz`. Raises `InputError` for an ending that is not read here."""
    name = _bare(file).rpartition(".")[2]
    if not _known(file):
        raise InputError(str(file), f"unknown ending {file.suffix!r}", f"allowed: {ENDINGS}")
    return name


# ---------------------------------------------------------------- bytes to text


def _open(path: Path) -> IO[bytes]:
    match packed(path):
        case "gzip":
            return gzip.open(path)  # type: ignore[return-value]
        case "bzip2":
            return bz2.open(path)
        case "xz":
            return lzma.open(path)
        case "zstd":
            import pyarrow  # the standard library has it from Python 3.14 on

            opened: IO[bytes] = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
            return opened
        case _:
            return path.open("rb")


def blocks(path: Path) -> Iterator[bytes]:
    """The file's bytes, unpacked, in blocks. A broken packed file or an unreadable one is an `InputError`."""
    try:
        with _open(path) as file:
            while block := file.read(CHUNK):
                yield block
    except PermissionError:
        raise InputError(str(path), "may not be read by this user") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if not packed(path):
            raise
        raise InputError(str(path), f"is no whole {packed(path)} file: {error}") from None


def chunks(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The file's text in chunks, line ends as newlines. A byte order mark goes before `encoding`.

    Raises `InputError` at binary content and at the first byte that the encoding does not have.
    """
    stream = blocks(path)
    first = next(stream, b"")
    mark = next((mark for mark in MARKS if first.startswith(mark)), b"")
    encoding = MARKS.get(mark, encoding)
    wide = codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
    if not wide and b"\0" in first:
        raise InputError(str(path), f"byte {first.index(0)} is zero: a binary file, not text")
    decoder = codecs.getincrementaldecoder(encoding)()
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
    offset = len(mark)
    for block in itertools.chain([first[len(mark) :]], stream, [b""]):
        held = len(decoder.getstate()[0])  # the bytes of a character that ends in this block
        try:
            yield newlines.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _undecodable(path, encoding, offset - held + error.start, error) from None
        offset += len(block)


def _undecodable(path: Path, encoding: str, at: int, error: UnicodeDecodeError) -> InputError:
    """Names the byte, and the encoding that would read it, unless so much was read well that the file is damaged, or
    put together from files of two encodings."""
    before = sum(byte >= 0x80 for byte in error.object[: error.start])
    guesses = [name for name in ("utf-8", "gb18030", "cp1252") if name != encoding and _decodes(error.object, name)]
    if before > 16 and encoding == "utf-8":
        line = error.object[error.start :].partition(b"\n")[0]
        others = [name for name in ("gb18030", "cp1252") if len(line) > 3 and _decodes(line, name)]
        hint = "what stands before it is UTF-8: the file is damaged there"
        if others:
            hint += f", or goes on in {others[0]}: a file has one encoding, so convert that part first"
    else:
        hint = f"set encoding: {guesses[0]}?" if guesses else "name its encoding, as in encoding: gb18030"
    return InputError(str(path), f"byte {at} (0x{error.object[error.start]:02X}) is not {encoding}", hint)


def _decodes(sample: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return False
    return True


@dataclass(frozen=True)
class LongLine:
    """A line of more than `LONGEST` characters, of which nothing is kept but their number."""

    characters: int

    @property
    def problem(self) -> str:
        return f"has {self.characters:,} characters, and a line is read up to {LONGEST:,}"


def lines(path: Path, encoding: str = "utf-8") -> Iterator[str | LongLine]:
    """The file's lines with their newline. Only newlines end a line: U+2028 may stand inside a JSON string."""
    rest, held = list[str](), 0
    for chunk in chunks(path, encoding):
        for number, part in enumerate(chunk.split("\n")):
            if number:  # a newline stood before this part
                yield "".join(rest) + "\n" if held <= LONGEST else LongLine(held)
                rest, held = [], 0
            held += len(part)
            if held <= LONGEST:
                rest.append(part)
            else:
                rest.clear()
    if held:
        yield "".join(rest) if held <= LONGEST else LongLine(held)
