"""The engine: many prompts at once, left-padded, decoded with a cache; rows that are finished leave the batch.

Shapes: B rows still at work, T prompt tokens, V vocabulary.

What a row answers is a function of its prompt, its seed and the weights: its noise is keyed by (seed, position), its
padding is invisible. Only float rounding can differ with the rows beside it. Logits exist for one position at a time
and are gone before the next; what is kept of them is the log-probability of each drawn id. An encoder-decoder reads the
prompts with its encoder and answers from its start token (`inference/answering.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from llmlab.errors import InputError, LlmlabError
from llmlab.inference.answering import Answering
from llmlab.inference.cache import PromptCache, RowCache
from llmlab.inference.caches import CacheKind, Dense
from llmlab.inference.constrain import Guide
from llmlab.inference.row import FinishReason, Row, draw, rows_of
from llmlab.inference.sampling import Sampling
from llmlab.model.attention import Cache
from llmlab.model.linear import Role
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer

# Prompts go through the model in pieces: at most so many tokens of all rows, and so many columns, at a time. The first
# bounds the memory of activations, the second that of the mask.
PREFILL_TOKENS, PREFILL_COLUMNS = 16_384, 512


class Decoder(Protocol):
    """What the engine asks of a model: `Transformer` has it, and whatever wraps one for RL."""

    @property
    def architecture(self) -> Architecture: ...
    @property
    def vocab_size(self) -> int: ...
    def hidden(self, ids_BT: Tensor, at: Places, cache: Cache | None = None, role: Role = None) -> Tensor: ...
    def logits(self, hidden: Tensor) -> Tensor: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


@dataclass(frozen=True)
class Scored:
    """What the model itself, before any processor, thought of an id: its log-probability, and the likeliest ids with
    theirs. Both are read from the same numbers."""

    logprob: float
    likeliest: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Token:
    """One drawn id of one prompt. `finish_reason` is set on the last. Where a request asked: `scored`, and, on its
    first token, `prompt` for each id of the prompt that is echoed (never the first, which nothing predicts). Where the
    row failed it is the last, has the id -1 and no log-probability, and `error` says why."""

    row: int
    id: int
    logprob: float
    finish_reason: FinishReason | None
    scored: Scored | None = None
    prompt: tuple[Scored, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Completion:
    """`ids` include the stop token that ended them; `logprobs` are those of the distribution each id was drawn from
    (temperature and the rest applied). `finish_reason` is `length` where max_new_tokens or the context ended it."""

    ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Collection[int],
    seeds: Sequence[int],
    role: Role = None,
    on_token: Callable[[int, int], bool] | None = None,
    guides: Sequence[Guide] | None = None,
    cache: CacheKind | None = None,
) -> list[Completion]:
    """One completion a prompt, in their order. `seeds` has one seed a prompt; `sampling.seed` is not read here, nor is
    `sampling.stop`: texts are the caller's, who may end a row by answering true from `on_token(row, id)`. Nor is
    `sampling.constraint`: one guide a prompt follows it.

    The model runs without dropout and without gradients. `cache` is what keys are kept in, dense where it is None; with
    one that is endless nothing ends at the context. An empty prompt, or one that leaves no room in the context for an
    answer, is an `InputError`, as is a cache that the model cannot go with; logits that are not numbers, and a row that
    no token is left to, are LlmlabErrors.
    """
    ids: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    reasons: list[FinishReason] = ["length" for _ in prompts]
    for token in _decode(model, prompts, sampling, stop_ids, seeds, role, on_token, None, guides, cache):
        ids[token.row].append(token.id)
        logprobs[token.row].append(token.logprob)
        reasons[token.row] = token.finish_reason or "length"
    return [Completion(*parts) for parts in zip(ids, logprobs, reasons, strict=True)]


def stream(
    model: Decoder,
    prompt: Sequence[int],
    sampling: Sampling,
    stop_ids: Collection[int],
    seed: int,
    role: Role = None,
    memory: PromptCache | None = None,
    guide: Guide | None = None,
    cache: CacheKind | None = None,
    said: int = 0,
) -> Generator[Token]:
    """The tokens of one completion as they come, the stop token included. Who has enough stops asking. The last `said`
    ids of the prompt are the answer's, which goes on.

    With a `memory`, the beginning that the prompt shares with what the memory holds is not computed again; it brings a
    cache of its own, so there is no `cache` to choose.
    """
    if memory is not None and cache is not None:
        raise InputError("cache", f"{cache.kind} cannot be chosen where a memory is given", "leave one of them out")
    guides = None if guide is None else [guide]
    return _decode(model, [prompt], sampling, stop_ids, [seed], role, None, memory, guides, cache, said)


@torch.inference_mode()
def _decode(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Collection[int],
    seeds: Sequence[int],
    role: Role,
    on_token: Callable[[int, int], bool] | None,
    memory: PromptCache | None,
    guides: Sequence[Guide] | None,
    kind: CacheKind | None,
    said: int = 0,
) -> Generator[Token]:
    if not prompts:
        return
    require_continuing(model.architecture)
    mask = model.architecture.mask
    answering = None
    if model.architecture.encoder_layers:
        model = answering = _answering(model, prompts, role)
        prompts = [[Answering.start_id(model.architecture)]] * len(prompts)
    if isinstance(role, tuple) and len(role) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(role)} roles")
    device = next(model.parameters()).device
    kind, width = kind or Dense(), max(map(len, prompts))
    context = model.architecture.context
    context = max(context, width + sampling.max_new_tokens) if kind.endless else context
    rows = rows_of(prompts, sampling, seeds, stop_ids, context, model.vocab_size, device, guides, said)
    columns = width + max(row.limit - row.length for row in rows)
    cache = kind.build(columns, model.architecture) if memory is None else memory.dense
    with without_dropout(model):
        logits_BV, at = _prefill(model, prompts, cache, memory, role)
        while True:
            going, ids = list[int](), list[int]()
            for slot, (row, drawn) in enumerate(zip(rows, draw(rows, logits_BV), strict=True)):
                if drawn.error:
                    raise LlmlabError(drawn.error)
                reason = drawn.finish_reason
                if reason != "stop" and on_token is not None and on_token(row.index, drawn.id):
                    reason = "stop"
                if reason is None:
                    going.append(slot)
                ids.append(drawn.id)
                yield Token(row.index, drawn.id, drawn.logprob, reason)
            if not going:
                return
            if len(going) < len(rows):
                slots = _closed_up(going, len(rows))
                cache.keep_rows(slots)
                if answering is not None:
                    answering.keep_rows(slots)
                rows, ids, at = [rows[slot] for slot in slots], [ids[slot] for slot in slots], at[slots]
            ids_B = torch.tensor(ids, device=device)
            at = mask.after(at)
            hidden_B1D = model.hidden(ids_B[:, None], at, cache, _role_of(rows, role))
            if memory is not None:
                memory.ids.append(ids[0])
            logits_BV = model.logits(hidden_B1D[:, -1])


def require_continuing(architecture: Architecture) -> None:
    """An `InputError` for a model whose tokens see what comes after them: it has no next token."""
    if not architecture.mask.one_way:
        problem = f"{architecture.mask.kind}: fills blanks, does not continue"
        raise InputError("model.mask", problem, "a causal model generates, or one with an encoder and a decoder")


def _answering(model: Decoder, prompts: Sequence[Sequence[int]], role: Role) -> Answering:
    if not isinstance(model, Transformer):
        raise InputError("model.encoder_layers", "an encoder is not built for models of several roles", "use 0")
    with without_dropout(model):
        return Answering.to(model, prompts, role)


def _prefill(
    model: Decoder, prompts: Sequence[Sequence[int]], cache: RowCache, memory: PromptCache | None, role: Role
) -> tuple[Tensor, Places]:
    """Run the prompts; the logits [B, V] of each one's last token, which is in the last column, and its places. What
    the `memory` of a single row holds of its prompt is left out."""
    done = 0 if memory is None else memory.reuse([] if model.architecture.mask.reads_whole else prompts[0])
    for hidden_BTD, at in read(model, prompts, cache, role, done):  # noqa: B007  the last piece is what is wanted
        pass
    if memory is not None:
        memory.ids.extend(prompts[0][done:])
    return model.logits(hidden_BTD[:, -1]), at[:, -1:]


def read(
    model: Decoder, prompts: Sequence[Sequence[int]], cache: RowCache, role: Role = None, done: int = 0
) -> Iterator[tuple[Tensor, Places]]:
    """Run left-padded prompts through the model, from column `done` on, in pieces that fit: each one's hidden states
    [B, T, D] and places. Every prompt's last token is in the last column."""
    sizes, device = [len(prompt) for prompt in prompts], next(model.parameters()).device
    width = max(sizes)
    mask = model.architecture.mask
    ids_BT = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    at = mask.prompt(Places.of_lengths(sizes, width, "left", device), sizes)
    columns = width if mask.reads_whole else max(1, min(PREFILL_COLUMNS, PREFILL_TOKENS // len(prompts)))
    while done < width:
        piece = slice(done, done + min(columns, cache.room()))
        yield model.hidden(ids_BT[:, piece], at[:, piece], cache, role), at[:, piece]
        done = piece.stop


def _closed_up(going: Sequence[int], rows: int) -> list[int]:
    """The slots that go on, in an order that moves few: the last ones fill the holes of those that are finished."""
    alive = set(going)
    tail = [slot for slot in reversed(going) if slot >= len(going)]
    return [slot if slot in alive else tail.pop(0) for slot in range(len(going))]


def _role_of(rows: Sequence[Row], role: Role) -> Role:
    """The roles of the rows that are left."""
    return tuple(role[row.index] for row in rows) if isinstance(role, tuple) else role


@contextlib.contextmanager
def without_dropout(model: Decoder) -> Iterator[None]:
    """Evaluation mode for a while; each module gets back the mode it had."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
