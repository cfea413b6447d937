"""Tensors of a checkpoint in pieces: one safetensors a rank and one JSON index, and the whole tensors read from them.

    weights-0-of-2.safetensors  weights-1-of-2.safetensors  weights.json

The index has, for each whole tensor, its shape and where each file's piece of it begins. To read it on any number of
ranks is to put a tensor together and slice it. (`torch.distributed.checkpoint` pickles its metadata.)
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from llmlab.runtime import atomic_json, atomic_safetensors
from llmlab.training.parallel.pieces import Piece
from llmlab.training.parallel.ranks import Ranks


def write_tensors(folder: Path, stem: str, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Write `stem`: named parameters of `ranks.owned` (`NAME`), or optimizer state by parameter (`NAME:what`). All
    ranks call; what one raises, all raise."""
    world, name = ranks.world, f"{stem}.safetensors"
    if not ranks.in_pieces:
        world.told(lambda: atomic_safetensors(folder / name, tensors))
        return
    name = f"{stem}-{world.rank}-of-{world.size}.safetensors"
    mine = {key: tensor for key, tensor in tensors.items() if _kept(key, tensor, ranks)}
    places = {key: (name, _place(key, tensor, ranks)) for key, tensor in mine.items()}

    def write() -> dict[str, tuple[str, Piece]]:
        atomic_safetensors(folder / name, mine)
        return places

    everywhere = world.all(write)
    world.told(lambda: atomic_json(folder / f"{stem}.json", _index(everywhere)))


def _kept(key: str, tensor: Tensor, ranks: Ranks) -> bool:
    """Of a part that several ranks have, one rank's; counters are equal on all that share a parameter."""
    name = key.partition(":")[0]
    shared = tensor.ndim == 0 and any(ranks.piece(name).start)
    return ranks.keeps(name) and not shared and bool(tensor.numel())


def _place(key: str, tensor: Tensor, ranks: Ranks) -> Piece:
    name = key.partition(":")[0]
    piece, own = ranks.piece(name), ranks.owned.get_parameter(name)
    if tensor.ndim == 0 or piece.shape == tuple(own.shape):
        return Piece.whole(tensor)
    if tensor.shape != own.shape:
        raise ValueError(f"{key} is shaped {tuple(tensor.shape)}, its parameter {tuple(own.shape)}")
    return piece


def _index(everywhere: list[dict[str, tuple[str, Piece]]]) -> dict[str, Any]:
    index: dict[str, Any] = {}
    for places in everywhere:
        for key, (file, piece) in places.items():
            entry = index.setdefault(key, {"shape": piece.shape, "pieces": []})
            entry["pieces"].append({"file": file, "start": piece.start})
    return {key: index[key] for key in sorted(index)}


def read_tensors(folder: Path, stem: str) -> Mapping[str, Tensor]:
    """Whole tensors by name, however many ranks wrote them. FileNotFoundError, ValueError, KeyError or SafetensorError
    for a file that is missing or cut."""
    whole = folder / f"{stem}.safetensors"
    index = folder / f"{stem}.json"
    return load_file(whole) if whole.exists() or not index.exists() else Pieces(index)


class Pieces(Mapping[str, Tensor]):
    """Whole tensors, each put together when it is asked for: memory holds one at a time."""

    def __init__(self, index: Path) -> None:
        self._index = json.loads(index.read_text(encoding="utf-8"))
        names = {piece["file"] for entry in self._index.values() for piece in entry["pieces"]}
        # Opened now, so that a file which is cut shows before anything is taken from the others.
        self._files: dict[str, Any] = {name: safe_open(index.parent / name, framework="pt") for name in sorted(names)}
        for key, entry in self._index.items():
            shapes = (self._files[piece["file"]].get_slice(key).get_shape() for piece in entry["pieces"])
            if sum(map(math.prod, shapes)) != math.prod(entry["shape"]):
                raise ValueError(f"{index}: the pieces of {key} do not make it whole")

    def __getitem__(self, key: str) -> Tensor:
        entry = self._index[key]
        pieces = [(self._read(piece["file"], key), piece["start"]) for piece in entry["pieces"]]
        whole = torch.empty(entry["shape"], dtype=pieces[0][0].dtype)
        for tensor, start in pieces:
            Piece(tuple(entry["shape"]), tuple(start)).of(whole, tensor.shape).copy_(tensor)
        return whole

    def _read(self, file: str, key: str) -> Tensor:
        tensor: Tensor = self._files[file].get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)
