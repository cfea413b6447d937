"""Positions as distances: Shaw's vectors, Transformer-XL's projected sinusoids, T5's buckets, ALiBi's slopes.

B rows, T queries, S keys, H heads, K head width, N distances told apart.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from llmlab.model.encoding import Encoding, PositionPart, Shape
from llmlab.model.linear import Linear
from llmlab.model.places import Places


def distances(at_q: Places, at_k: Places) -> Tensor:
    """int64 [B or 1, T, S]: how far each key lies before each query; of one row where all rows stand alike."""
    q_BT, k_BS = at_q.position, at_k.position
    if q_BT.stride(0) == 0 and k_BS.stride(0) == 0:
        q_BT, k_BS = q_BT[:1], k_BS[:1]
    return q_BT[:, :, None] - k_BS[:, None, :]


# ---------------------------------------------------------------- ALiBi


class Alibi(PositionPart):
    """A penalty that grows with distance, one slope a head (Press, Smith & Lewis 2021, arXiv 2108.12409)."""

    kind: Literal["alibi"] = "alibi"
    crosses: ClassVar[bool] = False  # two texts have no distance from one another

    def build(self, shape: Shape) -> Encoding:
        return AlibiEncoding(shape.heads)


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

    def prepare(self, at_q: Places, at_k: Places) -> Tensor:
        return distances(at_q, at_k)

    def bias(self, prepared: Tensor) -> Tensor:
        """The penalty by distance on either side: the paper's where no token sees what comes after it."""
        return -prepared.abs().float()[:, None] * self.slopes(prepared.device)[:, None, None]


# ---------------------------------------------------------------- T5


class T5Bias(PositionPart):
    """A learnt scalar a head for each bucket of distances, one table a stack (Raffel et al. 2020, arXiv 1910.10683)."""

    kind: Literal["t5"] = "t5"
    buckets: int = Field(32, ge=4, multiple_of=2, description="distances told apart; half of them exactly")
    furthest: int = Field(128, gt=1, description="distance from which all are alike, in tokens")

    def build(self, shape: Shape) -> Encoding:
        return T5Encoding(self, shape)


class T5Encoding(Encoding):
    def __init__(self, part: T5Bias, shape: Shape) -> None:
        super().__init__()
        self.part, self.one_way = part, shape.one_way
        self.weight = nn.Parameter(torch.zeros(part.buckets, shape.heads))

    def bucket(self, distance: Tensor) -> Tensor:
        """int64: small distances have a bucket each, larger ones share by their logarithm. Where a token sees what
        comes after it, the second half of the buckets is for that side."""
        buckets, offset = self.part.buckets, torch.zeros_like(distance)
        if not self.one_way:
            buckets //= 2
            offset = (distance < 0) * buckets
            distance = distance.abs()
        distance = distance.clamp(min=0)
        exact = buckets // 2
        far = exact + (
            (distance.clamp(min=1).float() / exact).log() / math.log(self.part.furthest / exact) * (buckets - exact)
        ).to(torch.int64)
        return offset + torch.where(distance < exact, distance, far.clamp(max=buckets - 1))

    def prepare(self, at_q: Places, at_k: Places) -> Tensor:
        return self.bucket(distances(at_q, at_k))

    def bias(self, prepared: Tensor) -> Tensor:
        return F.embedding(prepared, self.weight).permute(0, 3, 1, 2)


# ---------------------------------------------------------------- Shaw


class Shaw(PositionPart):
    """A learnt vector for each clipped distance, added to keys and to values (Shaw et al. 2018, arXiv 1803.02155).

    The vectors are shared by the heads of a layer, and each layer has its own, as in the paper.
    """

    kind: Literal["shaw"] = "shaw"
    clip: int = Field(16, gt=0, description="distance from which all are alike, in tokens")

    def build(self, shape: Shape) -> Encoding:
        return ShawEncoding(self.clip, shape)


class ShawEncoding(Encoding):
    content = True

    def __init__(self, clip: int, shape: Shape) -> None:
        super().__init__()
        self.clip = clip
        self.tables = nn.ModuleList(ShawTable(2 * clip + 1, shape.head_dim) for _ in range(shape.layers))

    def table(self, layer: int) -> ShawTable:
        found = self.tables[layer]
        assert isinstance(found, ShawTable)
        return found

    def prepare(self, at_q: Places, at_k: Places) -> Tensor:
        """The row of the tables, int64 [B or 1, 1, T, S]."""
        return (distances(at_q, at_k).clamp(-self.clip, self.clip) + self.clip)[:, None]

    def scores(self, layer: int, q_BHTK: Tensor, k_BHSK: Tensor, prepared: Tensor) -> Tensor:
        by_row = q_BHTK @ self.table(layer).key.T.to(q_BHTK.dtype)  # [B, H, T, N]
        return by_row.gather(-1, prepared.expand(*by_row.shape[:3], -1))

    def values(self, layer: int, weights_BHTS: Tensor, v_BHSK: Tensor, prepared: Tensor) -> Tensor:
        table = self.table(layer).value
        by_row = weights_BHTS.new_zeros(*weights_BHTS.shape[:3], len(table))
        by_row = by_row.scatter_add(-1, prepared.expand_as(weights_BHTS), weights_BHTS)
        return by_row @ table.to(by_row.dtype)


