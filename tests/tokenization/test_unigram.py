"""Unigram and SentencePiece's files: against every way to cut a text, against `tokenizers`, and with broken bytes."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from llmlab.errors import InputError
from llmlab.inference.text import text_of
from llmlab.tokenization.sentencepiece import SentencePieceFile
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import LETTERS, SPECIAL, Unigram, train_tokenizer
from llmlab.tokenization.unigram import precompiled
from llmlab.tokenization.unigram_training import learn_pieces

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60).filter(lambda text: "\u2581" not in text)
CORPUS = [
    "Call me Ishmael. The whales of the sea, 1851.",
    "the whale and  the ship\n\n\u9cb8\u9c7c\u5728\u6d77\u91cc",
] * 6


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return train_tokenizer(Unigram(vocab_size=340), iter(CORPUS))


# ---------------------------------------------------------------- ours


@settings(deadline=None, max_examples=200)
@given(text=TEXT)
@example(text="  a  ")
@example(text="<0x0A><0xFF> <unk><|im_end|>")
@example(text="\U0001f469\u200d\U0001f467 e\u0301\r\n\u2028")
def test_every_text_comes_back(ours: Tokenizer, text: str) -> None:
    ids = ours.encode(text)
    assert ours.decode(ids) == text
    assert text_of(ours, ids, start=True) == text.encode().decode()
    assert b"".join(map(ours.token_bytes, ids)) == (b" " + text.encode() if text else b"")
    assert ours.special_ids.isdisjoint(ids)
    assert ours.encode_batch([text]) == [ids]
    inside = ours.encode(text, "text")
    assert b"".join(map(ours.token_bytes, inside)) == text.encode()


def _best(scores: dict[str, float], text: str) -> float:
    """The likeliest cut, by trying them all from left to right."""
    best = [0.0] + [-math.inf] * len(text)
    for end in range(1, len(text) + 1):
        for begin in range(max(0, end - 16), end):
            best[end] = max(best[end], best[begin] + scores.get(text[begin:end], -math.inf))
    return best[-1]


def _scores(tokenizer: Tokenizer) -> dict[str, float]:
    return dict(json.loads(tokenizer._marking.to_str())["model"]["vocab"])


@settings(deadline=None, max_examples=100)
@given(text=st.text("the whalsCmI.<0x18A>", min_size=1, max_size=30))
def test_the_likeliest_cut_is_taken(ours: Tokenizer, text: str) -> None:
    scores = _scores(ours)
    pieces = [ours.token(id) or "" for id in ours.encode(text)]
    words = ("\u2581" + text.replace(" ", "\u2581")).replace("\u2581", " \u2581").split()
    assert "".join(pieces) == "".join(words)
    assert sum(scores[piece] for piece in pieces) == pytest.approx(sum(_best(scores, word) for word in words))


def test_ids_of_our_own(ours: Tokenizer) -> None:
    assert [ours.token_id(name) for name in SPECIAL] == [0, 1, 2, 3]
    assert (ours.eos_id, ours.pad_id, ours.token_id("<unk>")) == (0, 3, 4)
    assert ours.lossless
    assert Unigram.lossless
    assert ours.vocab_size == 340
    assert ours.chat_template is not None
    assert set(LETTERS) <= {ours.token(id) for id in range(261, 340)}


def test_the_same_in_another_process() -> None:
    script = (
        "from llmlab.tokenization.train import *\n"
        f"t = train_tokenizer(Unigram(vocab_size=320), iter({CORPUS!r}))\n"
        "print(t._marking.to_str())"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == train_tokenizer(Unigram(vocab_size=320), iter(CORPUS))._marking.to_str() + "\n"


def test_size_is_met_or_said() -> None:
    assert train_tokenizer(Unigram(vocab_size=300), iter(CORPUS)).vocab_size == 300
    few = train_tokenizer(Unigram(vocab_size=5000), iter(["ab ab ab"]))
    assert 261 + len(LETTERS) < few.vocab_size < 300
    assert few.encode("ab") == [few.token_id("\u2581ab")]
    with pytest.raises(InputError, match=r"280 ids cannot hold 256 bytes, 20 letters .*at least 281"):
        train_tokenizer(Unigram(vocab_size=280), iter(CORPUS))


def test_more_characters_than_room_fall_back_on_bytes() -> None:
    many = "".join(chr(0x4E00 + n) for n in range(500))
    made = train_tokenizer(Unigram(vocab_size=300), iter([many, "\u4e00\u4e01" * 20]))
    assert made.vocab_size <= 300
    assert made.decode(made.encode(many)) == many
    assert len(made.encode("\u4e00\u4e01", "text")) == 2
    assert len(made.encode(many[-1], "text")) == 3  # bytes


def test_saved_folder_reads_alike_in_transformers(ours: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours.save(tmp_path)
    again, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in [*CORPUS, "  two  spaces ", "na\u00efve \U0001f469 <|im_end|x>", ""]:
        assert theirs(text)["input_ids"] == ours.encode(text) == again.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert again.unk_token == "<unk>"
    assert (again.eos_id, again.pad_id, again.special_ids) == (0, 3, ours.special_ids)


# ---------------------------------------------------------------- learning


def test_pieces_are_as_good_as_those_of_the_library(shared: Path) -> None:
    """Tokens for the same text, with as many pieces: its own trainer's count is the measure."""
    text = (shared / "tinyshakespeare.txt").read_text()[:60_000].replace("\n", " ")
    words = Counter(("\u2581" + text.replace(" ", "\u2581")).replace("\u2581", " \u2581").split())
    pieces = learn_pieces(words, 600, "\u2581")
    mine = Backend(models.Unigram([("<unk>", -99.0), *pieces], 0, False))
    mine.pre_tokenizer = pre_tokenizers.Metaspace()
    theirs = Backend(models.Unigram())
    theirs.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=601, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    theirs.train_from_iterator([text], trainer)
    assert len(mine.encode(text).ids) < 1.03 * len(theirs.encode(text).ids)
    assert len(pieces) == 600
    assert [score for _, score in pieces] == sorted((score for _, score in pieces), reverse=True)


