"""Converting between formats, behind a parity check: what was written is opened again and must compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmlab.checkpoints import gguf, hf, native
from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.sentence import write_pooling
from llmlab.checkpoints.where import open_model
from llmlab.errors import InputError, LlmlabError, unknown
from llmlab.model.heads import NoHead
from llmlab.model.places import Places
from llmlab.model.transformer import Transformer
from llmlab.runtime import atomic_file, atomic_folder
from llmlab.tokenization.tokenizer import Tokenizer

Writer = Callable[[Path, Transformer, Tokenizer | None], None]
Reader = Callable[[Path], Bundle]
FOLDERS: dict[str, tuple[Writer, Reader]] = {
    "hf": (hf.write_hf, hf.load_hf),
    "llmlab": (native.write_model, native.load_model),
}
GGUF = "gguf"
FORMATS = (*FOLDERS, GGUF)
TYPE = "f16"
FILE = "model.gguf"  # what a GGUF is called where only its folder was named
# Weights are copied and not rounded, so a difference beyond the order of sums is a wrong name or a wrong layout.
MAX_DIFFERENCE = 1e-3
PROBE_TOKENS = 16


def convert(source: Bundle | str | Path, destination: Path, to: str, kind: str | None = None) -> dict[str, Any]:
    """Write `source` to `destination` in the format `to`; it appears there once it was read back.

    The destination is a new folder, or for `gguf` a new file where its name ends so. `kind` is GGUF's type of the
    matrices: f32, f16 (where None is given), q8_0, q4_0 or q4_1.
    Answers `path`, `format`, and `parity`, the largest difference of a logit between the source and the written copy;
    for `gguf` also `type` and `kept_f16`, the matrices whose rows do not fit the type's blocks.
    Errors: InputError for an unknown format or type, a destination that is in use, or an architecture or tokenizer
    that the format does not have; LlmlabError where the copy computes something else.
    """
    check(destination, to, kind)
    bundle = source if isinstance(source, Bundle) else open_model(source)
    if to != GGUF:
        with atomic_folder(destination) as work:
            parity = _write_folder(work, bundle, to, destination)
        return {"path": str(destination), "format": to, "parity": parity}
    if _is_file(destination, to):
        with atomic_file(destination) as work:
            figures = _write_gguf(work, bundle, kind or TYPE, destination)
        return {"path": str(destination), "format": to, **figures}
    with atomic_folder(destination) as work:
        figures = _write_gguf(work / FILE, bundle, kind or TYPE, destination / FILE)
    return {"path": str(destination / FILE), "format": to, **figures}


def check(destination: Path, to: str, kind: str | None = None) -> None:
    """What can be told before anything is read. Errors: InputError, as `convert`."""
    if to not in FORMATS:
        raise unknown("--to", to, FORMATS)
    if kind is not None and to != GGUF:
        raise InputError("--type", f"{kind} is a type of gguf files, and {to} has none", "leave it out")
    if kind is not None and kind not in gguf.TYPES:
        raise unknown("--type", kind, gguf.TYPES)
    if _is_file(destination, to) and destination.exists():
        raise InputError(str(destination), "is there already", "name a new file")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(str(destination), "is there already, and not empty", "name a new folder")


def _is_file(destination: Path, to: str) -> bool:
    return to == GGUF and destination.suffix == ".gguf"


def _write_folder(work: Path, bundle: Bundle, to: str, destination: Path) -> float:
    write, read = FOLDERS[to]
    write(work, bundle.model, bundle.tokenizer)
    write_pooling(work, bundle.pooling, bundle.architecture.dim)
    parity = difference(bundle.model, read(work).model)
    if not parity <= MAX_DIFFERENCE:
        raise LlmlabError(f"{destination}: the copy's logits differ by {parity}: nothing was written")
    return parity


def _write_gguf(work: Path, bundle: Bundle, kind: str, path: Path) -> dict[str, Any]:
    """Write, read back, and hold each weight against the rounding of its type. Logits may be far apart by rounding
    alone, so only F32 is held to them too."""
    kept = gguf.write(work, bundle.model, bundle.tokenizer, kind)
    copy = gguf.read(work).model
    parity = difference(bundle.model, copy)
    if (name := gguf.misread(bundle.model, copy, kind)) is not None:
        raise LlmlabError(f"{path}: {name} reads back otherwise than it was written: nothing was kept")
    if kind == "f32" and not parity <= MAX_DIFFERENCE:
        raise LlmlabError(f"{path}: the copy's logits differ by {parity}: nothing was written")
    return {"parity": parity, "type": kind, "kept_f16": kept}


@torch.no_grad()
def difference(one: Transformer, other: Transformer) -> float:
    """The largest difference of a logit on fixed ids spread over the vocabulary; of a hidden state without a head."""
    length = min(PROBE_TOKENS, one.architecture.context)
    ids_BT = one.prompted(torch.arange(2 * length).view(2, length) * 7919 % one.vocab_size)
    was_training = one.training
    one.eval()
    ours = _said(one, ids_BT)
    one.train(was_training)
    return float((ours - _said(other.eval(), ids_BT)).abs().max())


def _said(model: Transformer, ids_BT: Tensor) -> Tensor:
    a = model.architecture
    memory = model.encode(ids_BT, Places.causal(*ids_BT.shape)) if a.encoder_layers else None
    hidden_BTD = model.hidden(ids_BT, a.mask.places(ids_BT), memory=memory)
    return hidden_BTD if isinstance(a.head, NoHead) else model.logits(hidden_BTD)
