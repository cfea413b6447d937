"""Prefix tuning (Li & Liang 2021, arXiv 2101.00190): trained keys and values before every text, in every layer.

With `hidden` they are what a small network makes of an embedding each, as in the paper, which trains more steadily:

    keys and values of all layers = tanh(E A^T + a) C^T + c          E [P, G K], A [hidden, G K], C [2 L G K, hidden]

The network is for training alone: a folder holds the keys and values that it comes to. A fresh prefix is not nothing:
whatever stands there takes attention from the text. P virtual tokens, L layers, G key/value heads, K head width.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from llmlab.adapters.beginning import Pairs, VirtualAdapter, VirtualPart, sizes, turned
from llmlab.adapters.part import AdapterPart, Draw, normal, uniform
from llmlab.model.attention import Cache
from llmlab.model.transformer import Architecture, Transformer


class Prefix(VirtualAdapter):
    """Trained keys and values before every text (Li & Liang 2021, arXiv 2101.00190)."""

    kind: Literal["prefix"] = "prefix"
    tokens: int = Field(20, gt=0, description="virtual tokens")
    hidden: int | None = Field(
        None, gt=0, description="inner width of the network that makes them in training; null: trained as they are"
    )
    initial_std: float = Field(0.02, gt=0, description="standard deviation of the initial vectors")

    def saved(self) -> AdapterPart:
        return self.model_copy(update={"hidden": None})

    def part(self, model: Transformer, draw: Draw) -> VirtualPart:
        return PrefixPart(model.architecture, self, draw)


class PrefixPart(VirtualPart):
    """The trained part: `vectors` [P, 2 L G K], or `E`, `A`, `a`, `C`, `c`. A token's numbers are, layer by layer, its
    key and its value, head by head: as peft's."""

    def __init__(self, architecture: Architecture, section: Prefix, draw: Draw) -> None:
        super().__init__()
        self.section: Prefix = section
        self.L, self.G, self.K = sizes(architecture)
        width = self.G * self.K
        if section.hidden is None:
            self.vectors = nn.Parameter(torch.empty(section.tokens, 2 * self.L * width))
            normal(self.vectors, section.initial_std, draw("vectors"))
            return
        self.E = nn.Parameter(torch.empty(section.tokens, width))
        self.A, self.a = nn.Parameter(torch.empty(section.hidden, width)), nn.Parameter(torch.zeros(section.hidden))
        self.C = nn.Parameter(torch.empty(2 * self.L * width, section.hidden))
        self.c = nn.Parameter(torch.zeros(2 * self.L * width))
        normal(self.E, 1.0, draw("E"))
        uniform(self.A, 1 / math.sqrt(width), draw("A"))
        uniform(self.C, section.initial_std * math.sqrt(3 / section.hidden), draw("C"))

    def flat(self) -> Tensor:
        """[P, 2 L G K]."""
        if self.section.hidden is None:
            return self.vectors
        return F.linear(torch.tanh(F.linear(self.E, self.A, self.a)), self.C, self.c)

    def pairs(self, model: Transformer, before: Cache | None) -> Pairs:
        both = self.flat().view(self.section.tokens, self.L, 2, self.G, self.K).permute(2, 1, 3, 0, 4)
        return list(zip(turned(both[0], model), both[1].unsqueeze(1), strict=True))
