"""Tokenizers in GGUF: what is written makes the same ids again, and what llama.cpp cannot cut alike is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from llmlab.checkpoints.gguf_file import GGUF, write_gguf
from llmlab.checkpoints.gguf_tokenizer import read_tokenizer, tokenizer_fields
from llmlab.errors import InputError
from llmlab.tokenization.pieces import PRE, byte_letters
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, Unigram, WordPiece, train_tokenizer

LETTERS = list(byte_letters())
LETTER_IDS = {letter: id for id, letter in enumerate(LETTERS)}
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab", "aba"]
SCORES = [0.0] * 259 + [-10.0, -11.0, -12.0, -1.0, -2.0, -3.0, -2.5]


def again(tokenizer: Tokenizer, folder: Path, rows: int | None = None) -> Tokenizer:
    path = folder / "t.gguf"
    write_gguf(path, tokenizer_fields(tokenizer, rows or tokenizer.vocab_size), {})
    back = read_tokenizer(GGUF(path))
    assert back is not None
    return back


def byte_level(pre: str = "gpt-2", **changes: Any) -> Tokenizer:
    tokens = ["<|end|>", *LETTERS, "th", "the", "Ġthe"]
    return Tokenizer.from_bpe(
        tokens, ["t h", "th e", "Ġ the"], pre=pre, types=[3, *[1] * (len(tokens) - 1)], eos=0, **changes
    )


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    text = "the whale is not a fish, 1234 whales are; 鲸鱼不是鱼。\n\tdef f(x): return x  # yes\n" * 20
    return train_tokenizer(BPE(vocab_size=330), iter([text]))


TEXT = st.text() | st.lists(
    st.sampled_from(["the", " ", "  ", "\n", "\t", "123", "鲸鱼", "<|im_end|>", "'s", "\u00a0", "_a", "🙂", "é"])
).map("".join)


@settings(deadline=None, max_examples=150)
@given(text=TEXT)
def test_a_trained_tokenizer_comes_back(trained: Tokenizer, tmp_path_factory: Any, text: str) -> None:
    if "back" not in trained.__dict__:
        trained.__dict__["back"] = again(trained, tmp_path_factory.mktemp("t"), rows=352)
    back = trained.__dict__["back"]
    assert back.encode(text) == trained.encode(text)
    assert back.decode(trained.encode(text)) == text
    assert back.scaffold(f"<|im_start|>{text}") == trained.scaffold(f"<|im_start|>{text}")


def test_a_trained_tokenizer_keeps_what_it_knows(trained: Tokenizer, tmp_path: Path) -> None:
    back = again(trained, tmp_path, rows=352)
    assert back.vocab_size == trained.vocab_size  # the spare rows' names are no tokens
    assert (back.eos_id, back.pad_id, back.adds_bos) == (trained.eos_id, trained.pad_id, trained.adds_bos)
    assert (back.special_ids, back.chat_template) == (trained.special_ids, trained.chat_template)
    assert back.bos_id == trained.eos_id  # llama.cpp would take id 11 for the one that is missing
    file = GGUF(tmp_path / "t.gguf")
    assert len(file.fields["tokenizer.ggml.tokens"]) == 352
    assert file.fields["tokenizer.ggml.tokens"][-1] == "[PAD351]"
    assert file.fields["tokenizer.ggml.add_bos_token"] is False


@pytest.mark.parametrize("pre", PRE)
def test_each_way_to_cut_has_its_name(pre: str, tmp_path: Path) -> None:
    tokenizer = byte_level(pre, bos=0, add_bos=True)
    assert tokenizer_fields(tokenizer, 300)["tokenizer.ggml.pre"] == pre
    back = again(tokenizer, tmp_path)
    text = "the other 12345 don't  \n\n they'll"
    assert back.encode(text) == tokenizer.encode(text)
    assert back.prompt("the") == tokenizer.prompt("the")
    assert back.adds_bos


def test_a_users_token_stays_ordinary(tmp_path: Path) -> None:
    tokens = ["<|end|>", *LETTERS, "<tool>"]
    tokenizer = Tokenizer.from_bpe(tokens, [], types=[3, *[1] * 256, 4], pre="gpt-2", eos=0)
    back = again(tokenizer, tmp_path)
    assert (
        back.encode("a<tool>b") == tokenizer.encode("a<tool>b") == [1 + LETTERS.index("a"), 257, 1 + LETTERS.index("b")]
    )
    assert back.special_ids == tokenizer.special_ids == {0}


@pytest.mark.parametrize("prefix", [True, False])
@settings(deadline=None, max_examples=60)
@given(text=st.text(st.sampled_from("ab é\n")))
def test_a_sentencepiece_bpe_comes_back(tmp_path_factory: Any, prefix: bool, text: str) -> None:
    tokenizer = Tokenizer.from_sentencepiece(PIECES, SCORES, add_space_prefix=prefix)
    back = again(tokenizer, tmp_path_factory.getbasetemp(), rows=300)
    assert back.encode(text) == tokenizer.encode(text)
    assert back.prompt(text) == tokenizer.prompt(text)
    assert (back.bos_id, back.eos_id, back.special_ids) == (1, 2, tokenizer.special_ids)
    assert back.spec() == tokenizer.spec()


def test_stories260k_comes_back(shared: Path, tmp_path: Path) -> None:
    from llmlab.checkpoints.where import open_model

    tokenizer = open_model(shared / "stories260k").tokenizer
    assert tokenizer is not None
    back = again(tokenizer, tmp_path)
    text = 'Once upon a time, Lily\'s dog — 3 years old — said: "naïve 鲸!"\n'
    assert back.encode(text) == tokenizer.encode(text)


def of(edit: Callable[[Backend], None], **names: str | None) -> Tokenizer:
    backend = Backend(models.BPE(vocab=LETTER_IDS, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    edit(backend)
    return Tokenizer(backend, **{"eos": "<end>", **names})


def edited(**parts: Any) -> Callable[[Backend], None]:
    def edit(backend: Backend) -> None:
        for name, part in parts.items():
            setattr(backend, name, part)

    return edit


@pytest.mark.parametrize(
    ("edit", "names", "says"),
    [
        (edited(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)), {}, "a way to cut text"),
        (edited(pre_tokenizer=pre_tokenizers.Whitespace()), {}, "a way to cut text .*gpt-2"),
        (edited(normalizer=normalizers.Lowercase()), {}, "the normalizer Lowercase"),
        (
            edited(model=models.BPE(vocab={c: i for i, c in enumerate(LETTERS)}, merges=[], ignore_merges=True)),
            {},
            "ign",
        ),
        (edited(decoder=decoders.BPEDecoder()), {}, "neither on bytes nor falls back"),
        (edited(model=models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")), {}, "a WordPiece model"),
        (edited(model=models.Unigram([("a", 0.0)], 0, False)), {}, "a Unigram model"),
        (lambda b: b.add_tokens([AddedToken("<x>", lstrip=True)]), {}, "the added token '<x>' with lstrip"),
        (edited(), {"eos": None}, "no eos token"),
    ],
)
def test_what_llama_cpp_cannot_cut_alike_is_refused(
    edit: Callable[[Backend], None], names: dict[str, str | None], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        tokenizer_fields(of(edit, **names), 300)
    assert caught.value.place == "tokenizer"


def test_merges_that_no_scores_give_are_refused() -> None:
    spec = Tokenizer.from_sentencepiece(PIECES, SCORES).spec()
    merges = spec["model"]["merges"]
    cut = ["▁", "ab"]  # one of two ways to make a piece: left out, or ranked apart from the other
    assert cut in merges[1:]
    rest = [merge for merge in merges if merge != cut]
    for wrong in (rest, [cut, *rest]):
        changed = spec | {"model": spec["model"] | {"merges": wrong}}
        tokenizer = Tokenizer(Backend.from_str(json.dumps(changed)), eos="</s>", unk="<unk>")
        with pytest.raises(InputError, match="merges that no scores"):
            tokenizer_fields(tokenizer, 300)


@pytest.mark.parametrize("kind", [Unigram, WordPiece])
def test_other_kinds_trained_here_are_refused_by_name(kind: Callable[..., Any]) -> None:
    section = kind(vocab_size=300)
    tokenizer = train_tokenizer(section, iter(["the whale is not a fish " * 20]))
    with pytest.raises(InputError, match=f"a {kind.__name__} model.*convert to hf"):
        tokenizer_fields(tokenizer, 300)


def test_no_tokenizer_is_said(tmp_path: Path) -> None:
    write_gguf(tmp_path / "t.gguf", tokenizer_fields(None, 10), {})
    assert read_tokenizer(GGUF(tmp_path / "t.gguf")) is None
