"""How a folder says that its texts become vectors: the files of sentence-transformers, read and written.

`modules.json` lists what a text goes through, `1_Pooling/config.json` the pooling, `sentence_bert_config.json` the
longest text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmlab.checkpoints.native import read_json, read_value
from llmlab.errors import InputError
from llmlab.model.pooling import Pooling
from llmlab.runtime import atomic_json

MODULES, LENGTH = "modules.json", "sentence_bert_config.json"
POOLING = "1_Pooling"
TYPES = {"Transformer", "Pooling", "Normalize"}
# Their switches, and ours; the others they have are not built.
KINDS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}


def read_pooling(folder: Path) -> Pooling | None:
    """The published pooling, None where the folder does not say (or names a file that is not there).

    Errors: InputError for a module or a pooling that is not built: vectors would be others than published.
    """
    if not (folder / MODULES).is_file():
        return None
    place, modules = str(folder / MODULES), read_value(folder / MODULES)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise InputError(place, "holds no list of modules")
    types = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if odd := sorted(set(types) - TYPES):
        raise InputError(place, f"has a module {odd[0][:80]!r}", f"built are {', '.join(sorted(TYPES))}")
    path = next((str(m.get("path")) for m, kind in zip(modules, types, strict=True) if kind == "Pooling"), POOLING)
    if Path(path).name != path or path == "..":
        raise InputError(place, f"names the folder {path[:80]!r}, outside its own")
    if not (config := folder / path / "config.json").is_file():
        return None
    switches = read_json(config)
    chosen = [name for name, on in switches.items() if name.startswith("pooling_mode_") and on is True]
    if len(chosen) != 1 or chosen[0] not in KINDS:
        said = ", ".join(chosen)[:80] or "none"
        raise InputError(str(config), f"pools by {said}, which is not built", f"built are {', '.join(KINDS)}")
    limit = read_json(folder / LENGTH).get("max_seq_length") if (folder / LENGTH).is_file() else None
    if limit is not None and (not isinstance(limit, int) or limit < 3):
        raise InputError(str(folder / LENGTH), f"max_seq_length is {str(limit)[:80]}, not a length")
    return Pooling.model_validate({"kind": KINDS[chosen[0]], "normalised": "Normalize" in types, "max_tokens": limit})


def write_pooling(folder: Path, pooling: Pooling | None, dim: int) -> None:
    """The same files, into a folder that somebody else makes atomic."""
    if pooling is None:
        return
    types = ["Transformer", "Pooling", *(["Normalize"] if pooling.normalised else [])]
    modules: list[dict[str, Any]] = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(types)
    ]
    atomic_json(folder / MODULES, modules)
    (folder / POOLING).mkdir(exist_ok=True)
    switches = {name: kind == pooling.kind for name, kind in KINDS.items()}
    atomic_json(folder / POOLING / "config.json", {"word_embedding_dimension": dim, **switches})
    if pooling.max_tokens is not None:
        atomic_json(folder / LENGTH, {"max_seq_length": pooling.max_tokens, "do_lower_case": False})
