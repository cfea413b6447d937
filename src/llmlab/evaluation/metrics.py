"""Figures of text against text. Pure functions on strings."""

from __future__ import annotations

import unicodedata

import numpy as np


def exact_match(answer: str, reference: str) -> bool:
    """Equal after Unicode composition and with outer and doubled white space removed; case and marks count."""
    return _plain(answer) == _plain(reference)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance in characters (1966), one vectorised row for each character of the shorter text."""
    if len(a) < len(b):
        a, b = b, a
    if not b:
        return len(a)
    codes = np.fromiter(map(ord, a), np.int64, len(a))
    steps = np.arange(len(a) + 1)
    row = steps.copy()
    for count, letter in enumerate(b, 1):
        # Deletion and substitution at once; insertion runs along the row: min over k <= j of best[k] + (j - k).
        best = np.empty_like(row)
        best[0] = count
        np.minimum(row[1:] + 1, row[:-1] + (codes != ord(letter)), out=best[1:])
        row = np.minimum.accumulate(best - steps) + steps
    return int(row[-1])


def edit_similarity(answer: str, reference: str) -> float:
    """1 - distance / longer length: 1 for equal texts (two empty ones too), 0 for nothing in common."""
    longer = max(len(answer), len(reference))
    return 1.0 - edit_distance(answer, reference) / longer if longer else 1.0
