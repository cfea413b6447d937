"""Converting, behind the parity check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.convert import FORMATS, convert
from llmlab.checkpoints.hf import load_hf
from llmlab.checkpoints.native import save_model
from llmlab.checkpoints.where import open_model
from llmlab.errors import InputError, LlmlabError
from llmlab.model.norms import RMSNorm


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


@pytest.mark.parametrize(("to", "says"), [("gguf", "read, but not written yet"), ("hff", "did you mean 'hf'")])
def test_formats_that_are_not_written(tmp_path: Path, make: Callable[..., Bundle], to: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        convert(make(), tmp_path / "out", to)
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

    monkeypatch.setitem(FORMATS, "hf", (FORMATS["hf"][0], wrong_eps))
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
