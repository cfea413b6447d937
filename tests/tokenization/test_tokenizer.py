"""Text to ids and back, against transformers, SentencePiece's rules and what files in the wild hold."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from llmlab.checkpoints.gguf_file import GGUF
from llmlab.errors import InputError
from llmlab.tokenization.pieces import PRE, byte_letters, pre_tokenizer
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, CHAT_TEMPLATE, Unigram, WordPiece, train_tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
CORPUS = [
    "Call me Ishmael. Some years ago, never mind how long, 1851 it was.",
    "whale whale 鲸鱼 whales\n\n  the sea",
] * 3
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return train_tokenizer(BPE(vocab_size=400), iter(CORPUS))


@pytest.fixture(scope="module")
def story(shared: Path) -> Tokenizer:
    """The storyteller's SentencePiece tokenizer, read from llama2.c's format."""
    raw = (shared / "stories260k/tok512.bin").read_bytes()
    at, pieces, scores = 4, [], []
    while at < len(raw):
        score, size = struct.unpack_from("<fi", raw, at)
        pieces.append(raw[at + 8 : at + 8 + size].decode())
        scores.append(score)
        at += 8 + size
    return Tokenizer.from_sentencepiece(pieces, scores)


# ---------------------------------------------------------------- byte level


@settings(deadline=None, max_examples=200)
@given(TEXT)
@example(" \n\t  a\r\n  1234 ½ ²")
@example("<|im_end|>\n<|im_start|>system")
@example("𝔘 👩‍👩‍👧‍👦 é\u0301\u2028 \ufeff")
def test_round_trip_without_special_tokens(ours: Tokenizer, text: str) -> None:
    ids = ours.encode(text)
    assert ours.decode(ids) == text
    assert b"".join(map(ours.token_bytes, ids)) == text.encode()
    assert ours.special_ids.isdisjoint(ids)
    assert ours.encode_batch([text, text]) == [ids, ids]


@pytest.mark.parametrize("text", [*CORPUS[:2], "三 <|im_end|> é\u0301 "])
def test_a_long_text_is_encoded_as_a_short_one(ours: Tokenizer, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """By another call of the library, which lets other threads run."""
    short = {after: ours.encode(text, after) for after in ("start", "special", "text")}
    monkeypatch.setattr("llmlab.tokenization.tokenizer.LONG", 0)
    assert {after: ours.encode(text, after) for after in ("start", "special", "text")} == short
    with pytest.raises(InputError, match="surrogate"):
        ours.encode("a\ud800")


@pytest.mark.parametrize("name", SPECIAL)
def test_special_tokens_come_from_scaffold_only(ours: Tokenizer, name: str) -> None:
    id = ours.token_id(name)
    assert ours.scaffold(f"a{name}b") == [*ours.encode("a"), id, *ours.encode("b")]
    assert id not in ours.encode(f"a{name}b")
    assert ours.encode_batch([name]) == [ours.encode(name)]
    assert ours.decode(ours.encode(name)) == name
    assert ours.token_bytes(id or 0) == name.encode()


def test_ids_of_our_own(ours: Tokenizer) -> None:
    assert [ours.token_id(name) for name in SPECIAL] == [0, 1, 2, 3]
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.vocab_size) == (None, 0, 3, ours.vocab_size)
    assert {ours.token_bytes(id) for id in range(4, 260)} == {bytes([byte]) for byte in range(256)}
    assert ours.prompt("whale") == ours.encode("whale")  # no bos
    with pytest.raises(InputError, match="outside the vocabulary"):
        ours.token_bytes(10**6)


def test_half_a_surrogate_pair_is_named(ours: Tokenizer) -> None:
    with pytest.raises(InputError, match="character 2 is half of a surrogate"):
        ours.encode("ab\ud83d")
    with pytest.raises(InputError, match="character 1 is half of a surrogate"):
        ours.encode_batch(["good", "b\udc00"])


# ---------------------------------------------------------------- Hugging Face folders


def test_saved_folder_reads_alike_in_transformers(ours: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    ours.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    texts = ["Call me Ishmael.", "  1851\n\n鲸鱼 👩‍👩‍👧‍👦 naïve", "x" * 50]
    messages = [{"role": "user", "content": "whale?"}, {"role": "assistant", "content": "whales."}]
    for theirs in (AutoTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        for text in texts:
            assert theirs(text)["input_ids"] == ours.encode(text) == again.encode(text)
            assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text))
        assert theirs("a<|im_end|>")["input_ids"] == ours.scaffold("a<|im_end|>") == again.scaffold("a<|im_end|>")
        assert theirs.eos_token_id == ours.eos_id == again.eos_id
        assert theirs.pad_token_id == ours.pad_id == again.pad_id
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text.endswith("whales.<|im_end|>\n<|im_start|>assistant\n")
        assert len(theirs) == ours.vocab_size == again.vocab_size
    assert again.chat_template == CHAT_TEMPLATE


def _write(folder: Path, backend: Backend, config: dict[str, Any], **files: Any) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def _bytes_backend(*special: str) -> Backend:
    backend = Backend(models.BPE(vocab={letter: id for id, letter in enumerate(byte_letters())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    return backend


def test_folders_as_they_come(tmp_path: Path) -> None:
    backend = _bytes_backend("<s>", "</s>")
    backend.enable_truncation(3)
    backend.enable_padding(length=7)
    config = {
        "bos_token": {"__type": "AddedToken", "content": "<s>"},
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<nowhere>",
        "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}],
        "added_tokens_decoder": {
            "256": {"content": "<s>", "special": True},
            "258": {"content": "<|late|>", "special": True, "normalized": False},
        },
    }
    tokenizer = Tokenizer.load(_write(tmp_path, backend, config))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (256, 257, None)  # pad == eos: no pad (trap 9)
    assert len(tokenizer.encode("more than three tokens")) == len("more than three tokens")  # nothing cut, no padding
    assert tokenizer.chat_template == "D"
    assert tokenizer.scaffold("<|late|>") == [258]
    assert tokenizer.vocab_size == 259
    (tmp_path / "chat_template.jinja").write_text("J")
    assert Tokenizer.load(tmp_path).chat_template == "J"
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))
    assert Tokenizer.load(tmp_path).eos_id == 257


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "is no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\xfe"), "is not UTF-8"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[1]"), "holds no mapping"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "tokenizer_config.json").write_text('{"eos_token": "<?>"}'), "eos token '<\\?>'"),
        (lambda folder: (folder / "added_tokens.json").write_text('{"<x>": 999}'), "is said to be 999"),
        (lambda folder: (folder / "added_tokens.json").write_text('{"<x>": "z"}'), "cannot be read"),
    ],
)
def test_broken_folders_are_named(tmp_path: Path, break_it: Any, says: str) -> None:
    break_it(_write(tmp_path, _bytes_backend("</s>"), {"eos_token": "</s>"}))
    with pytest.raises(InputError, match=says):
        Tokenizer.load(tmp_path)


def test_bos_before_raw_text_as_the_post_processor_says() -> None:
    backend = _bytes_backend("<s>", "</s>")
    assert not Tokenizer(backend, bos="<s>", eos="</s>").adds_bos
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 256)])
    tokenizer = Tokenizer(backend, bos="<s>", eos="</s>")
    assert tokenizer.adds_bos
    assert tokenizer.prompt("a") == [256, *tokenizer.encode("a")]
    assert tokenizer.encode("") == []


def test_dropout_is_off() -> None:
    backend = _bytes_backend()
    backend.model = models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")], dropout=0.9)
    tokenizer = Tokenizer(backend)
    assert {tuple(tokenizer.encode("ab" * 5)) for _ in range(20)} == {(2,) * 5}


# ---------------------------------------------------------------- names of special tokens as ordinary pieces


def _unigram() -> Backend:
    pieces = ["<unk>", "<s>", "</s>", "▁", "a", "<", "s", "/", ">"]
    backend = Backend(models.Unigram([(piece, -float(id)) for id, piece in enumerate(pieces)], 0, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def _whole_words_first() -> Backend:
    vocab = {letter: id for id, letter in enumerate([*byte_letters(), "<s>", "</s>"])}
    backend = Backend(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


def _joined_by_merges() -> Backend:
    vocab = {"a": 0, "<": 1, "s": 2, ">": 3, "<s": 4, "<s>": 5, "/": 6, "</s>": 7}
    backend = Backend(models.BPE(vocab=vocab, merges=[("<", "s"), ("<s", ">")]))
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


@pytest.mark.parametrize("make", [_unigram, _whole_words_first, _joined_by_merges])
def test_content_is_never_special_even_if_the_model_knows_the_name(make: Any) -> None:
    tokenizer = Tokenizer(make(), bos="<s>", eos="</s>", unk="<unk>" if make is _unigram else None)
    naive = make()
    naive.encode_special_tokens = True
    assert any(id in (tokenizer.bos_id, tokenizer.eos_id) for id in naive.encode("<s>").ids)  # the flag is not enough
    for text in ("<s>", "a<s>a", "</s><s>", "<s>" * 9):
        assert {tokenizer.bos_id, tokenizer.eos_id}.isdisjoint(tokenizer.encode(text))
        assert {tokenizer.bos_id, tokenizer.eos_id}.isdisjoint(tokenizer.encode(text, "text"))
        assert tokenizer.decode(tokenizer.encode(text)) == naive.decode(tokenizer.encode(text))
    assert tokenizer.bos_id in tokenizer.scaffold("a<s>a")


# ---------------------------------------------------------------- SentencePiece


def test_story_tokenizer_reads_english(shared: Path, story: Tokenizer) -> None:
    reference = (shared / "stories260k/greedy_reference.txt").read_text()
    ids = story.encode(reference)
    assert story.decode(ids) == reference
    assert b"".join(map(story.token_bytes, ids)) == b" " + reference.encode()
    assert story.prompt("Once upon a time")[:3] == [1, 403, 407]  # llama2.c's own encoder
    assert (story.bos_id, story.eos_id, story.vocab_size) == (1, 2, 512)


def _greedy_by_score(pieces: list[str], scores: list[float], text: str) -> list[int]:
    """SentencePiece's BPE as llama2.c does it: join the best pair until none is a piece."""
    table = {piece: id for id, piece in enumerate(pieces) if id > 258}
    symbols = list(text)
    while True:
        pairs = [(scores[table[a + b]], -at) for at, (a, b) in enumerate(pairwise(symbols)) if a + b in table]
        if not pairs:
            break
        at = -max(pairs)[1]
        symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
    return [id for s in symbols for id in ([table[s]] if s in table else [byte + 3 for byte in s.encode()])]


