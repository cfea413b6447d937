"""Linears that multiply integers by integers: weights and activations in 8 bits (W8A8), with outliers apart or not.

    W8A8          y = (codes_x codes_w^T) * scale_x * scale_w     a scale a token, and one an output row
    LLM.int8()    the same, but the columns of x in which any token is beyond `OUTLIER` are multiplied in floating point
                  by the dequantised weights (Dettmers et al. 2022, arXiv 2208.07339)

Integer sums are exact, so what a token gets does not depend on those beside it in W8A8. In LLM.int8() it does: one
token's outlier takes a column out of the integers for all of them, as in the paper. bitsandbytes' layer differs from it
in keeping fp16, which this CPU may not multiply; here the activations' own dtype is kept.

M rows of activations, N output rows, K input columns, O columns that hold outliers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.model.linear import Role
from llmlab.model.quantized import dequantize_rows, quantize_rows

OUTLIER = 6.0  # of the paper, found on models of 6.7 billion parameters and more
_STEPS = 127


def quantize_tokens(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes [M, K] and float32 scales [M, 1]: the largest magnitude of each token becomes 127. A token of zeros
    has scale 0."""
    x_MK = x_MK.float()
    scale_M1 = x_MK.abs().amax(1, keepdim=True) / _STEPS
    codes = x_MK * torch.where(scale_M1 > 0, scale_M1.reciprocal(), 0)
    return codes.round_().clamp_(-_STEPS, _STEPS).to(torch.int8), scale_M1


class W8A8Linear(nn.Module):
    """`codes` int8 [N, K], `scale` float32 [N]. Answers in the dtype of x. Nothing in it is trained."""

    codes: Tensor
    scale: Tensor
    bias: nn.Parameter | None

    def __init__(self, weight_NK: Tensor, bias: Tensor | None = None, name: str = "weight") -> None:
        super().__init__()
        codes, scale = quantize_rows(weight_NK, name)
        self.out_features, self.in_features = codes.shape
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """float32 [N, K], computed on each call."""
        return dequantize_rows(self.codes, self.scale)

    def forward(self, x: Tensor, role: Role = None) -> Tensor:
        """[..., K] -> [..., N]."""
        y_MN = self.product(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)
        return y_MN if self.bias is None else y_MN + self.bias.to(x.dtype)

    def product(self, x_MK: Tensor) -> Tensor:
        codes_MK, scale_M1 = quantize_tokens(x_MK)
        sums_MN = torch._int_mm(codes_MK, self.codes.t())
        return (sums_MN * scale_M1).mul_(self.scale).to(x_MK.dtype)


class OutlierLinear(W8A8Linear):
    """LLM.int8(): columns of x beyond `threshold` keep their dtype, the rest is multiplied as integers."""

    def __init__(
        self, weight_NK: Tensor, bias: Tensor | None = None, name: str = "weight", threshold: float = OUTLIER
    ) -> None:
        super().__init__(weight_NK, bias, name)
        self.threshold = threshold

    def product(self, x_MK: Tensor) -> Tensor:
        outlying_O = (x_MK.abs().amax(0) > self.threshold).nonzero()[:, 0]
        if not len(outlying_O):
            return super().product(x_MK)
        within_MN = super().product(x_MK.index_fill(1, outlying_O, 0.0))
        weight_NO = self.codes[:, outlying_O].to(x_MK.dtype) * self.scale.to(x_MK.dtype)[:, None]
        return within_MN + F.linear(x_MK[:, outlying_O], weight_NO)
