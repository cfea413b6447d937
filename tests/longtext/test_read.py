"""Reading a file longer than a context: what is quoted, and where; recall on questions held out from all choices."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from llmlab.data import bundled
from llmlab.errors import InputError
from llmlab.evaluation.statistics import wilson
from llmlab.longtext.questions import checked, telling
from llmlab.longtext.read import NOTHING, Reader, middle, read
from llmlab.longtext.retrievers import Bm25, best_within, standard

HERE = Path(__file__).parent


def asked(name: str) -> list[tuple[str, list[str]]]:
    lines = (HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["question"], row["quotes"]) for row in map(json.loads, lines)]


def quoted(reader: Reader, question: str, quotes: list[str]) -> bool:
    sources = [" ".join(source.text.split()) for source in reader.ask(question).sources]
    return any(quote in source for quote in quotes for source in sources)


@pytest.fixture(scope="module")
def moby_dick() -> Reader:
    return Reader(bundled.path("moby_dick"), "bm25")


def test_every_expected_quote_stands_in_the_book() -> None:
    for book, names in {
        "moby_dick": ("moby_dick_tuning", "moby_dick_held_out"),
        "sanguo_yanyi": ("sanguo_yanyi",),
    }.items():
        text = " ".join(bundled.path(book).read_text(encoding="utf-8").split())
        assert not [quotes for name in names for _, quotes in asked(name) if not any(quote in text for quote in quotes)]


def test_sources_are_the_file_at_their_places(moby_dick: Reader) -> None:
    content = bundled.path("moby_dick").read_text(encoding="utf-8")
    found = moby_dick.ask("Where was the chief mate Starbuck born?")
    assert 1 <= len(found.sources) <= 5
    assert all(source.text == content[source.start : source.end] for source in found.sources)
    scores = [source.score for source in found.sources]
    assert scores == sorted(scores, reverse=True)
    spans = sorted((source.start, source.end) for source in found.sources)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert found.found
    assert found.answer in " ".join(" ".join(source.text for source in found.sources).split())


def test_words_alone_find_half_of_what_no_setting_was_chosen_by(moby_dick: Reader) -> None:
    """Paraphrased questions: words alone are the floor, which meaning raises (LOG.md has both)."""
    hits = sum(quoted(moby_dick, *one) for one in asked("moby_dick_held_out"))
    assert wilson(hits, 50).value > 0.5


def test_chinese(moby_dick: Reader) -> None:
    reader = Reader(bundled.path("sanguo_yanyi"), "bm25")
    assert reader.size == 400 < moby_dick.size
    hits = sum(quoted(reader, *one) for one in asked("sanguo_yanyi"))
    assert hits / 24 > 0.7


PLANTED = [
    ("The password of the lighthouse keeper was the word marmalade.", "What was the lighthouse keeper's password?"),
    ("Doctor Quillfeather kept eleven hedgehogs in his laboratory.", "How many hedgehogs did Quillfeather keep?"),
    ("The treaty of Brandelholm was signed in a bakery.", "Where was the Brandelholm treaty signed?"),
    (
        "Her bicycle had been painted turquoise by a blind plumber.",
        "Which colour was the bicycle that a plumber painted?",
    ),
]


@pytest.mark.parametrize(("fact", "question"), PLANTED)
def test_a_planted_fact_is_found_at_any_depth(tmp_path: Path, fact: str, question: str) -> None:
    text = bundled.path("moby_dick").read_text(encoding="utf-8")[:300_000]
    place = text.index(" ", random.Random(fact).randrange(len(text) - 100))
    (tmp_path / "book.txt").write_text(f"{text[:place]} {fact} {text[place:]}", encoding="utf-8")
    found = read(tmp_path / "book.txt", question, retriever="bm25")
    assert fact in found.sources[0].text
    assert fact.split()[-2] in found.answer


def test_what_the_file_does_not_know_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The ship sails at noon. Bring a coat.")
    found = read(tmp_path / "notes.txt", "Which enzyme copies chromosomes?", retriever="bm25")
    assert (found.answer, found.found, found.sources) == (NOTHING, False, [])


NOTES = (
    "Captain Holm came into the world in Bergen, a town in Norway.",
    "The captain of the captain's boat is captain of the watch.",
    "Oil is kept in casks below, which must be wetted twice a week.",
)


def test_meaning_finds_what_words_put_second(minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("\n\n".join(NOTES), encoding="utf-8")
    ranked = [
        Reader(tmp_path / "notes.txt", how, size=62, overlap=0).finder.rank("Where was the captain born?")
        for how in ("bm25", {"kind": "fused", "meaning": 1.0})
    ]
    assert [len(found.spans_N2) for found in ranked] == [2, 2]
    assert [int(found.spans_N2[0, 0] > 0) for found in ranked] == [1, 0]


def test_questions_about_other_things_are_refused(minilm: Path) -> None:
    reader = Reader(bundled.path("moby_dick"), {"kind": "fused", "candidates": 8})
    assert not reader.ask(asked("unanswerable_held_out")[0][0]).found


def test_the_best_window_of_a_span() -> None:
    import numpy as np

    windows = np.array([[0, 10], [8, 20], [18, 30], [40, 50]])
    spans = np.array([[0, 20], [30, 40], [20, 60], [44, 46]])
    found = best_within(spans, windows, np.array([0.1, 0.5, 0.3, 0.7], np.float32))
    assert found.tolist() == pytest.approx([0.5, -1, 0.7, 0.7])


def test_a_long_source_is_shown_around_its_middle() -> None:
    assert middle("short", 800) == "short"
    assert middle("a" * 50 + "b" * 20 + "c" * 50, 20) == "… " + "b" * 20 + " …"


def test_questions() -> None:
    assert telling("What was the name of the captain's ship?") == "name captain ship"
    assert telling("Who is it?") == "who is it"
    for bad, told in (("", "is empty"), (" \n", "is empty"), ("?!", "no word"), ("why " * 600, "characters")):
        with pytest.raises(InputError, match=told):
            checked(bad)


def test_without_weights_words_are_used_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmlab.longtext.retrievers.cached", lambda name: None)
    chosen, told = standard()
    assert isinstance(chosen, Bm25)
    assert "llmlab pull minilm" in told


def test_a_model_reads_what_fits_its_context(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(
        "The ship sails at noon. " * 20 + "The captain of the ship is called Mira Holt."
    )
    found = read(tmp_path / "notes.txt", "What is the captain of the ship called?", "smollm2", "bm25")
    assert "Mira" in found.answer
    assert found.cited
    assert found.model == "smollm2"
