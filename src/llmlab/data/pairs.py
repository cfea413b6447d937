"""Preference pairs: one dialogue, a better and a worse answer; every layout in use brought into one form."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from llmlab.data import tasks
from llmlab.data.batch import PairBatch, Sequences, collate_pairs, listed
from llmlab.data.chats import Exercises, ended
from llmlab.data.heldout import split_by_prompt
from llmlab.data.messages import Messages, asked, first_question, instruction, message, messages
from llmlab.data.order import ShuffledOrder
from llmlab.data.rows import Problem
from llmlab.data.sources import Reading
from llmlab.data.state import State
from llmlab.data.tables import Table
from llmlab.errors import InputError
from llmlab.recipe import KINDS
from llmlab.tokenization.chat import Renderer


@dataclass(frozen=True)
class Pair:
    """`messages` end with a question; `tag` says what the answers differ in, where that is known."""

    messages: Messages
    chosen: str
    rejected: str
    source: str = ""
    tag: str = ""


# ---------------------------------------------------------------- layouts

SIDES = ("chosen", "rejected")
SPEAKER = re.compile(r"\n\n(Human|Assistant):")  # of hh-rlhf's whole dialogues


def pair_of_row(row: Mapping[str, Any]) -> Pair | Problem:
    """The pair of one row. `chosen` and `rejected` are answers (a text, a message, a list of messages) beside the
    dialogue in `messages`, `conversations`, `prompt`, `question` or `instruction` (+ `input`); or, without any of
    these, two whole dialogues that differ in the last answer (lists of messages, or hh-rlhf's text)."""
    missing = [side for side in SIDES if side not in row]
    if missing:
        return Problem(f"has no field {missing[0]!r}")
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


# ---------------------------------------------------------------- sources


class FilePairs(Table):
    """Your own preference pairs, as hh-rlhf, TRL, LLaMA-Factory, MedicalGPT and others write them."""

    kind: Literal["file"] = "file"

    def pairs(self, seed: int, reading: Reading) -> Iterator[Pair]:
        for source, pair in self.read(pair_of_row, reading):
            yield Pair(pair.messages, pair.chosen, pair.rejected, source)


class TaskPairs(Exercises):
    """Pairs of answers to llmlab's exercises: right against wrong, courteous against another manner."""

    def pairs(self, seed: int, reading: Reading) -> Iterator[Pair]:
        for task in self.tasks(seed):
            reading.rows += 1
            two = tasks.rivals(task, seed)
            asking = [{"role": "user", "content": task.prompt}]
            yield Pair(asking, two.chosen, two.rejected, f"tasks:{task.kind}", two.tag)


PairSource = Annotated[FilePairs | TaskPairs, *KINDS]


def read_pairs(sources: Sequence[PairSource], seed: int, reading: Reading | None = None) -> list[Pair]:
    """The pairs of all sources, in order; `reading` counts files, rows and what was skipped."""
    reading = Reading() if reading is None else reading
    return [pair for source in sources for pair in source.pairs(seed, reading)]


def split_pairs(pairs: Sequence[Pair], held: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, held out): no first question is on both sides, in this source or any other of the same seed."""
    return split_by_prompt(pairs, lambda pair: first_question(pair.messages), held, seed)


def pair_files(sources: Sequence[PairSource]) -> list[Path]:
    """The files that the sources read."""
    return [path for source in sources for path in source.files()]


# ---------------------------------------------------------------- batches


class PairBatches:
    """Batches of pairs for the training loop: `batch_size` pairs a step, in micro-batches, shuffled anew each epoch.

    Learnt are the two answers with their stop tokens, not earlier answers of the dialogue. A pair that the context
    cuts is refused, since what is left may not deserve its label; more than a share of `refused` is an `InputError`.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        renderer: Renderer,
        context: int,
        batch_size: int,
        micro_batch: int,
        seed: int,
        refused: float = 0.05,
    ) -> None:
        if not renderer.closes:
            raise InputError("chat template", "ends no answer with a special token: nothing would teach it to stop")
        sequences, self.tags, lost = list[tuple[list[int], list[bool]]](), list[str](), list[str]()
        self.sources: list[str] = []
        for pair in pairs:
            sides = [_rendered(pair.messages, answer, renderer) for answer in (pair.chosen, pair.rejected)]
            if any(len(ids) > context for ids, _ in sides) or sides[0] == sides[1]:
                lost.append(pair.source)
            else:
                sequences += sides
                self.tags.append(pair.tag)
                self.sources.append(pair.source)
        self.refused = len(lost)
        if len(lost) > refused * len(pairs) or not sequences:
            problem = f"{len(lost)} of {len(pairs)} do not fit into the context of {context} tokens, or read alike"
            hint = f"a longer context, shorter pairs, or allow more than {refused:g}"
            raise InputError("pairs", f"{problem}, as in {lost[0]}" if lost else "there are none", hint if lost else "")
        self.rows = Sequences(sequences)
        self.batch_size, self.micro_batch, self._pad = batch_size, micro_batch, renderer.tokenizer.pad_id
        self.order = ShuffledOrder(len(self.tags), seed, "pairs", self.rows.fingerprint)

    def next(self, model: Any = None) -> list[PairBatch]:
        """The micro-batches of the next step."""
        return self._batches(self.order.take(self.batch_size))

    def once(self) -> list[PairBatch]:
        """Every pair once, in order, in micro-batches: to evaluate on."""
        return self._batches(range(len(self.tags)))

    def _batches(self, indices: Sequence[int]) -> list[PairBatch]:
        cuts = [indices[at : at + self.micro_batch] for at in range(0, len(indices), self.micro_batch)]
        return [
            collate_pairs(
                [self.rows[2 * i] for i in cut],
                [self.rows[2 * i + 1] for i in cut],
                self._pad,
                [self.tags[i] for i in cut],
                where=listed(self.sources[i] for i in cut),
            )
            for cut in cuts
        ]

    def state(self) -> State:
        return self.order.state()

    def load(self, state: State) -> None:
        self.order.load(state)


def _rendered(dialogue: Messages, answer: str, renderer: Renderer) -> tuple[list[int], list[bool]]:
    """The dialogue with this answer, up to its stop token; learnt is the last answer only."""
    rendered = renderer.render([*dialogue, {"role": "assistant", "content": answer}])
    end = ended(rendered)
    learn = rendered.learn[:end]
    start = end - next((back for back, learnt in enumerate(reversed(learn)) if not learnt), end)
    return rendered.ids[:end], [at >= start for at in range(end)]
