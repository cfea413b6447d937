"""Converting, behind the parity check."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmlab.checkpoints import gguf
from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.convert import FOLDERS, convert
from llmlab.checkpoints.hf import load_hf
from llmlab.checkpoints.native import save_model
from llmlab.checkpoints.where import open_model
from llmlab.errors import InputError, LlmlabError
from llmlab.model.norms import RMSNorm

IDS = torch.arange(2 * 24).view(2, 24) * 37 % 261


@pytest.mark.parametrize("to", ["hf", "llmlab"])
def test_a_bundle_and_a_path_convert_with_equal_logits(
    tmp_path: Path, make: Callable[..., Bundle], family_kind: str, to: str
) -> None:
    bundle = make(family_kind)
    report = convert(bundle, tmp_path / "out", to)
    assert report == {"path": str(tmp_path / "out"), "format": to, "parity": report["parity"]}
    assert report["parity"] < 1e-5
    again = convert(tmp_path / "out", tmp_path / "back", "llmlab")
    assert again["parity"] < 1e-5
    state = open_model(tmp_path / "back").model.state_dict()
    assert all(torch.equal(state[name], weights) for name, weights in bundle.model.state_dict().items())


def test_the_source_stays_in_its_mode(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    bundle = make()
    bundle.model.train()
    convert(bundle, tmp_path / "out", "hf")
    assert bundle.model.training


@pytest.mark.parametrize(
    ("to", "kind", "says"),
    [
        ("hff", None, "did you mean 'hf'"),
        ("gguf", "q8", "--type: unknown value 'q8' .did you mean 'q8_0'"),
        ("gguf", "Q8_0", "did you mean 'q8_0'"),
        ("hf", "f16", "--type: f16 is a type of gguf files, and hf has none"),
    ],
)
def test_formats_and_types_that_are_not_written(
    tmp_path: Path, make: Callable[..., Bundle], to: str, kind: str | None, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        convert(make(), tmp_path / "out", to, kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [None, "f32", "q8_0", "q4_0", "q4_1"])
def test_a_gguf_is_a_file_or_lies_in_a_folder(tmp_path: Path, make: Callable[..., Bundle], kind: str | None) -> None:
    bundle = make("llama-tied")
    file, folder = tmp_path / "new" / "m.gguf", tmp_path / "folder"
    report = convert(bundle, file, "gguf", kind)
    assert report["path"] == str(file)
    assert report["type"] == (kind or "f16")
    assert (report["parity"] == 0) == (kind == "f32")
    assert bool(report["kept_f16"]) == (kind not in (None, "f32"))  # 40 hidden units are no whole blocks of 32
    assert convert(bundle, folder, "gguf", kind) == report | {"path": str(folder / "model.gguf")}
    assert (folder / "model.gguf").read_bytes() == file.read_bytes()
    with torch.no_grad():
        off = (open_model(folder).model(IDS) - bundle.model(IDS)).abs().max()
    assert off < {"f32": 1e-6, None: 0.05, "q8_0": 0.5}.get(kind, 8.0)
    assert [path.name for path in file.parent.iterdir()] == ["m.gguf"]


def test_a_gguf_there_already_is_left_alone(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    (tmp_path / "m.gguf").write_text("years")
    with pytest.raises(InputError, match=r"m\.gguf: is there already \(name a new file"):
        convert(make(), tmp_path / "m.gguf", "gguf")
    assert (tmp_path / "m.gguf").read_text() == "years"


def test_a_disk_that_fills_leaves_nothing(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    bundle = make()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("m.gguf", "m"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            with pytest.raises(OSError) as caught:
                convert(bundle, tmp_path / name, "gguf")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert caught.value.errno == errno.EFBIG
        assert not list(tmp_path.iterdir())


def test_a_gguf_that_reads_back_otherwise_is_not_kept(
    tmp_path: Path, make: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = gguf.read

    def swapped(path: Path) -> Bundle:
        bundle = read(path)
        weights = bundle.model.blocks[1].attention.key.weight
        weights.data = weights.data.flip(0)
        return bundle

    monkeypatch.setattr(gguf, "read", swapped)
    for kind in gguf.TYPES:
        with pytest.raises(LlmlabError, match=r"blk\.1\.attn_k\.weight reads back otherwise"):
            convert(make(), tmp_path / "m.gguf", "gguf", kind)
        assert not list(tmp_path.iterdir())


def test_a_destination_in_use_is_left_alone(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("more years")
    for name in ("full", "file"):
        with pytest.raises(InputError, match="there already"):
            convert(make(), tmp_path / name, "hf")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years"
    assert (tmp_path / "file").read_text() == "more years"
    (tmp_path / "empty").mkdir()
    assert convert(make(), tmp_path / "empty", "hf")["parity"] == 0


def test_a_copy_that_computes_something_else_is_not_kept(
    tmp_path: Path, make: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_eps(folder: Path) -> Bundle:
        bundle = load_hf(folder)
        bundle.model.blocks[0].attention_norm.eps = RMSNorm().eps + 0.1
        return bundle

    monkeypatch.setitem(FOLDERS, "hf", (FOLDERS["hf"][0], wrong_eps))
    with pytest.raises(LlmlabError, match="logits differ"):
        convert(make(), tmp_path / "out", "hf")
    assert not list(tmp_path.iterdir())


def test_a_source_that_is_no_model_writes_nothing(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    save_model(tmp_path / "m", make().model, None)
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated"):
        convert(tmp_path / "m", tmp_path / "out", "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
