"""Mixing: how often each training document of each source is written."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from llmlab.data.words import Int, Key, mixed
from llmlab.recipe import KINDS, Section


class AsRead(Section):
    """Every source once."""

    kind: Literal["as_read"] = "as_read"

    def epochs_of(self, sizes: Int) -> list[float]:
        return [1.0] * len(sizes)


class Drawn(Section):
    """What is drawn where a source is not read a whole number of times."""

    seed: int = Field(0, ge=0, description="Which documents a broken epoch has; the run's seed changes no text.")


class Epochs(Drawn):
    """So many times each source, as [1, 2.5]."""

    kind: Literal["epochs"] = "epochs"
    epochs: tuple[Annotated[float, Field(ge=0, le=1000)], ...] = Field(
        min_length=1, description="How often each source is read, in the order of sources."
    )

    def epochs_of(self, sizes: Int) -> list[float]:
        return list(self.epochs)


class Weights(Drawn):
    """Shares of the training bytes, as [3, 1]: as much text as there can be with no source read too often."""

    kind: Literal["weights"] = "weights"
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        min_length=1, description="Share of each source in the training bytes, in the order of sources."
    )
    epochs: float = Field(1.0, gt=0, le=1000, description="How often any source is read at most.")

    def epochs_of(self, sizes: Int) -> list[float]:
        """`sizes` int64 [sources], the bytes there are of each."""
        weights = np.asarray(self.weights, np.float64)
        wanted = (weights > 0) & (sizes > 0)
        total = float(np.min(self.epochs * sizes[wanted] / weights[wanted])) if wanted.any() else 0.0
        return [float(value) for value in np.where(wanted, weights * total / np.maximum(sizes, 1), 0.0)]


Mix = Annotated[AsRead | Epochs | Weights, *KINDS]


def times(mix: AsRead | Epochs | Weights, origin: Int, sizes: Int, keys: Key, sources: int) -> tuple[Int, list[float]]:
    """(int64 [documents], how often each is written; epochs of each source). `origin` is the number of a document's
    source, `sizes` its bytes, `keys` uint64 hashes of its content.

    The last, broken epoch has the documents whose hash with the seed is least, up to its share of the source's bytes.
    So it depends on no order of files, and more epochs have what fewer have.
    """
    epochs = mix.epochs_of(np.bincount(origin, sizes, minlength=sources).astype(np.int64))
    written = np.zeros(len(origin), np.int64)
    for number, often in enumerate(epochs):
        inside = np.flatnonzero(origin == number)
        whole, share = int(often), often - int(often)
        written[inside] = whole
        if share > 1e-9 and isinstance(mix, Drawn):
            ranked = inside[np.argsort(mixed(keys[inside] ^ mixed(np.array([mix.seed + 1], np.uint64))), kind="stable")]
            before = np.cumsum(sizes[ranked]) - sizes[ranked]
            written[ranked[before < share * sizes[inside].sum() - 1e-6]] += 1
    return written, epochs
