"""SentencePiece's own files (`spiece.model`, `tokenizer.model`), read without its library (Kudo and Richardson 2018).

Such a file is one protobuf message, `ModelProto`: pieces with score and type, what the trainer was told (of which the
kind of model and a few ids count here) and how text is normalised.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import normalizers, pre_tokenizers

from llmlab.errors import InputError
from llmlab.tokenization.pieces import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    sentencepiece_backend,
)
from llmlab.tokenization.unigram import precompiled, squeezed, unigram_backend

MAX_BYTES = 1 << 27  # the largest in use have five million
UNIGRAM, BPE = 1, 2  # of TrainerSpec's model types: the other two, words and characters, are not used by models

Value = int | bytes


@dataclass(frozen=True)
class SentencePieceFile:
    """What counts of a `ModelProto`. `bos`, `eos`, `pad` are ids or None."""

    pieces: list[str]
    scores: list[float]
    types: list[int]
    kind: int
    unk: int
    bos: int | None
    eos: int | None
    pad: int | None
    charsmap: bytes
    prefix: bool
    squeeze: bool

    @staticmethod
    def read(path: Path) -> SentencePieceFile:
        """InputError for anything that is no such file."""
        try:
            if path.stat().st_size > MAX_BYTES:
                raise InputError(str(path), f"is larger than {MAX_BYTES} bytes: no SentencePiece model")
            return _model(path.read_bytes(), str(path))
        except OSError as error:
            raise InputError(str(path), f"cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise InputError(str(path), "holds a piece that is not UTF-8 text") from None

    def backend(self, *before: normalizers.Normalizer) -> Backend:
        """The tokenizer; `before` is done to the text before what the file says."""
        if self.kind == UNIGRAM:
            return unigram_backend(
                self.pieces, self.scores, self.types, self.unk, self.charsmap, self.prefix, self.squeeze, before
            )
        made = sentencepiece_backend(self.pieces, self.scores, self.types, set(), self.unk, None, self.prefix)
        steps = [*before, *precompiled(self.charsmap), *squeezed(self.squeeze)]
        if self.squeeze:
            made.normalizer = normalizers.Sequence(steps)
            made.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "always" if self.prefix else "never", split=False)
        elif steps:
            made.normalizer = normalizers.Sequence([*steps, made.normalizer])
        return made


def _model(data: bytes, place: str) -> SentencePieceFile:
    pieces, scores, types = list[str](), list[float](), list[int]()
    trainer, normalizer = dict[int, Value](), dict[int, Value]()
    for number, value in _fields(data, place):
        if number in (1, 2, 3) and not isinstance(value, bytes):
            raise _no_model(place, f"field {number} is no message")
        if number == 1:
            piece = dict(_fields(value, place))
            pieces.append(_bytes(piece.get(1), place).decode("utf-8"))
            scores.append(_float(piece.get(2, bytes(4)), place))
            types.append(_int(piece.get(3, NORMAL), place))
        elif number == 2:
            trainer |= _fields(value, place)
        elif number == 3:
            normalizer |= _fields(value, place)
    if not pieces:
        raise _no_model(place, "it holds no piece")
    if odd := sorted(set(types) - {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE}):
        raise _no_model(place, f"a piece is of type {odd[0]}")
    kind = _int(trainer.get(3, UNIGRAM), place)
    if kind not in (UNIGRAM, BPE):
        raise InputError(place, f"is a SentencePiece model of kind {kind}", "unigram (1) and bpe (2) are read")

    def id(field: int, default: int) -> int | None:
        value = _int(trainer.get(field, default), place)
        return value if 0 <= value < len(pieces) and types[value] in (CONTROL, USER_DEFINED) else None

    return SentencePieceFile(
        pieces=pieces,
        scores=scores,
        types=types,
        kind=kind,
        unk=next((id for id, type in enumerate(types) if type == UNKNOWN), 0),
        bos=id(41, 1),
        eos=id(42, 2),
        pad=id(43, -1),
        charsmap=_bytes(normalizer.get(2, b""), place),
        prefix=bool(_int(normalizer.get(3, 1), place)),
        squeeze=bool(_int(normalizer.get(4, 1), place)),
    )


# ---------------------------------------------------------------- protobuf


def _fields(data: Value, place: str) -> Iterator[tuple[int, Value]]:
    """The fields of one message: numbers as int (64 bit, signed), everything else as bytes."""
    data, at = _bytes(data, place), 0
    while at < len(data):
        key, at = _varint(data, at, place)
        match key & 7:
            case 0:
                value, at = _varint(data, at, place)
                yield key >> 3, value - (1 << 64) if value >> 63 else value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _varint(data, at, place)
            case 5:
                size = 4
            case wire:
                raise _no_model(place, f"byte {at} begins a field of the unknown wire type {wire}")
        if size > len(data) - at:
            raise _no_model(place, f"a field of {size} bytes at byte {at} of {len(data)}")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int, place: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _no_model(place, "it ends within a number")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value & (1 << 64) - 1, at
    raise _no_model(place, f"the number before byte {at} does not end")


def _bytes(value: Value | None, place: str) -> bytes:
    if not isinstance(value, bytes):
        raise _no_model(place, "a field of text holds a number or is missing")
    return value


def _int(value: Value, place: str) -> int:
    if not isinstance(value, int):
        raise _no_model(place, "a field of numbers holds bytes")
    return value


def _float(value: Value, place: str) -> float:
    if not isinstance(value, bytes) or len(value) != 4:
        raise _no_model(place, "a score is no float")
    score = float(struct.unpack("<f", value)[0])
    if not abs(score) < 1e30:
        raise _no_model(place, f"a score is {score}")
    return score


def _no_model(place: str, why: str) -> InputError:
    return InputError(place, f"is no SentencePiece model: {why}")
