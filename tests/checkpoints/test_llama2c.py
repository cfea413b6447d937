"""llama2.c's files: the 260K-parameter storyteller, and files that are not what they say."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from llmlab.checkpoints import llama2c
from llmlab.checkpoints.bundle import Bundle
from llmlab.errors import InputError


@pytest.fixture(scope="module")
def files(shared: Path) -> tuple[Path, Path]:
    folder = shared / "stories260k"
    return folder / "stories260K.bin", folder / "tok512.bin"


@pytest.fixture(scope="module")
def storyteller(files: tuple[Path, Path]) -> Bundle:
    return llama2c.read(*files)


@torch.no_grad()
def greedy(bundle: Bundle, ids: list[int], length: int) -> list[int]:
    """Plain and slow: the whole text anew for each token."""
    while len(ids) < length:
        ids = [*ids, int(bundle.model(torch.tensor([ids]))[0, -1].argmax())]
    return ids


def test_greedy_decoding_reproduces_the_published_text(storyteller: Bundle, shared: Path) -> None:
    ids = greedy(storyteller, [1], 1 + 256)
    text = storyteller.tokenizer.decode(ids[1:])
    reference = (shared / "stories260k" / "greedy_reference.txt").read_text(encoding="utf-8")
    assert text == reference.removesuffix("\n")
    assert len(text) > 500


def test_its_sizes_and_special_tokens(storyteller: Bundle) -> None:
    model, tokenizer = storyteller.model, storyteller.tokenizer
    assert sum(parameter.numel() for parameter in model.parameters()) == 260_032
    assert model.head is None
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (512, 1, 2)
    text = "Once upon a time, Lily saw 日本 🙂.\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_free_head_is_read(files: tuple[Path, Path], tmp_path: Path, storyteller: Bundle) -> None:
    content = files[0].read_bytes()
    header = list(struct.unpack_from("<7i", content))
    header[5] = -header[5]
    head = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "free.bin"
    path.write_bytes(struct.pack("<7i", *header) + content[28:] + head.numpy().tobytes())
    bundle = llama2c.read(path, files[1])
    assert torch.equal(bundle.model.head.weight, head)
    assert torch.equal(bundle.model.embedding.weight, storyteller.model.embedding.weight)


@pytest.mark.parametrize("length", [0, 27, 28, 1000, 1_056_539])
def test_a_truncated_model_is_refused(files: tuple[Path, Path], tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.bin"
    path.write_bytes(files[0].read_bytes()[:length])
    with pytest.raises(InputError, match=str(path)):
        llama2c.read(path, files[1])


@pytest.mark.parametrize("field", range(7))
@pytest.mark.parametrize("value", [0, -1, 3, 1 << 30, (1 << 31) - 1])
def test_a_hostile_header_is_refused(files: tuple[Path, Path], tmp_path: Path, field: int, value: int) -> None:
    content = bytearray(files[0].read_bytes())
    content[4 * field : 4 * field + 4] = struct.pack("<i", value)
    path = tmp_path / "hostile.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)):
        llama2c.read(path, files[1])


@pytest.mark.parametrize("length", [0, 3, 9, 700, 6226])
def test_a_truncated_tokenizer_is_refused(files: tuple[Path, Path], tmp_path: Path, length: int) -> None:
    path = tmp_path / "tok.bin"
    path.write_bytes(files[1].read_bytes()[:length])
    with pytest.raises(InputError, match=str(path)):
        llama2c.read(files[0], path)


def test_a_token_of_negative_length_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    content = bytearray(files[1].read_bytes())
    content[8:12] = struct.pack("<i", -5)
    path = tmp_path / "tok.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match="token 0 has -5 bytes"):
        llama2c.read(files[0], path)
