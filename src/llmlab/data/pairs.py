"""Preference pairs: one dialogue, a better and a worse answer; every layout in use brought into one form."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from llmlab.data import tasks
from llmlab.data.batch import PairBatch, Sequences, collate_pairs, listed
from llmlab.data.chats import Exercises, ended
from llmlab.data.heldout import split_by_prompt
from llmlab.data.messages import Messages, first_question
from llmlab.data.order import ShuffledOrder
from llmlab.data.pair_rows import Pair, pair_of_row
from llmlab.data.sources import Reading
from llmlab.data.state import State
from llmlab.data.tables import Table
from llmlab.errors import InputError
from llmlab.recipe import KINDS
from llmlab.tokenization.chat import Renderer

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
