"""Position encodings: none, the ones added to embeddings, and the union of all kinds."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.model.encoding import Encoding, PositionPart, Shape
from llmlab.model.places import Places
from llmlab.model.relative import XL, Alibi, Shaw, T5Bias
from llmlab.model.rotary import Rope, RopeInterleaved, angles
from llmlab.recipe import KINDS


class NoPosition(PositionPart):
    """No position encoding: order comes from the causal mask alone (Haviv et al. 2022, arXiv 2203.16634)."""

    kind: Literal["none"] = "none"
    in_attention: ClassVar[bool] = False

    def build(self, shape: Shape) -> Encoding:
        return Encoding()


class Sinusoidal(PositionPart):
    """Fixed sines and cosines added to the embeddings (Vaswani et al. 2017, arXiv 1706.03762, section 3.5)."""

    kind: Literal["sinusoidal"] = "sinusoidal"
    in_attention: ClassVar[bool] = False
    moves: ClassVar[bool] = False
    base: float = Field(10_000.0, gt=1, description="longest wavelength / 2 pi")

    def build(self, shape: Shape) -> Encoding:
        if shape.dim % 2:
            raise InputError("model.dim", f"{shape.dim} is odd", "sinusoidal positions need an even width")
        return SinusoidalEncoding(shape.dim, self.base)


class SinusoidalEncoding(Encoding):
    def __init__(self, dim: int, base: float) -> None:
        super().__init__()
        self.dim, self.base = dim, base

    def embed(self, x_BTD: Tensor, at: Places) -> Tensor:
        angle = angles(at.position, self.dim, self.base)
        waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)  # sine and cosine take turns, as printed
        return x_BTD + waves.to(x_BTD.dtype)


class Learned(PositionPart):
    """One learnt vector a position, none beyond the context (Gehring et al. 2017; GPT-2)."""

    kind: Literal["learned"] = "learned"
    in_attention: ClassVar[bool] = False
    moves: ClassVar[bool] = False
    offset: int = Field(0, ge=0, description="unused rows before the first position's (RoBERTa: 2)")

    def build(self, shape: Shape) -> Encoding:
        return LearnedEncoding(shape.dim, shape.context, self.offset)


class LearnedEncoding(Encoding):
    def __init__(self, dim: int, context: int, offset: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(offset + context, dim))
        self.offset = offset

    def embed(self, x_BTD: Tensor, at: Places) -> Tensor:
        context = self.weight.shape[0] - self.offset
        last = int(at.position.max())
        if last >= context:
            raise InputError(
                "position", f"{last} lies past the learnt table of {context}", "shorten the text to the context"
            )
        return x_BTD + F.embedding(at.position + self.offset, self.weight)


Position = Annotated[
    NoPosition | Sinusoidal | Learned | Rope | RopeInterleaved | Alibi | T5Bias | Shaw | XL,
    *KINDS,
]
