"""The two models of the race of needles, and the work they do: SmolLM2 by the native step in eight bits, at any length
and base of its angles, and MiniLM, which turns a text into one vector.

N texts, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.checkpoints.bundle import Stored
from llmlab.checkpoints.where import open_model
from llmlab.errors import LlmlabError
from llmlab.handbook.roofline import matrix_weights
from llmlab.inference.batching import Batching, Request
from llmlab.inference.choice import choose
from llmlab.inference.embedding import embed
from llmlab.inference.engine import Token
from llmlab.inference.pages import PAGE
from llmlab.inference.sampling import Sampling
from llmlab.model.rotary import Rope, ntk_base
from llmlab.model.transformer import Architecture, Transformer
from llmlab.tokenization.tokenizer import Tokenizer

READER, ENCODER = "smollm2", "minilm"
ANSWER = 8  # tokens at most


@dataclass
class Work:
    """What was done: tokens that SmolLM2 read or wrote, those that MiniLM read, operations of both (2 for each weight
    of their matrices, and those of attention; the head aside), texts begun, and the most tokens held at once."""

    tokens: int = 0
    embedded: int = 0
    operations: float = 0.0
    passes: int = 0
    held: int = 0

    def read(self, a: Architecture, start: int, end: int, reach: int | None = None) -> None:
        """Tokens `start` to `end` of one text, each seeing all before it, or so many."""
        seen = sum(min(place + 1, reach or end) for place in range(start, end))
        self.tokens += end - start
        self.operations += 2 * matrix_weights(a) * (end - start)
        self.operations += 4 * a.layers * a.keyed.heads * a.attention.width(a.dim) * seen
        self.held = max(self.held, min(end, reach or end))

    def told(self) -> dict[str, float]:
        return {
            "tokens": float(self.tokens),
            "embedded": float(self.embedded),
            "tera": self.operations / 1e12,
            "passes": float(self.passes),
            "held": float(self.held),
        }


@dataclass(frozen=True)
class Answer:
    text: str
    score: float  # mean log-probability of its tokens


@dataclass
class Reader:
    """SmolLM2 with places up to `context`; `stretch` is NTK's: a base as for texts so many times the trained length."""

    context: int
    stretch: float = 1.0
    work: Work = field(default_factory=Work)

    def __post_init__(self) -> None:
        bundle = open_model(READER)
        stored = bundle.made if isinstance(bundle.made, Stored) else Stored.of(bundle.model)
        a, rope = stored.skeleton.architecture, stored.skeleton.architecture.position
        assert isinstance(rope, Rope)
        base = ntk_base(rope.base, a.attention.width(a.dim) // 2, self.stretch)
        changes = {"context": self.context, "position": rope.model_copy(update={"base": base})}
        self.architecture: Architecture = a.model_copy(update=changes)
        with torch.device("meta"):
            skeleton = Transformer(self.architecture, stored.skeleton.vocab_size)
        choice = choose(skeleton, "int8", stored.read)
        if choice.model is None:
            raise LlmlabError(f"needles: there is no native step on this machine: {choice.reason}")
        assert bundle.tokenizer is not None
        self.tokenizer: Tokenizer = bundle.tokenizer
        self.batching = Batching(choice.model)
        self._ends = frozenset(ends(self.tokenizer))

    def ask(self, contexts: Sequence[Sequence[int]], stems: Sequence[str]) -> list[list[Answer]]:
        """How each context goes on after each stem: a row a context. A context is read once, its first question with
        it; what comes later shares its pages."""
        questions = [self.tokenizer.encode(f"\n\n{stem}") for stem in stems]
        first, *others = ([[*context, *question] for context in contexts] for question in questions)
        found = [self._answers(first, 0)]
        later = self._answers([prompt for prompts in others for prompt in prompts], None, contexts)
        rows = [*found, *(later[at : at + len(contexts)] for at in range(0, len(later), len(contexts)))]
        return [list(row) for row in zip(*rows, strict=True)]

    def _answers(
        self, prompts: Sequence[Sequence[int]], start: int | None, contexts: Sequence[Sequence[int]] = ()
    ) -> list[Answer]:
        found = []
        for at, (prompt, tokens) in enumerate(zip(prompts, self._made(prompts, ANSWER, self._ends), strict=True)):
            shared = len(contexts[at % len(contexts)]) // PAGE * PAGE if start is None else start
            self.work.read(self.architecture, shared, len(prompt) + len(tokens) - 1)
            self.work.passes += start is not None
            scores = [token.scored.logprob for token in tokens if token.scored is not None]
            found.append(Answer(self.tokenizer.decode([token.id for token in tokens]), sum(scores) / len(scores)))
        return found

    def _made(self, prompts: Sequence[Sequence[int]], most: int, stop_ids: Collection[int]) -> list[list[Token]]:
        """The likeliest tokens after each prompt, with how likely the model found them."""
        sampling = Sampling(temperature=0.0, max_new_tokens=most)
        numbers = [self.batching.submit(Request(prompt, sampling, stop_ids, likeliest=1)) for prompt in prompts]
        made: dict[int, list[Token]] = {number: [] for number in numbers}
        while self.batching.busy:
            for token in self.batching.step():
                if token.error:
                    raise LlmlabError(f"needles: {token.error}")
                made[token.row].append(token)
        return list(made.values())

    def write(self, prompts: Sequence[Sequence[int]], tokens: int, stop_ids: Collection[int]) -> list[str]:
        """How prompts go on, at most so many tokens each."""
        made = self._made(prompts, tokens, stop_ids)
        for prompt, one in zip(prompts, made, strict=True):
            self.work.read(self.architecture, 0, len(prompt) + len(one) - 1)
        self.work.passes += len(prompts)
        return [self.tokenizer.decode([token.id for token in one if token.id not in stop_ids]) for one in made]


def ends(tokenizer: Tokenizer) -> list[int]:
    """Tokens with which a sentence ends: those that hold a stop or a line's end, and the special ones."""
    marks = [id for id in range(tokenizer.vocab_size) if set(tokenizer.token_bytes(id)) & set(b".\n")]
    return [*marks, *tokenizer.special_ids]


def vectors(texts: Sequence[str], work: Work) -> Tensor:
    """[N, D] by MiniLM, each of length 1."""
    bundle = open_model(ENCODER)
    assert bundle.tokenizer is not None
    assert bundle.pooling is not None
    room = (bundle.pooling.max_tokens or bundle.architecture.context) - len(bundle.tokenizer.pair([])[0])
    ids = [bundle.tokenizer.pair(text[:room])[0] for text in bundle.tokenizer.encode_batch(texts)]
    a, model = bundle.architecture, bundle.model
    weights = sum(weight.numel() for weight in model.blocks.parameters() if weight.ndim > 1)
    work.embedded += sum(map(len, ids))
    work.operations += sum(2 * weights * len(row) + 4 * a.layers * a.dim * len(row) ** 2 for row in ids)
    return F.normalize(embed(model, ids, bundle.pooling), dim=1)
