"""Recipes: sections, unions of kinds, YAML with `path=value` overrides, and errors that name the right answer."""

import difflib
import importlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.fields import FieldInfo

from llmlab.errors import InputError

S = TypeVar("S", bound="Section")

MAX_BYTES = 1 << 18  # of a recipe; those that ship have about two thousand
MAX_VALUES, MAX_DEPTH = 20_000, 50  # what a YAML may hold once its aliases are written out


class Section(BaseModel):
    """A group of settings: frozen, and no field that is not named."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, values: Any) -> Any:
        """pydantic would take `steps: true` for one step."""
        for name in values if isinstance(values, dict) else ():
            wanted = list(_plain(_field_type(cls, name)))
            if isinstance(values[name], bool) and bool not in wanted and (int in wanted or float in wanted):
                raise ValueError(f"{name} is {values[name]}, where a number belongs")
        return values


def _chosen(value: Any, inside: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """The member of a union that a value names: one of those inside, or a part of somebody's own."""
    value = {"kind": value} if isinstance(value, str) else value
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    if not isinstance(kind, str) or ":" not in kind:
        return inside(value)
    if isinstance(value, Section):
        return value
    return _outside(kind, trusted=bool(info.context)).model_validate(value, context=info.context)


def _outside(kind: str, trusted: bool) -> type[Section]:
    """The one door for outside code: `my.module:MyPart`, a Section whose own `kind` is that text. Only a recipe that
    was given to run may open it; weights that name a module run nothing (modules of llmlab itself excepted)."""
    module, _, name = kind.partition(":")
    if not trusted and not module.startswith("llmlab."):
        raise ValueError(f"{kind} names code outside llmlab, which only a recipe may do")
    try:
        part = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{kind} cannot be imported: {error}") from None
    if not (isinstance(part, type) and issubclass(part, Section) and kind in _kinds(part)):
        raise ValueError(f"{kind} is no Section with kind: Literal[{kind!r}]")
    return part


# Written `Annotated[A | B, *KINDS]`: the member is chosen by its `kind`; a bare string means {kind: that}, and one with
# a colon a class of a module.
KINDS: tuple[Any, ...] = (Discriminator("kind"), WrapValidator(_chosen), SerializeAsAny())  # type: ignore[type-arg]


# ---------------------------------------------------------------- reading


def parse(section: type[S], values: Any, place: str = "recipe", trusted: bool = False) -> S:
    """`values` as a `section`; the first thing that is wrong becomes an `InputError` that names its place. `trusted`
    values may name parts of somebody's own modules."""
    try:
        return TypeAdapter(section).validate_python(values, context=trusted)
    except ValidationError as error:
        raise _explain(section, error, place) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping."""
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise InputError(str(path), f"is larger than {MAX_BYTES} bytes: no recipe")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(str(path), "no such file") from None
    except UnicodeDecodeError:
        raise InputError(str(path), "is not UTF-8 text") from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from None
    try:
        values = _load(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path}{line}", f"is not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(str(path), f"is not YAML that can be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(str(path), "holds no mapping of fields", "see: llmlab recipe demo")
    return values


class _Loader(yaml.SafeLoader):
    """Plain YAML, in which a key that is there twice is an error: of two values one would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) and key.tag != MERGE else key
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is there twice", key.start_mark)
            seen.add(name)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


MERGE = "tag:yaml.org,2002:merge"


def _load(text: str) -> Any:
    """One YAML value of a size that is safe to copy and to print, its aliases written out: a few lines of them can
    stand for more than any memory. Raises YAMLError, ValueError or RecursionError."""
    value = yaml.load(text, _Loader)
    left, todo = MAX_VALUES, [(value, 0)]
    while todo:
        inner, depth = todo.pop()
        if isinstance(inner, dict | list):
            todo += [(item, depth + 1) for item in (inner.values() if isinstance(inner, dict) else inner)]
        left -= 1
        if depth > MAX_DEPTH or left < len(todo):
            raise ValueError(f"it holds more than {MAX_VALUES} values, or is more than {MAX_DEPTH} deep")
    return value


