"""Feed-forward parts: the same small network at every position, plain or gated.

plain   FFN(x) = W_down act(W_up x)                    two matrices
gated   FFN(x) = W_down (act(W_gate x) * W_up x)       three matrices (Shazeer 2020, arXiv 2002.05202)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from llmlab.model.linear import Linear, Role
from llmlab.recipe import KINDS, Section

Activation = Callable[[Tensor], Tensor]


class _Part(Section, ABC):
    width: int | None = Field(
        None, gt=0, description="hidden width; null: 4 dim plain, 8/3 dim gated (two-thirds rule)"
    )
    bias: bool = Field(False, description="whether the linears have biases")

    @abstractmethod
    def activation(self) -> Activation: ...

    @abstractmethod
    def build(self, dim: int) -> nn.Module: ...

    @abstractmethod
    def hidden_width(self, dim: int) -> int: ...


class _Plain(_Part):
    def hidden_width(self, dim: int) -> int:
        return self.width or 4 * dim

    def build(self, dim: int) -> nn.Module:
        return FeedForward(dim, self.hidden_width(dim), self.bias, self.activation())


class _Gated(_Part):
    def hidden_width(self, dim: int) -> int:
        # Two thirds of the plain width keep the parameters equal; a multiple of 32 keeps every kernel usable.
        return self.width or max(32, round(8 * dim / 3 / 32) * 32)

    def build(self, dim: int) -> nn.Module:
        return GatedFeedForward(dim, self.hidden_width(dim), self.bias, self.activation())


class FeedForward(nn.Module):
    def __init__(self, dim: int, width: int, bias: bool, activation: Activation) -> None:
        super().__init__()
        self.up = Linear(dim, width, bias)
        self.down = Linear(width, dim, bias)
        self.activation = activation

    def forward(self, x_BTD: Tensor, role: Role = None) -> Tensor:
        hidden: Tensor = self.down(self.activation(self.up(x_BTD, role)), role)
        return hidden


class GatedFeedForward(nn.Module):
    def __init__(self, dim: int, width: int, bias: bool, activation: Activation) -> None:
        super().__init__()
        self.gate = Linear(dim, width, bias)
        self.up = Linear(dim, width, bias)
        self.down = Linear(width, dim, bias)
        self.activation = activation

    def forward(self, x_BTD: Tensor, role: Role = None) -> Tensor:
        hidden: Tensor = self.down(self.activation(self.gate(x_BTD, role)) * self.up(x_BTD, role), role)
        return hidden


def gelu(x: Tensor) -> Tensor:
    """x Phi(x) = x/2 (1 + erf(x / sqrt 2)) (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""
    return F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): the approximation of GPT-2 and T5 v1.1."""
    return F.gelu(x, approximate="tanh")


class SwishFunction(nn.Module):
    """x sigmoid(beta x) (Ramachandran, Zoph & Le 2017, arXiv 1710.05941). beta 1 is SiLU; a learnt one starts so."""

    def __init__(self, beta: float, learnt: bool = False) -> None:
        super().__init__()
        self.start = beta
        self.beta = nn.Parameter(torch.tensor([beta])) if learnt else beta

    def initialise(self) -> None:
        if isinstance(self.beta, nn.Parameter):
            nn.init.constant_(self.beta, self.start)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.beta, float) and self.beta == 1:
            return F.silu(x)
        return x * torch.sigmoid(self.beta * x)


class ReLU(_Plain):
    """max(0, x) (Vaswani et al. 2017's feed-forward)."""

    kind: Literal["relu"] = "relu"

    def activation(self) -> Activation:
        return F.relu


class GELU(_Plain):
    """Exact GELU, by erf (Hendrycks & Gimpel 2016, arXiv 1606.08415; BERT)."""

    kind: Literal["gelu"] = "gelu"

    def activation(self) -> Activation:
        return gelu


class GELUTanh(_Plain):
    """GELU by its tanh approximation (GPT-2)."""

    kind: Literal["gelu_tanh"] = "gelu_tanh"

    def activation(self) -> Activation:
        return gelu_tanh


class Swish(_Plain):
    """x sigmoid(beta x) (Ramachandran et al. 2017, arXiv 1710.05941)."""

    kind: Literal["swish"] = "swish"
    beta: float = Field(1.0, ge=0, description="0 is x/2, 1 is SiLU, towards infinity ReLU")
    learnt: bool = Field(False, description="whether beta is trained, one a layer")

    def activation(self) -> Activation:
        return SwishFunction(self.beta, self.learnt)


class GLU(_Gated):
    """Gate by sigmoid (Dauphin et al. 2017, arXiv 1612.08083)."""

    kind: Literal["glu"] = "glu"

    def activation(self) -> Activation:
        return torch.sigmoid


class Bilinear(_Gated):
    """Gate without an activation (Mnih & Hinton 2007; Shazeer 2020)."""

    kind: Literal["bilinear"] = "bilinear"

    def activation(self) -> Activation:
        return nn.Identity()


class ReGLU(_Gated):
    """Gate by ReLU (Shazeer 2020)."""

    kind: Literal["reglu"] = "reglu"

    def activation(self) -> Activation:
        return F.relu


class GEGLU(_Gated):
    """Gate by GELU (Shazeer 2020; T5 v1.1 and Gemma take the tanh form)."""

    kind: Literal["geglu"] = "geglu"
    tanh: bool = Field(False, description="the tanh approximation in place of erf")

    def activation(self) -> Activation:
        return gelu_tanh if self.tanh else gelu


class SwiGLU(_Gated):
    """Gate by Swish (Shazeer 2020; PaLM, LLaMA with beta 1)."""

    kind: Literal["swiglu"] = "swiglu"
    beta: float = Field(1.0, ge=0, description="1 in every released model")
    learnt: bool = Field(False, description="whether beta is trained, one a layer")

    def activation(self) -> Activation:
        return SwishFunction(self.beta, self.learnt)


FeedForwardPart = Annotated[
    ReLU | GELU | GELUTanh | Swish | GLU | Bilinear | ReGLU | GEGLU | SwiGLU,
    *KINDS,
]

Plain = ReLU | GELU | GELUTanh | Swish
