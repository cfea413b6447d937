"""Unigram tokenizers: the likeliest cut of a text into pieces, each of a probability of its own (Kudo 2018)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from llmlab.errors import InputError
from llmlab.tokenization.pieces import BYTE, NORMAL, SPACE, UNUSED, USER_DEFINED, mark_tokens, vocabulary

BELOW = 100.0  # nats that a piece never meant to be found in text lies below all others


def unigram_backend(
    pieces: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    unk: int,
    charsmap: bytes = b"",
    prefix: bool = True,
    squeeze: bool = False,
    before: Sequence[normalizers.Normalizer] = (),
) -> Backend:
    """A Unigram tokenizer of these pieces and log-probabilities, as SentencePiece reads them.

    `types` are SentencePiece's; pieces of type BYTE are what unknown characters fall back on. `charsmap` is its
    precompiled normalization, `prefix` puts a space before the text, `squeeze` takes spaces away that say nothing.
    Byte and unused pieces get the lowest scores: a text that spells one is not to be read as one.
    """
    if not len(pieces) == len(scores) == len(types):
        raise InputError("tokenizer", f"{len(scores)} scores and {len(types)} types for {len(pieces)} pieces")
    vocabulary(pieces, types)
    if not 0 <= unk < len(pieces):
        raise InputError("tokenizer", f"the unknown token has the id {unk}, the vocabulary ends at {len(pieces) - 1}")
    found = [score for score, type in zip(scores, types, strict=True) if type in (NORMAL, USER_DEFINED)]
    lowest = min(found, default=0.0) - BELOW
    table = [
        (piece, lowest if type in (BYTE, UNUSED) else float(score))
        for piece, score, type in zip(pieces, scores, types, strict=True)
    ]
    try:
        backend = Backend(models.Unigram(table, unk_id=unk, byte_fallback=BYTE in types))
    except Exception as error:  # the library raises bare Exception
        raise InputError("tokenizer", f"its pieces make no Unigram model: {error}") from None
    dress(backend, charsmap, prefix, squeeze, before)
    mark_tokens(backend, pieces, types, {unk}, None)
    return backend


def dress(
    backend: Backend,
    charsmap: bytes = b"",
    prefix: bool = True,
    squeeze: bool = False,
    before: Sequence[normalizers.Normalizer] = (),
) -> None:
    """Give a Unigram model SentencePiece's normalizer, pre-tokenizer and decoder.

    With `squeeze` no text begins with a space of its own, and Metaspace puts one there, once. Without, the normalizer
    does, however many stand there already: they all come back.
    """
    steps = [*before, *precompiled(charsmap), *squeezed(squeeze)]
    if prefix and not squeeze:
        steps.append(normalizers.Prepend(SPACE))
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "always" if prefix and squeeze else "never")
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def precompiled(charsmap: bytes) -> list[normalizers.Normalizer]:
    """The normalizer of a SentencePiece file. InputError for a broken one."""
    if not charsmap:
        return []
    check_charsmap(charsmap)
    try:
        return [normalizers.Precompiled(charsmap)]
    except Exception as error:
        raise InputError("tokenizer", f"its precompiled normalization cannot be read: {error}") from None


def check_charsmap(charsmap: bytes) -> None:
    """InputError unless every way through the trie ends within it, in a text: the library would abort, not say so.

    The layout is darts-clone's double array: a unit holds its byte, whether a key ends here, and the offset by which
    the places of its followers are found; behind the trie lie the texts that keys become, each ended by a zero.
    """
    size = struct.unpack("<I", charsmap[:4])[0] if len(charsmap) >= 4 else 0
    if size % 4 or not 4 <= size <= len(charsmap) - 4:
        raise InputError("tokenizer", "its precompiled normalization is cut short")
    units = np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.int64)
    texts = np.frombuffer(charsmap, np.uint8, offset=4 + size)
    offset = (units >> 10) << ((units & 512) >> 6)
    label = units & (1 << 31 | 255)
    seen = np.zeros(len(units), bool)
    nodes = np.zeros(1, np.int64)
    while len(nodes):
        seen[nodes] = True
        base = nodes ^ offset[nodes]
        if (base | 255).max() >= len(units):
            raise InputError("tokenizer", "its precompiled normalization points outside its trie")
        ends = units[base[units[nodes] >> 8 & 1 == 1]] & (1 << 31) - 1
        if len(ends) and (ends.max() >= len(texts) or texts[-1] != 0 or (texts[ends] & 0xC0 == 0x80).any()):
            raise InputError("tokenizer", "its precompiled normalization points outside its texts")
        follow = base[:, None] ^ np.arange(1, 256)
        found = np.unique(follow[label[follow] == np.arange(1, 256)])
        nodes = found[~seen[found]]


def squeezed(squeeze: bool) -> list[normalizers.Normalizer]:
    """Spaces at the end and doubled ones taken away. One at the start stays: it says that a word begins."""
    return [normalizers.Replace(Regex(r" +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")] if squeeze else []