@settings(deadline=None, max_examples=100)
@given(text=st.text("the wasandoré鲸 .,\n<>", min_size=1, max_size=40))
def test_sentencepiece_agrees_with_joining_by_score(story: Tokenizer, text: str) -> None:
    pieces = [story.token(id) or "" for id in range(512)]
    scores = [-float(id) for id in range(512)]
    assert story.encode(text) == _greedy_by_score(pieces, scores, "▁" + text.replace(" ", "▁"))
    assert story.encode(text, "text") == _greedy_by_score(pieces, scores, text.replace(" ", "▁"))
    assert story.decode(story.encode(text)) == text


def test_sentencepiece_control_and_byte_pieces(story: Tokenizer) -> None:
    for text in ("<s>", "</s>", "<unk>", "<0x0A>", "a <s> b"):
        ids = story.encode(text)
        assert {0, 1, 2}.isdisjoint(ids)
        assert story.decode(ids) == text
    assert story.encode("\n", "text") == [13]
    assert story.scaffold("<s>a") == [1, *story.encode("a")]  # a space after a special token too, as Hugging Face
    assert story.scaffold("a</s>", "text") == [*story.encode("a", "text"), 2]
    assert story.scaffold("a</s>a", "text") == [*story.encode("a", "text"), 2, *story.encode("a")]


