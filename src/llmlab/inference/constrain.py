"""Constrained decoding: which tokens may come next, so that the whole answer has a given form.

Three kinds of form: JSON by a schema, a regular expression, a context-free grammar. `llguidance` (MIT licence) follows
the text byte by byte and says in microseconds which tokens of the vocabulary keep it on a way to an end (Willard & Louf
2023, arXiv 2307.09702; for grammars Koo et al. 2024, arXiv 2407.08103).

What a stranger may send is bounded before it reaches native code, whose stack does not end in an exception.

V vocabulary.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from llmlab.errors import InputError, LlmlabError
from llmlab.recipe import KINDS, Section
from llmlab.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

PLACE = "sampling.constraint"
NOTHING = "no text that this tokenizer's tokens can write has this form"

# What a form may be. At these bounds the worst that we know of takes a third of a second and 100 MiB.
REGEX_LETTERS, GRAMMAR_LETTERS, GRAMMAR_RULES = 4096, 16_384, 500
SCHEMA_LETTERS, SCHEMA_DEPTH, SCHEMA_REFERENCES = 65_536, 48, 256
LEXER_FUEL, STEP_FUEL, LEXER_STATES, GRAMMAR_SIZE = 200_000, 50_000, 50_000, 20_000

# llguidance follows references by recursion: 1300 in a row end a stack of 8 MiB, 300 one of 512 KiB.
STACK_BYTES = 64 << 20

# Between the parts of a JSON text: without a bound a model may write spaces until its answer is cut.
JSON_SPACE = r"[ \t\r\n]{1,20}"

# ---------------------------------------------------------------- the forms


with warnings.catch_warnings():
    # `schema` is a retired method of pydantic's, and everybody's name for this field.
    warnings.filterwarnings("ignore", message='Field name "schema".*')

    class JsonSchema(Section):
        """A JSON value by its JSON Schema; `true`: any JSON object."""

        kind: Literal["json_schema"] = "json_schema"
        schema: dict[str, Any] | Literal[True] = Field(True, description="a JSON Schema; true: any object")  # type: ignore[assignment]

        def source(self) -> str:
            """As llguidance reads it. Errors: InputError for a schema past the bounds."""
            schema = {"type": "object"} if self.schema is True else self.schema
            _check_schema(schema)
            try:
                text, overrides = json.dumps(schema, allow_nan=False), {"whitespace_pattern": JSON_SPACE}
                return str(_llguidance().LLMatcher.grammar_from_json_schema(text, overrides=overrides))
            except (ValueError, TypeError) as error:
                raise InputError(PLACE, f"no JSON Schema: {_line(str(error))}") from None


class Regex(Section):
    """A text that a regular expression matches as a whole, in the syntax of Rust's regex crate."""

    kind: Literal["regex"] = "regex"
    pattern: str = Field(description="the regular expression; no look-around, no back-references")

    def source(self) -> str:
        """As llguidance reads it. Errors: InputError for a pattern past the bounds."""
        _check_letters("the regular expression", self.pattern)
        _check_regex(self.pattern)
        return str(_llguidance().LLMatcher.grammar_from_regex(self.pattern))


class Grammar(Section):
    """A text of a context-free grammar, written in llguidance's dialect of Lark."""

    kind: Literal["grammar"] = "grammar"
    lark: str = Field(description="the rules; the text is what `start` derives")

    def source(self) -> str:
        """As llguidance reads it. Errors: InputError for a grammar past the bounds."""
        _check_letters("the grammar", self.lark)
        rules = self.lark.count(":")
        longest = max(map(len, self.lark.splitlines()), default=0)
        _bound("the grammar has", len(self.lark), "letters", GRAMMAR_LETTERS)
        _bound("the grammar has", rules, "rules, or colons at least", GRAMMAR_RULES)
        _bound("a line of the grammar has", longest, "letters", REGEX_LETTERS)
        return str(_llguidance().LLMatcher.grammar_from_lark(self.lark))


Constraint = Annotated[JsonSchema | Regex | Grammar, *KINDS]

# ---------------------------------------------------------------- what may come next


