"""Position encodings as the handbook words them."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar, Literal

import torch
from torch import Tensor

from llmlab.model.encoding import Encoding, PositionPart, Shape
from llmlab.model.places import Places
from llmlab.model.relative import AlibiEncoding
from llmlab.model.rotary import angles

BASE = 10_000.0


class RotatedVectors(PositionPart):
    """Question 34: each position's sinusoid is multiplied by that position's rotation matrix, then added to the words.

    A pair (sin a, cos a) turned by its own angle a is (0, 1) wherever it stands.
    """

    kind: Literal["llmlab.handbook.literal.positions:RotatedVectors"] = (
        "llmlab.handbook.literal.positions:RotatedVectors"
    )
    in_attention: ClassVar[bool] = False

    def build(self, shape: Shape) -> Encoding:
        return RotatedVectorsEncoding(shape.dim)


class RotatedVectorsEncoding(Encoding):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def vectors(self, position_BT: Tensor) -> Tensor:
        """[B, T, D]."""
        angle = angles(position_BT, self.dim, BASE)
        sin, cos = angle.sin(), angle.cos()
        return torch.stack([cos * sin - sin * cos, sin * sin + cos * cos], -1).flatten(-2)

    def embed(self, x_BTD: Tensor, at: Places) -> Tensor:
        return x_BTD + self.vectors(at.position).to(x_BTD.dtype)


class MultipliedWeights(PositionPart):
    """Question 39: ALiBi's matrix multiplied with the attention weights, after the softmax."""

    kind: Literal["llmlab.handbook.literal.positions:MultipliedWeights"] = (
        "llmlab.handbook.literal.positions:MultipliedWeights"
    )
    crosses: ClassVar[bool] = False

    def build(self, shape: Shape) -> Encoding:
        return MultipliedWeightsEncoding(shape.heads)


class MultipliedEncoding(Encoding, ABC):
    """Attention with its weights in the open, and ALiBi's matrix to multiply something by."""

    content = True

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.alibi = AlibiEncoding(heads)

    def prepare(self, at_q: Places, at_k: Places) -> Tensor:
        """The matrix, [B or 1, H, T, S]."""
        return self.alibi.bias(self.alibi.prepare(at_q, at_k))


class MultipliedWeightsEncoding(MultipliedEncoding):
    def values(self, layer: int, weights_BHTS: Tensor, v_BHSK: Tensor, prepared: Tensor) -> Tensor:
        """What brings the mix of `weights` to that of `weights * matrix`."""
        return (weights_BHTS * (prepared.to(weights_BHTS.dtype) - 1)) @ v_BHSK


class MultipliedScores(PositionPart):
    """Question 39, read the other way: ALiBi's matrix multiplied with the scores, before the softmax."""

    kind: Literal["llmlab.handbook.literal.positions:MultipliedScores"] = (
        "llmlab.handbook.literal.positions:MultipliedScores"
    )
    crosses: ClassVar[bool] = False

    def build(self, shape: Shape) -> Encoding:
        return MultipliedScoresEncoding(shape.heads)


class MultipliedScoresEncoding(MultipliedEncoding):
    def scores(self, layer: int, q_BHTK: Tensor, k_BHSK: Tensor, prepared: Tensor) -> Tensor:
        """What brings q k to q k times the matrix."""
        return (q_BHTK @ k_BHSK.transpose(2, 3)) * (prepared.to(q_BHTK.dtype) - 1)