def test_banned_pieces_and_rare_letters_are_not_learnt() -> None:
    words = {"\u2581abab": 50, "\u2581ab": 50, "\u2581q": 1, "x" * 300: 2}
    learnt = dict(learn_pieces(words, 40, "\u2581z", banned={"ab"}))
    assert "ab" not in learnt
    assert {"\u2581", "z", "a"} <= set(learnt)
    assert max(map(len, learnt)) <= 16


# ---------------------------------------------------------------- files in the wild


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | float | bytes | bool) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(int(value))


Piece = tuple[str, float, int]


def _spiece(
    pieces: list[Piece], kind: int = 1, charsmap: bytes = b"", ids: tuple[int, int, int] = (-1, 1, 0), **normal: bool
) -> bytes:
    """A ModelProto as SentencePiece writes it."""
    out = b"".join(
        _field(1, _field(1, piece.encode()) + _field(2, score) + (_field(3, type) if type != 1 else b""))
        for piece, score, type in pieces
    )
    trainer = _field(3, kind) + _field(41, ids[0]) + _field(42, ids[1]) + _field(43, ids[2]) + _field(1, b"corpus")
    prefix, squeeze = normal.get("prefix", True), normal.get("squeeze", True)
    normalizer = _field(1, b"nmt_nfkc") + _field(2, charsmap) + _field(3, prefix) + _field(4, squeeze)
    return out + _field(2, trainer) + _field(3, normalizer)


