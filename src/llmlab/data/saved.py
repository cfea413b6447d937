"""Folders that Hugging Face `datasets` saved: `Dataset.save_to_disk` (state.json beside data-*.arrow) and
`DatasetDict.save_to_disk` (dataset_dict.json beside one such folder a split).

What counts is what state.json lists: the library leaves caches of its own beside the shards, which are other rows.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmlab.errors import InputError

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


def shards(files: Sequence[Path]) -> list[Path]:
    """`files` without descriptions and caches of saved data sets; their shards stand where state.json has them.

    Raises `InputError` where a shard is missing, and where several splits would be read as one: a test split is no
    training text.
    """
    there = {file.parent: _listed(file) for file in files if file.name == STATE and _is_state(file)}
    for file in files:
        if file.name == SPLITS and len(names := _splits(file)) > 1:
            hint = f"name one, as in {file.parent / names[0]}"
            raise InputError(str(file.parent), f"holds the splits {', '.join(names)}", hint)
    kept = list[Path]()
    for file in files:
        if file.parent in there:
            kept += there[file.parent] if file.name == STATE else ()
        elif file.name != SPLITS or not _splits(file):
            kept.append(file)
    return kept


def _listed(state: Path) -> list[Path]:
    found = [state.parent / str(entry["filename"]) for entry in _read(state)["_data_files"]]
    for shard in found:
        if not shard.is_file():
            raise InputError(str(state), f"names {shard.name}, which is not there", "copy the folder again, whole")
    return found


def _is_state(file: Path) -> bool:
    value = _read(file)
    files = value.get("_data_files") if isinstance(value, dict) else None
    return isinstance(files, list) and all(isinstance(entry, dict) and "filename" in entry for entry in files)


def _splits(file: Path) -> list[str]:
    value = _read(file)
    names = value.get("splits") if isinstance(value, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return None  # no description; who reads it as a table will say what is wrong with it
