"""Dialogues as other people write them down, brought into one form: messages with a role and a content.

Every reader here takes a row as it stands in a file and answers what it means, or a `Problem` to be counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.data.rows import Problem

Messages = list[dict[str, str]]

# Names that data sets give to the speakers (sharegpt, alpaca and kin).
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


def text(row: Mapping[str, Any], field: str) -> str | Problem:
    """The text in a field, with no half of a surrogate pair in it."""
    if field not in row:
        return Problem(f"has no field {field!r}")
    value = row[field]
    if not isinstance(value, str):
        return Problem(f"field {field!r} is {type(value).__name__}, not text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        return Problem(f"field {field!r} holds half of a surrogate pair")
    return value


def message(value: Any) -> dict[str, str] | Problem:
    """One message, as {role, content} or as {from, value}."""
    if not isinstance(value, Mapping):
        return Problem(f"has a message that is {type(value).__name__}, not an object")
    speaker, words = ("from", "value") if "from" in value else ("role", "content")
    role, content = text(value, speaker), text(value, words)
    for part in (role, content):
        if isinstance(part, Problem):
            return Problem(f"has a message that {part.what}")
    known = ROLES.get(str(role).lower())
    if known is None:
        return Problem(f"has a message by {role!r}, who is none of {', '.join(ROLES)}")
    return {"role": known, "content": str(content)}


def messages(values: Any) -> Messages | Problem:
    """A list of messages; turns of one speaker in a row are joined, since templates want them in turn."""
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        return Problem("has no list of messages")
    result: Messages = []
    for value in values:
        one = message(value)
        if isinstance(one, Problem):
            return one
        if result and result[-1]["role"] == one["role"]:
            result[-1]["content"] = "\n\n".join(filter(None, (result[-1]["content"], one["content"])))
        else:
            result.append(one)
    return result


def asked(row: Mapping[str, Any], field: str) -> Messages | Problem:
    """A question as the start of a dialogue; with the row's `system` and `history` ([[question, answer], ...])."""
    question = text(row, field)
    if isinstance(question, Problem):
        return question
    values = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for turn in row.get("history") or []:
        if not isinstance(turn, Sequence) or len(turn) != 2:
            return Problem("has a history that is no list of [question, answer]")
        values += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return messages([*values, {"role": "user", "content": question}])


def instruction(row: Mapping[str, Any]) -> Messages | Problem:
    """Alpaca's instruction with its input, where there is one, below it."""
    task, given = text(row, "instruction"), text(row, "input") if row.get("input") is not None else ""
    for part in (task, given):
        if isinstance(part, Problem):
            return part
    return asked({**row, "question": f"{task}\n\n{given}" if given else task}, "question")


def first_question(dialogue: Sequence[Mapping[str, str]]) -> str:
    """What the dialogue is told apart by when prompts are held out: its first question."""
    return next((turn["content"] for turn in dialogue if turn["role"] == "user"), "")
