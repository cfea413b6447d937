"""Token shards: what was written is what is read, whatever the shard size, and nothing damaged is read."""

from __future__ import annotations

import errno
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.data.shards import TokenShards, write_shards
from llmlab.errors import InputError
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, train_tokenizer

TEXTS = ["Call me Ishmael.", "话说天下大势，分久必合", "a", "whale " * 20, "", "<|endoftext|> is text here"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(BPE(vocab_size=280), iter(TEXTS))


class Wide:
    """A tokenizer of more ids than two bytes hold: each character is its code point."""

    vocab_size, bos_id, eos_id = 0x110000, 1, 2

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [list(map(ord, text)) for text in texts]

    def token(self, id: int) -> str:
        return str(id)


@settings(deadline=None, max_examples=30)
@given(
    texts=st.lists(st.text(st.sampled_from("ab 字🐋\n"), max_size=12), min_size=1).filter(any),
    shard_tokens=st.integers(1, 40),
)
def test_round_trip(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, texts: list[str], shard_tokens: int
) -> None:
    shards = write_shards(texts, tokenizer, tmp_path_factory.mktemp("corpus") / "s", shard_tokens)
    full = [text for text in texts if text]
    assert [tokenizer.decode(shards.document(n)[:-1]) for n in range(shards.documents)] == full
    assert all(shards.document(n)[-1] == tokenizer.eos_id for n in range(shards.documents))
    assert shards.text_bytes == sum(len(text.encode()) for text in full)
    everything = np.concatenate([[*tokenizer.encode(text), tokenizer.eos_id] for text in full])
    assert shards.tokens == len(everything)
    at = np.arange(shards.tokens)[::-1].reshape(1, -1)
    assert (shards.take(at) == everything[at]).all()


def test_a_wide_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    shards = write_shards(["a🐋"], Wide(), tmp_path / "s")  # type: ignore[arg-type]
    assert shards.document(0).tolist() == [97, 0x1F40B, 2]
    assert (tmp_path / "s" / "tokens-00000.bin").stat().st_size == 12
    assert shards.begin_id == 1


def test_two_bytes_are_enough_for_a_small_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards = write_shards(TEXTS, tokenizer, tmp_path / "s")
    assert (tmp_path / "s" / "tokens-00000.bin").stat().st_size == 2 * shards.tokens
    assert shards.begin_id == shards.end_id == tokenizer.eos_id


def test_writing_twice_gives_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    a, b = (write_shards(TEXTS, tokenizer, tmp_path / name, 10) for name in "ab")
    assert a.fingerprint == b.fingerprint
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) > 5
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    assert write_shards(TEXTS[1:], tokenizer, tmp_path / "b", 10).fingerprint != a.fingerprint


def cut_tokens(folder: Path) -> None:
    path = folder / "tokens-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])


def grow_ends(folder: Path) -> None:
    with (folder / "ends-00000.bin").open("ab") as file:
        file.write(b"\0" * 8)


def flip_a_bit(folder: Path) -> None:
    path = folder / "tokens-00000.bin"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def edit_index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        change(index)
        (folder / "index.json").write_text(json.dumps(index))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_tokens, r"tokens-00000.bin: has \d+ bytes, its index says"),
        (grow_ends, r"ends-00000.bin: has \d+ bytes"),
        (flip_a_bit, "its sha256 differs"),
        (lambda folder: (folder / "ends-00000.bin").unlink(), "ends-00000.bin: is missing"),
        (lambda folder: (folder / "index.json").unlink(), "holds no token shards"),
        (lambda folder: (folder / "index.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "index.json").write_text("[]"), "is no index"),
        (edit_index(lambda index: index.update(dtype="O")), "is no index"),
        (edit_index(lambda index: index.update(shards=[])), "names no shard"),
        (edit_index(lambda index: index["shards"][0].pop("tokens")), "is no index of token shards: KeyError"),
        (edit_index(lambda index: index["shards"][0].update(tokens=-1)), "its index says -2"),
        (edit_index(lambda index: index.update(vocab_size=None)), "is no index of token shards: TypeError"),
        (lambda folder: shutil.rmtree(folder), "holds no token shards"),
    ],
)
def test_damage_is_named(tokenizer: Tokenizer, tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    write_shards(TEXTS, tokenizer, tmp_path / "s")
    damage(tmp_path / "s")
    with pytest.raises(InputError, match=message):
        TokenShards(tmp_path / "s")


def test_places_outside_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards = write_shards(TEXTS, tokenizer, tmp_path / "s")
    for at in (-1, shards.tokens):
        with pytest.raises(IndexError):
            shards.take(np.array([0, at]))


def test_another_vocabulary_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards = write_shards(TEXTS, tokenizer, tmp_path / "s")
    shards.require(tokenizer, tokenizer.vocab_size)
    other = train_tokenizer(BPE(vocab_size=270), iter(TEXTS))
    with pytest.raises(InputError, match="was encoded by another tokenizer, of 271 ids; this one has 270"):
        shards.require(other)
    with pytest.raises(InputError, match="holds ids up to 270, the model has 270 embeddings"):
        shards.require(vocab_size=270)


def test_a_saved_tokenizer_still_belongs(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "t")
    write_shards(TEXTS, tokenizer, tmp_path / "s").require(Tokenizer.load(tmp_path / "t"))


def test_an_empty_corpus_leaves_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for texts in ([], ["", ""]):
        with pytest.raises(InputError, match="holds no document"):
            write_shards(texts, tokenizer, tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_a_failing_rewrite_keeps_the_old_corpus(tokenizer: Tokenizer, tmp_path: Path) -> None:
    before = write_shards(TEXTS, tokenizer, tmp_path / "s").fingerprint
    with pytest.raises(InputError):
        write_shards([], tokenizer, tmp_path / "s")
    assert TokenShards(tmp_path / "s").fingerprint == before


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    wide = Wide()
    wide.eos_id = None  # type: ignore[assignment]
    with pytest.raises(InputError, match="no eos token"):
        write_shards(["a"], wide, tmp_path / "s")  # type: ignore[arg-type]


def test_a_file_that_cannot_grow_is_an_error_with_its_number(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A full disk is told by errno; here a limit on the size of files stands for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_shards(["a whale " * 9000], tokenizer, tmp_path / "shards")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []
