"""What every position encoding is: a module with hooks, each the identity unless used.

embed(x_BTD, at)                     adds to the token embeddings
prepare(at_q, at_k)                  what the hooks below need, computed once a forward pass
bias(prepared)                       [B or 1, H, T, S], added to the scores of every layer
query(q_BHTK, prepared)              turns queries
key(k_BGTK, prepared)                turns the keys of the new tokens; they are cached turned, unless their cache
                                     numbers tokens anew (`turns` says that there is something to turn)
scores(layer, q_BHTK, k_BHSK, prepared)   [B, H, T, S], added to q k^T before the scale
values(layer, weights_BHTS, v_BHSK, prepared)   [B, H, T, K], added to what attention mixed
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from llmlab.model.places import Places
from llmlab.recipe import Section


@dataclass(frozen=True)
class Shape:
    """What a part needs to know of the stack that it is built for."""

    dim: int
    heads: int
    head_dim: int
    context: int
    layers: int
    one_way: bool = True  # no token sees what comes after it


class Encoding(nn.Module):
    """No position information. A causal mask alone still tells order (Kazemnejad et al. 2023, arXiv 2305.19466)."""

    turns = False  # whether `key` does anything
    content = False  # whether `scores` or `values` are used, so that attention has to show its weights

    def embed(self, x_BTD: Tensor, at: Places) -> Tensor:
        return x_BTD

    def prepare(self, at_q: Places, at_k: Places) -> Any:
        return None

    def bias(self, prepared: Any) -> Tensor | None:
        return None

    def query(self, q_BHTK: Tensor, prepared: Any) -> Tensor:
        return q_BHTK

    def key(self, k_BGTK: Tensor, prepared: Any) -> Tensor:
        return k_BGTK

    def scores(self, layer: int, q_BHTK: Tensor, k_BHSK: Tensor, prepared: Any) -> Tensor | None:
        return None

    def values(self, layer: int, weights_BHTS: Tensor, v_BHSK: Tensor, prepared: Any) -> Tensor | None:
        return None


class PositionPart(Section, ABC):
    """The settings of an encoding. What it cannot go with is declared here and refused by name."""

    kind: str
    in_attention: ClassVar[bool] = True  # whether it acts on scores, so that a recurrent net has no use for it
    moves: ClassVar[bool] = True  # whether a token that was read can be given another place
    crosses: ClassVar[bool] = True  # whether a decoder that looks at an encoder may have it

    @abstractmethod
    def build(self, shape: Shape) -> Encoding:
        """The module; an impossible shape is an `InputError`."""
