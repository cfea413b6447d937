"""A part of no formula: the control of the race of wirings."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from llmlab.model.encoding import Encoding, PositionPart, Shape
from llmlab.model.places import Places


class Blind(PositionPart):
    """Questions 44 and 47: no token is seen, so all that can be learnt is how frequent each is."""

    kind: Literal["llmlab.handbook.literal.blind:Blind"] = "llmlab.handbook.literal.blind:Blind"
    in_attention: ClassVar[bool] = False

    def build(self, shape: Shape) -> Encoding:
        return BlindEncoding()


class BlindEncoding(Encoding):
    def embed(self, x_BTD: Tensor, at: Places) -> Tensor:
        return torch.ones_like(x_BTD)
