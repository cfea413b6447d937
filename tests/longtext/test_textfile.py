from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.data import files
from llmlab.errors import InputError
from llmlab.longtext.textfile import TextFile

letters = st.sampled_from("ab .。!?\n\r\t“”é中文字🐋\u2028")
texts = st.text(letters, min_size=1, max_size=400).filter(lambda text: bool(text.strip()))


@settings(deadline=None)
@given(text=texts, size=st.integers(2, 60), block=st.integers(1, 50), ending=st.sampled_from(["\n", "\r\n"]))
def test_a_chunk_is_what_stands_at_its_place_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, text: str, size: int, block: int, ending: str
) -> None:
    path = tmp_path_factory.mktemp("file") / "book.txt"
    path.write_bytes(text.replace("\n", ending).encode())
    content = path.read_text(encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK", block)
        found = [chunk for lot in TextFile.of(path).chunks(size, size // 4) for chunk in lot]
        spans = [(chunk.start, chunk.end) for chunk in found]
        again = TextFile.of(path).texts(spans[::-1])[::-1]
    assert all(chunk.text == content[chunk.start : chunk.end] and len(chunk.text) <= size for chunk in found)
    assert again == [chunk.text for chunk in found]
    covered = {place for start, end in spans for place in range(start, end)}
    assert all(content[place].isspace() for place in range(len(content)) if place not in covered)


def test_chunks_end_with_sentences_and_overlap(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Sentence number {number} is here. " for number in range(2000)))
    found = [chunk for lot in TextFile.of(path).chunks(200, 50) for chunk in lot]
    assert all(chunk.text.startswith("Sentence") and chunk.text.endswith(".") for chunk in found)
    overlaps = [a.end - b.start for a, b in itertools.pairwise(found)]
    assert 0 < min(overlaps) <= max(overlaps) <= 50


def test_blocks_move_no_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "book.txt"
    words = np.random.default_rng(0).choice(["whale", "ship.", "Sea!", "\n\n", "and", "“Ay!”"], 5000)
    path.write_text(" ".join(words))
    whole = [chunk for lot in TextFile.of(path).chunks(120, 30) for chunk in lot]
    monkeypatch.setattr(files, "CHUNK", 777)
    assert [chunk for lot in TextFile.of(path).chunks(120, 30) for chunk in lot] == whole


def test_marks_and_packed_files(tmp_path: Path) -> None:
    text = "Erste Zeile.\nZweite Zeile 中。"
    for name, content in {
        "mark.txt": b"\xef\xbb\xbf" + text.encode(),
        "wide.md": text.encode("utf-16"),
        "packed.txt.gz": gzip.compress(text.encode()),
        "no_ending": text.encode(),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert TextFile.of(tmp_path / name).texts([(13, 28)]) == [text[13:28]]
    (tmp_path / "old.txt").write_bytes(text.encode("gb18030"))
    assert TextFile.of(tmp_path / "old.txt", "gb18030").texts([(0, 99)]) == [text]


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "no text"), (b" \n\n ", "no text"), (b"PK\0\1", "binary"), (b"ab\xff\xfe", "byte 2")]
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=told):
        list(TextFile.of(path).chunks(100, 0))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "whale.txt").write_text("x")
    with pytest.raises(InputError, match="is a folder"):
        TextFile.of(tmp_path)
    with pytest.raises(InputError, match=r"did you mean.*whale\.txt"):
        TextFile.of(tmp_path / "whales.txt")
    with pytest.raises(InputError, match="no text encoding"):
        TextFile.of(tmp_path / "whale.txt", "utf-9")
