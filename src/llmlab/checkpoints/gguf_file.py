"""The GGUF container, read and written: a bounds-checked parser of its header, a writer, and the `gguf` package's
quantisers for its tensors (of the same project as llama.cpp; bit for bit ggml's own).

Layout (GGUF specification, ggml-org 2023, versions 2 and 3): magic, version, tensor count, field count; the fields
(key, type, value); the tensor table (name, dimensions innermost first, quantisation, offset); padding; the tensors.
The file is not trusted: every count, length and offset is held against the bytes that are really there before
anything is allocated, so memory stays within a small multiple of the file's size.
"""

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import Tensor

from llmlab.errors import InputError
from llmlab.model.groups import Groups

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_DIMENSIONS = 4
MAX_NESTING = 4
MAX_NAME = 200
# Weights dequantised at once: few enough that the temporaries are reused and not mapped afresh. By sixteen rows, as
# the package groups them, it takes four times as long.
CHUNK = 1 << 16

SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "u1", 10: "<u8", 11: "<i8", 12: "<f8"}
BOOL, STRING, ARRAY = 7, 8, 9
MIN_BYTES = {STRING: 8, ARRAY: 12}
UINT32, FLOAT32 = 4, 6
Q4_0, Q4_1, Q8_0 = GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0

# The types that are written, and the largest weight that each can hold: the range of a half, or of its scale times
# its codes.
HALF = 65504.0
LARGEST = {
    GGMLQuantizationType.F32: float(np.finfo(np.float32).max),
    GGMLQuantizationType.F16: HALF,
    GGMLQuantizationType.Q8_0: 127 * HALF,
    GGMLQuantizationType.Q4_0: 8 * HALF,
    GGMLQuantizationType.Q4_1: HALF,
}
# How far a weight may be rounded, as a share of the largest one of its block: half a step (of 4_0, whose codes end at 7
# on one side, a whole one) and what scales lose as halves; and the least step of those.
ROUNDING = {
    GGMLQuantizationType.F32: 0.0,
    GGMLQuantizationType.F16: 2**-11,
    GGMLQuantizationType.Q8_0: 0.005,
    GGMLQuantizationType.Q4_0: 0.13,
    GGMLQuantizationType.Q4_1: 0.07,
}
LEAST_STEP = 127 * 2**-25


@dataclass(frozen=True)
class TensorEntry:
    """One row of the tensor table: shape outermost first (as torch has it), absolute offset and size in bytes."""

    name: str
    shape: tuple[int, ...]
    quantization: GGMLQuantizationType
    offset: int
    size: int


