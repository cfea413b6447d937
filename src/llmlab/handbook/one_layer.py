"""One attention layer of ours, and the same layer written out with a rule of one's own for its weights.

T tokens, D width, H heads, K head width. Everything is float64 and causal.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from llmlab.handbook.measures import draw, filled
from llmlab.model.attention import Attention, MultiHead, Sight
from llmlab.model.encoding import Encoding, PositionPart, Shape
from llmlab.model.norms import RMSNorm
from llmlab.model.places import Places
from llmlab.model.transformer import sight

Rule = Callable[[Tensor], Tensor]  # scores [H, T, T] q k / sqrt(K), -inf where a token may not look, to weights


class Layer:
    """Attention with weights of this seed, and a text of `tokens` random vectors before it."""

    def __init__(self, seed: int, name: str, tokens: int, heads: int, head_dim: int) -> None:
        dim = heads * head_dim
        attention = MultiHead(heads=heads).build(dim, RMSNorm())
        filled(attention, seed, f"{name}.attention")
        self.attention: Attention = attention
        self.shape = Shape(dim, heads, head_dim, tokens, 1)
        self.text_TD = draw(seed, f"{name}.text", tokens, dim)

    @torch.no_grad()
    def read(self, part: PositionPart, text_TD: Tensor | None = None) -> Tensor:
        """[T, D]: what our attention gives with this position encoding."""
        x_TD = self.text_TD if text_TD is None else text_TD
        encoding = part.build(self.shape).double()
        y_BTD: Tensor = self.attention(x_TD[None], self._sight(encoding, len(x_TD)), 0)
        return y_BTD[0]

    def _sight(self, encoding: Encoding, tokens: int) -> Sight:
        at = Places.causal(1, tokens)
        return sight(encoding, at, at, None, 0, None, None)

    @torch.no_grad()
    def scores(self) -> Tensor:
        """[H, T, T]: q k / sqrt(K), -inf where a token would look ahead."""
        q_HTK, k_HTK = self._heads(self.attention.query), self._heads(self.attention.key)
        ahead = torch.ones(q_HTK.shape[1], q_HTK.shape[1], dtype=torch.bool).triu(1)
        scores_HTT = q_HTK @ k_HTK.transpose(1, 2) / math.sqrt(self.shape.head_dim)
        return scores_HTT.masked_fill(ahead, float("-inf"))

    @torch.no_grad()
    def written(self, rule: Rule) -> Tensor:
        """[T, D]: the layer written out, with the weights that `rule` makes of the scores."""
        mixed_HTK = rule(self.scores()) @ self._heads(self.attention.value)
        y_TD: Tensor = self.attention.output(mixed_HTK.transpose(0, 1).flatten(1))
        return y_TD

    def _heads(self, linear: torch.nn.Module) -> Tensor:
        projected: Tensor = linear(self.text_TD)
        return projected.view(len(self.text_TD), self.shape.heads, self.shape.head_dim).transpose(0, 1)


def penalties(heads: int, tokens: int) -> Tensor:
    """float64 [H, T, T]: ALiBi's matrices by the paper's formula for a power of two of heads, m (j - i)."""
    slopes_H = 2.0 ** (-8 * torch.arange(1, heads + 1, dtype=torch.float64) / heads)
    place = torch.arange(tokens, dtype=torch.float64)
    return slopes_H[:, None, None] * (place[None, :] - place[:, None])
