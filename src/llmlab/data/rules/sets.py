"""The closed union of rules, single ones and named sets, and the list that a recipe's names stand for."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from llmlab.data.rules.c4 import (
    C4_RULES,
    CurlyBrackets,
    JavascriptLines,
    LineWords,
    LoremIpsum,
    PolicyLines,
    Sentences,
    TerminalLines,
)
from llmlab.data.rules.fineweb import FINEWEB_RULES, EndedLines, RepeatedCharacters, ShortLines
from llmlab.data.rules.gopher import (
    GOPHER_QUALITY,
    AlphabeticWords,
    BulletLines,
    EllipsisLines,
    StopWords,
    SymbolWords,
    WordCount,
    WordLength,
)
from llmlab.data.rules.repetition import (
    GOPHER_REPETITION,
    DuplicateGrams,
    DuplicateLines,
    DuplicateParagraphs,
    TopGrams,
)
from llmlab.data.rules.rule import Edit, Filter
from llmlab.errors import InputError
from llmlab.recipe import KINDS, Section


class C4(Section):
    """All rules of C4."""

    kind: Literal["c4"] = "c4"


class Gopher(Section):
    """All rules of Gopher, of quality and of repetition."""

    kind: Literal["gopher"] = "gopher"


class FineWeb(Section):
    """The rules that FineWeb added to those of Gopher and C4."""

    kind: Literal["fineweb"] = "fineweb"


Rule = Annotated[
    C4
    | Gopher
    | FineWeb
    | TerminalLines
    | LineWords
    | JavascriptLines
    | PolicyLines
    | CurlyBrackets
    | LoremIpsum
    | Sentences
    | WordCount
    | WordLength
    | SymbolWords
    | BulletLines
    | EllipsisLines
    | AlphabeticWords
    | StopWords
    | DuplicateLines
    | DuplicateParagraphs
    | TopGrams
    | DuplicateGrams
    | EndedLines
    | RepeatedCharacters
    | ShortLines,
    *KINDS,
]


def expanded(rules: Iterable[Any]) -> Iterator[Filter | Edit]:
    """The single rules, in order; a set gives its own. `InputError` for a part of somebody's own that is no rule."""
    for rule in rules:
        match rule:
            case C4():
                yield from C4_RULES
            case Gopher():
                yield from (*GOPHER_QUALITY, *GOPHER_REPETITION)
            case FineWeb():
                yield from FINEWEB_RULES
            case Filter() | Edit():
                yield rule
            case _:
                raise InputError("clean.rules", f"{rule.kind} is no Filter and no Edit of llmlab.data.rules.rule")
