"""The text stage: what it writes, that it is idempotent, and what an interrupted attempt leaves."""

from __future__ import annotations

import json
import os
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from llmlab.data import files, near
from llmlab.data import text as stage
from llmlab.data.batches import batched
from llmlab.data.mix import Epochs
from llmlab.data.near import Near
from llmlab.data.sources import Bundled, Files, read
from llmlab.data.text import Text, input_files, joined, prepare_text, read_texts
from llmlab.errors import InputError, Stopped
from llmlab.recipe import parse
from llmlab.runtime import StopFlag
from llmlab.stages import Session


def corpus(folder: Path, texts: list[str]) -> Text:
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return Text(sources=(Files(path=str(folder / "in.jsonl")),), held_out=0.2)


def lines(n: int) -> list[str]:
    return [f"Document number {number} tells of whale {number}." for number in range(n)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_documents_are_cleaned_deduplicated_and_split(tmp_path: Path) -> None:
    texts = [*lines(20), "short", lines(1)[0] + "  \r\n"]
    figures = prepare_text(corpus(tmp_path, texts), tmp_path / "out", Session())
    train, held = (list(read_texts(tmp_path / "out" / f"{side}.jsonl")) for side in ("train", "held_out"))
    assert sorted(train + held) == sorted(lines(20))
    assert len(held) == 4
    assert figures["held_out"] == {"documents": 4, "bytes": sum(map(len, held))}
    assert figures["train"]["bytes"] == sum(map(len, train))
    assert figures["reading"] == {"files": 1, "rows": 22, "skipped_rows": 0, "examples": []}
    by_name = {step["name"]: step for step in figures["rules"]}
    assert by_name["min_characters"]["documents_in"] - by_name["min_characters"]["documents_out"] == 1
    assert by_name["exact duplicates"]["documents_in"] - by_name["exact duplicates"]["documents_out"] == 1
    assert by_name["exact duplicates"]["documents_out"] == len(train) + len(held)
    row = json.loads((tmp_path / "out" / "train.jsonl").read_text().splitlines()[0])
    assert row["source"].startswith("in.jsonl:")
    assert sorted(contents(tmp_path / "out")) == ["card.md", "funnel.json", "held_out.jsonl", "train.jsonl"]


def test_without_dedup_equal_texts_stay_on_one_side(tmp_path: Path) -> None:
    section = corpus(tmp_path, lines(10) * 3).model_copy(update={"dedup": False})
    prepare_text(section, tmp_path / "out", Session())
    train, held = (set(read_texts(tmp_path / "out" / f"{side}.jsonl")) for side in ("train", "held_out"))
    assert train.isdisjoint(held)
    assert train | held == set(lines(10))


def test_the_split_is_the_same_for_every_seed_and_order(tmp_path: Path) -> None:
    prepare_text(corpus(tmp_path, lines(30)), tmp_path / "a", Session(seed=0))
    prepare_text(corpus(tmp_path, lines(30)[::-1]), tmp_path / "b", Session(seed=1))
    assert set(read_texts(tmp_path / "a" / "held_out.jsonl")) == set(read_texts(tmp_path / "b" / "held_out.jsonl"))


def test_a_finished_stage_is_not_redone_and_a_changed_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section, out = corpus(tmp_path, lines(20)), tmp_path / "out"
    figures = prepare_text(section, out, Session())
    before = contents(out)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "read", None)  # reading again would fail
        assert prepare_text(section, out, Session()) == figures
    other = prepare_text(section.model_copy(update={"held_out": 0.5}), out, Session())
    assert other["held_out"]["documents"] == 10
    assert contents(out) != before
    assert prepare_text(section, out, Session()) == figures
    assert contents(out) == before


