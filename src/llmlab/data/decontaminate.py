"""Decontamination: documents that hold a run of words of an evaluation set, as GPT-3 and others take them out
(Brown et al. 2020, appendix C)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from llmlab.data.clean import Funnel, Step, count_kept
from llmlab.data.files import TABLES, ending, find, lines
from llmlab.data.rows import Problem, rows
from llmlab.data.rules.view import strings
from llmlab.data.words import Bool, Key, Words
from llmlab.errors import InputError
from llmlab.recipe import Section

TOGETHER = 1000  # texts of an evaluation set that are cut into words at a time


class Decontaminate(Section):
    """Drop what holds text of an evaluation set. A list of paths means these paths."""

    paths: tuple[str, ...] = Field(min_length=1, description="Files or folders of questions; all their texts count.")
    words: int = Field(13, ge=1, description="A document with so many words in a row of a question goes.")
    shortest: int = Field(6, ge=1, description="A question of so many words or more counts if it is there as a whole.")

    @model_validator(mode="before")
    @classmethod
    def _of_paths(cls, value: Any) -> Any:
        return (
            {"paths": value}
            if isinstance(value, list | tuple)
            else {"paths": [value]}
            if isinstance(value, str)
            else value
        )

    def files(self) -> list[Path]:
        return [path for name in self.paths for path in find(name)]

    def build(self) -> Questions:
        """`InputError` where a file has no text of `shortest` words: nothing could be found."""
        return Questions(tuple((path.name, _runs(path, self)) for path in self.files()))


@dataclass(frozen=True)
class Questions:
    """Of each evaluation file its name and, by their number of words, the sorted keys of its runs."""

    files: tuple[tuple[str, dict[int, Key]], ...]

    def clear(self, batch: Any) -> tuple[Any, Funnel]:
        """Pure: the documents of a clean batch that hold nothing of any file, and a step for each file."""
        funnel = Funnel([Step(f"decontaminate {name}") for name, _ in self.files])
        words, texts, sources = Words.of(batch["text"], bare=True), batch["text"], batch["source"].to_pylist()
        grams = {n: words.grams(n) for n in {n for _, runs in self.files for n in runs}}
        alive = np.ones(len(texts), bool)
        for (_, runs), step in zip(self.files, funnel.steps, strict=True):
            held = np.zeros(len(texts), bool)
            for n, known in runs.items():
                first, key = grams[n]
                held[words.text[first[_among(key, known)]]] = True
            count_kept(texts, np.arange(len(texts)), alive, alive & ~held, step, sources, funnel)
            alive &= ~held
        return batch.filter(alive), funnel


def _among(key: Key, known: Key) -> Bool:
    at = np.minimum(np.searchsorted(known, key), len(known) - 1)
    found: Bool = known[at] == key
    return found


def _runs(path: Path, section: Decontaminate) -> dict[int, Key]:
    found: dict[int, list[Key]] = {}
    texts = list(_texts(path))
    for at in range(0, len(texts), TOGETHER):
        words = Words.of(strings(texts[at : at + TOGETHER]), bare=True)
        count = np.diff(words.starts)
        for n in range(section.shortest, section.words + 1):
            first, key = words.grams(n)
            wanted = count[words.text[first]] == n if n < section.words else np.ones(len(first), bool)
            if wanted.any():
                found.setdefault(n, []).append(key[wanted])
    if not found:
        raise InputError(str(path), f"has no text of {section.shortest} words", "a smaller decontaminate.shortest")
    return {n: np.unique(np.concatenate(keys)) for n, keys in found.items()}


def _texts(path: Path) -> Iterator[str]:
    """Every text in the file's rows, however deep; of a txt or md file its lines."""
    if ending(path) not in TABLES:
        yield from (line for line in lines(path) if isinstance(line, str))
        return
    for _, row in rows(path, "utf-8", ()):
        if not isinstance(row, Problem):
            yield from _leaves(row)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value.encode("utf-8", "replace").decode("utf-8")
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
