"""Rotary positions and their scalings: pairs of a head's coordinates turn by an angle that grows with the position.

B rows, T tokens, H heads, K head width, P turned pairs.
"""

from __future__ import annotations

import math
from abc import ABC
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from llmlab.errors import InputError
from llmlab.model.encoding import Encoding, PositionPart, Shape
from llmlab.model.places import Places
from llmlab.recipe import KINDS, Section

# ---------------------------------------------------------------- scalings


class _Scaling(Section, ABC):
    """How angles change so that a model reads past the length it was trained for."""

    def frequencies(self, pairs: int, base: float) -> Tensor:
        """float32 [P]: radians a position."""
        return _plain(pairs, base)

    def factor(self) -> float:
        """What queries and keys are both multiplied by."""
        return 1.0


class NoScaling(_Scaling):
    """Angles as they are."""

    kind: Literal["none"] = "none"


class Linear(_Scaling):
    """Positions divided by the factor: position interpolation (Chen et al. 2023, arXiv 2306.15595)."""

    kind: Literal["linear"] = "linear"
    by: float = Field(2.0, ge=1, description="how many times longer than trained")

    def frequencies(self, pairs: int, base: float) -> Tensor:
        return _plain(pairs, base) / self.by


class NTK(_Scaling):
    """A larger base, base by^(K/(K-2)), so that slow pairs stretch and fast ones hardly do (bloc97 2023)."""

    kind: Literal["ntk"] = "ntk"
    by: float = Field(2.0, ge=1, description="how many times longer than trained")

    def frequencies(self, pairs: int, base: float) -> Tensor:
        return _plain(pairs, ntk_base(base, pairs, self.by))


class DynamicNTK(_Scaling):
    """NTK whose factor follows the text: by L'/L - (by - 1) once a text of L' tokens is longer than L.

    Every angle changes with the length, so what a cache holds goes stale: past `trained` a cache is refused.
    """

    kind: Literal["dynamic"] = "dynamic"
    by: float = Field(2.0, ge=1, description="grows the base by this much per trained length")
    trained: int = Field(gt=0, description="the length L up to which nothing changes, in tokens")


class YaRN(_Scaling):
    """Slow pairs interpolated, fast ones kept, a ramp between, and a temperature (Peng et al. 2023, arXiv 2309.00071).

    A pair is fast that turns more than `fast` times within the trained length, slow below `slow` turns.
    """

    kind: Literal["yarn"] = "yarn"
    by: float = Field(2.0, ge=1, description="how many times longer than trained")
    trained: int = Field(gt=0, description="trained length in tokens")
    fast: float = Field(32.0, gt=0, description="turns within the trained length above which a pair is kept")
    slow: float = Field(1.0, gt=0, description="turns below which a pair is interpolated")
    attention: float | None = Field(None, gt=0, description="factor of queries and keys; null: 0.1 ln(by) + 1")
    whole: bool = Field(True, description="whether the ramp begins and ends at whole pairs, as released models have it")

    def frequencies(self, pairs: int, base: float) -> Tensor:
        def pair(turns: float) -> float:
            return pairs * math.log(self.trained / (turns * 2 * math.pi)) / math.log(base)

        low, high = pair(self.fast), pair(self.slow)
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        ramp = ((torch.arange(pairs).float() - low) / (high - low if high > low else 0.001)).clamp(0, 1)
        plain = _plain(pairs, base)
        return plain / self.by * ramp + plain * (1 - ramp)

    def factor(self) -> float:
        if self.attention is not None:
            return self.attention
        return 1.0 if self.by <= 1 else 0.1 * math.log(self.by) + 1


class Llama3(_Scaling):
    """Pairs slower than the trained length interpolated, fast ones kept, smooth between (LLaMA 3.1's released code)."""

    kind: Literal["llama3"] = "llama3"
    by: float = Field(8.0, ge=1, description="how many times longer than trained")
    trained: int = Field(8192, gt=0, description="trained length in tokens")
    low: float = Field(1.0, gt=0, description="turns within the trained length below which a pair is interpolated")
    high: float = Field(4.0, gt=0, description="turns above which a pair is kept")

    def frequencies(self, pairs: int, base: float) -> Tensor:
        plain = _plain(pairs, base)
        turns = self.trained * plain / (2 * math.pi)
        smooth = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return plain / self.by * (1 - smooth) + plain * smooth


class LogN(_Scaling):
    """Angles as they are; queries grow with the log of their position past the trained length, which keeps the entropy
    of attention (Su 2021; Chiang & Cholak 2022, arXiv 2202.12172)."""

    kind: Literal["logn"] = "logn"
    trained: int = Field(gt=1, description="trained length in tokens")


class Float16(_Scaling):
    """Frequencies as float16 holds them: ChatGLM-6B was trained so, and its released code rounds in any precision."""

    kind: Literal["float16"] = "float16"

    def frequencies(self, pairs: int, base: float) -> Tensor:
        return _plain(pairs, base).half().float()


Scaling = Annotated[NoScaling | Linear | NTK | DynamicNTK | YaRN | Llama3 | LogN | Float16, *KINDS]


def _plain(pairs: int, base: float) -> Tensor:
    """base^(-i / P) for the pairs i."""
    return 1.0 / base ** (torch.arange(0, 2 * pairs, 2).float() / (2 * pairs))


def ntk_base(base: float, pairs: int, by: float) -> float:
    if pairs < 2:
        raise InputError("model.position.scaling", "ntk changes nothing for a single pair", "use linear")
    return float(base * by ** (pairs / (pairs - 1)))


# ---------------------------------------------------------------- parts


