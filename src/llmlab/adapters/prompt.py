"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691) and P-tuning (Liu et al. 2021, arXiv 2103.10385): trained
embeddings before every text.

Prompt tuning trains them as they are. P-tuning trains a small network that makes them, so that they move together:

    vectors = relu(relu(E A^T + a) C^T + c) H^T + h          E [P, D], A [hidden, D], C [hidden, hidden], H [D, hidden]

The network is for training alone: a folder holds the embeddings that it comes to. A fresh prompt is not nothing: it is
text that the model reads. P virtual tokens, D the width of the embedding.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from llmlab.adapters.beginning import Pairs, VirtualAdapter, VirtualPart, row_of
from llmlab.adapters.part import AdapterPart, Draw, normal, uniform
from llmlab.errors import InputError
from llmlab.model.attention import Cache
from llmlab.model.rotary import LogN
from llmlab.model.transformer import Architecture, Transformer, positions_of


class _Prompt(VirtualAdapter):
    tokens: int = Field(20, gt=0, description="virtual tokens")

    def check(self, architecture: Architecture) -> None:
        super().check(architecture)
        if not architecture.mask.one_way:
            problem = f"under the {architecture.mask.kind} mask they would see the text"
            raise InputError(f"adapter {self.kind}", problem, "prefix can, whose keys depend on nothing")
        if any(isinstance(getattr(position, "scaling", None), LogN) for position in positions_of(architecture)):
            raise InputError(f"adapter {self.kind}", "logn has no measure before the text begins", "prefix can")


class Prompt(_Prompt):
    """Trained embeddings before every text (Lester et al. 2021, arXiv 2104.08691)."""

    kind: Literal["prompt"] = "prompt"
    start: Literal["vocabulary", "normal"] = Field(
        "vocabulary", description="initial vectors: embeddings of tokens drawn at random, or normal ones of their size"
    )

    def part(self, model: Transformer, draw: Draw) -> VirtualPart:
        return PromptPart(model, self, draw)


class PTuning(_Prompt):
    """Embeddings before every text, made by a trained network (Liu et al. 2021, arXiv 2103.10385)."""

    kind: Literal["ptuning"] = "ptuning"
    hidden: int = Field(128, gt=0, description="inner width of the network")

    def saved(self) -> AdapterPart:
        return Prompt(tokens=self.tokens)

    def part(self, model: Transformer, draw: Draw) -> VirtualPart:
        return EncodedPromptPart(model.architecture.dim, self, draw)


class PromptPart(VirtualPart):
    """The trained part: `vectors` [P, D]."""

    def __init__(self, model: Transformer, section: Prompt, draw: Draw) -> None:
        super().__init__()
        self.section: Prompt = section
        self.vectors = nn.Parameter(torch.empty(section.tokens, model.architecture.dim))
        if self.vectors.is_meta:
            return
        ids = torch.randint(model.vocab_size, (section.tokens,), generator=draw("ids"))
        with torch.no_grad():
            words = model.embedding(ids.to(next(model.parameters()).device)) * model.architecture.embedding.scale
            words = model.project(words).float().cpu()
            if section.start == "vocabulary":
                self.vectors.copy_(words)
            else:
                normal(self.vectors, float(words.std()), draw("vectors"))

    def flat(self) -> Tensor:
        """[P, D]."""
        return self.vectors

    def pairs(self, model: Transformer, before: Cache | None) -> Pairs:
        return row_of(self.flat(), model, before)


class EncodedPromptPart(VirtualPart):
    """The trained part: `E`, `A`, `a`, `C`, `c`, `H`, `h`."""

    def __init__(self, dim: int, section: PTuning, draw: Draw) -> None:
        super().__init__()
        self.section: PTuning = section
        self.E = nn.Parameter(torch.empty(section.tokens, dim))
        normal(self.E, 1.0, draw("E"))
        widths = (dim, section.hidden, section.hidden, dim)
        names = (("A", "a"), ("C", "c"), ("H", "h"))
        for (weight, bias), inputs, outputs in zip(names, widths[:-1], widths[1:], strict=True):
            self.register_parameter(weight, nn.Parameter(torch.empty(outputs, inputs)))
            self.register_parameter(bias, nn.Parameter(torch.zeros(outputs)))
            uniform(self.get_parameter(weight), 1 / math.sqrt(inputs), draw(weight))

    def flat(self) -> Tensor:
        """[P, D]."""
        inner = F.relu(F.linear(self.E, self.get_parameter("A"), self.get_parameter("a")))
        inner = F.relu(F.linear(inner, self.get_parameter("C"), self.get_parameter("c")))
        return F.linear(inner, self.get_parameter("H"), self.get_parameter("h"))

    def pairs(self, model: Transformer, before: Cache | None) -> Pairs:
        return row_of(self.flat(), model, before)