class _Reader:
    """A cursor over the file that refuses to go past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position, self.end = path, data, 0, len(data)

    def error(self, problem: str, hint: str = "") -> InputError:
        return InputError(str(self.path), problem, hint)

    def take(self, count: int, what: str) -> int:
        """The start of the next `count` bytes."""
        start = self.position
        if count > self.end - start:
            left = self.end - start
            raise self.error(f"truncated or damaged GGUF: {what} needs {count} bytes at {start}, only {left} are left")
        self.position = start + count
        return start

    def number(self, layout: str, what: str) -> int:
        value: int = struct.unpack_from(layout, self.data, self.take(struct.calcsize(layout), what))[0]
        return value

    def u32(self, what: str) -> int:
        return self.number("<I", what)

    def u64(self, what: str) -> int:
        return self.number("<Q", what)

    def count(self, what: str, smallest: int) -> int:
        """A count of things of at least `smallest` bytes each, which must fit in what is left of the file."""
        count = self.u64(what)
        if count * smallest > self.end - self.position:
            raise self.error(f"truncated or damaged GGUF: {what} is {count}, more than the file can hold")
        return count

    def string(self, what: str) -> str:
        length = self.u64(f"length of {what}")
        start = self.take(length, what)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(f"damaged GGUF: {what} is not UTF-8") from None

    def name(self, what: str) -> str:
        """A string that may stand in an error message: short, and printable."""
        name = self.string(what)
        if len(name) > MAX_NAME or not name.isprintable():
            raise self.error(f"damaged GGUF: {what} is {name[:MAX_NAME]!r}")
        return name

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        """A value of one of GGUF's types; an array of numbers as a numpy array, any other as a list."""
        if kind == STRING:
            return self.string(what)
        if kind == ARRAY:
            return self.array(what, depth + 1)
        if kind not in SCALARS:
            raise self.error(f"damaged GGUF: {what} has the unknown type {kind}")
        array = self.numbers(kind, 1, what)
        return array[0].item()

    def numbers(self, kind: int, count: int, what: str) -> npt.NDArray[Any]:
        dtype = np.dtype(SCALARS[kind])
        array = np.frombuffer(self.data, dtype, count, self.take(count * dtype.itemsize, what)).copy()
        if kind != BOOL:
            return array
        if array.size and array.max() > 1:
            raise self.error(f"damaged GGUF: {what} is a truth value of {array.max()}, neither 0 nor 1")
        return array.astype(bool)

    def strings(self, count: int, what: str) -> list[str]:
        """So many strings. A vocabulary has tens of thousands, so there is no call for each."""
        data, at, end, length_at = self.data, self.position, self.end, struct.Struct("<Q").unpack_from
        found: list[bytes] = []
        for _ in range(count):
            (length,) = length_at(data, at) if at + 8 <= end else (end,)
            at += 8
            if length > end - at:
                raise self.error(f"truncated or damaged GGUF: {what} has a string that ends beyond the file")
            found.append(data[at : at + length])
            at += length
        self.position = at
        try:
            return [content.decode("utf-8") for content in found]
        except UnicodeDecodeError:
            raise self.error(f"damaged GGUF: {what} is not UTF-8") from None

    def array(self, what: str, depth: int) -> Any:
        if depth > MAX_NESTING:
            raise self.error(f"damaged GGUF: {what} nests arrays more than {MAX_NESTING} deep")
        kind = self.u32(f"element type of {what}")
        if kind in SCALARS:
            return self.numbers(kind, self.count(f"length of {what}", np.dtype(SCALARS[kind]).itemsize), what)
        if kind not in MIN_BYTES:
            raise self.error(f"damaged GGUF: {what} has elements of the unknown type {kind}")
        if kind == STRING:
            return self.strings(self.count(f"length of {what}", MIN_BYTES[STRING]), what)
        return [self.value(kind, what, depth) for _ in range(self.count(f"length of {what}", MIN_BYTES[kind]))]