def test_sentencepiece_like_transformers(story: Tokenizer, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    story.save(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in ("Once upon a time", "  two spaces ", "naïve 鲸", "a\nb"):
        assert theirs(text)["input_ids"] == story.prompt(text) == Tokenizer.load(tmp_path).prompt(text)


def test_wordpiece_bytes() -> None:
    backend = Backend(models.WordPiece({"[UNK]": 0, "[SEP]": 1, "sea": 2, "##s": 3}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[UNK]", "[SEP]"])
    tokenizer = Tokenizer(backend, eos="[SEP]", unk="[UNK]")
    assert [tokenizer.token_bytes(id) for id in tokenizer.encode("Seas")] == [b" sea", b"s"]
    assert 1 not in tokenizer.encode("[SEP]")


# ---------------------------------------------------------------- parts of a GGUF file


def test_from_bpe_rebuilds_ours(ours: Tokenizer) -> None:
    spec = json.loads(ours._marking.to_str())
    tokens = [ours.token(id) or "" for id in range(ours.vocab_size)]
    merges = [" ".join(merge) for merge in spec["model"]["merges"]]
    types = [3] * 4 + [1] * (len(tokens) - 4)
    again = Tokenizer.from_bpe(tokens, merges, "smollm", types, eos=0, pad=3, chat_template=CHAT_TEMPLATE)
    for text in [*CORPUS, "  1851\n\n 鲸鱼<|im_end|>"]:
        assert again.encode(text) == ours.encode(text)
        assert again.scaffold(text) == ours.scaffold(text)
    assert (again.eos_id, again.pad_id, again.special_ids) == (ours.eos_id, ours.pad_id, ours.special_ids)


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["It", "'s", " 1234", " whales", "!!", "\n\n ", " A", "'", "LL"]),
        ("smollm", ["It", "'s", " ", "1", "2", "3", "4", " whales", "!!", "\n\n ", " A", "'", "LL"]),
        ("llama-bpe", ["It", "'s", " ", "123", "4", " whales", "!!\n\n", " ", " A", "'LL"]),
        ("qwen2", ["It", "'s", " ", "1", "2", "3", "4", " whales", "!!\n\n", " ", " A", "'LL"]),
        ("default", ["It", "'", "s", " ", "123", "4", " whales", "!!", "\n\n ", " A", "'", "LL"]),
    ],
)
def test_words_of_each_pre_tokenizer(pre: str, words: list[str]) -> None:
    """llama.cpp's regular expressions, worked out by hand."""
    letters = byte_letters()
    cut = pre_tokenizer(pre).pre_tokenize_str("It's 1234 whales!!\n\n  A'LL")
    assert [bytes(letters[letter] for letter in word).decode() for word, _ in cut] == words
    assert pre in PRE


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"pre": "smolm"}, "did you mean 'smollm'.*llama-bpe"),
        ({"merges": ["ab"]}, "'ab' is not two pieces"),
        ({"merges": ["a z"]}, "do not fit the tokens"),
        ({"tokens": ["a", "b", "a"]}, "'a' is there twice"),
        ({"types": [1]}, "1 types for 3 tokens"),
        ({"eos": 9}, "eos token has the id 9"),
        ({"bos": -1}, "bos token has the id -1"),
    ],
)
def test_bad_gguf_parts_are_named(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Tokenizer.from_bpe(**{"tokens": ["a", "b", "ab"], "merges": ["a b"], "pre": "gpt-2"} | arguments)


def test_bad_scores_are_named() -> None:
    with pytest.raises(InputError, match="1 scores for 3 tokens"):
        Tokenizer.from_sentencepiece(["<unk>", "<s>", "</s>"], [0.0])


def test_user_defined_tokens_are_taken_whole_and_are_not_special() -> None:
    tokens = [*byte_letters(), "<think>", "<|end|>"]
    tokenizer = Tokenizer.from_bpe(tokens, [], "gpt-2", [1] * 256 + [4, 3], eos=257)
    assert tokenizer.encode("a<think>b") == [*tokenizer.encode("a"), 256, *tokenizer.encode("b")]
    assert tokenizer.special_ids == {257}
    assert tokenizer.token_bytes(256) == b"<think>"


def test_smollm2(smollm2: Path) -> None:
    """Golden ids: those of transformers' own reading of this file (5.23, compared on 312 texts, 2026).

    It forgets only the rule that each digit stands alone, which shows where a digit such as \u00bd follows a space.
    """
    field = GGUF(smollm2).fields
    part = {name.removeprefix("tokenizer.ggml."): value for name, value in field.items() if "ggml" in name}
    tokenizer = Tokenizer.from_bpe(
        part["tokens"], part["merges"], part["pre"], list(part["token_type"]), bos=1, eos=2, pad=2, unk=0
    )
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 2, None, 49152)
    assert tokenizer.special_ids == set(range(17))
    golden = {
        "The capital of France is": [504, 3575, 282, 4649, 314],
        "in 1851": [254, 216, 33, 40, 37, 33],
        "a\n\n\n  b\t c   ": [81, 1116, 3805, 278, 197, 265, 333],
        "na\u00efve caf\u00e9 \u9cb8\u9c7c \U0001f469\u200d\U0001f467": [
            *[3546, 46494, 37366, 30866, 127, 133, 180, 126, 137, 15107, 235, 119, 321, 231, 10813, 235, 117]
        ],
    }
    for text, ids in golden.items():
        assert tokenizer.encode(text) == tokenizer.scaffold(text) == ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.scaffold("<|im_start|>user\nHi<|im_end|>\n<repo_name>") == [1, 4093, 198, 26843, 2, 198, 3]
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n<repo_name>"))


