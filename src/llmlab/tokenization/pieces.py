"""What the pieces of a vocabulary stand for, and tokenizers put together from bare lists of pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from llmlab.errors import InputError, unknown

SPACE = "\u2581"  # SentencePiece's mark for a space
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types of GGUF and SentencePiece
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# ---------------------------------------------------------------- bytes of a piece


@cache
def byte_letters() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (Radford et al. 2019): itself where it prints, else one from U+0100."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


@dataclass(frozen=True)
class Pieces:
    """How a vocabulary writes bytes: GPT-2's letters, SentencePiece's, WordPiece's or GPT-1's marks, or plainly."""

    kind: Literal["byte_level", "sentencepiece", "wordpiece", "word_end", "plain"]
    mark: str = ""  # what a piece that goes on in a word begins with, or one that ends a word ends with

    @staticmethod
    def of(backend: Backend) -> Pieces:
        """Read off the decoder and the pre-tokenizer."""
        parts = [part for part in (backend.decoder, backend.pre_tokenizer) if part is not None]
        found = [item for part in parts for item in _parts(json.loads(part.__getstate__()))]
        types = {str(part.get("type")) for part in found}
        if "ByteLevel" in types:
            return Pieces("byte_level")
        if types & {"ByteFallback", "Metaspace", "Replace"}:
            return Pieces("sentencepiece")
        for part in found:
            match part:
                case {"type": "WordPiece", "prefix": str(mark)}:
                    return Pieces("wordpiece", mark)
                case {"type": "BPEDecoder", "suffix": str(mark)}:
                    return Pieces("word_end", mark)
        return Pieces("plain")

    def bytes_of(self, piece: str) -> bytes:
        match self.kind:
            case "byte_level":
                letters = byte_letters()
                if all(letter in letters for letter in piece):
                    return bytes(letters[letter] for letter in piece)
            case "sentencepiece":
                if byte := BYTE_PIECE.fullmatch(piece):
                    return bytes([int(byte[1], 16)])
                return piece.replace(SPACE, " ").encode()
            case "wordpiece":
                inside = piece.startswith(self.mark) and piece != self.mark
                return piece.removeprefix(self.mark).encode() if inside else b" " + piece.encode()
            case "word_end":
                return (piece.removesuffix(self.mark) + " ").encode() if piece.endswith(self.mark) else piece.encode()
        return piece.encode()


def _parts(part: Any) -> Iterable[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
        for key in ("decoders", "pretokenizers"):
            for item in part.get(key, []):
                yield from _parts(item)


# ---------------------------------------------------------------- byte-level BPE

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

# llama.cpp's names that mean the same splitting.
SAME = {
    "gpt2": "gpt-2",
    "starcoder": "smollm",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
}
PRE = ("default", "gpt-2", "smollm", "llama-bpe", "qwen2")


def pre_tokenizer(pre: str) -> Any:
    """How text is cut into words before merging, by llama.cpp's name (`tokenizer.ggml.pre`)."""

    def by_regex(*expressions: str) -> Any:
        cuts = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
        return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    match SAME.get(pre, pre):
        case "gpt-2":
            return pre_tokenizers.ByteLevel(add_prefix_space=False)
        case "smollm":
            digits = pre_tokenizers.Digits(individual_digits=True)
            return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        case "llama-bpe":
            return by_regex(LLAMA3)
        case "qwen2":
            return by_regex(QWEN2)
        case "default":
            return by_regex(r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
    raise unknown("tokenizer.ggml.pre", pre, [*PRE, *SAME])


def bpe_backend(
    tokens: Sequence[str], merges: Sequence[str], pre: str, types: Sequence[int] | None, bos: int | None
) -> Backend:
    """Byte-level BPE. `bos` is the id put before raw text by the post-processor, if any."""
    cut = pre_tokenizer(pre)
    vocab = vocabulary(tokens, types)
    pairs = []
    for merge in merges:
        left, space, right = merge.partition(" ") if not merge.startswith(" ") else ("", "", "")
        if not space:
            raise InputError("tokenizer.ggml.merges", f"{merge!r} is not two pieces with a space between them")
        pairs.append((left, right))
    # llama-bpe: a word that is a token is taken whole, before any merge.
    whole = SAME.get(pre, pre) == "llama-bpe"
    try:
        backend = Backend(models.BPE(vocab=vocab, merges=pairs, ignore_merges=whole))
    except Exception as error:  # the library raises bare Exception
        raise InputError("tokenizer.ggml.merges", f"do not fit the tokens: {error}") from None
    if SAME.get(pre, pre) == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = cut
    backend.decoder = decoders.ByteLevel()
    mark_tokens(backend, tokens, types or [], set(), bos)
    return backend


# ---------------------------------------------------------------- SentencePiece BPE


def sentencepiece_backend(
    pieces: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int] | None,
    control: set[int],
    unk: int | None,
    bos: int | None,
    prefix: bool,
) -> Backend:
    """BPE over characters with bytes to fall back on (Kudo and Richardson 2018). `prefix`: a space before the text."""
    if len(scores) != len(pieces):
        raise InputError("tokenizer.ggml.scores", f"{len(scores)} scores for {len(pieces)} tokens")
    if types is None:
        types = [BYTE if BYTE_PIECE.fullmatch(piece) else NORMAL for piece in pieces]
        types = [CONTROL if id in control else UNKNOWN if id == unk else kind for id, kind in enumerate(types)]
    vocab = vocabulary(pieces, types)
    name = pieces[unk] if unk is not None and 0 <= unk < len(pieces) else None
    merges = merges_of_scores(pieces, scores, types)
    try:
        model = models.BPE(vocab=vocab, merges=merges, unk_token=name, fuse_unk=True, byte_fallback=True)
    except Exception as error:
        raise InputError("tokenizer.ggml.tokens", f"make no tokenizer: {error}") from None
    backend = Backend(model)
    steps = [normalizers.Prepend(SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    unprefix = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *unprefix]
    )
    mark_tokens(backend, pieces, types, control, bos)
    return backend