class GGUF:
    """A GGUF file opened for reading: `fields`, `tensors` by name, and their weights through a memory map.

    Errors: InputError for anything that is not a whole, well-formed GGUF of version 2 or 3, little-endian.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                if not path.stat().st_size:
                    raise InputError(str(path), "an empty file, not a GGUF")
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(str(path), f"cannot be read: {error.strerror}") from error
        reader = _Reader(path, self._data)
        tensors, fields = self._header(reader)
        self.fields: dict[str, Any] = {}
        for _ in range(fields):
            key = reader.name("a field's name")
            if key in self.fields:
                raise reader.error(f"damaged GGUF: the field {key!r} is there twice")
            self.fields[key] = reader.value(reader.u32(f"type of {key}"), key)
        table = [self._entry(reader) for _ in range(tensors)]
        self.tensors = self._placed(reader, table)

    @staticmethod
    def _header(reader: _Reader) -> tuple[int, int]:
        start = reader.take(4, "the magic number")
        if (magic := reader.data[start : start + 4]) != MAGIC:
            raise reader.error(f"not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
        version = reader.u32("the version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            hint = "a big-endian file" if swapped in VERSIONS else "versions 2 and 3 are read"
            raise reader.error(f"GGUF version {version} is not supported", hint)
        return reader.count("the number of tensors", 24), reader.count("the number of fields", 13)

    @staticmethod
    def _entry(reader: _Reader) -> TensorEntry:
        """A row of the tensor table, its offset still relative to the data section."""
        name = reader.name("a tensor's name")
        dimensions = reader.u32(f"number of dimensions of {name}")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise reader.error(f"damaged GGUF: tensor {name!r} has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
        inner_first = [reader.u64(f"dimensions of {name}") for _ in range(dimensions)]
        code = reader.u32(f"type of {name}")
        try:
            quantization = GGMLQuantizationType(code)
            block, block_bytes = GGML_QUANT_SIZES[quantization]
        except (ValueError, KeyError):
            raise reader.error(f"tensor {name!r} has the unknown quantisation {code}") from None
        if 0 in inner_first or inner_first[0] % block:
            raise reader.error(f"damaged GGUF: tensor {name!r} of shape {inner_first} is not whole blocks of {block}")
        weights = 1
        for dimension in inner_first:
            weights *= dimension
        offset = reader.u64(f"offset of {name}")
        return TensorEntry(name, tuple(reversed(inner_first)), quantization, offset, weights // block * block_bytes)

    def _placed(self, reader: _Reader, table: list[TensorEntry]) -> dict[str, TensorEntry]:
        """The table with absolute offsets, once every tensor is known to lie in the file and on no other tensor."""
        alignment = self.fields.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise reader.error(f"damaged GGUF: general.alignment is {alignment!r}, not a power of two")
        start = -(-reader.position // alignment) * alignment
        placed: dict[str, TensorEntry] = {}
        free = start
        for entry in sorted(table, key=lambda entry: entry.offset):
            offset = start + entry.offset
            if entry.offset % alignment:
                raise reader.error(f"damaged GGUF: tensor {entry.name!r} is not aligned to {alignment} bytes")
            if offset < free:
                raise reader.error(f"damaged GGUF: tensor {entry.name!r} overlaps the one before it")
            free = offset + entry.size
            if free > reader.end:
                raise reader.error(
                    f"truncated or damaged GGUF: tensor {entry.name!r} ends at byte {free}, the file at {reader.end}"
                )
            if entry.name in placed:
                raise reader.error(f"damaged GGUF: the tensor {entry.name!r} is there twice")
            placed[entry.name] = TensorEntry(entry.name, entry.shape, entry.quantization, offset, entry.size)
        return placed

    def field(self, key: str, kind: type, default: Any = None) -> Any:
        """A field of this kind; a number where the specification has an integer may not be a truth value."""
        value = self.fields.get(key, default)
        if value is None:
            raise InputError(str(self.path), f"the field {key} is missing")
        if type(value) is not kind:
            shown = value if isinstance(value, str | int | float | bool) else "a list"
            raise InputError(str(self.path), f"the field {key} is {str(shown)[:80]!r}, not one {kind.__name__}")
        return value

    def tensor(self, name: str) -> Tensor:
        """The weights of one tensor, dequantised to fp32, shaped outermost first."""
        entry = self.tensors[name]
        block, block_bytes = GGML_QUANT_SIZES[entry.quantization]
        raw = np.frombuffer(self._data, np.uint8, entry.size, entry.offset).reshape(-1, block_bytes)
        weights = torch.empty(entry.shape)  # torch aligns to 64 bytes, numpy to 16
        out = weights.view(-1, block).numpy()
        chunk = max(1, CHUNK // block)
        try:
            for first in range(0, len(raw), chunk):
                part = raw[first : first + chunk]
                with np.errstate(all="ignore"):
                    out[first : first + chunk] = dequantize(part.reshape(1, -1), entry.quantization).reshape(-1, block)
        except NotImplementedError:
            raise InputError(
                str(self.path), f"tensor {name!r}: {entry.quantization.name} cannot be dequantised"
            ) from None
        return weights

    def groups(self, name: str) -> Groups | None:
        """A matrix of Q4_0, Q4_1 or Q8_0 as it lies in the file; None for any other tensor, and where a scale is not
        finite or its least value beyond half precision."""
        entry = self.tensors[name]
        if entry.quantization not in (Q4_0, Q4_1, Q8_0) or len(entry.shape) != 2:
            return None
        _, block_bytes = GGML_QUANT_SIZES[entry.quantization]
        raw = np.frombuffer(self._data, np.uint8, entry.size, entry.offset).reshape(entry.shape[0], -1, block_bytes)
        step, codes = raw[..., :2].view(np.float16)[..., 0], raw[..., 2:]
        with np.errstate(all="ignore"):
            if entry.quantization == Q4_1:
                least, codes = raw[..., 2:4].view(np.float16)[..., 0], raw[..., 4:]
            elif entry.quantization == Q4_0:
                least = -8 * step
            else:  # signed codes
                least, codes = -128 * step, codes ^ np.uint8(128)
        return Groups(codes, step, least) if np.isfinite(step).all() and np.isfinite(least).all() else None

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the file, dequantised."""
        return {name: self.tensor(name) for name in self.tensors}


