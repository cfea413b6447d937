"""(IA)^3 (Liu et al. 2022, arXiv 2205.05638): trained factors of keys, values and the feed-forward's inner activations.

    key and value:   y = l (x W^T + b)      l [out]
    down:            y = (l x) W^T + b      l [in]

All start at one, so a fresh adapter changes nothing. Some 0.01 % of the weights, and merged for nothing.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from llmlab.adapters.adapted import LinearAdapter, LinearPart, Weights, linear_paths
from llmlab.adapters.part import Draw
from llmlab.model.transformer import Transformer


class IA3(LinearAdapter):
    """Trained factors of keys, values and inner activations (Liu et al. 2022, arXiv 2205.05638)."""

    kind: Literal["ia3"] = "ia3"
    outputs: tuple[str, ...] = Field(
        ("attention.key", "attention.value"), description="name endings of linears whose outputs are multiplied"
    )
    inputs: tuple[str, ...] = Field(
        ("feedforward.down",), description="name endings of linears whose inputs are multiplied"
    )

    def paths(self, model: Transformer) -> list[str]:
        out = linear_paths(model, self.outputs, "ia3.outputs")
        return [*out, *(path for path in linear_paths(model, self.inputs, "ia3.inputs") if path not in out)]

    def part(self, path: str, linear: Any, draw: Draw) -> LinearPart:
        if any(path == ending or path.endswith(f".{ending}") for ending in self.outputs):
            return OutputFactors(linear.out_features, self)
        return InputFactors(linear.in_features, self)


class _Factors(LinearPart):
    def __init__(self, width: int, section: IA3) -> None:
        super().__init__()
        self.l = nn.Parameter(torch.ones(width))
        self.section = section


class OutputFactors(_Factors):
    """y -> l y."""

    def outputs(self, x: Tensor, y: Tensor, linear: Any) -> Tensor:
        return y * self.l.to(y.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None) -> Weights | None:
        return weight * self.l.float()[:, None], None if bias is None else bias * self.l.float()

    def unmerged(self, weight: Tensor, bias: Tensor | None) -> Weights:
        return weight / self.l.float()[:, None], None if bias is None else bias / self.l.float()


class InputFactors(_Factors):
    """x -> l x."""

    scales_inputs = True

    def inputs(self, x: Tensor) -> Tensor:
        return x * self.l.to(x.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None) -> Weights | None:
        return weight * self.l.float(), bias

    def unmerged(self, weight: Tensor, bias: Tensor | None) -> Weights:
        return weight / self.l.float(), bias
