"""Encoder-decoders in the engine: the encoder reads the prompts once, the decoder answers from its start token.

B rows still at work, S prompt tokens, T new tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.model.attention import Cache
from llmlab.model.block import Memory
from llmlab.model.linear import Role
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer


class Answering:
    """A model that has read its prompts, seen from outside as a decoder alone."""

    def __init__(self, model: Transformer, memory: Memory) -> None:
        self.model, self.memory = model, memory

    @staticmethod
    def to(model: Transformer, prompts: Sequence[Sequence[int]], role: Role = None) -> Answering:
        """Read the prompts, of any lengths. Errors: InputError for one that is empty or longer than the context."""
        context, sizes = model.architecture.context, [len(prompt) for prompt in prompts]
        for number, size in enumerate(sizes, 1):
            place = "prompt" if len(prompts) == 1 else f"prompt {number}"
            if not size:
                raise InputError(place, "is empty", "give at least one token to answer to")
            if size > context:
                raise InputError(place, f"has {size} tokens, more than the context of {context}", "shorten it")
        width, device = max(sizes), next(model.parameters()).device
        ids_BS = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=device)
        return Answering(model, model.encode(ids_BS, Places.of_lengths(sizes, width, device=device), role, keep=True))

    @staticmethod
    def start_id(architecture: Architecture) -> int:
        """The token that answers begin with."""
        if architecture.start_id is None:
            hint = "set model.start_id to the token that answers began with in training"
            raise InputError("model.start_id", "is not set, so no answer can begin", hint)
        return architecture.start_id

    @property
    def architecture(self) -> Architecture:
        return self.model.architecture

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    def hidden(self, ids_BT: Tensor, at: Places, cache: Cache | None = None, role: Role = None) -> Tensor:
        """[B, T, D] of the decoder, which looks at its row's prompt."""
        return self.model.hidden(ids_BT, at, cache, role, self.memory)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden)

    def modules(self) -> Iterator[nn.Module]:
        return self.model.modules()

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.model.parameters()

    @staticmethod
    def nbytes(architecture: Architecture, rows: int, tokens: int, number: int = 4) -> int:
        """Bytes of what is kept of so many prompts of so many tokens, beside the cache of the answers: the encoder's
        output, and once the first token is out each layer's keys and values of it."""
        a = architecture
        keys = 2 * a.layers * a.keyed.key_heads * a.keyed.width(a.dim)
        return rows * tokens * (a.dim + keys) * number

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Row i becomes what was row `rows[i]`; the others are dropped."""
        self.memory = self.memory.rows(rows)