class _Rotary(PositionPart, ABC):
    base: float = Field(10_000.0, gt=1, description="longest wavelength / 2 pi")
    fraction: float = Field(1.0, gt=0, le=1, description="share of a head's width that is turned")
    axes: Literal[1, 2] = Field(1, description="2: one half of the head turns by each of two positions (ChatGLM-6B)")
    scaling: Scaling = Field(NoScaling(), description="how angles change for texts longer than trained")

    def turned(self, head_dim: int) -> int:
        """How many coordinates of a head turn, for each axis."""
        width = int(head_dim * self.fraction) // self.axes
        if width % 2 or not width or head_dim % self.axes:
            problem = f"turns {width} of a head's {head_dim} coordinates" + (" an axis" if self.axes > 1 else "")
            raise InputError("model.position", problem, "rotary positions turn pairs: an even number, 2 or more")
        return width


class Rope(_Rotary):
    """Rotary positions, halves of a head paired (Su et al. 2021, arXiv 2104.09864; as GPT-NeoX and Hugging Face)."""

    kind: Literal["rope"] = "rope"

    def build(self, shape: Shape) -> Encoding:
        return RotaryEncoding(self.turned(shape.head_dim), self)


class RopeInterleaved(_Rotary):
    """Rotary positions, neighbours paired (the paper's own layout; LLaMA's released code and GGUF files)."""

    kind: Literal["rope_interleaved"] = "rope_interleaved"

    def build(self, shape: Shape) -> Encoding:
        return InterleavedRotaryEncoding(self.turned(shape.head_dim), self)


class Turn(NamedTuple):
    """Cosine and sine [B, 1, T, axes, P or 2P] of the new tokens, and what their queries are multiplied by besides."""

    cos: Tensor
    sin: Tensor
    query: Tensor | None


class RotaryEncoding(Encoding):
    """Turns the pair (i, i + P) by position * frequency_i, axis by axis; what lies beyond passes through."""

    turns = True

    def __init__(self, turned: int, part: _Rotary) -> None:
        super().__init__()
        self.turned, self.part = turned, part

    def prepare(self, at_q: Places, at_k: Places) -> Turn:
        scaling, position = self.part.scaling, at_q.position
        if position.ndim == 2:
            position = position[..., None]
        if position.shape[-1] != self.part.axes:
            raise InputError("positions", f"count {position.shape[-1]} axes", f"this model turns {self.part.axes}")
        if isinstance(scaling, DynamicNTK):
            frequencies = self._dynamic(scaling, at_q, at_k)[:, :, None]  # [B, T, 1, P]
        else:
            frequencies = scaling.frequencies(self.turned // 2, self.part.base).to(position.device)
        angle = self._spread(position[..., None].float() * frequencies)[:, None]
        grown = None
        if isinstance(scaling, LogN):
            length = at_q.length.view(position.shape)[:, None, :, :1].float()
            grown = (length.log() / math.log(scaling.trained)).clamp(min=1)
        return Turn(angle.cos() * scaling.factor(), angle.sin() * scaling.factor(), grown)

    def _dynamic(self, scaling: DynamicNTK, at_q: Places, at_k: Places) -> Tensor:
        """[B, T, P]: each document's frequencies by its own length."""
        same = at_q.shares_document(at_k)
        length = torch.where(same, at_k.length[:, None, :], 0).amax(-1)  # [B, T]
        if at_k.order.shape[1] > at_q.order.shape[1] and int(length.max()) > scaling.trained:
            problem = f"dynamic turns every key anew past {scaling.trained} tokens, so a cache would be stale there"
            raise InputError("model.position.scaling", problem, "use yarn or ntk, or no cache")
        by = (scaling.by * length / scaling.trained - (scaling.by - 1)).clamp(min=1.0)
        pairs = self.turned // 2
        if pairs < 2:
            raise InputError("model.position.scaling", "dynamic changes nothing for a single pair", "use linear")
        base = self.part.base * by ** (pairs / (pairs - 1))
        exponent = torch.arange(0, self.turned, 2, device=base.device).float() / self.turned
        return 1.0 / base[..., None] ** exponent

    def query(self, q_BHTK: Tensor, prepared: Turn) -> Tensor:
        turned = self.key(q_BHTK, prepared)
        return turned if prepared.query is None else turned * prepared.query.to(turned.dtype)

    def key(self, k_BGTK: Tensor, prepared: Turn) -> Tensor:
        cos, sin = prepared.cos.to(k_BGTK.dtype), prepared.sin.to(k_BGTK.dtype)
        width = self.turned * self.part.axes
        if width == k_BGTK.shape[-1] and self.part.axes == 1:
            return self._turn(k_BGTK, cos[..., 0, :], sin[..., 0, :])
        pieces = torch.split(k_BGTK[..., :width], self.turned, -1)
        done = [self._turn(piece, cos[..., axis, :], sin[..., axis, :]) for axis, piece in enumerate(pieces)]
        return torch.cat([*done, k_BGTK[..., width:]], -1)

    def _spread(self, angle: Tensor) -> Tensor:
        return torch.cat([angle, angle], -1)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin


class InterleavedRotaryEncoding(RotaryEncoding):
    """Turns the pair (2i, 2i + 1) by position * frequency_i."""

    def _spread(self, angle: Tensor) -> Tensor:
        return angle

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def angles(position_BT: Tensor, dim: int, base: float) -> Tensor:
    """[B, T, dim / 2] in float32: position * base^(-2i / dim)."""
    return position_BT[..., None].float() * _plain(dim // 2, base).to(position_BT.device)
