"""The README keeps its promises: its tree is the tree, its commands and paths exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml

from llmlab.recipe import parse
from llmlab.run import Run, presets, read_recipe

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tree_is_made_from_the_code() -> None:
    spec = importlib.util.spec_from_file_location("tree", ROOT / "docs" / "tree.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.section() in README, "run: python docs/tree.py"


CODE = "\n".join(re.findall(r"```\n(.+?)```", README, re.DOTALL))  # blocks without a language are commands


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^(?:\.venv/bin/)?llmlab (.+)$", CODE, re.MULTILINE))))
def test_every_command_is_accepted(command: str) -> None:
    """Parsed by the real command line, up to the point where it would begin."""
    import typer

    from llmlab.cli import app

    verb, *arguments = shlex.split(command.split(" > ")[0], comments=True)
    group = typer.main.get_command(app)
    group.commands[verb].make_context(verb, arguments)  # type: ignore[attr-defined]


def test_every_preset_stands_in_the_table() -> None:
    assert set(re.findall(r"^\| `([\w-]+)` \|", README, re.MULTILINE)) == set(presets())


def test_own_data_example_is_a_recipe() -> None:
    (example,) = re.findall(r"```yaml\n(.+?)```", README, re.DOTALL)
    values = yaml.safe_load(example)
    demo = read_recipe("demo").model_dump(mode="json")
    for section, fields in values.items():
        parse(Run, demo | {section: demo[section] | fields})


def test_paths_exist() -> None:
    for path in re.findall(r"`((?:docs|src|tests|benchmarks)/[\w./-]+)`|\]\(([\w./-]+)\)", README):
        assert (ROOT / (path[0] or path[1])).exists(), path


def test_makefile_has_the_promised_targets() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", CODE, re.MULTILINE)) <= targets
    assert {"demo", "test", "check", "bench"} <= targets
