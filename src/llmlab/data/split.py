"""The held-out split: by content, so it depends on no seed and no order, and equal texts never part."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llmlab.errors import InputError


def held_out(
    keys: Sequence[int] | npt.NDArray[np.uint64], sizes: Sequence[int] | npt.NDArray[np.int64], share: float
) -> npt.NDArray[np.bool_]:
    """Which documents are held out, bool [documents]. `keys` are uint64 hashes of their content, `sizes` their bytes.

    Those of the smallest keys, until they have `share` of all bytes: a fixed share of a short corpus too, which a
    threshold on the hash gives only on average. Neither side is left empty. Raises `InputError` where all documents
    have the same content: one text cannot be on both sides.
    """
    distinct, group = np.unique(np.asarray(keys, np.uint64), return_inverse=True)
    if len(distinct) < 2:
        hint = "add text, or make documents smaller with piece"
        raise InputError("text", f"the corpus is too short to hold anything out: {len(distinct)} document", hint)
    size = np.bincount(group, weights=np.asarray(sizes, np.float64))
    before = np.cumsum(size) - size  # bytes of the smaller keys; 0 for the first, so one is always held out
    out: npt.NDArray[np.bool_] = before < share * size.sum()
    out[-1] = False
    return out[group]
