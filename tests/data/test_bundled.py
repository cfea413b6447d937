"""The bundled files are there, whole, free to ship, and found by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmlab.data import bundled
from llmlab.errors import InputError
from llmlab.runtime import file_hash

HASHES = {
    "chatterbot_en.jsonl": "c147a1f22d3cb029678399762b66a2585ac01f2eabbb80453cc2f9f17bfd5dd7",
    "chatterbot_zh.jsonl": "0fe7432223b89fc271cd9476bc6cd7384c6317787cd1bc2832b35c752dd14f86",
    "moby_dick.txt": "fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240",
    "sanguo_yanyi.txt": "44e9d61ae50256def70c2a88824651748d8c99a6743ce7bde47f7dfe47ed1f48",
}


def test_files_are_the_published_ones() -> None:
    assert {name: file_hash(bundled.path(name)) for name in bundled.NAMES} == HASHES


def test_nothing_else_is_bundled() -> None:
    folder = Path(bundled.__file__).parent
    found = {path.name for path in folder.iterdir() if path.is_file()}
    assert found == {*HASHES, "__init__.py", "NOTICE", "LICENSE-chatterbot-corpus"}
    assert sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) < 3_500_000


def test_every_file_has_its_notice() -> None:
    folder = Path(bundled.__file__).parent
    notice = (folder / "NOTICE").read_text(encoding="utf-8")
    assert all(name in notice for name in HASHES)
    assert "public domain" in notice
    assert "PDDL 1.0" in notice
    licence = (folder / "LICENSE-chatterbot-corpus").read_text(encoding="utf-8")
    assert "Gunther Cox" in licence
    assert "Redistributions in binary form must reproduce" in licence


def test_found_by_either_name() -> None:
    assert bundled.path("moby_dick") == bundled.path("moby_dick.txt")


def test_an_unknown_name_suggests_the_near_one() -> None:
    with pytest.raises(InputError, match="did you mean 'moby_dick'"):
        bundled.path("mobydick")


@pytest.mark.parametrize(("name", "dialogues"), [("chatterbot_en", 2026), ("chatterbot_zh", 467)])
def test_dialogues_are_json_lines(name: str, dialogues: int) -> None:
    rows = [json.loads(line) for line in bundled.path(name).read_text(encoding="utf-8").splitlines()]
    assert len(rows) == dialogues
    assert all(isinstance(turn, str) for row in rows for turn in row["turns"])
