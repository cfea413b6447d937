"""Prompts for reinforcement learning: questions whose answers the policy is to find itself."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from llmlab.data.batch import Sequences
from llmlab.data.chats import Exercises, FileChats
from llmlab.data.heldout import split_by_prompt
from llmlab.data.messages import Messages, first_question
from llmlab.data.order import ShuffledOrder
from llmlab.data.pairs import FilePairs
from llmlab.data.sources import Reading
from llmlab.data.state import State
from llmlab.data.tasks import Task
from llmlab.errors import InputError
from llmlab.recipe import KINDS
from llmlab.tokenization.chat import Renderer


@dataclass(frozen=True)
class Prompt:
    """Messages up to where the assistant answers; `task` knows the right answer, where there is one."""

    messages: Messages
    source: str = ""
    task: Task | None = None


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt with the `ids` that the policy goes on from."""

    ids: Sequence[int]
    prompt: Prompt


class TaskPrompts(Exercises):
    """Exercises with exact answers, made by llmlab: the gold judge can grade what the policy says."""

    def prompts(self, seed: int, reading: Reading) -> Iterator[Prompt]:
        for task in self.tasks(seed):
            reading.rows += 1
            yield Prompt([{"role": "user", "content": task.prompt}], f"tasks:{task.kind}", task)


class ChatPrompts(FileChats):
    """Your own chats without their last answer."""

    kind: Literal["chats"] = "chats"  # type: ignore[assignment]

    def prompts(self, seed: int, reading: Reading) -> Iterator[Prompt]:
        for chat in self.chats(seed, reading):
            yield Prompt(chat.messages[:-1], chat.source)


class PairPrompts(FilePairs):
    """The dialogues of your own preference pairs."""

    kind: Literal["pairs"] = "pairs"  # type: ignore[assignment]

    def prompts(self, seed: int, reading: Reading) -> Iterator[Prompt]:
        for pair in self.pairs(seed, reading):
            yield Prompt(pair.messages, pair.source)


PromptSource = Annotated[TaskPrompts | ChatPrompts | PairPrompts, *KINDS]


def read_prompts(sources: Sequence[PromptSource], seed: int, reading: Reading | None = None) -> list[Prompt]:
    """The prompts of all sources, in order, each once."""
    reading = Reading() if reading is None else reading
    return distinct(prompt for source in sources for prompt in source.prompts(seed, reading))


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The first of those that ask the same."""
    seen = dict[tuple[tuple[str, str], ...], Prompt]()
    for prompt in prompts:
        seen.setdefault(tuple((turn["role"], turn["content"]) for turn in prompt.messages), prompt)
    return list(seen.values())


def split_prompts(prompts: Sequence[Prompt], held: float, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """(training, held out): no first question is on both sides, in this source or any other of the same seed."""
    return split_by_prompt(prompts, lambda prompt: first_question(prompt.messages), held, seed)


def prompt_files(sources: Sequence[PromptSource]) -> list[Path]:
    """The files that the sources read."""
    return [path for source in sources for path in source.files()]


class PromptSampler:
    """Takes prompts in shuffled order, epoch after epoch; those longer than `longest` tokens are refused, counted."""

    def __init__(
        self, prompts: Sequence[Prompt], renderer: Renderer, longest: int, seed: int, refused: float = 0.05
    ) -> None:
        every = [EncodedPrompt(renderer.render(prompt.messages, reply=True).ids, prompt) for prompt in prompts]
        self.prompts = [encoded for encoded in every if len(encoded.ids) <= longest]
        self.refused = len(every) - len(self.prompts)
        if self.refused > refused * len(every) or not self.prompts:
            problem = f"{self.refused} of {len(every)} are longer than {longest} tokens" if every else "there are none"
            raise InputError("prompts", problem, "a longer context, fewer new tokens, or shorter prompts")
        self.order = ShuffledOrder(len(self.prompts), seed, "prompts", _fingerprint(self.prompts))

    def take(self, count: int) -> list[EncodedPrompt]:
        """The next `count` prompts."""
        return [self.prompts[index] for index in self.order.take(count)]

    def state(self) -> State:
        return self.order.state()

    def load(self, state: State) -> None:
        self.order.load(state)


def _fingerprint(prompts: Sequence[EncodedPrompt]) -> str:
    return Sequences([(prompt.ids, [False] * len(prompt.ids)) for prompt in prompts]).fingerprint
