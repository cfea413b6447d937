"""Going on with a file: its end is read and no more, files that are none are refused, memory as the formula says."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.checkpoints.bundle import Bundle
from llmlab.errors import InputError
from llmlab.inference.cache import DenseCache
from llmlab.inference.caches import Dense, Rolling
from llmlab.inference.rolling_cache import RollingCache
from llmlab.inference.sampling import Sampling
from llmlab.language_model import LanguageModel
from llmlab.longtext.continuing import MOST, ending, go_on
from llmlab.model.transformer import Architecture
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, train_tokenizer

CONTEXT = 64
TEXT = "Call me Ishmael. Some years ago, never mind how long precisely, I thought I would sail about. 白鲸 🐋\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(BPE(vocab_size=300), iter([TEXT * 20]))


def model(tokenizer: Tokenizer, **fields: Any) -> LanguageModel:
    told = {"layers": 2, "dim": 32, "context": CONTEXT} | fields
    made = Architecture.model_validate(told).build(tokenizer.vocab_size, seed=0)
    return LanguageModel(Bundle(made=made, tokenizer=tokenizer, architecture=made.architecture, origin="test"))


@given(text=st.text(alphabet="a é白🐋 \n", min_size=1, max_size=40), most=st.integers(4, 60))
@settings(deadline=None)
def test_the_end_of_a_file_is_whole_characters(tmp_path_factory: pytest.TempPathFactory, text: str, most: int) -> None:
    path = tmp_path_factory.mktemp("end") / "a.txt"
    path.write_bytes(content := f"{text}.".encode())
    found = ending(path, most)
    assert (found.text, found.size) == (content[found.start :].decode(), len(content))
    assert len(content) - found.start > min(len(content), most) - 4
    cut = found.cut(5)
    assert content[cut.start :].decode() == cut.text
    assert 0 < len(cut.text) <= max(5, len(found.text[-5:]))


def test_of_a_large_file_the_end_alone_is_held(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "one_line.txt"
    with path.open("wb") as file:
        for _ in range(50):
            file.write("白鲸 whale ".encode() * (1 << 16))
    lm = model(tokenizer)
    tracemalloc.start()
    done = go_on(lm, path, Sampling(max_new_tokens=5))
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert done["file_bytes"] == path.stat().st_size > 40 << 20
    assert CONTEXT // 2 < done["read_tokens"] <= CONTEXT - 5
    assert done["read_from_byte"] > done["file_bytes"] - 2000
    with pytest.raises(InputError, match="leave out --whole"):
        go_on(lm, path, Sampling(), whole=True)
    assert path.stat().st_size > MOST


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"PK\x03\x04\x00\x00", "byte 4 is 0: this is no text"),
        (b"caf\xe9 noir", "byte 3 is not UTF-8"),
        ("白".encode()[:2], "byte 0 is not UTF-8"),
    ],
)
def test_what_is_no_text_is_refused_in_a_line(tmp_path: Path, content: bytes, says: str) -> None:
    (path := tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=says) as refused:
        ending(path, 100)
    assert "\n" not in str(refused.value)


def test_a_folder_and_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Is a directory"):
        ending(tmp_path, 10)
    with pytest.raises(InputError, match="No such file"):
        ending(tmp_path / "none.txt", 10)


def test_a_last_line_break_and_a_mark_are_no_text(tmp_path: Path) -> None:
    (path := tmp_path / "a.txt").write_bytes("\ufeffA whale\r\n".encode())
    assert (ending(path, 100).text, ending(path, 100).start) == ("A whale", 3)


def test_it_goes_on_as_the_prompt_would_and_past_the_context(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lm, path = model(tokenizer), tmp_path / "a.txt"
    path.write_text("Some years ago\n", encoding="utf-8")
    sampling = Sampling(max_new_tokens=9, seed=3)
    done = go_on(lm, path, sampling)
    assert done["text"] == lm.generate("Some years ago", max_new_tokens=9, seed=3)
    assert (done["read_from_byte"], done["file_bytes"]) == (0, 15)
    endless = go_on(lm, path, Sampling(max_new_tokens=3 * CONTEXT, min_new_tokens=3 * CONTEXT))
    assert endless["tokens"] == 3 * CONTEXT
    assert path.read_text(encoding="utf-8") == "Some years ago\n"


def test_the_whole_file_goes_through_the_window(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lm, path = model(tokenizer), tmp_path / "a.txt"
    path.write_text(TEXT * 5, encoding="utf-8")
    done = go_on(lm, path, Sampling(max_new_tokens=8, temperature=0), window=20, sinks=2, whole=True)
    told = {"kind": "rolling", "window": 20, "sinks": 2}
    assert done["text"] == lm.generate((TEXT * 5).removesuffix("\n"), cache=told, max_new_tokens=8, temperature=0)
    assert done["read_tokens"] > 2 * CONTEXT
    assert go_on(lm, path, Sampling(max_new_tokens=8), window=20, sinks=2)["read_tokens"] <= 22


@pytest.mark.parametrize(
    ("settings", "fields", "says"),
    [
        ({"window": 0}, {}, "--window: 0 keeps nothing"),
        ({"window": 8, "sinks": -1}, {}, "--sinks: -1 is below 0"),
        ({"window": CONTEXT}, {}, "does not fit the context of 64"),
        ({"whole": True}, {"position": "learned"}, "learned positions are told once"),
    ],
)
def test_limits_are_said_in_a_line(
    tmp_path: Path, tokenizer: Tokenizer, settings: dict[str, Any], fields: dict[str, Any], says: str
) -> None:
    (path := tmp_path / "a.txt").write_text("A whale")
    with pytest.raises(InputError, match=says):
        go_on(model(tokenizer, **fields), path, Sampling(), **settings)


@pytest.mark.parametrize("window", [None, 16])
def test_the_bytes_that_are_told_are_those_set_aside(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    made: list[DenseCache | RollingCache] = []
    for kind in (Dense, Rolling):
        build = kind.build

        def kept(self: Any, *given: Any, build: Any = build) -> Any:
            made.append(build(self, *given))
            return made[-1]

        monkeypatch.setattr(kind, "build", kept)
    lm, path = model(tokenizer), tmp_path / "a.txt"
    path.write_text(TEXT)
    done = go_on(lm, path, Sampling(max_new_tokens=7), window=window)
    assert done["peak_cache_bytes"] == made[-1].nbytes > 0
