"""Chat templates: Jinja from strangers, in a sandbox that bounds steps and sizes.

A template comes with the weights of whoever made them. Jinja's sandbox keeps it from Python's insides; it does not
keep it from looping for hours or from making a string that fills the memory. Here every turn of a loop and every call
costs a step, everything that can grow is measured before it is made, and only filters and methods that templates need
are there. Nothing depends on time: the date is an argument.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from llmlab.errors import InputError

STEPS = 200_000  # turns of loops and calls in one rendering
SIZE = 4_000_000  # characters of one text, or elements of one list
TOTAL = 256_000_000  # of all texts together that one rendering makes or goes through
SOURCE = 200_000  # characters of a template
BITS = 4096  # of a whole number
BUDGET, STEP, MEASURED = "llmlab budget", "llmlab step", "llmlab measured"  # names that no template can write

# What templates use; all that is random, or makes size from a number, is left out.
# fmt: off
FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "escape", "e", "first", "float", "groupby", "int",
    "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round",
    "safe", "select", "selectattr", "sort", "string", "sum", "title", "trim", "unique", "upper",
)
TEXT_METHODS = (
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdecimal", "isdigit",
    "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition", "removeprefix",
    "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines",
    "startswith", "strip", "swapcase", "title", "upper",
)
# fmt: on


class Refused(Exception):
    """The template itself called `raise_exception`: its own words for what it does not render."""


class Budget:
    """What one rendering may still spend."""

    def __init__(self) -> None:
        self.steps, self.total = STEPS, TOTAL

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise SecurityError(f"it takes more than {STEPS} steps")

    def charge(self, size: int) -> None:
        self.total -= size
        if size > SIZE or self.total < 0:
            raise SecurityError(f"it makes more than {SIZE if size > SIZE else TOTAL} characters")


def _size(value: Any) -> int:
    """Characters of `value` as a text, lists and mappings with all that is in them; stops counting above SIZE."""
    size, waiting = 0, [value]
    while waiting and size <= SIZE:
        value = waiting.pop()
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, Mapping):
            waiting.extend(value.keys())
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)
        size += 4  # its quotes, comma and brackets
    return size


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


class _Counted(NodeTransformer):
    """Puts a step into every body that can run again, and measures what goes into filters and into `~`."""

    def _counted(self, node: Any) -> Any:
        own = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_filter(nodes.Const(own), STEP)]))
        return node

    visit_For = visit_Macro = visit_CallBlock = _counted

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        self.generic_visit(node)
        if node.node is not None:
            node.node = _filter(node.node, MEASURED)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        joined: nodes.Expr
        joined, *rest = [_filter(_filter(part, MEASURED), "string") for part in node.nodes]
        for part in rest:  # on texts `+` is the same, and measured
            joined = nodes.Add(joined, part)
        return joined


class _Generation(Extension):
    """Hugging Face's `{% generation %}`, which marks what the assistant says: transparent, we mark it ourselves."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget: Budget = context[BUDGET]
        match left, right:
            case (int() | float(), int() | float()):
                if operator == "**" or any(
                    isinstance(side, int) and side.bit_length() > BITS for side in (left, right)
                ):
                    raise SecurityError("it calculates with numbers of any size")
            case _ if operator == "+":
                budget.charge(_length(left) + _length(right))
            case _ if operator == "*":
                value, times = (left, right) if isinstance(right, int) else (right, left)
                budget.charge(_length(value) * max(int(times), 0) if isinstance(times, int) else 0)
            case _:
                raise SecurityError(f"it uses {operator} on a text")
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> None:
        """No wrapper around `format`: `call` sees the method itself and refuses it."""

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget: Budget = __context[BUDGET]
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        budget.step()
        if isinstance(owner, str):
            if name not in TEXT_METHODS:
                raise SecurityError(f"it calls the text method {name!r}")
            budget.charge(len(owner))
            if name == "join":
                return _join(__context, args[0] if args else [], owner)
            if name == "replace":  # in a loop Jinja adds arguments of its own
                given = {key: value for key, value in kwargs.items() if not key.startswith("_")}
                return _replace(__context, owner, *args, **given)
        return super().call(__context, __obj, *args, **kwargs)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0


@pass_context
def _replace(context: Context, text: Any, old: Any, new: Any, count: int | None = None) -> str:
    whole, before, after = str(text), str(old), str(new)
    context[BUDGET].charge(len(whole) + whole.count(before) * len(after))
    return whole.replace(before, after, -1 if count is None else count)


@pass_context
def _join(context: Context, values: Any, between: Any = "", attribute: Any = None) -> str:
    parts = [value if attribute is None else value[attribute] for value in values]
    context[BUDGET].charge(_size(parts) + len(parts) * len(str(between)))
    return str(between).join(str(part) for part in parts)


@pass_context
def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """As Hugging Face has it: nothing escaped for HTML, characters as they are."""
    if isinstance(indent, str) or (isinstance(indent, int) and indent > 16):
        raise SecurityError("it indents by more than 16")
    context[BUDGET].charge((indent or 1) * _size(value))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@pass_context
def _step(context: Context, size: int) -> str:
    """One more turn of a body that writes `size` characters of the template's own."""
    budget: Budget = context[BUDGET]
    budget.step()
    budget.charge(size)
    return ""


@pass_context
def _measured(context: Context, value: Any) -> Any:
    """The value, after its size as a text was charged."""
    if not isinstance(value, (int, float)):
        context[BUDGET].charge(_size(value))
    return value


def _raise(message: str) -> NoReturn:
    raise Refused(message)


class ChatTemplate:
    """A compiled template. What is wrong in it, and what it spends too much of, are `InputError`s."""

    def __init__(self, source: str, today: datetime.date) -> None:
        environment = _Sandbox(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            finalize=_measured,
        )
        environment.filters = {name: environment.filters[name] for name in FILTERS}
        environment.filters |= {"tojson": _tojson, "replace": _replace, "join": _join, STEP: _step, MEASURED: _measured}
        environment.globals = {name: environment.globals[name] for name in ("range", "dict", "namespace")}
        environment.globals |= {"raise_exception": _raise, "strftime_now": today.strftime}
        if len(source) > SOURCE:
            raise InputError("chat template", f"is {len(source)} characters long", f"at most {SOURCE}")
        try:
            self._template = environment.from_string(_Counted().visit(environment.parse(source)))
        except (TemplateError, RecursionError, MemoryError, ValueError, ArithmeticError, SyntaxError) as error:
            raise InputError("chat template", f"is no template that can be used: {error}") from None

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text. What the template refuses by `raise_exception` is an `InputError` with its words."""
        try:
            return str(self._template.render({**variables, BUDGET: Budget()}))
        except Refused as error:
            raise InputError("chat template", f"refuses these messages: {error}") from None
        except RecursionError:
            raise InputError("chat template", "was stopped: it calls itself without end") from None
        except (SecurityError, OverflowError) as error:
            raise InputError("chat template", f"was stopped: {error}") from None
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise InputError("chat template", f"fails on these messages: {error}") from None
