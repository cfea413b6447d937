"""WordPiece: as transformers reads BERT's files, as llama.cpp spells them, and honest about what it loses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer

from llmlab.checkpoints.gguf_file import GGUF
from llmlab.checkpoints.gguf_tokenizer import read_tokenizer
from llmlab.errors import InputError
from llmlab.inference.text import text_of
from llmlab.tokenization.chat import Renderer
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import WordPiece, train_tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
TEXT |= st.text("aAe\u00c9s #['\n[]!\u9cb8\u0301", max_size=40)
CORPUS = ["Call me Ishmael. The whales' sea, 1851: caf\u00e9 [sic] #1!", "the whale and the ship \u9cb8\u9c7c"] * 4
NAMES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def ours(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(WordPiece(vocab_size=140, lowercase=request.param), iter(CORPUS))


def _vocabulary(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.token(id) or "" for id in range(tokenizer.vocab_size)]


def _phantom(piece: str) -> str:
    """llama.cpp's conversion of BERT's pieces, as its converter does it."""
    if piece.startswith("[") and piece.endswith("]"):
        return piece
    return piece[2:] if piece.startswith("##") else "\u2581" + piece


def _reference(pieces: list[str], lowercase: bool) -> BertWordPieceTokenizer:
    made = BertWordPieceTokenizer({piece: id for id, piece in enumerate(pieces)}, lowercase=lowercase)
    made._tokenizer.encode_special_tokens = True
    return made


def _lowercase(tokenizer: Tokenizer) -> bool:
    return tokenizer.encode("THE") == tokenizer.encode("the")


# ---------------------------------------------------------------- ours


@settings(deadline=None, max_examples=150)
@given(text=TEXT)
@example(text="[MASK] [CLS]a[SEP]")
def test_ids_are_those_of_berts_own_tokenizer(ours: Tokenizer, text: str) -> None:
    ids = ours.encode(text)
    assert ids == _reference(_vocabulary(ours), _lowercase(ours)).encode(text, add_special_tokens=False).ids
    assert ours.encode_batch([text, text]) == [ids, ids]
    assert not {ours.cls_id, ours.sep_id, ours.mask_id, ours.pad_id} & set(ids)


def test_what_was_learnt(ours: Tokenizer) -> None:
    assert [ours.token_id(name) for name in NAMES] == [0, 1, 2, 3, 4]
    assert (ours.pad_id, ours.cls_id, ours.sep_id, ours.mask_id, ours.eos_id, ours.bos_id) == (0, 2, 3, 4, 3, None)
    assert ours.vocab_size <= 140
    assert ours.special_ids == frozenset(range(5))
    assert ours.scaffold("the [MASK]") == [*ours.encode("the"), 4]
    words = [ours.token_bytes(id) for id in ours.encode("the whales")]
    assert b"".join(words) == b" the whales"


def test_the_same_in_another_process() -> None:
    script = (
        "from llmlab.tokenization.train import *\n"
        f"t = train_tokenizer(WordPiece(vocab_size=120), iter({CORPUS!r}))\n"
        "print([t.token(i) for i in range(t.vocab_size)])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == f"{_vocabulary(train_tokenizer(WordPiece(vocab_size=120), iter(CORPUS)))}\n"


@pytest.mark.parametrize("size", [7, 20, 60])
def test_size_is_never_overrun(size: int) -> None:
    """Characters that find no room are unknown."""
    made = train_tokenizer(WordPiece(vocab_size=size), iter(CORPUS))
    assert made.vocab_size <= size
    assert set(made.encode("the \u2603")) & {1}
    with pytest.raises(InputError, match="6 ids cannot hold a character and 5 special tokens"):
        train_tokenizer(WordPiece(vocab_size=6), iter(CORPUS))


def test_what_it_loses_is_declared(ours: Tokenizer) -> None:
    assert not ours.lossless
    assert not WordPiece.lossless
    assert ours.decode(ours.encode("the  whale \u2603")) == "the whale [UNK]"
    with pytest.raises(InputError, match=r"its ids do not keep the text .*: no bits per byte"):
        ours.require_lossless("bits per byte")
    with pytest.raises(InputError, match="no chat template"):
        Renderer(ours)


@settings(deadline=None, max_examples=50)
@given(words=st.lists(st.sampled_from(["whale", "the", "ship", "sea", "whales", "me"]), max_size=8))
def test_streamed_text_is_the_decoded_text(ours: Tokenizer, words: list[str]) -> None:
    text = " ".join(words)
    ids = ours.encode(text)
    assert ours.spells_space
    assert ours.decode(ids) == text_of(ours, ids, start=True) == text


def test_saved_folder_reads_alike_in_transformers(ours: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    again, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    a, b = "Call me ISHMAEL,", "the caf\u00e9s \u9cb8\u9c7c #!"
    for made in (ours, again):
        ids, segments = made.pair(made.encode(a), made.encode(b))
        both = theirs(a, b, return_token_type_ids=True)
        assert (ids, segments) == (both["input_ids"], both["token_type_ids"])
        assert made.pair(made.encode(a))[0] == theirs(a)["input_ids"]
        assert made.mask_id == theirs.mask_token_id
        assert made.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


# ---------------------------------------------------------------- BERT's vocab.txt


def _bare(folder: Path, pieces: list[str], **config: Any) -> Path:
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8", newline="\n")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_bare_vocabulary_reads_as_transformers_does(ours: Tokenizer, lowercase: bool, tmp_path: Path) -> None:
    from transformers import BertTokenizer

    folder = _bare(tmp_path, _vocabulary(ours), do_lower_case=lowercase, tokenizer_class="BertTokenizer")
    read, theirs = Tokenizer.load(folder), BertTokenizer.from_pretrained(folder)
    for text in [*CORPUS, "THE Caf\u00c9s", "\u9cb8\u9c7c[MASK]"]:
        assert read.encode(text) == _reference(_vocabulary(ours), lowercase).encode(text, add_special_tokens=False).ids
    for text in CORPUS:
        assert read.pair(read.encode(text))[0] == theirs(text)["input_ids"]
    assert (read.mask_id, read.cls_id, read.sep_id, read.pad_id, read.eos_id) == (4, 2, 3, 0, None)


def test_without_a_config_the_vocabulary_says_its_case(ours: Tokenizer, tmp_path: Path) -> None:
    assert _lowercase(Tokenizer.load(_bare(tmp_path, _vocabulary(ours)))) == _lowercase(ours)


@pytest.mark.parametrize(
    ("pieces", "config", "says"),
    [
        (["a", "b"], {}, r"no token \[UNK\] for words"),
        (["[UNK]", "a"], {"do_lower_case": "yes"}, "do_lower_case is 'yes'"),
        (["[UNK]", "a"], {"eos_token": "[END]"}, r"eos token '\[END\]' is not in the vocabulary"),
    ],
)
def test_bad_vocabularies_are_named(pieces: list[str], config: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        Tokenizer.load(_bare(tmp_path, pieces, **config))


def test_a_vocabulary_without_cls_frames_nothing(tmp_path: Path) -> None:
    read = Tokenizer.load(_bare(tmp_path, ["[UNK]", "a"]))
    assert read.pair([1, 1]) == ([1, 1], [0, 0])
    with pytest.raises(InputError, match="do not say how two texts"):
        read.pair([1], [1])


# ---------------------------------------------------------------- GGUF


def _gguf(path: Path, pieces: list[str], **fields: Any) -> GGUF:
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_tokenizer_model("bert")
    writer.add_token_list([_phantom(piece) for piece in pieces])
    for role, id in {"unknown": 1, "seperator": 3, "padding": 0, "mask": 4, "cls": 2}.items():
        writer.add_uint32(f"tokenizer.ggml.{role}_token_id", id)
    for name, value in fields.items():
        writer.add_bool(f"tokenizer.ggml.normalizer.{name}", value)
    writer.add_tensor("x", np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUF(path)


@settings(deadline=None, max_examples=60)
@given(text=TEXT)
def test_pieces_without_marks_are_the_same_vocabulary(ours: Tokenizer, text: str) -> None:
    pieces = _vocabulary(ours)
    again = Tokenizer.from_wordpiece([_phantom(piece) for piece in pieces], cls=2, sep=3, pad=0, unk=1, mask=4)
    assert _vocabulary(again) == pieces
    assert again.encode(text) == ours.encode(text)
    assert again.pair([7], [8]) == ([2, 7, 3, 8, 3], [0, 0, 0, 1, 1])


def test_read_from_a_file(ours: Tokenizer, tmp_path: Path) -> None:
    read = read_tokenizer(_gguf(tmp_path / "a.gguf", _vocabulary(ours)))
    assert read is not None
    assert read.encode(CORPUS[0]) == ours.encode(CORPUS[0])
    assert (read.cls_id, read.sep_id, read.mask_id, read.pad_id) == (2, 3, 4, 0)
    folded = read_tokenizer(_gguf(tmp_path / "b.gguf", _vocabulary(ours), lowercase=True, strip_accents=True))
    assert folded is not None
    assert _lowercase(folded)
    kept = read_tokenizer(_gguf(tmp_path / "c.gguf", _vocabulary(ours), lowercase=False))
    assert kept is not None
    assert not _lowercase(kept)
