"""The GGUF container: what the gguf package writes is read and what we write the package reads; all else is refused."""

import itertools
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType, GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmlab.checkpoints.gguf_file import GGUF, LEAST_STEP, ROUNDING, encoded, write_gguf
from llmlab.errors import InputError
from llmlab.inference.packing import pack, unpacked

QUANTIZATIONS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q2_K", "Q3_K"]


def write(path: Path, alignment: int | None = None) -> dict[str, np.ndarray]:
    """A small file with every kind of field and many quantisations; the weights it should read as."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for kind, value in [("uint8", 200), ("int8", -3), ("uint16", 60000), ("int16", -300), ("uint32", 1 << 31)]:
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
    for kind, value in [("int32", -5), ("uint64", 1 << 63), ("int64", -(1 << 40)), ("float32", 0.5), ("float64", 0.1)]:
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "naïve 文字 🙂")
    writer.add_array("a.strings", ["", "x", "日本"])
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.floats", [0.25, -1.5])
    writer.add_array("a.nested", [[1, 2], [3]])
    rng = np.random.default_rng(0)
    expected = {}
    for name in QUANTIZATIONS:
        kind = GGMLQuantizationType[name]
        _, block_bytes = gguf.constants.GGML_QUANT_SIZES[kind]
        if name in ("F32", "F16"):
            raw = rng.normal(size=(3, 32)).astype(np.float32 if name == "F32" else np.float16)
        else:  # small random bytes: finite half-precision scales
            raw = rng.integers(0, 0x3C, size=(3, 2 * block_bytes), dtype=np.uint8)
        writer.add_tensor(name, raw, raw_dtype=kind)
        expected[name] = gguf.quants.dequantize(raw, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write(path)
    return path.read_bytes()


@pytest.mark.parametrize("alignment", [None, 8, 64])
def test_reads_what_the_gguf_package_writes(tmp_path: Path, alignment: int | None) -> None:
    expected = write(tmp_path / "a.gguf", alignment)
    file = GGUF(tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    for key, value in file.fields.items():
        theirs = reader.fields[key]
        if key == "a.nested":
            assert [part.tolist() for part in value] == [[1, 2], [3]]
        elif theirs.types[0] is GGUFValueType.ARRAY:
            assert list(value) == theirs.contents(), key
        else:
            assert value == theirs.contents(), key
            assert type(value) is type(theirs.contents()), key
    assert set(file.tensors) == set(expected) == {tensor.name for tensor in reader.tensors}
    for name, weights in file.state().items():
        assert torch.equal(weights, torch.from_numpy(expected[name])), name


def test_a_tensor_of_many_chunks_reads_as_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmlab.checkpoints.gguf_file.CHUNK", 64)
    expected = write(tmp_path / "a.gguf")
    for name, weights in GGUF(tmp_path / "a.gguf").state().items():
        assert torch.equal(weights, torch.from_numpy(expected[name])), name


def read_all(path: Path) -> int:
    """Parse the file and dequantise it; the weights it holds, in bytes."""
    state = GGUF(path).state()
    return sum(weights.nbytes for weights in state.values())


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_by_name_within_bounded_memory(
    small: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(small)
    header = 2200  # the flips that matter are in the header and the tables
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, header))
        match data.draw(st.sampled_from(["flip", "count", "string"])):
            case "flip":
                content[at] ^= data.draw(st.integers(1, 255))
            case "count":
                content[at : at + 8] = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1)))
            case "string":
                content[at : at + 4] = struct.pack("<I", data.draw(st.integers(0, 12)))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        assert read_all(path) <= 32 * len(content)
    except InputError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4_000_000


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["Q4_0", "Q4_1", "Q8_0"]),
    rows=st.sampled_from([16, 48]),
    blocks=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    largest=st.sampled_from([0x04, 0x3C, 0x7B, 0x7F]),
)
def test_blocks_are_packed_without_a_loss(
    tmp_path: Path, kind: str, rows: int, blocks: int, seed: int, largest: int
) -> None:
    """Random blocks, their scales denormal, ordinary, large, and no numbers at all: the weights as dequantised."""
    quantization = GGMLQuantizationType[kind]
    _, block_bytes = gguf.constants.GGML_QUANT_SIZES[quantization]
    draw = np.random.default_rng(seed)
    raw = draw.integers(0, 256, (rows, blocks, block_bytes), dtype=np.uint8)
    for high in (1, 3) if kind == "Q4_1" else (1,):  # the byte of sign and exponent
        raw[..., high] = draw.integers(0, largest + 1, (rows, blocks)) | draw.integers(0, 2, (rows, blocks)) << 7
    table = entry("t", [32 * blocks, rows], int(quantization))
    path = tmp_path / "b.gguf"
    path.write_bytes(padded(hostile(tensors=table, n_tensors=1), 0) + raw.tobytes())
    file = GGUF(path)
    groups, weights = file.groups("t"), file.tensor("t")
    if groups is None:
        bits = raw[..., :2].copy().view(np.uint16)
        most = {"Q4_0": 65504 / 8, "Q4_1": 65504, "Q8_0": 65504 / 128}[kind]
        assert not weights.isfinite().all() or not (np.abs(bits.view(np.float16)) <= most).all()
        return
    assert torch.equal(groups.dense(), weights)
    order = draw.permutation(rows)
    for bits in {groups.bits, 8}:
        packed = pack(groups, "int4" if bits == 4 else "int8")
        assert torch.equal(unpacked(packed), weights)
        assert torch.equal(unpacked(pack(groups.rows(order), packed.kind)), weights[order])


def test_every_truncation_is_refused(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    for length in itertools.chain(range(0, 400), range(400, len(small) - 32, 97)):
        path.write_bytes(small[:length])
        with pytest.raises(InputError):
            read_all(path)


def hostile(fields: bytes = b"", tensors: bytes = b"", *, n_fields: int = 0, n_tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_fields) + fields + tensors


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def padded(content: bytes, room: int) -> bytes:
    return content + b"\0" * (-len(content) % 32) + b"\0" * room


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"PK\x03\x04" + b"\0" * 40, "not a GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (hostile(n_tensors=1 << 40), "more than the file can hold"),
        (hostile(n_fields=1 << 60), "more than the file can hold"),
        (hostile(struct.pack("<Q", 1 << 62) + b"\0" * 64, n_fields=1), "truncated"),
        (hostile(text("k") + struct.pack("<IIQ", 9, 4, 1 << 61), n_fields=1), "more than the file can hold"),
        (hostile(text("k") + struct.pack("<II", 77, 0), n_fields=1), "unknown type 77"),
        (hostile(text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50, n_fields=1), "deep"),
        (hostile(text("k") + struct.pack("<IB", 7, 9), n_fields=1), "neither 0 nor 1"),
        (hostile((text("k") + struct.pack("<II", 4, 1)) * 2, n_fields=2), "twice"),
        (hostile(struct.pack("<Q", 1) + b"\xff" + struct.pack("<II", 4, 1), n_fields=1), "UTF-8"),
        (hostile(text("a\n\x1b[31m") + struct.pack("<II", 4, 1), n_fields=1), r"name is 'a\\n\\x1b\[31m'"),
        (hostile(text("general.alignment") + struct.pack("<II", 4, 0), n_fields=1), "power of two"),
        (hostile(text("general.alignment") + struct.pack("<II", 4, 48), n_fields=1), "power of two"),
        (hostile(tensors=entry("t", [1] * 5), n_tensors=1), "5 dimensions"),
        (hostile(tensors=entry("t", [1 << 63, 1 << 63, 1 << 63]), n_tensors=1), "ends at byte"),
        (hostile(tensors=entry("t", [4], offset=1 << 63), n_tensors=1), "ends at byte"),
        (hostile(tensors=entry("t", [0, 4]), n_tensors=1), "whole blocks"),
        (hostile(tensors=entry("t", [33], kind=3), n_tensors=1), "whole blocks"),
        (hostile(tensors=entry("t", [4], kind=999), n_tensors=1), "unknown quantisation 999"),
        (padded(hostile(tensors=entry("t", [4], offset=4), n_tensors=1), 64), "not aligned"),
        (padded(hostile(tensors=entry("a", [16]) + entry("b", [16]), n_tensors=2), 256), "overlaps"),
        (padded(hostile(tensors=entry("a", [8]) + entry("a", [8], offset=32), n_tensors=2), 256), "twice"),
    ],
)
def test_a_hostile_file_gives_one_clear_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        GGUF(path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            GGUF(path)


# ---------------------------------------------------------------- writing

FIELDS = st.one_of(
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(),
    st.lists(st.text(), min_size=1),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1).map(lambda items: np.array(items, np.int32)),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1).map(lambda items: np.array(items, np.float32)),
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(st.from_regex(r"[a-z][a-z.]{0,20}", fullmatch=True), FIELDS, max_size=6),
    shapes=st.lists(st.tuples(st.sampled_from(sorted(ROUNDING)), st.integers(1, 5), st.integers(1, 3)), max_size=5),
    seed=st.integers(0, 1000),
)
def test_what_is_written_the_package_reads_bit_for_bit(
    tmp_path: Path, fields: dict[str, object], shapes: list[tuple[GGMLQuantizationType, int, int]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tensors = {}
    for number, (kind, rows, blocks) in enumerate(shapes):
        weights = (rng.normal(size=(rows, 32 * blocks)) * 10.0 ** rng.integers(-6, 3)).astype(np.float32)
        weights[0, :32] = rng.choice([0.0, weights[0, 0]])
        tensors[f"t{number}"] = (torch.from_numpy(weights), kind)
    path = tmp_path / "w.gguf"
    write_gguf(path, fields, tensors)
    reader = gguf.GGUFReader(path)
    for key, value in fields.items():
        contents = reader.fields[key].contents()
        assert contents == (value.tolist() if isinstance(value, np.ndarray) else value)
        assert type(contents) is (list if isinstance(value, np.ndarray) else type(value))
    assert [tensor.name for tensor in reader.tensors] == list(tensors)
    for tensor in reader.tensors:
        weights, kind = tensors[tensor.name]
        assert tensor.tensor_type == kind
        assert tensor.shape.tolist() == [weights.shape[1], weights.shape[0]]
        with np.errstate(all="ignore"):
            reference = gguf.quants.quantize(weights.numpy(), kind)
        assert tensor.data.tobytes() == reference.tobytes()
    again = GGUF(path)
    assert list(again.fields) == list(fields)
    for name, (weights, kind) in tensors.items():
        off = (again.tensor(name) - weights).abs().max()
        assert off <= (0 if kind == GGMLQuantizationType.F32 else ROUNDING[kind] * weights.abs().max() + LEAST_STEP)


def test_a_tensor_is_encoded_in_pieces_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.randn(7, 96, generator=torch.Generator().manual_seed(0))
    for kind in ROUNDING:
        whole = b"".join(encoded(weights, kind))
        monkeypatch.setattr("llmlab.checkpoints.gguf_file.CHUNK", 64)
        assert b"".join(encoded(weights, kind)) == whole
        assert b"".join(encoded(weights.T.contiguous().T, kind)) == whole
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("weight", "kind", "says"),
    [
        (float("nan"), "F32", "t: holds a weight of nan"),
        (float("inf"), "F32", "t: holds a weight of inf"),
        (70_000.0, "F16", "t: holds a weight of 70000, which F16 cannot .F16 holds up to 65504"),
        (-70_000.0, "Q4_1", "t: holds a weight of 70000"),
        (1e7, "Q8_0", "t: holds a weight of 1e"),
    ],
)
def test_a_weight_beyond_its_type_is_named(tmp_path: Path, weight: float, kind: str, says: str) -> None:
    tensor = torch.zeros(2, 32)
    tensor[1, 3] = weight
    with pytest.raises(InputError, match=says):
        write_gguf(tmp_path / "w.gguf", {}, {"t": (tensor, GGMLQuantizationType[kind])})


def test_a_field_beyond_32_bits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="4294967296 is beyond"):
        write_gguf(tmp_path / "w.gguf", {"a": 1 << 32}, {})
