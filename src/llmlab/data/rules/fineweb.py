"""The rules that FineWeb added (Penedo et al. 2024, section 3.6): what lines look like.

A Han character counts as three letters of a line's length, so the 30 letters of a short line are ten characters.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from llmlab.data.rules.c4 import ENDS
from llmlab.data.rules.rule import Filter
from llmlab.data.rules.view import View
from llmlab.data.words import HAN, Bool, Characters


class EndedLines(Filter):
    """Lines that end as a sentence does."""

    kind: Literal["ended_lines"] = "ended_lines"
    least: float = Field(0.12, ge=0, le=1, description="Share of a text's lines.")

    def keep(self, view: View) -> Bool:
        return view.lines.share(view.lines.matches(ENDS)) >= self.least


class RepeatedCharacters(Filter):
    """Characters in lines that stood before."""

    kind: Literal["repeated_characters"] = "repeated_characters"
    most: float = Field(0.1, ge=0, le=1, description="Share of the characters in lines.")

    def keep(self, view: View) -> Bool:
        return view.lines.weighted(view.lines.repeated, view.lines.length) <= self.most


class ShortLines(Filter):
    """Short lines."""

    kind: Literal["short_lines"] = "short_lines"
    length: int = Field(30, ge=1, description="Letters; a shorter line is a short one.")
    most: float = Field(0.67, ge=0, le=1, description="Share of a text's lines.")

    def keep(self, view: View) -> Bool:
        width = view.lines.length + 2 * Characters.of(view.lines.values).count(HAN)
        return view.lines.share(np.asarray(width < self.length)) <= self.most


FINEWEB_RULES = (EndedLines(), RepeatedCharacters(), ShortLines())
