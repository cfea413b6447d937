"""A rule: a frozen section with thresholds, and a pure function of a batch of texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

import numpy as np
import pyarrow
import pyarrow.compute as pc

from llmlab.data.rules.view import Lines, View, numpy
from llmlab.data.words import Bool, Int
from llmlab.recipe import Section


class Filter(Section, ABC):
    """Says which texts stay. Where `needs_spaces`, a text without spaces between words is not judged and stays."""

    needs_spaces: ClassVar[bool] = False

    @abstractmethod
    def keep(self, view: View) -> Bool:
        """bool [texts]."""

    @final
    def __call__(self, view: View) -> Bool:
        kept = self.keep(view)
        return kept | view.unspaced if self.needs_spaces else kept


class Edit(Section, ABC):
    """Changes texts. One that comes out empty is dropped."""

    @abstractmethod
    def edit(self, texts: Any) -> Any:
        """An Arrow array of strings to another one of equal length; each answer depends on its own text only."""


class LineFilter(Edit, ABC):
    """Says which lines of a text stay. Empty lines between them stay too, one at most."""

    @abstractmethod
    def keep_lines(self, lines: Lines) -> Bool:
        """bool [lines]."""

    @final
    def edit(self, texts: Any) -> Any:
        parts = pc.split_pattern(texts, "\n")
        counts = numpy(pc.list_value_length(parts)).astype(np.int64)
        text, values = np.repeat(np.arange(len(texts)), counts), pc.utf8_trim_whitespace(parts.flatten())
        blank = numpy(pc.equal(values, ""))
        kept = blank.copy()
        kept[~blank] = self.keep_lines(Lines(text[~blank], values.filter(pyarrow.array(~blank)), len(texts)))
        if kept.all():
            return texts
        ends: Int = np.cumsum(np.bincount(text[kept], minlength=len(texts)))
        offsets = pyarrow.array(np.concatenate([[0], ends]), pyarrow.int32())  # of lines, so a batch may be any size
        lists = pyarrow.ListArray.from_arrays(offsets, parts.flatten().filter(pyarrow.array(kept)))
        newline = pyarrow.scalar("\n", pyarrow.large_string())
        joined = pc.utf8_trim(pc.replace_substring_regex(pc.binary_join(lists, newline), "\n{3,}", "\n\n"), "\n")
        touched = np.bincount(text[~kept], minlength=len(texts)) > 0
        return pc.if_else(pyarrow.array(touched), joined, texts)
