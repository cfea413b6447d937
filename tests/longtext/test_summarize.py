from __future__ import annotations

from pathlib import Path

import pytest

from llmlab.data import bundled
from llmlab.errors import InputError
from llmlab.language_model import load
from llmlab.longtext.extract import best_sentences
from llmlab.longtext.hierarchy import Part, sections
from llmlab.longtext.summarize import Writer, grouped, summarize
from llmlab.longtext.textfile import TextFile


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of a short context: what it writes is noise, how it is asked is not."""
    from llmlab.checkpoints.native import save_model
    from llmlab.model.transformer import Architecture
    from llmlab.recipe import parse
    from llmlab.tokenization.train import BPE, train_tokenizer

    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = train_tokenizer(BPE(vocab_size=400), iter(["Summarize the text: a whale is not a fish. " * 20]))
    architecture = parse(Architecture, {"layers": 1, "dim": 32, "context": 512})
    save_model(folder, architecture.build(tokenizer.vocab_size), tokenizer)
    return folder


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("book") / "book.md"
    path.write_text("\n".join(f"# Part {part}\n" + "The whale is not a fish. " * 60 for part in range(4)))
    return path


def test_extracts_are_sentences_of_the_file_in_order(tmp_path: Path) -> None:
    path = tmp_path / "beginning.txt"
    content = bundled.path("moby_dick").read_text(encoding="utf-8")[:60_000]
    path.write_text(content, encoding="utf-8")
    file = TextFile.of(path)
    parts = sections(file.blocks())
    found = best_sentences(file, parts, [400] * len(parts))
    for part, chosen in zip(parts, found, strict=True):
        assert all(content[one.start : one.start + len(one.text)] == one.text for one in chosen)
        assert [one.start for one in chosen] == sorted(one.start for one in chosen)
        assert all(part.start <= one.start for one in chosen)
        assert len(chosen) == 1 or sum(len(one.text) for one in chosen) <= 400
    done = summarize(path, words=100)
    assert len(done.summary.split()) < 140
    assert done == summarize(path, words=100)


@pytest.mark.parametrize("method", ["map_reduce", "refine"])
def test_every_call_fits_the_context(tiny: Path, book: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()
    ids = Writer._ids

    def watched(self: Writer, text: str, before: str) -> list[int]:
        found = ids(self, text, before)
        asked.append(len(found) + self.tokens)
        assert asked[-1] <= self.lm.context
        return found

    monkeypatch.setattr(Writer, "_ids", watched)
    done = summarize(book, str(tiny), method, words=10, weights="fp32")
    assert done.calls >= 4
    assert done.tokens_read > 0
    assert done.tokens_written <= done.calls * 31
    assert max(asked) > 200  # the context is used, not only kept
    if method == "map_reduce":
        assert [section.title for section in done.sections] == [f"# Part {part}" for part in range(4)]
        assert 2 <= done.levels <= 8


def test_a_longer_text_is_thinned(tiny: Path, book: Path) -> None:
    whole = summarize(book, str(tiny), words=10, weights="fp32")
    thin = summarize(book, str(tiny), words=10, limit=800, weights="fp32")
    assert thin.thinned
    assert not whole.thinned
    assert thin.tokens_read < whole.tokens_read / 2


def test_pieces_are_the_text_and_fit(tiny: Path) -> None:
    writer = Writer(load(tiny), 10)
    for text in ("The whale is a fish. " * 200, "x" * 3000, "鯨" * 500):
        pieces = writer.pieces(text)
        assert "".join(pieces) == text
        assert all(writer.size(piece) <= writer.room for piece in pieces)


def test_more_words_than_the_context_holds_are_refused(tiny: Path, book: Path) -> None:
    with pytest.raises(InputError, match="no room to read"):
        summarize(book, str(tiny), words=400, weights="fp32")


def test_neighbouring_sections_are_told_together() -> None:
    parts = [Part(str(number), number, number + 1) for number in range(7)]
    assert grouped(parts, 3) == [Part("0", 0, 3), Part("3", 3, 6), Part("6", 6, 7)]
    assert grouped(parts, 7) == parts


def test_a_real_model_sums_up(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The captain of the whaler Pequod is called Ahab. He hunts a white whale. " * 9)
    done = summarize(tmp_path / "notes.txt", "smollm2", words=30)
    assert "whale" in done.summary.lower()
    assert done.calls == 1