class ShawTable(nn.Module):
    def __init__(self, rows: int, head_dim: int) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.zeros(rows, head_dim))
        self.value = nn.Parameter(torch.zeros(rows, head_dim))


# ---------------------------------------------------------------- Transformer-XL


class XL(PositionPart):
    """Scores (q + u) k + (q + v) W r: r is the sinusoid of the distance, u and v are learnt (Dai et al. 2019,
    Transformer-XL, arXiv 1901.02860). `segments` adds XLNet's score for two tokens of one text (arXiv 1906.08237)."""

    kind: Literal["xl"] = "xl"
    base: float = Field(10_000.0, gt=1, description="longest wavelength / 2 pi")
    segments: bool = Field(False, description="whether texts of a pair are told apart by a learnt score")
    furthest: int | None = Field(None, gt=0, description="distance from which all are alike, in tokens; null: none")

    def build(self, shape: Shape) -> Encoding:
        return XLEncoding(self, shape)


class Distances(NamedTuple):
    """What distances there are, N of them from `lowest` up, and which one each pair has, [B or 1, 1, T, S]."""

    waves_ND: Tensor
    which: Tensor
    same_segment: Tensor | None


class XLEncoding(Encoding):
    content = True

    def __init__(self, part: XL, shape: Shape) -> None:
        super().__init__()
        self.part, self.dim = part, shape.dim
        self.tables = nn.ModuleList(XLTable(shape, part.segments) for _ in range(shape.layers))

    def prepare(self, at_q: Places, at_k: Places) -> Distances:
        away = distances(at_q, at_k)
        if self.part.furthest is not None:
            away = away.clamp(-self.part.furthest, self.part.furthest)
        lowest, highest = int(away.min()), int(away.max())
        told = torch.arange(lowest, highest + 1, device=away.device)
        half = torch.arange(0, self.dim, 2, device=away.device).float() / self.dim
        angle = told[:, None].float() / self.part.base**half
        waves = torch.cat([angle.sin(), angle.cos()], -1)[:, : self.dim]  # all sines, then all cosines, as released
        same = None
        if self.part.segments and at_q.segment is not None:  # without a pair of texts the score does not exist
            same = (at_q.segments[:, :, None] == at_k.segments[:, None, :])[:, None]
        return Distances(waves, (away - lowest)[:, None], same)

    def scores(self, layer: int, q_BHTK: Tensor, k_BHSK: Tensor, prepared: Distances) -> Tensor:
        table, (B, H, _, K) = self.tables[layer], q_BHTK.shape
        assert isinstance(table, XLTable)
        r_HNK: Tensor = table.distance(prepared.waves_ND.to(q_BHTK.dtype)).view(-1, H, K).transpose(0, 1)
        by_distance = (q_BHTK + table.distance_bias[:, None].to(q_BHTK.dtype)) @ r_HNK.transpose(1, 2)
        total: Tensor = by_distance.gather(-1, prepared.which.expand(B, H, -1, -1))
        # u k is the same for every query; q k itself is attention's own.
        total = total + (table.content_bias[:, None].to(k_BHSK.dtype) @ k_BHSK.transpose(2, 3))
        if prepared.same_segment is not None:
            told: Tensor = (q_BHTK + table.segment_bias[:, None]) @ table.segment.permute(1, 2, 0)  # [B, H, T, 2]
            total = total + torch.where(prepared.same_segment, told[..., :1], told[..., 1:])
        return total


class XLTable(nn.Module):
    """One layer's: u (`content_bias`), v (`distance_bias`) [H, K], W (`distance`), and for pairs of texts a bias and
    two vectors a head (same, other)."""

    def __init__(self, shape: Shape, segments: bool) -> None:
        super().__init__()
        H, K = shape.heads, shape.head_dim
        self.distance = Linear(shape.dim, H * K, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(H, K))
        self.distance_bias = nn.Parameter(torch.zeros(H, K))
        if segments:
            self.segment_bias = nn.Parameter(torch.zeros(H, K))
            self.segment = nn.Parameter(torch.zeros(2, H, K))