# ---------------------------------------------------------------- writing


def write_gguf(
    path: Path, fields: Mapping[str, Any], tensors: Mapping[str, tuple[Tensor, GGMLQuantizationType]]
) -> None:
    """Write a GGUF of version 3: fields and tensors in the order given, one tensor at a time in memory.

    A field is a truth value, an integer (32 bits, unsigned), a float (32 bits), a string, a list of strings, or a
    numpy array of numbers. The last dimension of a quantised tensor must be whole blocks.
    Errors: InputError for a weight that its type cannot hold; OSError where the disk refuses.
    """
    header = bytearray(struct.pack("<4sIQQ", MAGIC, VERSIONS[-1], len(tensors), len(fields)))
    for key, value in fields.items():
        header += _string(key) + _typed(value)
    offset = 0
    for name, (tensor, kind) in tensors.items():
        inner_first = tuple(reversed(tensor.shape))
        header += _string(name) + struct.pack(f"<I{tensor.ndim}QIQ", tensor.ndim, *inner_first, kind, offset)
        block, block_bytes = GGML_QUANT_SIZES[kind]
        assert inner_first[0] % block == 0, f"{name} is not whole blocks of {block}"
        offset += _aligned(tensor.numel() // block * block_bytes)
    with path.open("wb") as file:
        file.write(header.ljust(_aligned(len(header)), b"\0"))
        for name, (tensor, kind) in tensors.items():
            largest = float(tensor.abs().max())
            if not largest <= LARGEST[kind]:
                hint = f"{kind.name} holds up to {LARGEST[kind]:.6g}"
                raise InputError(name, f"holds a weight of {largest:.6g}, which {kind.name} cannot", hint)
            size = sum(file.write(part) for part in encoded(tensor, kind))
            file.write(bytes(_aligned(size) - size))


def encoded(tensor: Tensor, kind: GGMLQuantizationType) -> Iterator[bytes]:
    """The bytes of a tensor in this type, piece by piece, each of whole blocks."""
    for part in torch.split(tensor.detach().cpu().float().reshape(-1), CHUNK):
        with np.errstate(all="ignore"):  # a block of zeros has no inverse scale
            yield quantize(part.numpy().reshape(1, -1), kind).tobytes()


def _aligned(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _string(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _typed(value: Any) -> bytes:
    """A value behind its type, as a field holds it."""
    match value:
        case bool():
            return struct.pack("<I?", BOOL, value)
        case int():
            if not 0 <= value < 1 << 32:
                raise InputError("gguf", f"{value} is beyond the 32 bits of a field")
            return struct.pack("<II", UINT32, value)
        case float():
            return struct.pack("<If", FLOAT32, value)
        case str():
            return struct.pack("<I", STRING) + _string(value)
        case list():
            return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
        case np.ndarray():
            kind = next(kind for kind, layout in SCALARS.items() if np.dtype(layout) == value.dtype)
            return struct.pack("<IIQ", ARRAY, kind, len(value)) + value.tobytes()
    raise TypeError(f"no field holds a {type(value).__name__}")
