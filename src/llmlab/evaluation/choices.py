"""Questions with fixed answers, in the layouts they are published in, and how likely a model finds each answer.

Layouts are told by their fields: `question, choices, answer` (a number from 0, a letter from A, or the text), PIQA's
`goal, sol1, sol2, label` (Bisk et al. 2020), CMMLU's `question, A, B, C, D, answer` (Li et al. 2023), BLiMP's
`sentence_good, sentence_bad` (Warstadt et al. 2020), BIG-bench's `examples[{input, target_scores}]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmlab.data.rows import Problem, rows
from llmlab.errors import InputError
from llmlab.evaluation.perplexity import Span, begin_id, span_nats
from llmlab.inference.engine import Decoder
from llmlab.tokenization.tokenizer import Tokenizer

LAYOUTS = "question+choices+answer, goal+sol1+sol2+label, question+A+B+C+D+answer, sentence_good+sentence_bad"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Item:
    """One question: the text before the answers (may be empty), the answers, which one is right, and its subject."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""


def read_items(path: Path, limit: int | None = None) -> list[Item]:
    """The questions of a file. InputError names the first row that cannot be used."""
    if not path.is_file():
        raise InputError(str(path), "no such file")
    items: list[Item] = []
    for number, row in rows(path, "utf-8", ()):
        place = f"{path}:{number}"
        if isinstance(row, Problem):
            raise InputError(place, row.what)
        if not isinstance(row, dict):
            raise InputError(place, "is no object with fields", f"layouts: {LAYOUTS}")
        items += _items(row, place)
        if limit is not None and len(items) >= limit:
            break
    if not items:
        raise InputError(str(path), "holds no question")
    return items[:limit]


def _items(row: Mapping[str, Any], place: str) -> Iterator[Item]:
    match row:
        case {"sentence_good": str(good), "sentence_bad": str(bad)}:
            yield Item("", (good, bad), 0, str(row.get("UID", "")))
        case {"goal": str(goal), "sol1": str(first), "sol2": str(second), "label": label}:
            yield _item(_asked(goal), (f" {first}", f" {second}"), label, place)
        case {"question": str(question), "choices": list(choices), "answer": answer} if all(
            isinstance(choice, str) for choice in choices
        ):
            yield _item(_asked(question), [f" {choice}" for choice in choices], answer, place, row)
        case {"question": str(question), "A": str(), "B": str(), "answer": str(answer)}:
            texts = [row[letter] for letter in _LETTERS if isinstance(row.get(letter), str)]
            asked, gap = (f"{question}\n答案：", "") if _chinese(question) else (_asked(question), " ")
            yield _item(asked, [gap + text for text in texts], answer, place, row)
        case {"examples": list(examples)}:
            for number, example in enumerate(examples):
                yield _example(example, f"{place}: example {number}")
        case _:
            given = ", ".join(map(str, list(row)[:8]))
            raise InputError(place, f"is in no layout of questions: its fields are {given}", f"layouts: {LAYOUTS}")


def _asked(question: str) -> str:
    return f"Question: {question.strip()}\nAnswer:"


def _chinese(text: str) -> bool:
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)


def _example(example: Any, place: str) -> Item:
    match example:
        case {"input": str(question), "target_scores": dict(scores)} if len(scores) > 1:
            best = max(range(len(scores)), key=list(scores.values()).__getitem__)
            return Item(_asked(question), tuple(f" {choice}" for choice in scores), best)
    raise InputError(place, "is no BIG-bench question with two target_scores or more")


def _item(prompt: str, choices: Sequence[str], answer: Any, place: str, row: Mapping[str, Any] | None = None) -> Item:
    stripped = [choice.strip() for choice in choices]
    if len(choices) < 2 or not all(stripped):
        raise InputError(place, "has fewer than two answers, or an empty one")
    if isinstance(answer, str):
        text = answer.strip()
        letter = _LETTERS.find(text.upper()) if len(text) == 1 else -1
        found = stripped.index(text) if text in stripped else int(text) if text.isascii() and text.isdigit() else letter
    else:
        found = answer if isinstance(answer, int) and not isinstance(answer, bool) else -1
    if not 0 <= found < len(choices):
        raise InputError(
            place, f"the right answer is {answer!r}", f"a number from 0 to {len(choices) - 1}, a letter or the text"
        )
    return Item(prompt, tuple(choices), found, str((row or {}).get("subject", "")))


@dataclass(frozen=True)
class Likelihoods:
    """Of one item: the log-probability of each choice in nats, and the bytes and tokens it is spread over. [C]."""

    logprobs: npt.NDArray[np.float64]
    bytes: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]


def likelihoods(model: Decoder, tokenizer: Tokenizer, items: Sequence[Item]) -> list[Likelihoods]:
    """How likely each choice is as the continuation of its prompt.

    Prompt and choice are encoded apart, so that every choice is scored behind the very same ids. A prompt that does not
    fit the context with its choice loses its start.
    """
    begin = begin_id(tokenizer)
    head = [] if begin is None else [begin]
    spans: list[Span] = []
    for item in items:
        before = head + tokenizer.encode(item.prompt)
        after = "text" if item.prompt else "start"
        for choice in item.choices:
            # With nothing at all before it, the first token of a choice cannot be foretold.
            spans.append(Span(before + tokenizer.encode(choice, after), max(1, len(before))))  # type: ignore[arg-type]
    logprobs = -span_nats(model, spans)
    answers = []
    start = 0
    for item in items:
        end = start + len(item.choices)
        answers.append(
            Likelihoods(
                logprobs[start:end],
                np.array([len(choice.encode()) for choice in item.choices]),
                np.array([len(span.ids) - span.first for span in spans[start:end]]),
            )
        )
        start = end
    return answers