def override(section: type[Section], values: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """`values` with each `path=value` set; values are YAML. A bare kind keeps the fields that the new kind shares.

    Of a section that `values` leave out only that field changes: its other fields are those of its default.
    """
    result = cast(dict[str, Any], _copy(values))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise InputError(repr(assignment), "is not an override", "write path=value, as in sft.training.steps=50")
        try:
            value = _load(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise InputError(path, f"{text!r} is not a YAML value") from None
        at: dict[str, Any] = result
        *parents, last = path.split(".")
        owner: Any = section
        for name in parents:
            child = at.get(name, _default_of(owner, name, at.get("kind")))
            owner = _field_type(owner, name)
            if isinstance(child, str):
                child = {"kind": child}
            at[name] = child if isinstance(child, dict) else {}
            at = at[name]
        at[last] = _switch_kind(_field_type(owner, last), at.get(last), value)
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _switch_kind(annotation: Any, old: Any, new: Any) -> Any:
    """A bare kind put where settings stood: the settings both kinds have in common stay."""
    if not isinstance(new, str):
        return new
    for member in _sections(annotation):
        if new in _kinds(member) and isinstance(old, dict):
            return {"kind": new} | {k: v for k, v in old.items() if k in member.model_fields and k != "kind"}
    return new


# ---------------------------------------------------------------- looking into types


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """Every `Section` that an annotation may stand for."""
    if isinstance(annotation, FieldInfo):
        annotation = annotation.annotation
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    elif typing.get_origin(annotation) is Annotated:
        yield from _sections(typing.get_args(annotation)[0])
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, list):
        for part in typing.get_args(annotation):
            yield from _sections(part)


def _plain(annotation: Any) -> Iterator[Any]:
    """The plain types that a field of this annotation may hold."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _plain(part)
    else:
        yield annotation


def _kinds(section: type[Section]) -> tuple[str, ...]:
    field = section.model_fields.get("kind")
    return tuple(map(str, typing.get_args(field.annotation))) if field else ()


def _field_type(owner: Any, name: str) -> Any:
    for section in _sections(owner):
        if name in section.model_fields:
            return section.model_fields[name].annotation
    return None


def _default_of(owner: Any, name: str, kind: Any) -> Any:
    """The fields of the section that this field holds where it is not given, None where that is no section."""
    for section in _sections(owner):
        field = section.model_fields.get(name)
        if field is not None and kind in (None, *_kinds(section)):
            value = None if field.is_required() else field.get_default(call_default_factory=True)
            return value.model_dump(mode="json") if isinstance(value, BaseModel) else None
    return None


def _explain(section: type[Section], error: ValidationError, place: str) -> InputError:
    """One line for the first of pydantic's errors: where, what was given, what was probably meant, what is allowed."""
    first = error.errors(include_url=False)[0]
    owner: Any = section
    path = []
    for number, step in enumerate(first["loc"], 1):
        if first["type"] == "extra_forbidden" and number == len(first["loc"]):  # its name may be that of a kind
            path.append(str(step))
            break
        members = list(_sections(owner))
        tagged = [member for member in members if step in _kinds(member)]
        if tagged:
            owner = tagged[0]
            continue
        path.append(str(step))
        owner = _field_type(owner, step) if isinstance(step, str) else owner
    where = ".".join([place, *path]) if path else place
    given = first["input"]
    match first["type"]:
        case "extra_forbidden":
            allowed = sorted({name for member in _sections(owner) for name in member.model_fields})
            return _near(where, f"no field {path[-1]!r} here", path[-1], allowed)
        case "union_tag_invalid":
            allowed = [kind for member in _sections(owner) for kind in _kinds(member)]
            kind = given.get("kind") if isinstance(given, dict) else given
            return _near(where, f"unknown kind {kind!r}", str(kind), allowed)
        case "union_tag_not_found":
            allowed = [kind for member in _sections(owner) for kind in _kinds(member)]
            return InputError(where, f"{_short(given)} names no kind", f"add kind: one of {', '.join(allowed)}")
        case "missing":
            return InputError(where, "is required and was not given")
        case "literal_error":
            expected = [word.strip("' ") for word in first["ctx"]["expected"].replace(" or ", ",").split(",")]
            return _near(where, f"unknown value {given!r}", str(given), expected)
        case "value_error":
            return InputError(where, str(first["ctx"]["error"]))
        case _:
            return InputError(where, f"got {_short(given)}", first["msg"][:1].lower() + first["msg"][1:])


def _near(where: str, problem: str, given: str, allowed: Sequence[str]) -> InputError:
    near = difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return InputError(where, problem, f"{guess}allowed: {', '.join(allowed)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---------------------------------------------------------------- explaining


def explain(section: type[Section], prefix: str = "", seen: tuple[type, ...] = ()) -> Iterator[tuple[str, str, str]]:
    """(path, default, meaning) of every field, unions with each of their kinds."""
    for name, field in section.model_fields.items():
        if name == "kind":
            continue
        path = f"{prefix}{name}"
        default = "required" if field.is_required() else _default(field)
        yield path, default, field.description or ""
        members = [member for member in _sections(field.annotation) if member not in seen]
        for member in members:
            kinds = _kinds(member)
            inner = f"{path}[{'|'.join(kinds)}]." if kinds else f"{path}."
            if kinds:
                yield f"{path}: {'|'.join(kinds)}", "", (member.__doc__ or "").strip().splitlines()[0]
            yield from explain(member, inner, (*seen, member))


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True) if not field.validate_default else field.default
    if isinstance(value, BaseModel):
        kind = getattr(value, "kind", None)
        return str(kind) if kind else "as below"
    return "null" if value is None else str(value)
