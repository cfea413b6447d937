"""Position encodings: modules with hooks, each the identity unless used.

embed(x_BTD, at)          adds to the token embeddings
prepare(at)               what `rotate` needs, computed once a forward pass
rotate(x_BHTK, prepared)  turns queries and keys (keys are cached rotated)
bias(at_q, at_k)          [B or 1, H, T, S], added to the attention scores
"""

import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.model.places import Places
from llmlab.recipe import KINDS, Section


class Encoding(nn.Module):
    """No position information: every hook is the identity.

    A causal mask alone still tells order (Kazemnejad et al. 2023, arXiv 2305.19466).
    """

    def embed(self, x_BTD: Tensor, at: Places) -> Tensor:
        return x_BTD

    def prepare(self, at: Places) -> Any:
        return None

    def rotate(self, x_BHTK: Tensor, prepared: Any) -> Tensor:
        return x_BHTK

    def bias(self, at_q: Places, at_k: Places) -> Tensor | None:
        return None


class NoPosition(Section):
    """No position encoding: order comes from the causal mask alone (Haviv et al. 2022, arXiv 2203.16634)."""

    kind: Literal["none"] = "none"

    def build(self, dim: int, heads: int, head_dim: int, context: int) -> Encoding:
        return Encoding()


class Sinusoidal(Section):
    """Fixed sines and cosines added to the embeddings (Vaswani et al. 2017, arXiv 1706.03762, section 3.5)."""

    kind: Literal["sinusoidal"] = "sinusoidal"
    base: float = Field(10_000.0, gt=1, description="longest wavelength / 2 pi")

    def build(self, dim: int, heads: int, head_dim: int, context: int) -> Encoding:
        if dim % 2:
            raise InputError("model.dim", f"{dim} is odd", "sinusoidal positions need an even width")
        return SinusoidalEncoding(dim, self.base)


class SinusoidalEncoding(Encoding):
    def __init__(self, dim: int, base: float) -> None:
        super().__init__()
        self.dim, self.base = dim, base

    def embed(self, x_BTD: Tensor, at: Places) -> Tensor:
        angle = _angles(at.position, self.dim, self.base)
        waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)  # sine and cosine take turns, as printed
        return x_BTD + waves.to(x_BTD.dtype)


class Learned(Section):
    """One learnt vector a position, none beyond the context (Gehring et al. 2017; GPT-2)."""

    kind: Literal["learned"] = "learned"

    def build(self, dim: int, heads: int, head_dim: int, context: int) -> Encoding:
        return LearnedEncoding(dim, context)


class LearnedEncoding(Encoding):
    def __init__(self, dim: int, context: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(context, dim))

    def embed(self, x_BTD: Tensor, at: Places) -> Tensor:
        context = self.weight.shape[0]
        last = int(at.position.max())
        if last >= context:
            raise InputError(
                "position", f"{last} lies past the learnt table of {context}", "shorten the text to the context"
            )
        return x_BTD + F.embedding(at.position, self.weight)


class Rope(Section):
    """Rotary positions, halves of a head paired (Su et al. 2021, arXiv 2104.09864; as GPT-NeoX and Hugging Face)."""

    kind: Literal["rope"] = "rope"
    base: float = Field(10_000.0, gt=1, description="longest wavelength / 2 pi")

    def build(self, dim: int, heads: int, head_dim: int, context: int) -> Encoding:
        return RotaryEncoding(_even(head_dim), self.base)


class RopeInterleaved(Section):
    """Rotary positions, neighbours paired (the paper's own layout; LLaMA's released code and GGUF files)."""

    kind: Literal["rope_interleaved"] = "rope_interleaved"
    base: float = Field(10_000.0, gt=1, description="longest wavelength / 2 pi")

    def build(self, dim: int, heads: int, head_dim: int, context: int) -> Encoding:
        return InterleavedRotaryEncoding(_even(head_dim), self.base)


class RotaryEncoding(Encoding):
    """Turns the pair (i, i + K/2) by position * base^(-2i/K)."""

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        self.head_dim, self.base = head_dim, base

    def prepare(self, at: Places) -> tuple[Tensor, Tensor]:
        angle = _angles(at.position, self.head_dim, self.base)
        both = torch.cat([angle, angle], -1)[:, None]
        return both.cos(), both.sin()

    def rotate(self, x_BHTK: Tensor, prepared: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = (table.to(x_BHTK.dtype) for table in prepared)
        first, second = x_BHTK.chunk(2, -1)
        return x_BHTK * cos + torch.cat([-second, first], -1) * sin


class InterleavedRotaryEncoding(Encoding):
    """Turns the pair (2i, 2i + 1) by position * base^(-2i/K)."""

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        self.head_dim, self.base = head_dim, base

    def prepare(self, at: Places) -> tuple[Tensor, Tensor]:
        angle = _angles(at.position, self.head_dim, self.base)[:, None]
        return angle.cos(), angle.sin()

    def rotate(self, x_BHTK: Tensor, prepared: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = (table.to(x_BHTK.dtype) for table in prepared)
        even, odd = x_BHTK[..., 0::2], x_BHTK[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


class Alibi(Section):
    """A penalty that grows with distance, one slope a head (Press, Smith & Lewis 2021, arXiv 2108.12409)."""

    kind: Literal["alibi"] = "alibi"

    def build(self, dim: int, heads: int, head_dim: int, context: int) -> Encoding:
        return AlibiEncoding(heads)


class AlibiEncoding(Encoding):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def slopes(self, device: torch.device) -> Tensor:
        """The paper's geometric series; other than powers of two take every second slope of the next power."""
        whole = 2 ** math.floor(math.log2(self.heads))
        series = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
        series += [2 ** (-4 * (2 * i + 1) / whole) for i in range(self.heads - whole)]
        return torch.tensor(series, device=device)

    def bias(self, at_q: Places, at_k: Places) -> Tensor:
        distance = (at_q.position[:, :, None] - at_k.position[:, None, :]).float()
        return -distance[:, None] * self.slopes(distance.device)[:, None, None]


def _angles(position_BT: Tensor, dim: int, base: float) -> Tensor:
    """[B, T, dim / 2] in float32: position * base^(-2i / dim)."""
    exponent = torch.arange(0, dim, 2, device=position_BT.device).float() / dim
    return position_BT[..., None].float() * (1.0 / base**exponent)


def _even(head_dim: int) -> int:
    if head_dim % 2:
        raise InputError("model.attention", f"a head of width {head_dim} is odd", "rotary positions turn pairs")
    return head_dim


Position = Annotated[NoPosition | Sinusoidal | Learned | Rope | RopeInterleaved | Alibi, *KINDS]
