"""Which prompts are held out: by their own text, so that no stage and no order of files can mix the sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from llmlab.errors import InputError
from llmlab.runtime import derive

X = TypeVar("X")


def is_held_out(prompt: str, share: float, seed: int) -> bool:
    """Whether a prompt belongs to the held-out `share`. Case and white space make no new prompt."""
    return derive(seed, "held out", " ".join(prompt.casefold().split())) < share * 2**63


def split_by_prompt(items: Sequence[X], prompt: Callable[[X], str], share: float, seed: int) -> tuple[list[X], list[X]]:
    """(training, held out), in the old order; items with one prompt stay together. `InputError` if a side is empty."""
    held = [is_held_out(prompt(item), share, seed) for item in items]
    sides = (
        [item for item, out in zip(items, held, strict=True) if not out],
        [item for item, out in zip(items, held, strict=True) if out],
    )
    for side, wanted, name in zip(sides, (share < 1, share > 0), ("training", "held-out"), strict=True):
        if wanted and not side:
            few = len({prompt(item) for item in items})
            raise InputError("held out", f"{share:g} of {few} distinct prompts leaves no {name} ones", "give more data")
    return sides
