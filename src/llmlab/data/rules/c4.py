"""The rules of C4 (Raffel et al. 2020, section 2.2), the line rules before those of whole texts.

Left out: the list of offensive words, and the deduplication of three-sentence spans (see `text.near`). Chinese ends its
sentences with marks of its own, which count as those of English do; a line's words are its characters there.
"""

from typing import Literal

import numpy as np
import pyarrow.compute as pc
from pydantic import Field

from llmlab.data.rules.rule import Filter, LineFilter
from llmlab.data.rules.view import Lines, View, numpy
from llmlab.data.words import Bool, Words

ENDS = r"""[.!?。！？…"”」』][)）\]’”」』]*$"""
SENTENCES = r"""[.!?]+["'”’)\]]*(\s|$)|[。！？…]+"""
POLICIES = "terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies"


class TerminalLines(LineFilter):
    """Keep lines that end as a sentence does, and not with three dots."""

    kind: Literal["terminal_lines"] = "terminal_lines"

    def keep_lines(self, lines: Lines) -> Bool:
        return lines.matches(ENDS) & ~lines.matches(r"\.\.\.$")


class LineWords(LineFilter):
    """Keep lines of so many words."""

    kind: Literal["line_words"] = "line_words"
    least: int = Field(5, ge=1, description="Words of a line; of Chinese, characters.")

    def keep_lines(self, lines: Lines) -> Bool:
        return np.diff(Words.of(lines.values).starts) >= self.least


class JavascriptLines(LineFilter):
    """Drop lines that tell to switch Javascript on."""

    kind: Literal["javascript_lines"] = "javascript_lines"

    def keep_lines(self, lines: Lines) -> Bool:
        return ~lines.matches("(?i)javascript")


class PolicyLines(LineFilter):
    """Drop lines about cookies and terms of use."""

    kind: Literal["policy_lines"] = "policy_lines"

    def keep_lines(self, lines: Lines) -> Bool:
        return ~lines.matches(f"(?i){POLICIES}")


class CurlyBrackets(Filter):
    """Drop texts with a curly bracket: program code, mostly."""

    kind: Literal["curly_brackets"] = "curly_brackets"

    def keep(self, view: View) -> Bool:
        return ~numpy(pc.match_substring(view.texts, "{"))


class LoremIpsum(Filter):
    """Drop texts that hold a place for text."""

    kind: Literal["lorem_ipsum"] = "lorem_ipsum"

    def keep(self, view: View) -> Bool:
        return ~numpy(pc.match_substring(view.texts, "lorem ipsum", ignore_case=True))


class Sentences(Filter):
    """Drop texts of fewer sentences."""

    kind: Literal["sentences"] = "sentences"
    least: int = Field(3, ge=1, description="Sentences of a text.")

    def keep(self, view: View) -> Bool:
        return view.counted(SENTENCES) >= self.least


C4_RULES = (
    TerminalLines(),
    LineWords(),
    JavascriptLines(),
    PolicyLines(),
    CurlyBrackets(),
    LoremIpsum(),
    Sentences(),
)
