"""Normalisation of each token over its width. Nothing here looks at other tokens or rows."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from llmlab.recipe import KINDS, Section


class LayerNorm(Section):
    """(x - mean) / sqrt(variance + eps) * gain + bias, biased variance (Ba, Kiros & Hinton 2016, arXiv 1607.06450)."""

    kind: Literal["layernorm"] = "layernorm"
    eps: float = Field(1e-5, gt=0, description="added to the variance, inside the root")
    bias: bool = Field(True, description="whether a bias is learnt beside the gain")

    def build(self, dim: int) -> nn.Module:
        return nn.LayerNorm(dim, eps=self.eps, bias=self.bias)


class RMSNorm(Section):
    """x / sqrt(mean(x^2) + eps) * gain: no centring, no bias (Zhang & Sennrich 2019, arXiv 1910.07467).

    `partial` below 1 is their pRMSNorm: the mean is taken over the first coordinates only.
    """

    kind: Literal["rmsnorm"] = "rmsnorm"
    eps: float = Field(1e-5, gt=0, description="added to the mean square, inside the root")
    partial: float = Field(1.0, gt=0, le=1, description="share of the width that the mean is taken over")
    offset: float = Field(0.0, description="added to the learnt gain (Gemma: 1, so that a gain of 0 is neutral)")

    def build(self, dim: int) -> nn.Module:
        return RootMeanSquare(dim, self.eps, self.partial, self.offset)


class RootMeanSquare(nn.Module):
    """RMSNorm computed in float32, cast back, then multiplied by the gain: the order of LLaMA's released code."""

    def __init__(self, dim: int, eps: float, partial: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps, self.offset = eps, offset
        self.measured = max(1, round(dim * partial))

    def initialise(self) -> None:
        """The neutral gain."""
        nn.init.constant_(self.weight, 1 - self.offset)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        scaled = wide * torch.rsqrt(wide[..., : self.measured].square().mean(-1, keepdim=True) + self.eps)
        if self.offset:  # in float32 and cast last, as Gemma's released code has it
            return (scaled * (self.weight.float() + self.offset)).to(x.dtype)
        return self.weight * scaled.to(x.dtype)


Norm = Annotated[LayerNorm | RMSNorm, *KINDS]
