"""DoRA (Liu et al. 2024, arXiv 2402.09353): direction by a low-rank product, length by a vector of its own.

    W' = m (W + s B A) / |W + s B A|          m [out] trained, |.| the norm of each output row

m starts as |W| and B at zero, so a fresh adapter changes nothing. The norm has no gradient (the paper's section 4.3):
that costs no accuracy and saves the memory of a whole matrix. Computed as y + (c - 1) W x + c s B A x with c = m / |.|,
so that the base's own product serves; dropout is on the low-rank path alone.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from llmlab.adapters.adapted import Weights
from llmlab.adapters.lora import LowRank, LowRankSection
from llmlab.adapters.part import Draw


class DoRA(LowRankSection):
    """Low-rank direction and a trained length of each output row (Liu et al. 2024, arXiv 2402.09353)."""

    kind: Literal["dora"] = "dora"

    def part(self, path: str, linear: Any, draw: Draw) -> "Decomposed":
        return Decomposed(linear, self, draw)


class Decomposed(LowRank):
    """The trained part: A and B as LoRA's, and `magnitude` m [out]."""

    norm: Tensor | None  # of W + s B A as it was merged: a merged weight does not tell

    def __init__(self, linear: Any, section: DoRA, draw: Draw) -> None:
        super().__init__(linear.in_features, linear.out_features, section, draw)
        self.norm = None
        if self.A.is_meta:
            self.magnitude = nn.Parameter(torch.empty(linear.out_features))
        else:
            with torch.no_grad():
                # The sum with a zero product, and not W alone: the very numbers that later steps divide by.
                self.magnitude = nn.Parameter(self._norm(linear.weight.detach().cpu()).clone())

    def outputs(self, x: Tensor, y: Tensor, linear: Any) -> Tensor:
        with torch.no_grad():
            norm = self._norm(linear.weight)
        ratio = (self.magnitude / norm).to(y.dtype)
        turned = y if linear.bias is None else y - linear.bias.to(y.dtype)
        added: Tensor = self(x)
        return y + (ratio - 1) * turned + ratio * added

    def _norm(self, weight: Tensor) -> Tensor:
        """|W + s B A| of each output row, float32 [out]."""
        with torch.autocast(weight.device.type, enabled=False):
            norm: Tensor = torch.linalg.vector_norm(weight.detach().float() + self.product().detach(), dim=1)
            return norm

    def merged(self, weight: Tensor, bias: Tensor | None) -> Weights | None:
        self.norm = self._norm(weight).detach()
        return (weight + self.product()) * (self.magnitude / self.norm)[:, None], bias

    def unmerged(self, weight: Tensor, bias: Tensor | None) -> Weights:
        assert self.norm is not None  # `merged` comes first
        return weight * (self.norm / self.magnitude)[:, None] - self.product(), bias
