"""The native step: a small C++ source that computes all layers of a decoder for tokens of any sequences."""

from __future__ import annotations

import ctypes
from pathlib import Path

from llmlab import compiled
from llmlab.compiled import SWITCH, Compiled, missing

__all__ = ["STEP", "SWITCH", "available", "identity", "library", "missing"]

STEP = Compiled(Path(__file__).with_name("step.cpp"), "the native step", "-pthread")


def available() -> str | None:
    """None where the native step can be used, else the reason in a few words."""
    return compiled.missing() or STEP.unusable


def identity() -> str:
    """Changes with the source, how it is compiled, and what this CPU can do."""
    return STEP.identity


def library() -> ctypes.CDLL:
    """The compiled step. Raises OSError or CalledProcessError where it cannot be made."""
    return STEP.library
