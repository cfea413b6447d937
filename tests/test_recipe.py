"""Recipes: what is wrong is named with its place and the probable right answer; overrides reach every field."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from llmlab.errors import InputError
from llmlab.recipe import KINDS, Section, explain, override, parse, read_yaml


class Circle(Section):
    """A round thing."""

    kind: Literal["circle"] = "circle"
    size: int = Field(1, gt=0, description="radius")


class Box(Section):
    """A thing with corners."""

    kind: Literal["box"] = "box"
    size: int = 2
    depth: int = 3


class Whole(Section):
    shape: Annotated[Circle | Box, *KINDS] = Circle()
    shapes: tuple[Annotated[Circle | Box, *KINDS], ...] = ()
    colour: Literal["red", "green"] = "red"
    inner: Circle | None = None


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"shap": "box"}, r"recipe\.shap: no field 'shap' here \(did you mean 'shape'\?"),
        ({"shape": "bax"}, r"recipe\.shape: unknown kind 'bax' \(did you mean 'box'\? allowed: circle, box\)"),
        ({"shape": {"kind": "box", "dept": 1}}, r"recipe\.shape\.dept: no field 'dept' here \(did you mean 'depth'"),
        ({"shape": {"size": 1}}, r"recipe\.shape: .* names no kind"),
        ({"shape": {"kind": "circle", "size": 0}}, r"recipe\.shape\.size: got 0 \(input should be greater than 0\)"),
        ({"shapes": ["box", "bix"]}, r"recipe\.shapes\.1: unknown kind 'bix'"),
        ({"colour": "gren"}, r"recipe\.colour: unknown value 'gren' \(did you mean 'green'"),
        ({"inner": {"size": "big"}}, r"recipe\.inner\.size: got 'big'"),
        ({"inner": {"size": True}}, r"recipe\.inner: size is True, where a number belongs"),
        ([], r"recipe: got \[\]"),
    ],
)
def test_a_wrong_field_says_where_and_what(values: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        parse(Whole, values)
    assert "\n" not in str(caught.value)


def test_overrides() -> None:
    base: dict[str, Any] = {"shape": {"kind": "box", "size": 9, "depth": 4}}
    values = override(Whole, base, ["shape=circle", "inner.size=5", "colour=green"])
    whole = parse(Whole, values)
    assert whole == Whole(shape=Circle(size=9), inner=Circle(size=5), colour="green")
    assert base == {"shape": {"kind": "box", "size": 9, "depth": 4}}
    assert parse(Whole, override(Whole, {"shape": "box"}, ["shape.depth=8"])).shape == Box(depth=8)
    assert parse(Whole, override(Whole, {"inner": {"size": 1}}, ["inner=null"])).inner is None
    for wrong in ("shape", "=3", "shape={"):
        with pytest.raises(InputError):
            override(Whole, {}, [wrong])


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["kind", "shape", "shapes", "size", "inner", "x"]), inner), max_leaves=8))  # fmt: skip
def test_any_value_is_parsed_or_refused_in_one_line(values: Any) -> None:
    try:
        parse(Whole, values)
    except InputError as error:
        assert "\n" not in str(error)


# A few lines that stand for 9 ** 12 values.
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


def test_bad_files_name_themselves(tmp_path: Path) -> None:
    cases = {
        "a.yaml": (b"a: [", "a.yaml:1: is not YAML"),
        "b.yaml": (b"\xff\xfe", "not UTF-8"),
        "c.yaml": (b"- 1", "no mapping"),
        "twice.yaml": (b"name: a\nseed: 1\nname: b\n", "twice.yaml:3: is not YAML: 'name' is there twice"),
        "tab.yaml": (b"a:\n\tb: 1\n", "tab.yaml:2: is not YAML"),
        "deep.yaml": (b"a: " + b"[" * 20_000, "not YAML that can be read"),
        "self.yaml": (b"a: &a [*a]", "20000 values, or is more than 50 deep"),
        "laughs.yaml": (LAUGHS.encode(), "20000 values"),
        "digits.yaml": (b"a: " + b"9" * 6000, "not YAML that can be read"),
        "large.yaml": (b"# " + b"x" * (1 << 18), "larger than"),
    }
    for name, (content, says) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=says):
            read_yaml(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "shared.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\n")
    assert read_yaml(tmp_path / "shared.yaml")["b"] == {"x": 1, "y": 2}


def test_explain_names_every_field_and_kind() -> None:
    rows = {path: (default, meaning) for path, default, meaning in explain(Whole)}
    assert rows["shape"] == ("circle", "")
    assert rows["shape: circle"] == ("", "A round thing.")
    assert rows["shape[circle].size"] == ("1", "radius")
    assert "inner.size" in rows or "inner[circle].size" in rows


def test_an_override_changes_one_field_of_a_default() -> None:
    class Owner(Section):
        inner: Circle = Circle(size=7)
        shape: Annotated[Circle | Box, *KINDS] = Box(size=8)

    class Top(Section):
        owner: Owner = Owner()

    top = parse(Top, override(Top, {}, ["owner.shape.depth=1"]))
    assert top == Top(owner=Owner(inner=Circle(size=7), shape=Box(size=8, depth=1)))


class Star(Section):
    """A part of somebody's own."""

    kind: Literal["test_recipe:Star"] = "test_recipe:Star"
    points: int = 5


def test_the_door_for_outside_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    whole = parse(Whole, {"shape": {"kind": "test_recipe:Star", "points": 6}}, trusted=True)
    assert whole.model_dump(mode="json")["shape"] == {"kind": "test_recipe:Star", "points": 6}
    assert parse(Whole, whole.model_dump(mode="json"), trusted=True).model_dump() == whole.model_dump()
    assert parse(Whole, {"shape": "test_recipe:Star"}, trusted=True).shape.kind == "test_recipe:Star"
    assert parse(Whole, {"shape": Star(points=7)}).shape == Star(points=7)


@pytest.mark.parametrize(
    ("kind", "trusted", "says"),
    [
        ("test_recipe:Star", False, r"recipe\.shape: test_recipe:Star names code outside llmlab"),
        ("nowhere:Part", True, r"recipe\.shape: nowhere:Part cannot be imported: No module"),
        ("test_recipe:Nothing", True, "cannot be imported"),
        ("pathlib:Path", True, "is no Section with kind"),
        ("llmlab.model.norms:RMSNorm", False, "is no Section with kind"),
    ],
)
def test_what_the_door_refuses(monkeypatch: pytest.MonkeyPatch, kind: str, trusted: bool, says: str) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with pytest.raises(InputError, match=says):
        parse(Whole, {"shape": kind}, trusted=trusted)
