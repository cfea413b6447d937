"""Which layout a file of rows has: told by its fields, in one place for text, chats and pairs.

text        a column of text: text, content or paragraphs
dpo         a better and a worse answer to one dialogue; `hh` where both are hh-rlhf's whole dialogues as a text
kto         one answer, marked good or bad by a truth value in `label`
choices     a question of an evaluation set, whose text is kept out of training
the others  dialogues, as other people write them down
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from llmlab.data.messages import Messages, asked, first_question, instruction, messages, text
from llmlab.data.rows import Problem, rows
from llmlab.errors import InputError

Use = Literal["text", "pairs", "chats", "evaluation"]
ChatLayout = Literal[
    "auto", "messages", "sharegpt", "chatterbot", "alpaca", "self_instruct", "prompt", "question", "kto"
]
Row = Mapping[str, Any]

SEVERAL = 100  # rows of a file that are looked at for one that can be read


@dataclass(frozen=True)
class Layout:
    """`fields` that a row of it has, and what its rows are read for first."""

    name: str
    use: Use
    fields: tuple[str, ...]

    def fits(self, row: Row) -> bool:
        if self.name == "kto" and not _marked(row.get("label")):
            return False
        if self.name == "hh" and not str(row.get("chosen")).startswith("\n\nHuman:"):
            return False
        return all(field in row for field in self.fields)


# In the order in which they are tried.
LAYOUTS = (
    Layout("text", "text", ("text",)),
    Layout("choices", "evaluation", ("question", "choices", "answer")),
    Layout("choices", "evaluation", ("question", "A", "B", "answer")),
    Layout("choices", "evaluation", ("goal", "sol1", "sol2")),
    Layout("choices", "evaluation", ("sentence_good", "sentence_bad")),
    Layout("hh", "pairs", ("chosen", "rejected")),
    Layout("dpo", "pairs", ("chosen", "rejected")),
    Layout("kto", "chats", ("messages", "label")),
    Layout("kto", "chats", ("conversations", "label")),
    Layout("kto", "chats", ("prompt", "completion", "label")),
    Layout("messages", "chats", ("messages",)),
    Layout("sharegpt", "chats", ("conversations",)),
    Layout("chatterbot", "chats", ("turns",)),
    Layout("alpaca", "chats", ("instruction", "output")),
    Layout("self_instruct", "chats", ("instruction", "instances")),
    Layout("prompt", "chats", ("prompt", "completion")),
    Layout("question", "chats", ("question", "answer")),
    Layout("text", "text", ("content",)),
    Layout("text", "text", ("paragraphs",)),
)
READ_BY = {
    "text": "text.sources reads it",
    "pairs": "reward and dpo read it",
    "chats": "sft reads it",
    "evaluation": "it belongs to an evaluation set, which evaluate asks and nothing is trained on",
}


def layout_of(row: Row, uses: Iterable[Use] = get_args(Use)) -> Layout | None:
    """The first layout that fits the fields of a row, of those for certain uses; None where none does. A question of an
    evaluation set is one whatever was wanted: its question and answer would be read as a dialogue."""
    wanted = (*uses, "evaluation")
    return next((layout for layout in LAYOUTS if layout.use in wanted and layout.fits(row)), None)


def layout_of_file(path: Path, encoding: str = "utf-8") -> Layout:
    """The layout of a file's first row that is an object. `InputError` with its columns where none fits."""
    first = first_row(rows(path, encoding, ()))
    if first is None:
        raise InputError(str(path), "holds no row with columns")
    found = layout_of(first)
    if found is None:
        known = "; ".join(dict.fromkeys("+".join(layout.fields) for layout in LAYOUTS))
        raise InputError(str(path), f"is in no known layout: its columns are {', '.join(first)}", f"known: {known}")
    return found


def first_row(found: Iterable[tuple[int, Any]]) -> Row | None:
    """The first of the first `SEVERAL` rows that is an object with fields."""
    return next((row for _, row in islice(found, SEVERAL) if isinstance(row, Mapping)), None)


def other_use(row: Row) -> str:
    """What a row that cannot be used as was wanted is, for the end of a message; empty where that is not known."""
    found = layout_of(row)
    if found is None:
        return ""
    if found.name == "kto":
        what = "one answer marked good or bad, from which no preference stage learns yet"
        return f"; it is a row of KTO: {what}; sft learns from those marked good"
    return f"; it is a row of {found.name}: {READ_BY[found.use]}"


