"""Reading verbs on the command line: JSON as the last line, and one clear line for what cannot be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def llmlab(*arguments: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "llmlab", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, env=environment, check=False, cwd=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "book.txt").write_text("The ship sails at noon. The captain is Mira Holt.\n" * 3)
    (folder / "empty.txt").touch()
    (folder / "picture.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["read", "book.txt", "--ask", ""], "--ask: is empty"),
        (["read", "book.txt", "--ask", "why " * 999], "--ask: has"),
        (["read", "bok.txt", "--ask", "who?"], "did you mean 'book.txt'?"),
        (["read", ".", "--ask", "who?"], "is a folder"),
        (["read", "empty.txt", "--ask", "who?"], "holds no text"),
        (["read", "picture.txt", "--ask", "who?"], "a binary file, not text"),
        (["read", "book.txt", "--ask", "who?", "--size", "50", "--overlap", "80"], "overlap: 80 is not below"),
        (["read", "book.txt", "--ask", "who?", "--retriever", "bm52"], "did you mean 'bm25'?"),
        (["read", "book.txt", "--ask", "who?", "--retriever", "{kind: bm25"], "is not a YAML value"),
        (["read", "book.txt"], "Missing option '--ask'"),
        (["summarize", "book.txt", "--method", "refine"], "model: refine needs one"),
        (["summarize", "book.txt", "--words", "0"], "words: is below 1"),
        (["summarize", "empty.txt"], "holds no text"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(arguments: list[str], says: str, folder: Path) -> None:
    done = llmlab(*arguments, folder=folder)
    assert done.returncode == 2
    assert says in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert not done.stdout


def test_read_and_summarize_answer_in_json(folder: Path) -> None:
    done = llmlab("read", "book.txt", "--ask", "Who is the captain?", "--retriever", "bm25", "--json", folder=folder)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["answer"] == "The captain is Mira Holt."
    assert {"text", "start", "end", "score"} == set(told["sources"][0])
    told = json.loads(llmlab("summarize", "book.txt", "--json", folder=folder).stdout.splitlines()[-1])
    assert "Mira Holt" in told["summary"]
    assert told["sections"][0]["end"] == len((folder / "book.txt").read_text())
