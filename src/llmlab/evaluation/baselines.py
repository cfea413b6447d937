"""What a text costs without a neural network: gzip, xz, and a byte n-gram model, in bits per byte.

The n-gram model foretells each byte from the five before it: interpolated modified Kneser-Ney (Chen and Goodman 1999,
section 3), the strongest of the classic smoothings (on Moby-Dick 0.12 bits below Witten-Bell's).

    p(w | h) = (count(hw) - D(count(hw)) + kept_back(h) p(w | h without its first byte)) / count(h)

The longest grams are counted as they stand; a shorter one counts how many different bytes stood before it. D(1), D(2),
D(3 and more) come from how many grams have counts 1 to 4; kept_back(h) is the sum of D over what followed h; below one
byte stands 1/256. Up to seven bytes are packed into one int64, so counting is sorting.
"""

import gzip
import lzma
import math

import numpy as np
import numpy.typing as npt

from llmlab.errors import InputError

ORDER = 6
MOST = 4 << 20  # bytes of a text that are looked at: counting takes 100 times as much memory, xz a second a MB

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def baselines(train_text: bytes, held_out: bytes) -> dict[str, float]:
    """Bits per byte of `held_out` by

    - `gzip`: gzip -9 of the held-out text alone;
    - `xz`: xz -9e of the held-out text alone;
    - `xz_after_training_text`: how much longer xz -9e of both texts is than of the training text;
    - `byte_6gram`: the model above, counted on the training text.

    Raises `InputError` where either text is empty.
    """
    if not train_text or not held_out:
        raise InputError("baselines", f"the {'training' if not train_text else 'held-out'} text is empty")
    bits = 8 / len(held_out)
    return {
        "gzip": bits * len(gzip.compress(held_out, 9, mtime=0)),
        "xz": bits * _xz(held_out),
        "xz_after_training_text": bits * (_xz(train_text + held_out) - _xz(train_text)),
        f"byte_{ORDER}gram": ByteNgram(train_text, ORDER).bits_per_byte(held_out),
    }


def _xz(text: bytes) -> int:
    return len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))


class ByteNgram:
    """Byte n-grams of one text, of all lengths from 1 to `order` (at most 7)."""

    def __init__(self, text: bytes, order: int = ORDER) -> None:
        if not 1 <= order <= 7:
            raise ValueError(f"{order} bytes do not fit into one int64")
        codes = np.frombuffer(text, np.uint8).astype(np.int64)
        longest = min(order, len(codes))
        self._levels = []
        for n in range(1, longest):
            longer = np.unique(_windows(codes, n + 1))
            self._levels.append(_Level(n, *np.unique(longer & ((1 << 8 * n) - 1), return_counts=True)))
        if longest:
            self._levels.append(_Level(longest, *np.unique(_windows(codes, longest), return_counts=True)))

    def probabilities(self, text: bytes) -> Floats:
        """Of each byte of `text` given those before it (fewer than order - 1 at the start). [len(text)]."""
        codes = np.frombuffer(text, np.uint8).astype(np.int64)
        p = np.full(len(codes), 1 / 256)
        for level in self._levels[: len(codes)]:
            p[level.n - 1 :] = level.interpolate(_windows(codes, level.n), p[level.n - 1 :])
        return p

    def bits_per_byte(self, text: bytes) -> float:
        """Mean of -log2 p over the bytes of `text`."""
        return float(-np.log(self.probabilities(text)).mean() / math.log(2))


class _Level:
    """The grams of one length n: their discounted counts, and of each context (all but the last byte) the totals."""

    def __init__(self, n: int, grams: Int64, counts: Int64) -> None:
        self.n = n
        discount = _discounts(counts)[np.minimum(counts, 3)]
        self._grams, self._kept = grams, counts - discount
        self._contexts, first = np.unique(grams >> 8, return_index=True)
        self._totals = np.add.reduceat(counts, first).astype(np.float64)
        self._back = np.add.reduceat(discount, first)

    def interpolate(self, windows: Int64, shorter: Floats) -> Floats:
        """p of each window's last byte, given that of the level below."""
        total = _lookup(windows >> 8, self._contexts, self._totals)
        back = _lookup(windows >> 8, self._contexts, self._back)
        mixed = (_lookup(windows, self._grams, self._kept) + back * shorter) / np.maximum(total, 1)
        return np.where(total > 0, mixed, shorter)


def _discounts(counts: Int64) -> Floats:
    """D by count (0, 1, 2, 3 and more); one half where a short text has too few counts to tell."""
    of = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(np.float64)
    if of.all():
        share = of[0] / (of[0] + 2 * of[1])
        found = np.arange(1, 4) - np.arange(2, 5) * share * of[1:] / of[:-1]
        if (found > 0).all():
            return np.concatenate([[0], found])
    return np.array([0, 0.5, 0.5, 0.5])


def _windows(codes: Int64, n: int) -> Int64:
    """Every run of n bytes as one number, the first byte highest. [len - n + 1], or none."""
    count = max(0, len(codes) - n + 1)
    packed = np.zeros(count, np.int64)
    for at in range(n):
        packed = packed << 8 | codes[at : at + count]
    return packed


def _lookup(wanted: Int64, keys: Int64, values: Floats) -> Floats:
    """The value of each wanted key, 0 where it is not among the sorted keys."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
