"""A row as a preference pair: every layout in use brought into one form."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmlab.data.layouts import other_use
from llmlab.data.messages import Messages, asked, first_question, instruction, message, messages
from llmlab.data.rows import Problem


@dataclass(frozen=True)
class Pair:
    """`messages` end with a question; `tag` says what the answers differ in, where that is known."""

    messages: Messages
    chosen: str
    rejected: str
    source: str = ""
    tag: str = ""


SIDES = ("chosen", "rejected")
SPEAKER = re.compile(r"\n\n(Human|Assistant):")  # of hh-rlhf's whole dialogues


def pair_of_row(row: Mapping[str, Any]) -> Pair | Problem:
    """The pair of one row. `chosen` and `rejected` are answers (a text, a message, a list of messages) beside the
    dialogue in `messages`, `conversations`, `prompt`, `question` or `instruction` (+ `input`); or, without any of
    these, two whole dialogues that differ in the last answer (lists of messages, or hh-rlhf's text)."""
    missing = [side for side in SIDES if side not in row]
    if missing:
        return Problem(f"has no field {missing[0]!r}{other_use(row)}")
    dialogue = _dialogue(row)
    if isinstance(dialogue, Problem):
        return dialogue
    ends = [_turns(row[side]) for side in SIDES]
    for end in ends:
        if isinstance(end, Problem):
            return end
    whole = [messages([*(dialogue or []), *end]) for end in ends if not isinstance(end, Problem)]
    return _pair(whole)


def _dialogue(row: Mapping[str, Any]) -> Messages | Problem | None:
    """What was said before the answers, None if the answers hold it themselves."""
    for field in ("messages", "conversations", "prompt"):
        if isinstance(row.get(field), list):
            return messages(row[field])
    if "instruction" in row:
        return instruction(row)
    return next((asked(row, field) for field in ("prompt", "question") if field in row), None)


def _turns(value: Any) -> list[Any] | Problem:
    """One side as a list of messages."""
    if isinstance(value, Mapping):
        one = message(value)
        return one if isinstance(one, Problem) else [one]
    if isinstance(value, list):
        return value if value else Problem("has an empty side")
    if not isinstance(value, str):
        return Problem(f"has a side that is {type(value).__name__}, not text")
    if not value.startswith("\n\nHuman:"):
        return [{"role": "assistant", "content": value}]
    _, *parts = SPEAKER.split(value)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": speaker.lower(), "content": content.strip()} for speaker, content in turns]


def _pair(whole: list[Messages | Problem]) -> Pair | Problem:
    for side in whole:
        if isinstance(side, Problem):
            return side
    chosen, rejected = (side for side in whole if not isinstance(side, Problem))
    if chosen == rejected:
        return Problem("has two equal sides")
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        return Problem("has a side that does not end with an answer")
    if chosen[:-1] != rejected[:-1]:
        return Problem("has sides that differ before the last answer")
    if not first_question(chosen):
        return Problem("has no question before the answers")
    good, bad = chosen[-1]["content"], rejected[-1]["content"]
    if not good.strip() or not bad.strip():
        return Problem("has an empty answer")
    return Problem("has two equal sides") if good.strip() == bad.strip() else Pair(chosen[:-1], good, bad)