class Guide:
    """One text on its way through a form. Made by `Constrainer.guide`."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, stops: frozenset[int]) -> None:
        self._matcher, self._vocabulary, self._stops = matcher, vocabulary, stops
        self._stop_ids = torch.tensor(sorted(id for id in stops if 0 <= id < vocabulary), dtype=torch.int64)
        self._ended = False

    def allowed(self) -> Tensor:
        """bool [V] of the tokenizer: what may come next. The stop tokens may where the text may end. All false where
        the text is whole and nothing can follow.

        Errors: InputError where following the form became too costly.
        """
        if self.done:
            return torch.zeros(self._vocabulary, dtype=torch.bool)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise InputError(PLACE, _line(self._matcher.get_error()), "ask for a simpler form")
        allowed_V = torch.from_numpy(np.unpackbits(bits, count=self._vocabulary + 1, bitorder="little").view(np.bool_))
        allowed_V[self._stop_ids] = bool(allowed_V[-1])
        return allowed_V[:-1]

    def take(self, id: int) -> None:
        """The text goes on with this token. Errors: LlmlabError for one that is not allowed."""
        if id in self._stops:
            self._ended = True
        elif not self._matcher.consume_token(id):
            raise LlmlabError(f"{PLACE}: token {id} cannot come here: {_line(self._matcher.get_error())}")

    @property
    def done(self) -> bool:
        """Whether the text is whole and nothing can follow."""
        return self._ended or (self._matcher.is_stopped() and not self._matcher.is_error())

    def copy(self) -> Guide:
        """Another text that begins with the same tokens."""
        copied = Guide(self._matcher.deep_copy(), self._vocabulary, self._stops)
        copied._ended = self._ended
        return copied


class _Words:
    """A tokenizer as llguidance asks for it: bytes of every id, and one id more that means the end. So all real ids
    are text or special, and which of them stop is the request's."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.vocab_size
        self.tokens = [*map(tokenizer.token_bytes, range(tokenizer.vocab_size)), b"<end of text>"]
        self.special_token_ids = [*sorted(tokenizer.special_ids), self.eos_token_id]
        text = [id for id in range(tokenizer.vocab_size) if id not in tokenizer.special_ids and self.tokens[id]]
        self._by_bytes = {self.tokens[id]: id for id in text}
        self._longest = max(map(len, self._by_bytes), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        """How to write what must come next in any case: as the tokenizer does itself, since a model has seen no other
        spelling; by the longest tokens where that has other bytes (WordPiece puts a space before a word)."""
        wanted = text.encode() if isinstance(text, str) else text
        ids = self._tokenizer.encode(wanted.decode("utf-8", "replace"), "text")
        if b"".join(self.tokens[id] for id in ids) == wanted:
            return ids
        ids, at = [], 0
        while at < len(wanted):
            ends = range(min(at + self._longest, len(wanted)), at, -1)
            end = next((end for end in ends if wanted[at:end] in self._by_bytes), None)
            if end is None:
                break  # no token has this byte, and the mask will say so
            ids.append(self._by_bytes[wanted[at:end]])
            at = end
        return ids


class Constrainer:
    """What llguidance has to know of a tokenizer, made once for each: it takes a third of a second for 50,000 ids.

    Errors: InputError where llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._vocabulary = tokenizer.vocab_size
        self._tokenizer = _llguidance().LLTokenizer(_Words(tokenizer), n_vocab=self._vocabulary + 1)

    def guide(self, constraint: JsonSchema | Regex | Grammar, stop_ids: Collection[int] = ()) -> Guide:
        """A text at its beginning. Errors: InputError for a form that is not sound, too large, or that no text has."""
        source = constraint.source()
        guide = _on_a_large_stack(lambda: self._made(source, frozenset(stop_ids)))
        if not guide.done and not guide.allowed().any():
            raise InputError(PLACE, NOTHING, "or the model has no stop token, and the text is to be empty")
        return guide

    def _made(self, source: str, stops: frozenset[int]) -> Guide:
        native = _llguidance()
        limits = native.LLParserLimits(
            initial_lexer_fuel=LEXER_FUEL,
            step_lexer_fuel=STEP_FUEL,
            max_lexer_states=LEXER_STATES,
            max_grammar_size=GRAMMAR_SIZE,
            verbose_errors=False,
        )
        matcher = native.LLMatcher(self._tokenizer, source, log_level=0, limits=limits)
        matcher.compute_bitmask()  # finds out whether there is any text at all
        if matcher.is_error():
            raise InputError(PLACE, _line(matcher.get_error()), "the documentation of llguidance says what it knows")
        return Guide(matcher, self._vocabulary, stops)


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise InputError(PLACE, "needs the package llguidance", "pip install 'llmlab[serving]'") from None
    return llguidance


def _on_a_large_stack(make: Callable[[], Guide]) -> Guide:
    """What `make` answers or raises, in a thread of its own. Python's setting for stacks is one for all threads: any
    other that starts in this moment gets a large one too, which is address space only."""
    answers: list[Guide | BaseException] = []

    def work() -> None:
        try:
            answers.append(make())
        except BaseException as error:  # a panic of Rust's is no Exception
            answers.append(error)

    before = threading.stack_size(STACK_BYTES)
    try:
        thread = threading.Thread(target=work)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    (answer,) = answers
    if isinstance(answer, Guide):
        return answer
    if isinstance(answer, LlmlabError | KeyboardInterrupt | MemoryError):
        raise answer
    raise InputError(PLACE, f"cannot be followed: {_line(str(answer))}") from answer


# ---------------------------------------------------------------- bounds


def _bound(what: str, size: int, of: str, most: int) -> None:
    if size > most:
        raise InputError(PLACE, f"{what} {size} {of}", f"at most {most}")


def _check_letters(what: str, text: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(PLACE, f"{what} holds half of a surrogate pair, which no text does")


def _check_regex(pattern: str) -> None:
    """Bounds, and no repetition of a repetition: `a**` is a slip to most dialects, a possessive `a*+` to others, and
    would be something third here."""
    _bound("the regular expression has", len(pattern), "letters", REGEX_LETTERS)
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise InputError(PLACE, "the regular expression ends in a backslash, which escapes nothing", "write two")
    repeated, lazy = False, False
    for at, letter in _outside_classes(pattern):
        if letter in "*+{" and repeated:
            raise InputError(PLACE, f"{letter!r} at {at} of the regex repeats a repetition", "put it in parentheses")
        if letter == "?" and lazy:
            raise InputError(PLACE, f"'?' at {at} of the regex repeats a repetition", "put it in parentheses")
        lazy = letter == "?" and repeated
        repeated = letter in "*+}?"


def _outside_classes(pattern: str) -> Iterator[tuple[int, str]]:
    """The letters that may mean something: "x" for what is escaped, a class in brackets, or inside braces."""
    at, depth, braces = 0, 0, False
    while at < len(pattern):
        letter = pattern[at]
        if letter == "\\":
            yield at, "x"
            braced = pattern[at + 1 : at + 3] in ("p{", "P{", "x{", "u{", "U{", "b{")
            at = max(at + 2, pattern.find("}", at) + 1) if braced else at + 2
            continue
        if depth or letter == "[":
            depth += (letter == "[") - (letter == "]" and pattern[at - 1 : at + 1] not in ("[]",))
            letter = "x"
        elif letter == "(" and pattern[at + 1 : at + 2] == "?":
            at += 1  # the mark of a group of a kind
        elif braces and letter != "}":
            letter = "x"
        braces = (braces or letter == "{") and letter != "}" and not depth
        yield at, letter
        at += 1


def _check_schema(schema: dict[str, Any]) -> None:
    """Bounds, level by level: neither Python's stack nor a native one is asked to go deep."""
    level: list[Any] = [schema]
    values = references = letters = depth = 0
    while level:
        depth += 1
        _bound("the schema is", depth, "levels deep", SCHEMA_DEPTH)
        values += len(level)
        _bound("the schema has", values, "values", SCHEMA_LETTERS // 4)
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                references += "$ref" in value or "$dynamicRef" in value
                letters += len(value["pattern"]) if isinstance(value.get("pattern"), str) else 0
                by_pattern = value.get("patternProperties")
                letters += sum(map(len, by_pattern)) if isinstance(by_pattern, dict) else 0
                below += value.values()
            elif isinstance(value, list | tuple):
                below += value
        level = below
    _bound("the schema has", references, "references", SCHEMA_REFERENCES)
    _bound("the schema's patterns have", letters, "letters", REGEX_LETTERS)
    if "x-guidance" in schema:
        raise InputError(PLACE, "x-guidance in the schema would change how it is read", "leave it out")
    try:
        size = len(json.dumps(schema, allow_nan=False))
    except (ValueError, TypeError) as error:
        raise InputError(PLACE, f"the schema is no JSON: {error}") from None
    _bound("the schema has", size, "letters", SCHEMA_LETTERS)


def _line(text: str) -> str:
    """What matters of a native message, at most 200 letters."""
    if text.startswith("NoExtension"):
        return NOTHING
    lines = text.strip().splitlines() or ["it failed without a word"]
    named = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    return (named or lines)[0][:200]
