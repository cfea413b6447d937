"""Chats to learn answers from: where they come from, which are held out, and how they become batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from llmlab.data import bundled, tasks
from llmlab.data.batch import Batch, Sequences, listed, pack
from llmlab.data.heldout import split_by_prompt
from llmlab.data.layouts import ChatLayout, chat_of_row
from llmlab.data.messages import Messages, first_question
from llmlab.data.order import ShuffledOrder
from llmlab.data.sources import Reading
from llmlab.data.state import State
from llmlab.data.tables import Table
from llmlab.errors import InputError
from llmlab.recipe import KINDS, Section
from llmlab.tokenization.chat import Rendered, Renderer


@dataclass(frozen=True)
class Chat:
    """Messages that end with an answer, and where they come from."""

    messages: Messages
    source: str


# ---------------------------------------------------------------- sources


class FileChats(Table):
    """Your own chats: rows of messages, sharegpt, alpaca, prompt and completion, question and answer; of KTO rows those
    whose answer is marked good."""

    kind: Literal["file"] = "file"
    layout: ChatLayout = Field("auto", description="How a row is read; auto tells it by the row's fields.")
    system: str | None = Field(None, description="A system message for chats that have none.")

    def chats(self, seed: int, reading: Reading) -> Iterator[Chat]:
        for source, dialogue in self.read(lambda row: chat_of_row(row, self.layout), reading):
            if not dialogue:
                continue  # an answer marked bad
            bare = self.system is not None and dialogue[0]["role"] != "system"
            first = [{"role": "system", "content": self.system or ""}] if bare else []
            yield Chat([*first, *dialogue], source)


class BundledChats(Section):
    """Short dialogues that ship with llmlab (chatterbot-corpus)."""

    kind: Literal["bundled"] = "bundled"
    name: Literal["chatterbot_en", "chatterbot_zh"] = Field("chatterbot_en", description="Which language.")

    def files(self) -> list[Path]:
        return [bundled.path(self.name)]

    def chats(self, seed: int, reading: Reading) -> Iterator[Chat]:
        return FileChats(path=str(self.files()[0]), layout="chatterbot").chats(seed, reading)


class Exercises(Section):
    """Exercises with exact answers, made by llmlab: copy, spell, order, count, compare."""

    kind: Literal["tasks"] = "tasks"
    n: int = Field(4000, ge=1, description="How many, with distinct prompts; the held-out ones among them.")
    kinds: tuple[tasks.Kind, ...] = Field(tasks.KINDS, min_length=1, description="Which kinds of exercise.")
    language: tasks.Language = Field("en", description="English or Chinese.")

    def files(self) -> list[Path]:
        return []

    def tasks(self, seed: int) -> list[tasks.Task]:
        return tasks.generate(seed, self.n, self.kinds, self.language)


class TaskChats(Exercises):
    """Exercises with exact answers, made by llmlab, part of them answered courteously."""

    courteous: float = Field(0.5, ge=0, le=1, description="Share of answers that end with a courteous closing.")

    def chats(self, seed: int, reading: Reading) -> Iterator[Chat]:
        for task in self.tasks(seed):
            reading.rows += 1
            answer = tasks.styled(task, seed, self.courteous)
            turns = [{"role": "user", "content": task.prompt}, {"role": "assistant", "content": answer}]
            yield Chat(turns, f"tasks:{task.kind}")


ChatSource = Annotated[FileChats | BundledChats | TaskChats, *KINDS]


def read_chats(sources: Sequence[ChatSource], seed: int, reading: Reading | None = None) -> list[Chat]:
    """The chats of all sources, in order; `reading` counts files, rows and what was skipped."""
    reading = Reading() if reading is None else reading
    return [chat for source in sources for chat in source.chats(seed, reading)]


def split_chats(chats: Sequence[Chat], held: float, seed: int) -> tuple[list[Chat], list[Chat]]:
    """(training, held out): no first question is on both sides, in this source or any other of the same seed."""
    return split_by_prompt(chats, lambda chat: first_question(chat.messages), held, seed)


def chat_files(sources: Sequence[ChatSource]) -> list[Path]:
    """The files that the sources read."""
    return [path for source in sources for path in source.files()]


# ---------------------------------------------------------------- batches


def ended(rendered: Rendered) -> int:
    """Where a rendered chat ends for training: behind its last learnt token, which is where generation ends too.

    What a template writes after it (a line break, mostly) teaches nothing, and a score read there would be read one
    token later than that of an answer just generated.
    """
    return len(rendered.learn) - next((at for at, learnt in enumerate(reversed(rendered.learn)) if learnt), 0)


@dataclass(frozen=True)
class Fit:
    """How rendered rows fit into the context: whole ones, ones cut within an answer, ones with no answer left."""

    whole: int
    cut: int
    refused: int
    tokens: int
    learnt: int

    def figures(self) -> dict[str, int]:
        return {
            "rows": self.whole + self.cut,
            **{name: getattr(self, name) for name in ("cut", "refused", "tokens", "learnt")},
        }


class ChatBatches:
    """Batches of chats for the training loop: `batch_size` chats a step, in micro-batches, shuffled anew each epoch.
    The chats of a micro-batch are packed: several share a row, and none sees another.

    A chat longer than `context` is cut on the right. One whose learnt tokens are cut away entirely would teach nothing
    and divide by nothing: it is refused and counted, and more than a share of `refused` of them is an `InputError`.
    """

    def __init__(
        self,
        chats: Sequence[Chat],
        renderer: Renderer,
        context: int,
        batch_size: int,
        micro_batch: int,
        seed: int,
        refused: float = 0.05,
    ) -> None:
        if not renderer.closes:
            raise InputError("chat template", "ends no answer with a special token: nothing would teach it to stop")
        self.rows, self.sources, self.fit = _fitted(chats, renderer, context, refused)
        self.batch_size, self.micro_batch, self._pad = batch_size, micro_batch, renderer.tokenizer.pad_id
        self.order = ShuffledOrder(len(self.rows), seed, "chats", self.rows.fingerprint)

    def next(self, model: Any = None) -> list[Batch]:
        """The micro-batches of the next step."""
        return self._batches(self.order.take(self.batch_size))

    def once(self) -> list[Batch]:
        """Every row once, in order, in micro-batches: to evaluate on."""
        return self._batches(range(len(self.rows)))

    def _batches(self, indices: Sequence[int]) -> list[Batch]:
        cuts = range(0, len(indices), self.micro_batch)
        groups = [indices[cut : cut + self.micro_batch] for cut in cuts]
        return [
            pack([self.rows[i] for i in group], self._pad, listed(self.sources[i] for i in group)) for group in groups
        ]

    def state(self) -> State:
        return self.order.state()

    def load(self, state: State) -> None:
        self.order.load(state)


def _fitted(chats: Sequence[Chat], renderer: Renderer, context: int, bound: float) -> tuple[Sequences, list[str], Fit]:
    """The rows that can be learnt from, where each comes from, and how many there are of each sort."""
    kept, cut, lost = list[tuple[Sequence[int], Sequence[bool]]](), 0, list[str]()
    sources = list[str]()
    for chat in chats:
        rendered = renderer.render(chat.messages)
        end = min(context, ended(rendered))
        ids, learn = rendered.ids[:end], rendered.learn[:end]
        if not any(learn[1:]):
            lost.append(chat.source)
            continue
        cut += sum(learn) < sum(rendered.learn)
        kept.append((ids, learn))
        sources.append(chat.source)
    if len(lost) > bound * len(chats) or not kept:
        hint = f"a longer context, shorter chats, or allow more than {bound:g}"
        problem = f"{len(lost)} of {len(chats)} answers are cut away entirely by the context of {context} tokens"
        raise InputError("chats", f"{problem}, as in {lost[0]}" if lost else "there are none", hint if lost else "")
    tokens, learnt = sum(len(ids) for ids, _ in kept), sum(sum(learn) for _, learn in kept)
    return Sequences(kept), sources, Fit(len(kept) - cut, cut, len(lost), tokens, learnt)
