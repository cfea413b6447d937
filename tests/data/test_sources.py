"""Reading the user's files: every format gives the same documents, and every defect is named by its place."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.data import files
from llmlab.data.cut import cut
from llmlab.data.sources import Bundled, Document, Files, Reading, read
from llmlab.errors import InputError
from llmlab.recipe import parse

TEXTS = ['Plain, with a comma and "quotes".', "两行\n文字", "line\u2028separator 🐋", "last"]


def documents(path: Path | str, **fields: object) -> list[Document]:
    return list(Files.model_validate({"path": str(path), **fields}).read(Reading()))


def texts(path: Path | str, **fields: object) -> list[str]:
    return [document.text for document in documents(path, **fields)]


def write_jsonl(path: Path) -> None:
    path.write_text(
        "".join(json.dumps({"text": t, "n": 1}, ensure_ascii=False) + "\n" for t in TEXTS), encoding="utf-8"
    )


def write_json(path: Path) -> None:
    path.write_text(json.dumps([{"text": text} for text in TEXTS]), encoding="utf-8")


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "text"], *([str(n), text] for n, text in enumerate(TEXTS))])


def write_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "id": range(4)}), path, row_group_size=2)


def write_arrow(path: Path) -> None:
    table = pyarrow.table({"id": range(4), "text": TEXTS})
    with pyarrow.ipc.new_stream(path, table.schema) as file:
        for batch in table.to_batches(max_chunksize=3):
            file.write_batch(batch)


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


WRITERS = {
    "jsonl": write_jsonl,
    "json": write_json,
    "csv": write_csv,
    "parquet": write_parquet,
    "arrow": write_arrow,
}
PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("ending", WRITERS)
def test_every_table_gives_the_same_texts(tmp_path: Path, ending: str, packed: str) -> None:
    WRITERS[ending](tmp_path / f"rows.{ending}")
    content, path = (tmp_path / f"rows.{ending}").read_bytes(), tmp_path / f"packed.{ending}{packed}"
    path.write_bytes(PACKERS[packed](content))
    assert texts(path) == TEXTS


def test_an_arrow_file_with_an_index_at_its_end(tmp_path: Path) -> None:
    table = pyarrow.table({"text": TEXTS})
    with pyarrow.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    assert texts(tmp_path / "a.arrow") == TEXTS


@pytest.mark.parametrize("packed", [ending for ending in PACKERS if ending])
def test_a_cut_packed_file_is_named(tmp_path: Path, packed: str) -> None:
    path = tmp_path / f"a.txt{packed}"
    path.write_bytes(PACKERS[packed](bytes(range(32, 127)) * 999)[:-9])
    with pytest.raises(InputError, match=f"{path}: is no whole"):
        texts(path)


def test_a_document_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\n')
    assert [document.source for document in documents(tmp_path / "rows.jsonl")] == ["rows.jsonl:1", "rows.jsonl:3"]


def test_columns_are_mapped_and_joined(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"title": "A", "body": ["b", "c"]}\n')
    assert texts(tmp_path / "rows.jsonl", text="body") == ["b\nc"]
    assert texts(tmp_path / "rows.jsonl", text=["title", "body"]) == ["A\n\nb\nc"]


def test_a_folder_is_read_in_order_with_what_lies_below(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.md").write_text("one")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "picture.png").write_bytes(b"\0")
    found = documents(tmp_path)
    assert [(document.text, document.source) for document in found] == [("one", "a/x.md:1"), ("two", "b.txt:1")]
    assert texts(tmp_path / "*.txt") == ["two"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_obeyed(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("Träume 梦\r\nzwei".encode(encoding))
    assert texts(tmp_path / "a.txt") == ["Träume 梦\nzwei"]


def test_the_encoding_is_a_setting(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("三国演义".encode("gb18030"))
    assert texts(tmp_path / "a.txt", encoding="gb18030") == ["三国演义"]


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")), size=st.integers(1, 7))
def test_decoding_does_not_depend_on_the_blocks(tmp_path_factory: pytest.TempPathFactory, text: str, size: int) -> None:
    path = tmp_path_factory.mktemp("blocks") / "a.txt"
    before = files.CHUNK
    try:
        for encoding in ("utf-8", "utf-16"):
            text = text.replace("\0", "").removeprefix("\ufeff")
            path.write_bytes(text.encode(encoding))
            files.CHUNK = max(size, 4)  # a byte order mark has up to four bytes
            assert "".join(files.chunks(path)) == text
            assert "".join(files.lines(path)) == text
            assert all(line.endswith("\n") for line in list(files.lines(path))[:-1])
    finally:
        files.CHUNK = before


# ---------------------------------------------------------------- cutting


@given(
    text=st.text(st.sampled_from("ab \n.。") | st.characters(exclude_categories=["Cs"]), max_size=300),
    piece=st.integers(1, 40),
    chunk=st.integers(1, 60),
)
def test_pieces_joined_are_the_text(text: str, piece: int, chunk: int) -> None:
    pieces = list(cut((text[at : at + chunk] for at in range(0, len(text), chunk)), piece))
    assert "".join(pieces) == text
    assert all(0 < len(each) <= piece for each in pieces)
    assert all(len(each) >= piece / 2 for each in pieces[:-1])
    assert pieces == list(cut([text], piece))


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("aaaa.\n\nbbbb. cccc\ndddd", "aaaa.\n\n"),  # a paragraph before a line
        ("aaaa. bbbb\ncccc. dddd", "aaaa. bbbb\n"),  # a line before a sentence
        ("aaaa bbb. cccc dddd eeee", "aaaa bbb. "),  # a sentence before a word
        ("字字字字字字。字字字字字字字字字字", "字字字字字字。"),
        ("aaaaaaa bbbb ccccccccccc", "aaaaaaa bbbb "),
        ("a" * 30, "a" * 13),
    ],
)
def test_the_best_boundary_wins(text: str, first: str) -> None:
    assert next(cut([text], 13)) == first


def test_the_bundled_book_in_pieces() -> None:
    reading = Reading()
    found = list(read([Bundled(name="sanguo_yanyi")], reading))
    assert "".join(document.text for document in found) == Bundled(name="sanguo_yanyi").files()[0].read_text("utf-8")
    assert reading.rows == len(found) > 100
    assert max(len(document.text) for document in found) <= 4000


# ---------------------------------------------------------------- bad input


def corrupt(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0", "byte 8 is zero: a binary file"),
        ("a.txt", b"caf\xe9 au lait", r"byte 3 \(0xE9\) is not utf-8 \(set encoding: cp1252\?\)"),
        ("a.txt", "三国演义".encode("gb18030"), r"is not utf-8 \(set encoding: gb18030\?\)"),
        ("a.txt", b"\xef\xbb\xbfab\xff", r"byte 5 \(0xFF\) is not utf-8"),
        ("a.txt", b"ab\xe4\xb8", r"byte 2 \(0xE4\) is not utf-8"),
        ("a.txt", "很多很多好的字很多很多好的字".encode() + b"\xff!", "the file is damaged there"),
        (
            "a.txt",
            "很多很多好的字很多很多好的字\n".encode() + "三国演义三国".encode("gb18030"),
            r"damaged there, or goes on in gb18030: a file has one encoding",
        ),
        ("a.txt.zst", b"no zstd at all", "is no whole zstd file"),
        ("a.arrow", b"no arrow at all, though it is long enough", "is no whole arrow file"),
        ("a.txt.gz", b"no gzip at all", "is no whole gzip file"),
        ("a.txt.gz", gzip.compress(b"x" * 99999)[:-20], "is no whole gzip file"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"1 of 2 rows have no text: line 2 is not JSON: Expecting value"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "line 2 has no field 'text'"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 7}\n', "line 2 field 'text' is a number, not text"),
        ("a.jsonl", b"[1]\n", "line 1 is a list, not an object with columns"),
        ("a.jsonl", b'{"texts": "a", "id": 1}\n', "did you mean text: texts"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.json", b'{"text": "a"}\n{"text": "b"}\n', r"a.json:2: is not JSON: Extra data \(with one object a line"),
        ("a.json", b"[", "a.json:1: is not JSON"),
        ("a.csv", b"id,txt\n1,a\n", r"unknown value 'text' \(did you mean 'txt'"),
        ("a.csv", b'text\n"a\nb\n', "a.csv:2: a quote that opens here is never closed"),
        ("a.csv", b"id,text\n1,a\n2\n", "line 3 has 1 fields, not 2"),
        ("a.parquet", b"PAR1nothing", "is no whole parquet file"),
        ("a.pdf", b"%PDF", "unknown ending '.pdf'"),
    ],
)
def test_a_broken_file_is_one_clear_error(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = corrupt(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as caught:
        texts(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cut_parquet_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet")
    corrupt(tmp_path / "a.parquet", (tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(InputError, match="is no whole parquet file"):
        texts(tmp_path / "a.parquet")


def test_bad_rows_below_the_bound_are_counted_and_named(tmp_path: Path) -> None:
    rows = ['{"text": "x"}'] * 9 + ["broken"]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    reading = Reading()
    found = list(Files(path=str(tmp_path / "a.jsonl"), bad_rows=0.1).read(reading))
    assert len(found) == 9
    assert (reading.rows, reading.skipped) == (10, 1)
    assert reading.examples[0].startswith("a.jsonl:10 is not JSON")
    with pytest.raises(InputError, match=r"bad_rows is 0\.09"):
        texts(tmp_path / "a.jsonl", bad_rows=0.09)


@pytest.mark.parametrize(
    ("make", "path", "message"),
    [
        (lambda root: (root / "corpus.txt").write_text("a"), "corpsu.txt", "did you mean '.*corpus.txt'"),
        (lambda root: None, "nowhere/a.txt", "there is no folder"),
        (lambda root: (root / "a.pdf").write_text("a"), ".", "has no file to read, only .pdf"),
        (lambda root: None, "*.txt", "no file matches this pattern"),
    ],
)
def test_a_path_that_leads_nowhere(tmp_path: Path, make: Callable[[Path], object], path: str, message: str) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match=message):
        Files(path=str(tmp_path / path)).files()


def test_an_unknown_encoding_is_refused_in_the_recipe() -> None:
    with pytest.raises(InputError, match=r"encoding: 'utf-9' is no text encoding"):
        parse(Files, {"path": "x", "encoding": "utf-9"})
    with pytest.raises(InputError, match="no text encoding"):
        parse(Files, {"path": "x", "encoding": "hex"})


def test_large_files_are_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(files, "CHUNK", 1 << 15)
    (tmp_path / "a.txt").write_text(("word " * 1000 + "\n\n") * 300)
    (tmp_path / "a.jsonl").write_text((json.dumps({"text": "word " * 200}) + "\n") * 1500)
    for name in ("a.txt", "a.jsonl"):
        tracemalloc.start()
        assert sum(len(document.text) for document in Files(path=str(tmp_path / name)).read(Reading())) >= 1_500_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 500_000, name


# ---------------------------------------------------------------- lines without end


def test_a_line_beyond_the_limit_is_skipped_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST", 1000)
    rows = [json.dumps({"text": letter * 2000 if letter == "b" else letter}) for letter in "abc"]
    (tmp_path / "a.jsonl").write_text("\n".join(rows) + "\n")
    reading = Reading()
    found = list(Files(path=str(tmp_path / "a.jsonl"), bad_rows=0.5).read(reading))
    assert [document.text for document in found] == ["a", "c"]
    assert reading.examples == ["a.jsonl:2 has 2,012 characters, and a line is read up to 1,000"]


def test_a_line_beyond_the_limit_is_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(files, "CHUNK", 1 << 14)
    monkeypatch.setattr(files, "LONGEST", 1 << 15)
    (tmp_path / "a.jsonl").write_text('{"text": "kept"}\n{"text": "' + "long " * 1_000_000 + '"}\n{"text": "kept"}')
    tracemalloc.start()
    assert texts(tmp_path / "a.jsonl", bad_rows=0.5) == ["kept", "kept"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000  # of a line of 5,000,000


@pytest.mark.parametrize("text", ["x" * 2000, '"' + "x\n" * 1000])
def test_a_csv_row_beyond_the_limit_ends_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Where such a row ends only its quotes would say, so what follows cannot be found without reading it."""
    monkeypatch.setattr(files, "LONGEST", 1000)
    (tmp_path / "a.csv").write_text(f"text\na\n{text}\nb\n")
    with pytest.raises(InputError, match=r"a\.csv:\d+: has [\d,]+ characters, and a line is read up to 1,000"):
        texts(tmp_path / "a.csv")