def _charsmap(table: dict[str, str]) -> bytes:
    """SentencePiece's precompiled normalization: a double-array trie of the keys, and the texts that they become."""
    texts = b"".join(text.encode() + b"\0" for text in table.values())
    starts = np.cumsum([0] + [len(text.encode()) + 1 for text in table.values()])
    trie: dict[Any, Any] = {}
    for key, value in zip(table, starts.tolist(), strict=False):
        node = trie
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = value
    units, taken = {0: 0}, {0}

    def place(node: dict[Any, Any], at: int) -> None:
        base = next(b for b in range(1, 1 << 20) if not taken & {at ^ b ^ label for label in node})
        units[at] |= base << 10 | (256 if 0 in node else 0)
        taken.update(at ^ base ^ label for label in node)
        for label, child in node.items():
            units[at ^ base ^ label] = child | 1 << 31 if label == 0 else label
        for label, child in node.items():
            if label:
                place(child, at ^ base ^ label)

    place(trie, 0)
    size = (max(units) | 255) + 1
    array = np.array([units.get(at, 0) for at in range(size)], "<u4").tobytes()
    return struct.pack("<I", len(array)) + array + texts


CHARSMAP = {"\ufb01": "fi", "\uff21": "A", "\n": " ", "\t": " ", "\u3000": " ", "\u00a0": " ", "\u2126": "\u03a9"}
WORDS = [
    "\u2581",
    "\u2581the",
    "\u2581whale",
    "s",
    "\u2581fi",
    "fi",
    "sh",
    "A",
    "\u2581A",
    *"thewalsifn'\"\u03a9.\u00e9",
]


def _scored(first: list[Piece]) -> list[Piece]:
    known = {piece for piece, _, _ in first}
    return first + [(word, -1.5 - n / 7, 1) for n, word in enumerate(dict.fromkeys(WORDS)) if word not in known]


T5 = _scored([("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)])
XLNET = _scored(
    [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    + [(name, 0.0, 3) for name in ("<cls>", "<sep>", "<pad>", "<mask>", "<eod>")]
    + [("<eop>", 0.0, 4)]
)
ALBERT = _scored([("<pad>", 0.0, 3), ("<unk>", 0.0, 2)] + [(name, 0.0, 3) for name in ("[CLS]", "[SEP]", "[MASK]")])


def _like_transformers(pieces: list[Piece], unk: int, single: str, pair: str, *before: Any) -> Backend:
    """The tokenizer.json of such a model as transformers' converters write it."""
    backend = Backend(models.Unigram([(piece, score) for piece, score, _ in pieces], unk, False))
    squeeze = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "\u2581")]
    backend.normalizer = normalizers.Sequence([*before, normalizers.Precompiled(_charsmap(CHARSMAP)), *squeeze])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("\u2581", "always")]
    )
    backend.decoder = decoders.Metaspace("\u2581", "always")
    special = [piece for piece, _, type in pieces if type in (2, 3, 4)]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    marks = {name.split(":")[0] for name in (single + " " + pair).split() if name[0] != "$"}
    backend.post_processor = processors.TemplateProcessing(
        single, pair, [(mark, backend.token_to_id(mark)) for mark in sorted(marks)]
    )
    return backend


QUOTES = (
    normalizers.Replace("``", '"'),
    normalizers.Replace("''", '"'),
    normalizers.NFKD(),
    normalizers.StripAccents(),
)
FAMILIES: dict[str, Any] = {
    "T5": (T5, 2, "$A:0 </s>:0", "$A:0 </s>:0 $B:0 </s>:0", (), {"eos_token": "</s>", "pad_token": "<pad>"}),
    "XLNet": (
        XLNET,
        0,
        "$A:0 <sep>:0 <cls>:2",
        "$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2",
        QUOTES,
        {"cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>", "eos_token": "</s>", "pad_token": "<pad>"},
    ),
    "Albert": (
        ALBERT,
        1,
        "[CLS]:0 $A:0 [SEP]:0",
        "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        (*QUOTES, normalizers.Lowercase()),
        {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "pad_token": "<pad>"},
    ),
}
# Nothing that spells a special token: theirs finds those in text.
WILD = st.text("the whale\ufb01sA\uff21\n\t\u3000'`.\u2126\u00e9\u9c7c/", max_size=40)


