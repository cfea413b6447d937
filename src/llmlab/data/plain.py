"""Dialogues as plain text for pretraining: what was said, turn after turn, with an empty line between."""

from collections.abc import Mapping
from typing import Any

from llmlab.data.layouts import Layout, chat_of_row, other_use
from llmlab.data.pair_rows import pair_of_row
from llmlab.data.rows import Problem, text_of


def plain(row: Mapping[str, Any], layout: Layout) -> str | Problem | None:
    """The text of one row: of a pair the better answer only, None of an answer marked bad.

    No speaker is named: the words of a chat template belong to sft, and names would be learnt as text.
    """
    if layout.use == "text":
        return text_of(row, layout.fields)
    if layout.use == "pairs":
        pair = pair_of_row(row)
        if isinstance(pair, Problem):
            return pair
        return _joined([*pair.messages, {"role": "assistant", "content": pair.chosen}])
    if layout.use == "evaluation":
        return Problem(f"has no text{other_use(row)}")
    dialogue = chat_of_row(row, layout.name)
    if isinstance(dialogue, Problem):
        return dialogue
    return _joined(dialogue) if dialogue else None


def _joined(dialogue: list[dict[str, str]]) -> str:
    return "\n\n".join(filter(None, (turn["content"].strip() for turn in dialogue)))
