"""What a model can be measured by: an open folder, one task a file, found by its file name.

A task file holds one class `Task(tasks.base.Task)` whose `kind` is the file's name. To add a task, add a file.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, WithJsonSchema

from llmlab.errors import InputError, unknown
from llmlab.evaluation.tasks.base import Task
from llmlab.recipe import parse


def names() -> list[str]:
    """Every task there is."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def find(name: str) -> type[Task]:
    """The task of that name; an unknown one is an error that lists them all."""
    if name not in names():
        raise unknown("task", name, names())
    found: type[Task] = importlib.import_module(f"{__name__}.{name}").Task
    return found


def read(value: Any) -> Task:
    """A task from a recipe: its name, or a mapping with `kind` and settings."""
    if isinstance(value, Task):
        return value
    settings = {"kind": value} if isinstance(value, str) else value
    if not isinstance(settings, dict) or not isinstance(settings.get("kind"), str):
        raise InputError("task", f"{value!r} names no kind", f"one of {', '.join(names())}")
    return parse(find(settings["kind"]), settings, f"task {settings['kind']}")


def _read(value: Any) -> Task:
    try:
        return read(value)
    except InputError as error:  # pydantic takes ValueError and puts the field's place before it
        raise ValueError(str(error)) from None


AnyTask = Annotated[
    SerializeAsAny[Task],
    BeforeValidator(_read),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "object", "required": ["kind"]}], "description": "a task by name"}
    ),
]