def _marked(label: Any) -> bool:
    return isinstance(label, bool) or str(label).lower() in ("true", "false")


def desirable(row: Row) -> bool:
    """Whether a KTO row's answer is marked good."""
    return str(row["label"]).lower() == "true"


# ---------------------------------------------------------------- dialogues


def _answered(dialogue: Messages | Problem, answer: str | Problem) -> Messages | Problem:
    if isinstance(dialogue, Problem):
        return dialogue
    return answer if isinstance(answer, Problem) else [*dialogue, {"role": "assistant", "content": answer}]


def _dialogue(field: str) -> Callable[[Mapping[str, Any]], Messages | Problem]:
    def read(row: Mapping[str, Any]) -> Messages | Problem:
        system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        turns = row[field]
        return messages([*system, *turns] if isinstance(turns, list) else turns)

    return read


def _chatterbot(row: Mapping[str, Any]) -> Messages | Problem:
    """The first two turns: what comes later is mostly other answers to the same question."""
    turns = row["turns"]
    if not isinstance(turns, list) or len(turns) < 2:
        return Problem("has fewer than two turns")
    pair = {"question": turns[0], "answer": turns[1]}
    return _answered(asked(pair, "question"), text(pair, "answer"))


def _prompt(row: Mapping[str, Any]) -> Messages | Problem:
    """A prompt and its completion, each a text or a list of messages."""
    if isinstance(row["prompt"], list) and isinstance(row["completion"], list):
        return messages([*row["prompt"], *row["completion"]])
    return _answered(asked(row, "prompt"), text(row, "completion"))


def _first_instance(row: Row) -> Messages | Problem:
    """A seed task of self-instruct with the first of its instances."""
    cases = row["instances"]
    if not isinstance(cases, list) or not cases or not isinstance(cases[0], Mapping):
        return Problem("has no instance")
    case = {"instruction": row["instruction"], "input": cases[0].get("input"), "output": cases[0].get("output")}
    return _answered(instruction(case), text(case, "output"))


def _kto(row: Row) -> Messages | Problem:
    """The dialogue of an answer marked good; no messages where it is marked bad."""
    if not desirable(row):
        return []
    field = next((field for field in ("messages", "conversations") if field in row), None)
    if field is None:
        return _prompt(row)
    given, answer = row[field], row.get("completion")
    return messages([*given, *answer] if isinstance(given, list) and isinstance(answer, list) else given)


READERS: dict[str, Callable[[Row], Messages | Problem]] = {
    "messages": _dialogue("messages"),
    "sharegpt": _dialogue("conversations"),
    "chatterbot": _chatterbot,
    "alpaca": lambda row: _answered(instruction(row), text(row, "output")),
    "self_instruct": _first_instance,
    "prompt": _prompt,
    "question": lambda row: _answered(asked(row, "question"), text(row, "answer")),
    "kto": _kto,
}


def chat_of_row(row: Row, layout: str = "auto") -> Messages | Problem:
    """The messages of one row, cut after its last answer. The layout is told by the row's fields unless named. A KTO
    row whose answer is marked bad has none."""
    if layout == "auto":
        found = layout_of(row, ("chats",))
        if found is None or found.use == "evaluation":
            known = "; ".join(dict.fromkeys("+".join(one.fields) for one in LAYOUTS if one.use == "chats"))
            return Problem(f"has none of the known fields ({known}){other_use(row)}")
    else:
        named = [one for one in LAYOUTS if one.name == layout]
        found = next((one for one in named if one.fits(row)), None)
        if found is None:
            missing = [field for field in named[0].fields if field not in row]
            return Problem(f"has no field {missing[0]!r}" if missing else "has a label that is neither true nor false")
    dialogue = READERS[found.name](row)
    if isinstance(dialogue, Problem) or not dialogue:
        return dialogue if isinstance(dialogue, Problem) or found.name == "kto" else Problem("has no messages")
    while dialogue and dialogue[-1]["role"] != "assistant":
        dialogue = dialogue[:-1]  # a question at the end that nobody answers
    return dialogue if first_question(dialogue) else Problem("has no question that is answered")