def merges_of_scores(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours whose joint piece scores best; here as merges.

    They are every cut of every piece, the best piece first, and of one piece the longer left half first. Only normal
    pieces are ever joined.
    """
    normal = {piece for piece, kind in zip(pieces, types, strict=True) if kind == NORMAL}
    ranked = sorted((id for id, kind in enumerate(types) if kind == NORMAL), key=lambda id: (-scores[id], id))
    return [
        (pieces[id][:cut], pieces[id][cut:])
        for id in ranked
        for cut in range(len(pieces[id]) - 1, 0, -1)
        if pieces[id][:cut] in normal and pieces[id][cut:] in normal
    ]


# ---------------------------------------------------------------- both


def vocabulary(tokens: Sequence[str], types: Sequence[int] | None) -> dict[str, int]:
    if types is not None and len(types) != len(tokens):
        raise InputError("tokenizer.ggml.token_type", f"{len(types)} types for {len(tokens)} tokens")
    vocab = {token: id for id, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = next(token for id, token in enumerate(tokens) if vocab[token] != id)
        raise InputError("tokenizer.ggml.tokens", f"{twice!r} is there twice")
    return vocab


def mark_tokens(
    backend: Backend, tokens: Sequence[str], types: Sequence[int], control: set[int], bos: int | None
) -> None:
    """Tell control tokens and user-defined ones apart from ordinary pieces; add bos before raw text if there is one."""
    special = sorted(control | {id for id, kind in enumerate(types) if kind in (CONTROL, UNKNOWN)})
    backend.add_special_tokens([AddedToken(tokens[id], special=True, normalized=False) for id in special if tokens[id]])
    own = [token for token, kind in zip(tokens, types, strict=False) if kind == USER_DEFINED and token]
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in own])
    if bos is not None and 0 <= bos < len(tokens):
        backend.post_processor = processors.TemplateProcessing(
            single=[f"{tokens[bos]}:0", "$A:0"],
            pair=[f"{tokens[bos]}:0", "$A:0", f"{tokens[bos]}:1", "$B:1"],
            special_tokens=[(tokens[bos], bos)],
        )
