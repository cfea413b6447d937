"""A block: attention and feed-forward, each with its norms, wired one way or another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.model.attention import Attention, Mixer, Sight
from llmlab.recipe import KINDS, Section


class Pre(Section):
    """x + part(norm(x)), a norm after the last block (Xiong et al. 2020, arXiv 2002.04745; GPT-2, LLaMA)."""

    kind: Literal["pre"] = "pre"


class Post(Section):
    """norm(x + part(x)) (Vaswani et al. 2017; GPT-1, BERT)."""

    kind: Literal["post"] = "post"


class Sandwich(Section):
    """x + norm(part(norm(x))), a norm after the last block (Ding et al. 2021, CogView, arXiv 2105.13290; Gemma 3)."""

    kind: Literal["sandwich"] = "sandwich"


class Parallel(Section):
    """x + attention(norm(x)) + feedforward(norm'(x)), a norm after the last block (Wang & Komatsuzaki 2021, GPT-J;
    GPT-NeoX)."""

    kind: Literal["parallel"] = "parallel"


class DeepNorm(Section):
    """norm(alpha x + part(x)), initial weights of value, output and feed-forward times beta (Wang et al. 2022, arXiv
    2203.00555). Left null, both are the paper's for this depth; ChatGLM-6B has alpha sqrt(2 layers)."""

    kind: Literal["deepnorm"] = "deepnorm"
    alpha: float | None = Field(None, gt=0, description="factor of the residual stream; null: the paper's")
    beta: float | None = Field(None, gt=0, description="factor of initial weights; null: the paper's")


Wired = Pre | Post | Sandwich | Parallel | DeepNorm
Wiring = Annotated[Wired, *KINDS]
Part = Callable[[Tensor], Tensor]


def deepnorm(layers: int, encoder_layers: int = 0, encoder: bool = False) -> tuple[float, float]:
    """(alpha, beta) of the paper's table 2, for a stack alone or for one half of an encoder-decoder."""
    n, m = encoder_layers, layers
    if not n:
        return (2 * m) ** 0.25, (8 * m) ** -0.25
    if encoder:
        return 0.81 * (n**4 * m) ** 0.0625, 0.87 * (n**4 * m) ** -0.0625
    return (3 * m) ** 0.25, (12 * m) ** -0.25


@dataclass(frozen=True)
class Memory:
    """An encoder's output [B, S, D], what the new tokens see of it, and, where text is generated, its keys and values
    by layer once they were computed."""

    states: Tensor
    sight: Sight
    kept: dict[int, tuple[Tensor, Tensor]] | None = None

    def rows(self, rows: Sequence[int]) -> Memory:
        """These rows alone, in this order. What they see is made anew by whoever looks."""
        kept = None if self.kept is None else {layer: (k[rows], v[rows]) for layer, (k, v) in self.kept.items()}
        return Memory(self.states[rows], replace(self.sight, at=self.sight.at[rows]), kept)


class Block(nn.Module):
    """`norms` has as many as the wiring asks for (`norms_of`); a decoder's `cross` looks at the encoder's output."""

    def __init__(
        self,
        attention: Mixer,
        feedforward: nn.Module,
        wiring: Wired,
        norms: list[nn.Module],
        dropout: float,
        alpha: float = 1.0,
        cross: Attention | None = None,
    ) -> None:
        super().__init__()
        self.wiring, self.alpha = wiring.kind, alpha
        self.attention, self.feedforward, self.cross = attention, feedforward, cross
        left = iter(norms)
        self.attention_norm, self.feedforward_norm = next(left), next(left)
        self.cross_norm = None if cross is None else next(left)
        self.attention_after = self.feedforward_after = self.cross_after = None
        if self.wiring == "sandwich":
            self.attention_after, self.feedforward_after = next(left), next(left)
            self.cross_after = None if cross is None else next(left)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, sight: Sight, layer: int, memory: Memory | None = None) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        return self._through(x, lambda y: self.attention(y, sight, layer), sight, layer, memory)

    def streams(self, h: Tensor, g: Tensor, sight: Sight, strict: Sight, layer: int) -> tuple[Tensor, Tensor]:
        """The content stream h as in `forward`, and beside it the query stream g, which looks at h's keys and values
        but sees no token's own content (Yang et al. 2019, XLNet, arXiv 1906.08237)."""
        if not isinstance(self.attention, Attention):
            raise InputError("model.attention", "a second stream needs keys", "use mha, gqa or mqa")
        attention = self.attention
        before = h if self.wiring in ("post", "deepnorm") else self.attention_norm(h)
        k_BGSK, v_BGSK = attention.keys(before, sight, layer)

        def through(x: Tensor, seen: Sight) -> Tensor:
            return self._through(x, lambda y: attention.attend(y, k_BGSK, v_BGSK, seen, layer), seen, layer, None)

        return through(h, sight), through(g, strict)

    def _through(self, x: Tensor, attend: Part, sight: Sight, layer: int, memory: Memory | None) -> Tensor:
        def think(y: Tensor) -> Tensor:
            out: Tensor = self.feedforward(y, sight.role)
            return out

        if self.wiring == "parallel":
            attended: Tensor = self.dropout(attend(self.attention_norm(x)))
            thought: Tensor = self.dropout(think(self.feedforward_norm(x)))
            return x + attended + thought
        x = self._wired(x, attend, self.attention_norm, self.attention_after)
        if self.cross is not None and self.cross_norm is not None:
            x = self._wired(x, lambda y: self._look(y, memory, layer), self.cross_norm, self.cross_after)
        return self._wired(x, think, self.feedforward_norm, self.feedforward_after)

    def _wired(self, x: Tensor, part: Part, norm: nn.Module, after: nn.Module | None) -> Tensor:
        y: Tensor
        match self.wiring:
            case "pre":
                y = x + self.dropout(part(norm(x)))
            case "post":
                y = norm(x + self.dropout(part(x)))
            case "sandwich":
                assert after is not None
                y = x + self.dropout(after(part(norm(x))))
            case "deepnorm":
                y = norm(self.alpha * x + self.dropout(part(x)))
            case _:
                raise AssertionError(self.wiring)
        return y

    def _look(self, y: Tensor, memory: Memory | None, layer: int) -> Tensor:
        """Cross-attention: keys and values of the encoder's output."""
        assert self.cross is not None
        if memory is None:
            raise InputError("memory", "is missing", "a decoder with an encoder is called with the encoder's output")
        pair = None if memory.kept is None else memory.kept.get(layer)
        if pair is None:
            pair = self.cross.keys(memory.states, memory.sight, layer)
            if memory.kept is not None:
                memory.kept[layer] = pair
        return self.cross.attend(y, *pair, memory.sight, layer)


def norms_of(wiring: Wired, cross: bool) -> int:
    """How many norms a block of this wiring has."""
    return (3 if cross else 2) * (2 if wiring.kind == "sandwich" else 1)