@pytest.fixture(scope="module", params=list(FAMILIES))
def wild(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer, Any]:
    """A family's tokenizer.json and bare SentencePiece file as we read them, and transformers' reading of the first."""
    from transformers import PreTrainedTokenizerFast

    name = request.param
    pieces, unk, single, pair, before, names = FAMILIES[name]
    fast, slow = tmp_path_factory.mktemp("fast"), tmp_path_factory.mktemp("slow")
    _like_transformers(pieces, unk, single, pair, *before).save(str(fast / "tokenizer.json"))
    (fast / "tokenizer_config.json").write_text(json.dumps(names | {"unk_token": "<unk>"}))
    (slow / "spiece.model").write_bytes(_spiece(pieces, charsmap=_charsmap(CHARSMAP)))
    (slow / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": f"{name}Tokenizer", "extra_ids": 2}))
    return Tokenizer.load(fast), Tokenizer.load(slow), PreTrainedTokenizerFast.from_pretrained(fast)


def _plain(tokenizer: Any, text: str) -> list[int]:
    tokenizer.backend_tokenizer.encode_special_tokens = True
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokenizer.backend_tokenizer.encode_special_tokens = False
    return ids


@settings(deadline=None, max_examples=150)
@given(text=WILD)
@example(text="  the \ufb01sh\n\nwhales ")
@example(text="``the'' \u00e9 \u9c7c\u9c7c")
def test_wild_tokenizers_read_as_transformers_reads_them(wild: tuple[Tokenizer, Tokenizer, Any], text: str) -> None:
    fast, slow, theirs = wild
    ids = _plain(theirs, text)
    assert fast.encode(text) == slow.encode(text) == ids
    assert fast.decode(ids) == theirs.decode(ids)
    assert not slow.lossless
    assert not fast.lossless
    named = slow.special_ids - {slow.token_id("<unk>")}
    assert named.isdisjoint(slow.encode(text + "<sep>[MASK]</s><extra_id_0>"))


def test_wild_tokenizers_frame_as_transformers_does(wild: tuple[Tokenizer, Tokenizer, Any]) -> None:
    fast, slow, theirs = wild
    a, b = "the whales", "\ufb01sh the"
    both = theirs(a, b, return_token_type_ids=True)
    one = theirs(a, return_token_type_ids=True)
    for made in (fast, slow):
        assert made.pair(made.encode(a), made.encode(b)) == (both["input_ids"], both["token_type_ids"])
        assert made.pair(made.encode(a)) == (one["input_ids"], one["token_type_ids"])
        assert made.pair([], []) == made.pair([])[:0] + theirs_empty(made)
        assert (made.mask_id, made.cls_id) == (theirs.mask_token_id, theirs.cls_token_id)


def theirs_empty(made: Tokenizer) -> tuple[list[int], list[int]]:
    """Two empty texts between their special tokens."""
    ids, segments = made.pair([10**6], [10**6])
    kept = [(id, segment) for id, segment in zip(ids, segments, strict=True) if id != 10**6]
    return [id for id, _ in kept], [segment for _, segment in kept]


def test_t5_has_its_sentinels_behind_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(_spiece(T5))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    made = Tokenizer.load(tmp_path)
    assert made.vocab_size == len(T5) + 100
    assert (made.token_id("<extra_id_99>"), made.token_id("<extra_id_0>")) == (len(T5), len(T5) + 99)
    assert made.scaffold("the <extra_id_0> whale")[1] == len(T5) + 99
    assert (made.eos_id, made.pad_id, made.bos_id, made.unk_token) == (1, 0, None, "<unk>")


def test_a_file_of_an_unknown_family_reads_by_its_own_ids(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(_spiece(T5, prefix=False, squeeze=False))
    made = Tokenizer.load(tmp_path)
    assert (made.eos_id, made.pad_id, made.bos_id, made.unk_token) == (1, 0, None, "<unk>")
    assert made.decode(made.encode("the  whale")) == "the  whale"
    with pytest.raises(InputError, match="do not say how two texts"):
        made.pair([1], [2])


def test_a_bpe_file_reads_as_llamas(tmp_path: Path) -> None:
    pieces: list[Piece] = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    words = ["\u2581t", "he", "\u2581the", "\u2581", "t", "h", "e", "w"]
    pieces += [(word, -float(n), 1) for n, word in enumerate(words)]
    (tmp_path / "tokenizer.model").write_bytes(_spiece(pieces, kind=2, ids=(1, 2, -1), squeeze=False))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    made = Tokenizer.load(tmp_path)
    same = Tokenizer.from_sentencepiece([p for p, _, _ in pieces], [s for _, s, _ in pieces])
    for text in ("the the", "  thew\n\u9c7c", "<s>"):
        assert made.prompt(text) == same.prompt(text)
        assert made.decode(made.encode(text)) == text
    assert made.lossless
    squeezed = tmp_path / "squeezed"
    squeezed.mkdir()
    (squeezed / "tokenizer.model").write_bytes(_spiece(pieces, kind=2, ids=(1, 2, -1)))
    assert Tokenizer.load(squeezed).encode("  the   the ") == made.encode("the the")
    assert Tokenizer.load(squeezed).encode(" the", "text") == made.encode("the")


# ---------------------------------------------------------------- broken files


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "it holds no piece"),
        (b"\xff" * 12, "does not end"),
        (b"\x0a", "ends within a number"),
        (b"\x0a\x05ab", "a field of 5 bytes at byte 2 of 4"),
        (b"\x0b", "unknown wire type 3"),
        (_field(1, 3), "field 1 is no message"),
        (_field(1, _field(2, -1.0)), "a field of text holds a number or is missing"),
        (_field(1, _field(1, b"\xff") + _field(2, -1.0)), "not UTF-8"),
        (_field(1, _field(1, b"a") + _field(2, float("nan"))), "a score is nan"),
        (_field(1, _field(1, b"a") + _field(2, 3)), "a score is no float"),
        (_field(1, _field(1, b"a") + _field(3, 9)), "a piece is of type 9"),
        (_spiece(T5, kind=4), "of kind 4.*unigram"),
        (_spiece(T5, charsmap=b"\x09\0\0\0abc"), "normalization is cut short"),
        (_spiece([*T5, T5[-1]]), "is there twice"),
    ],
)
def test_broken_files_are_named(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(data)
    with pytest.raises(InputError, match=says):
        Tokenizer.load(tmp_path)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_bytes_give_a_named_error_or_a_tokenizer(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    whole = _spiece(T5, charsmap=b"")
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    broken = whole[:at] if cut else whole[:at] + data.draw(st.binary(min_size=1, max_size=4)) + whole[at + 1 :]
    path = tmp_path_factory.getbasetemp() / "broken.model"
    path.write_bytes(broken)
    try:
        SentencePieceFile.read(path).backend()
    except InputError:
        return


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_broken_normalization_is_named_or_harmless(data: Any) -> None:
    """The library aborts on a trie that points outside itself; nothing here may."""
    broken = bytearray(_charsmap(CHARSMAP))
    for _ in range(data.draw(st.integers(1, 3))):
        used = [at for at, byte in enumerate(broken) if byte]
        broken[data.draw(st.sampled_from(used))] = data.draw(st.integers(0, 255))
    try:
        (normalizer,) = precompiled(bytes(broken))
    except InputError as error:
        assert "precompiled normalization" in str(error)
        return
    for text in [*CHARSMAP, "the whale \ufb02 \u9c7c \uff22"]:
        normalizer.normalize_str(text)


def test_a_broken_normalization_in_a_tokenizer_json_is_named(tmp_path: Path) -> None:
    broken = bytearray(_charsmap(CHARSMAP))
    broken[4:8] = struct.pack("<I", 0xFFFFF << 10)
    backend = _like_transformers(T5, 2, "$A:0 </s>:0", "$A:0 </s>:0 $B:0 </s>:0")
    backend.normalizer = normalizers.Sequence([normalizers.Precompiled(bytes(broken))])
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="points outside its trie"):
        Tokenizer.load(tmp_path)


def test_only_spaces_at_the_end_of_the_text_are_taken_away(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(_spiece(T5))
    made = Tokenizer.load(tmp_path)
    pieces = [made.token(id) for id in made.encode("  the  \nthe  ")]
    assert pieces == ["\u2581the", "\u2581", "<unk>", *"the"]
