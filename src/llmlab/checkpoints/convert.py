"""Converting between formats, behind a parity check: what was written is opened again and must compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llmlab.checkpoints import hf, native
from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.where import open_model
from llmlab.errors import InputError, LlmlabError, unknown
from llmlab.model.transformer import Transformer
from llmlab.runtime import atomic_folder
from llmlab.tokenization.tokenizer import Tokenizer

Writer = Callable[[Path, Transformer, Tokenizer | None], None]
Reader = Callable[[Path], Bundle]
FORMATS: dict[str, tuple[Writer, Reader]] = {
    "hf": (hf.write_hf, hf.load_hf),
    "llmlab": (native.write_model, native.load_model),
}
# Weights are copied and not rounded, so a difference beyond the order of sums is a wrong name or a wrong layout.
MAX_DIFFERENCE = 1e-3
PROBE_TOKENS = 16


def convert(source: Bundle | str | Path, destination: Path, to: str) -> dict[str, Any]:
    """Write `source` to the folder `destination` in the format `to`; it appears there once it was read back.

    Answers `path`, `format`, and `parity`, the largest difference of a logit between the source and the written copy.
    Errors: InputError for an unknown format, a destination that is not empty, or an architecture that the format does
    not have; LlmlabError where the copy computes something else.
    """
    if to == "gguf":
        raise InputError("--to", "gguf is read, but not written yet", f"allowed: {', '.join(FORMATS)}")
    if to not in FORMATS:
        raise unknown("--to", to, FORMATS)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(str(destination), "is there already, and not empty", "name a new folder")
    bundle = source if isinstance(source, Bundle) else open_model(source)
    write, read = FORMATS[to]
    with atomic_folder(destination) as work:
        write(work, bundle.model, bundle.tokenizer)
        parity = difference(bundle.model, read(work).model)
        if not parity <= MAX_DIFFERENCE:
            raise LlmlabError(f"{destination}: the copy's logits differ by {parity}: nothing was written")
    return {"path": str(destination), "format": to, "parity": parity}


@torch.no_grad()
def difference(one: Transformer, other: Transformer) -> float:
    """The largest difference of a logit on fixed ids spread over the vocabulary."""
    length = min(PROBE_TOKENS, one.architecture.context)
    ids_BT = one.architecture.mask.prompted(torch.arange(2 * length).view(2, length) * 7919 % one.vocab_size)
    was_training = one.training
    one.eval()
    ours = one(ids_BT)
    one.train(was_training)
    return float((ours - other.eval()(ids_BT)).abs().max())