@pytest.mark.parametrize("at", range(1, 15))
def test_killed_anywhere_the_next_attempt_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """From the `at`-th call that touches the disk on all of them fail, so no handler can clean up, as after a kill."""
    section, out = corpus(tmp_path, lines(20)), tmp_path / "out"
    prepare_text(section, tmp_path / "whole", Session())

    class Killed(BaseException):
        pass

    calls = 0

    def dying(function: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= at:
                raise Killed
            return function(*args, **named)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (stage, "_split")):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        if at <= 13:
            with pytest.raises(Killed):
                prepare_text(section, out, Session())
            last = at == 13  # that call syncs the folder after the last rename
            assert (out / "funnel.json").exists() == last
        else:
            prepare_text(section, out, Session())
    prepare_text(section, out, Session())
    assert contents(out) == contents(tmp_path / "whole")


def test_a_stop_request_is_heard(tmp_path: Path) -> None:
    stop = StopFlag()
    stop.requested = True
    with pytest.raises(Stopped, match="--resume"):
        prepare_text(corpus(tmp_path, lines(20)), tmp_path / "out", Session(stop=stop))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no text in in.jsonl"),
        (["a", "b"], "no document is left: min_characters dropped 2 of 2"),
        (["One document is not enough for two sides."] * 3, "too short to hold anything out"),
    ],
)
def test_too_little_text(tmp_path: Path, texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare_text(corpus(tmp_path, texts), tmp_path / "out", Session())
    assert not list((tmp_path / "out").iterdir())


def test_paragraphs_and_near_duplicates_and_questions_go(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(200)]
    first = " ".join(words)
    texts = [
        *lines(20),
        first,
        first.replace("word7 ", "other "),
        "A paragraph that stands in two documents, and is long.\n\nThis one stands here only, in the first.",
        "A paragraph that stands in two documents, and is long.\n\nThis one stands elsewhere, in the second.",
        "Some say: how many whales does it take to fill a bath, and who knows?",
    ]
    (tmp_path / "questions.jsonl").write_text(json.dumps({"q": "How many whales does it take to fill a bath?"}))
    section = corpus(tmp_path, texts).model_dump() | {
        "paragraphs": 30,
        "near": {"words": 3},
        "decontaminate": [str(tmp_path / "questions.jsonl")],
    }
    section = parse(Text, section)
    assert input_files(section)[-1] == tmp_path / "questions.jsonl"
    figures = prepare_text(section, tmp_path / "out", Session())
    left = [text for side in ("train", "held_out") for text in read_texts(tmp_path / "out" / f"{side}.jsonl")]
    assert sorted(left) == sorted([*texts[:21], texts[22], "This one stands elsewhere, in the second."])
    lost = {step["name"]: step["documents_in"] - step["documents_out"] for step in figures["rules"]}
    assert [name for name, count in lost.items() if count] == ["decontaminate questions.jsonl", "near duplicates"]
    assert {step["name"]: step["changed"] for step in figures["rules"]}["repeated paragraphs"] == 1
    card = (tmp_path / "out" / "card.md").read_text()
    assert "### near duplicates\n\n- `in.jsonl:22, like in.jsonl:21`: ``word0" in card
    assert sorted(contents(tmp_path / "out")) == ["card.md", "funnel.json", "held_out.jsonl", "train.jsonl"]


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = corpus(tmp_path, lines(20))

    def reading(*given: Any) -> Any:
        yield from read(*given)
        (tmp_path / "in.jsonl").write_text("other")

    monkeypatch.setattr(stage, "read", reading)
    with pytest.raises(InputError, match=r"in\.jsonl: changed while text read it"):
        prepare_text(section, tmp_path / "out", Session())
    assert not list((tmp_path / "out").iterdir())


def test_workers_change_no_byte(tmp_path: Path) -> None:
    section = corpus(tmp_path, lines(40)).model_copy(update={"near": Near(words=2)})
    prepare_text(section, tmp_path / "a", Session())
    prepare_text(section.model_copy(update={"workers": 2}), tmp_path / "b", Session())
    for side in ("train", "held_out"):
        assert (tmp_path / "a" / f"{side}.jsonl").read_bytes() == (tmp_path / "b" / f"{side}.jsonl").read_bytes()


def test_sources_are_mixed_and_the_card_says_how(tmp_path: Path) -> None:
    for name in "ab":
        rows = [json.dumps({"text": f"{name} document number {n} of the source {name}"}) for n in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    sources = [{"kind": "files", "path": str(tmp_path / f"{name}.jsonl"), "licence": f"L{name}"} for name in "ab"]
    section = parse(Text, {"sources": sources, "mix": {"kind": "epochs", "epochs": [0.5, 2]}})
    figures = prepare_text(section, tmp_path / "out", Session())
    train, held = (list(read_texts(tmp_path / "out" / f"{side}.jsonl")) for side in ("train", "held_out"))
    of_b = [text for text in train if text.startswith("b")]
    assert sorted(of_b) == sorted([*set(of_b)] * 2)
    assert sum(text.startswith("a") for text in train) == pytest.approx(20, abs=2)
    assert len(held) == len(set(held))
    assert set(train).isdisjoint(held)
    assert [source["epochs"] for source in figures["sources"]] == [0.5, 2]
    assert figures["train"]["bytes"] == sum(len(text) for text in train)
    assert f"| `{tmp_path}/b.jsonl` | Lb | " in (tmp_path / "out" / "card.md").read_text()
    with pytest.raises(InputError, match=r"mix\.epochs has 1 values for 2 sources"):
        parse(Text, {"sources": sources, "mix": {"kind": "epochs", "epochs": [1]}})
    with pytest.raises(InputError, match="leaves nothing to train on"):
        prepare_text(section.model_copy(update={"mix": Epochs(epochs=(0, 0))}), tmp_path / "none", Session())


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python and Arrow hold at most, over a corpus and over one eight times as long; a few numbers a document do
    grow. It fails when a step gathers texts: the longer one has 1.8 MB of them."""
    monkeypatch.setattr(stage, "ROWS", 20)  # batches small enough that the short corpus fills several
    monkeypatch.setattr(files, "CHUNK", 1 << 14)
    monkeypatch.setattr(near, "TOGETHER", 64)
    monkeypatch.setattr(stage, "batched", partial(batched, rows=20))
    peaks = []
    for copies in (1, 8):
        rows = (" ".join(f"w{number * 300 + n}" for n in range(300)) for number in range(100 * copies))
        (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        section = Text(sources=(Files(path=str(tmp_path / "in.jsonl")),), near=Near(), paragraphs=50)
        before = pyarrow.total_allocated_bytes()
        tracemalloc.start()
        prepare_text(section, tmp_path / f"out{copies}", Session())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert pyarrow.total_allocated_bytes() - before < 1_000_000
    assert peaks[1] - peaks[0] < 500_000
    assert (tmp_path / "out8" / "train.jsonl").stat().st_size > 1_500_000


def test_input_files(tmp_path: Path) -> None:
    section = corpus(tmp_path, lines(2))
    assert input_files(section) == [tmp_path / "in.jsonl"]
    (tmp_path / "in.jsonl").unlink()
    with pytest.raises(InputError, match="no such file or folder"):
        input_files(section)


def test_the_section_is_written_as_a_recipe_writes_it() -> None:
    section = parse(Text, {"sources": ["bundled", {"kind": "files", "path": "x.txt", "text": ["a", "b"]}]})
    assert section.sources == (Bundled(), Files(path="x.txt", text=("a", "b")))
    with pytest.raises(InputError, match=r"did you mean 'files'"):
        parse(Text, {"sources": ["file"]})


def test_a_book_end_to_end(tmp_path: Path) -> None:
    figures = prepare_text(Text(), tmp_path, Session())
    assert figures["train"]["documents"] > 300
    assert 0.05 <= figures["held_out"]["bytes"] / (figures["held_out"]["bytes"] + figures["train"]["bytes"]) < 0.06
    text = joined(read_texts(tmp_path / "held_out.jsonl"))
    assert len(text) == figures["held_out"]["bytes"] + 2 * (figures["held_out"]["documents"] - 1)