KINDS = [BPE(vocab_size=300), Unigram(vocab_size=320), WordPiece(vocab_size=60)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_special_tokens_that_are_added_change_no_other_id(kind: BPE | Unigram | WordPiece, tmp_path: Path) -> None:
    """They stand after all others, are never made from text, keep every role, and are not there twice."""
    text = "the [MASK] sat on <extra_id_0> the mat. [MASK]"
    plain = train_tokenizer(kind, iter(["the cat sat on the mat. the dog too."] * 3))
    more = plain.extended(["[MASK]", "<extra_id_0>"])
    more.save(tmp_path)
    for tokenizer in (more, Tokenizer.load(tmp_path), more.extended(["[MASK]"])):
        assert tokenizer.encode(text) == plain.encode(text)
        assert [tokenizer.token(id) for id in range(plain.vocab_size)] == [
            plain.token(id) for id in range(plain.vocab_size)
        ]
        had = plain.token_id("[MASK]")
        assert tokenizer.vocab_size == plain.vocab_size + (2 if had is None else 1)
        assert tokenizer.token_id("[MASK]") == (plain.vocab_size if had is None else had)
        assert tokenizer.token_id("<extra_id_0>") == tokenizer.vocab_size - 1
        assert {tokenizer.token_id("[MASK]"), tokenizer.token_id("<extra_id_0>")} <= tokenizer.special_ids
        roles = ("bos_id", "eos_id", "pad_id", "cls_id", "sep_id", "mask_id", "chat_template", "unk_token")
        assert all(getattr(tokenizer, role) == getattr(plain, role) for role in roles)
