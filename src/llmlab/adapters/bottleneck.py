"""Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751): a small network after a sublayer, around a shortcut.

    y -> y + activation(dropout(y) D^T + d) U^T + u          D [width, dim], U [dim, width]

It stands on the sublayer's last linear, before the residual sum: of attention and feed-forward (Houlsby), or of the
feed-forward alone (Pfeiffer et al. 2021, arXiv 2005.00247). U and u start at zero, so a fresh adapter changes nothing.
The activation keeps it out of the weights: it is never merged. peft has no such adapter.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from llmlab.adapters.adapted import LinearAdapter, LinearPart, linear_paths
from llmlab.adapters.part import Draw, uniform
from llmlab.model.transformer import Transformer

AFTER = {"houlsby": ("attention.output", "feedforward.down"), "pfeiffer": ("feedforward.down",)}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


class Bottleneck(LinearAdapter):
    """A small network after each sublayer (Houlsby et al. 2019, arXiv 1902.00751)."""

    kind: Literal["bottleneck"] = "bottleneck"
    width: int = Field(32, gt=0, description="inner width of the network")
    after: Literal["houlsby", "pfeiffer"] = Field(
        "houlsby", description="houlsby: attention and feed-forward; pfeiffer: the feed-forward alone"
    )
    activation: Literal["gelu", "relu"] = Field("gelu", description="of the inner width")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the network's inputs dropped in training, never in scoring"
    )

    def paths(self, model: Transformer) -> list[str]:
        return linear_paths(model, AFTER[self.after], "bottleneck.after")

    def part(self, path: str, linear: Any, draw: Draw) -> LinearPart:
        return Narrow(linear.out_features, self, draw)


class Narrow(LinearPart):
    """The trained part: `D`, `d`, `U`, `u`."""

    def __init__(self, dim: int, section: Bottleneck, draw: Draw) -> None:
        super().__init__()
        self.section: Bottleneck = section
        self.D, self.d = nn.Parameter(torch.empty(section.width, dim)), nn.Parameter(torch.zeros(section.width))
        self.U, self.u = nn.Parameter(torch.zeros(dim, section.width)), nn.Parameter(torch.zeros(dim))
        uniform(self.D, 1 / math.sqrt(dim), draw("D"))

    def outputs(self, x: Tensor, y: Tensor, linear: Any) -> Tensor:
        inner = F.linear(F.dropout(y, self.section.dropout, self.training), self.D, self.d)
        return y + F.linear(ACTIVATIONS[self.section.activation](inner), self.U, self.u)
