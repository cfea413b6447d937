"""LoRA (Hu et al. 2021, arXiv 2106.09685): a frozen linear plus a trained product of two thin matrices.

    y = x W^T + s dropout(x) A^T B^T          A [rank, in], B [out, rank], s = alpha / rank

B starts at zero, so a fresh adapter changes nothing. With `scaling: root_rank` s is alpha / sqrt(rank), which keeps the
size of updates as the rank grows (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732).
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from llmlab.adapters.adapted import LinearAdapter, LinearPart, Weights, linear_paths
from llmlab.adapters.part import Draw, uniform
from llmlab.model.transformer import Transformer


class LowRankSection(LinearAdapter):
    """What LoRA and DoRA have in common."""

    rank: int = Field(8, gt=0, description="inner width of the product of A and B")
    alpha: float = Field(16.0, gt=0, description="the product is scaled by alpha / rank")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the adapter's inputs dropped in training, never in scoring"
    )
    targets: Literal["all"] | tuple[str, ...] = Field(
        "all", description="all linears of the blocks, or a list of name endings such as [query, value]"
    )
    scaling: Literal["rank", "root_rank"] = Field(
        "rank", description="what alpha is divided by: the rank, or its square root (rsLoRA)"
    )

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank if self.scaling == "rank" else math.sqrt(self.rank))

    def paths(self, model: Transformer) -> list[str]:
        return linear_paths(model, self.targets, f"{self.kind}.targets")


class LoRA(LowRankSection):
    """Low-rank adapters on the linears of every block (Hu et al. 2021, arXiv 2106.09685)."""

    kind: Literal["lora"] = "lora"

    def part(self, path: str, linear: Any, draw: Draw) -> LinearPart:
        return LowRank(linear.in_features, linear.out_features, self, draw)


class LowRank(LinearPart):
    """The trained part: x [..., in] -> s dropout(x) A^T B^T, [..., out]."""

    def __init__(self, inputs: int, outputs: int, section: LowRankSection, draw: Draw) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(section.rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, section.rank))
        self.section: LowRankSection = section
        self.scale = section.scale
        uniform(self.A, 1 / math.sqrt(inputs), draw("A"))  # as peft: Kaiming uniform with a = sqrt 5, written out

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(F.dropout(x, self.section.dropout, self.training), self.A), self.B) * self.scale

    def outputs(self, x: Tensor, y: Tensor, linear: Any) -> Tensor:
        added: Tensor = self(x)
        return y + added

    def product(self) -> Tensor:
        """What is added to the weight, [out, in] float32."""
        return (self.B.float() @ self.A.float()) * self.scale

    def merged(self, weight: Tensor, bias: Tensor | None) -> Weights | None:
        return weight + self.product(), bias

    def unmerged(self, weight: Tensor, bias: Tensor | None) -> Weights:
        return weight - self.product(), bias
