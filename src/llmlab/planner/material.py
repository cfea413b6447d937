"""What a recipe's data are like, from a sample of them: tokens a byte, lengths of chats, pairs and prompts.

The recipe's own code reads and renders the sample. Where the tokenizer is still to be trained, the same kind is trained
on the sample, which cuts text nearly as the whole one will.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np

from llmlab.adapters.opening import open_policy
from llmlab.checkpoints.bundle import Bundle, Stored
from llmlab.data.shards import Documents
from llmlab.data.sources import Reading, read
from llmlab.data.text import Text, input_files
from llmlab.errors import InputError
from llmlab.model.transformer import Architecture, Transformer
from llmlab.tokenization.chat import Renderer
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import train_tokenizer

X = TypeVar("X")

SAMPLE = 600_000  # bytes of text that are read
ROWS = 768  # chats, pairs or prompts that are rendered


class Life(Protocol):
    """What the planner reads of a recipe (`run.Run` has it)."""

    @property
    def seed(self) -> Any: ...
    @property
    def device(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def kernels(self) -> Any: ...
    @property
    def base(self) -> Any: ...
    @property
    def rope(self) -> Any: ...
    @property
    def text(self) -> Any: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def model(self) -> Any: ...
    @property
    def pretrain(self) -> Any: ...
    @property
    def sft(self) -> Any: ...
    @property
    def reward(self) -> Any: ...
    @property
    def dpo(self) -> Any: ...
    @property
    def ppo(self) -> Any: ...
    @property
    def quantize(self) -> Any: ...
    @property
    def evaluate(self) -> Any: ...


@dataclass(frozen=True)
class Corpus:
    """A sample of the training text as documents of ids, and how much text there is in all."""

    sample: Documents
    sample_bytes: int
    text_bytes: int
    held_out: float
    wide: float  # share of the text's bytes that are not ASCII

    @property
    def scale(self) -> float:
        return self.text_bytes / max(self.sample_bytes, 1)

    @property
    def tokens(self) -> int:
        """Of both sides."""
        return round(self.sample.tokens * self.scale)

    @property
    def held_tokens(self) -> int:
        return round(self.tokens * self.held_out)


class Material:
    """The data of one recipe; each part is read when it is first asked for."""

    def __init__(self, life: Life) -> None:
        self.life = life

    @cached_property
    def base(self) -> Bundle | None:
        """The weights that the life starts from; no tensor is read yet."""
        return None if self.life.base is None else open_policy(str(self.life.base))

    @cached_property
    def architecture(self) -> Architecture:
        if self.base is None:
            architecture: Architecture = self.life.model
            if self.life.pretrain is not None:
                architecture = self.life.pretrain.objective.settled(architecture, self.tokenizer)
            return architecture
        rope = self.life.rope
        return self.base.architecture if rope is None else rope.architecture(self.base.architecture)

    @cached_property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        if self.base is None:
            return self.tokenizer.vocab_size
        made = self.base.made
        if isinstance(made, Stored):
            return made.skeleton.vocab_size
        return made.vocab_size if isinstance(made, Transformer) else self.tokenizer.vocab_size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        if self.base is not None:
            if self.base.tokenizer is None:
                raise InputError(self.base.origin, "has no tokenizer", "put tokenizer.json beside the weights")
            return self.base.tokenizer
        made = train_tokenizer(self.life.tokenizer, iter(self._texts))
        special = () if self.life.pretrain is None else self.life.pretrain.special(self.life.model)
        return made.extended(special) if special else made

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.tokenizer)

    # ------------------------------------------------------------ text

    @cached_property
    def _texts(self) -> list[str]:
        """The first documents of the text."""
        found, size = list[str](), 0
        for document in read(self.life.text.sources, Reading()):
            found.append(document.text)
            size += len(document.text.encode())
            if size >= SAMPLE:
                break
        if not found:
            raise InputError("text.sources", "hold no text")
        return found

    @cached_property
    def corpus(self) -> Corpus:
        """The documents by the recipe's tokenizer."""
        text: Text = self.life.text
        end = self.tokenizer.eos_id
        if end is None:
            raise InputError("tokenizer", "has no eos token, which ends every document of a corpus")
        begin = self.tokenizer.bos_id
        size = sum(len(one.encode()) for one in self._texts)
        ids = [[*one, end] for one in self.tokenizer.encode_batch(self._texts)]
        documents = Documents(ids, size, end if begin is None else begin, end)
        wide = 1 - sum(len(one.encode("ascii", "ignore")) for one in self._texts) / max(size, 1)
        return Corpus(documents, size, max(size, self._text_bytes(size)), text.held_out, wide)

    def _text_bytes(self, sampled: int) -> int:
        """Bytes of text in all: what was read, or, where that was not all, the size of the files."""
        return sampled if sampled < SAMPLE else sum(path.stat().st_size for path in input_files(self.life.text))

    def rows_of(self, length: int) -> Documents:
        """The sample as a corpus that has at least a row of this length: again and again where it is short."""
        sample = self.corpus.sample
        if sample.tokens >= 2 * length:
            return sample
        ids = [sample.take(_span(sample.starts, n)) for n in range(sample.documents)]
        times = -(-2 * length // max(sample.tokens, 1))
        return Documents(ids * times, sample.text_bytes * times, sample.begin_id, sample.end_id)


def _span(starts: Any, number: int) -> Any:
    return np.arange(starts[number], starts[number + 1])


@dataclass(frozen=True)
class Sample:
    """Some of the rows of a stage's data and how many there are in all."""

    rows: Sequence[Any]
    total: int

    @property
    def scale(self) -> float:
        return self.total / max(len(self.rows), 1)


def sampled(sources: Iterable[Any], name: str, seed: int) -> Sample:
    """Rows of every source (`chats`, `pairs` or `prompts`), evenly from all of a generated one, the first of a file.
    Of a large file the whole is known by its size."""
    rows, total = list[Any](), 0.0
    for source in sources:
        if hasattr(source, "n"):  # generated, so any number of them is like any other
            few = source.model_copy(update={"n": min(source.n, ROWS)})
            rows += list(getattr(few, name)(seed, Reading()))
            total += source.n
        else:
            found = list(islice(_read(source, name, seed), 4 * ROWS))
            size = sum(path.stat().st_size for path in source.files())
            seen = sum(len(str(vars(row)).encode()) for row in found)
            total += len(found) if len(found) < 4 * ROWS else max(len(found), len(found) * size / max(seen, 1))
            rows += found
    return Sample(rows, round(total))


def _read(source: Any, name: str, seed: int) -> Iterator[Any]:
    yield from getattr(source, name)(seed, Reading())
