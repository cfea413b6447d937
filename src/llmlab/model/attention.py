"""Attention: multi-head, grouped-query and multi-query, all of one module that differs in key/value heads; and linear.

B rows, T queries, S keys, D width, H heads, G key/value heads, K head width, C tokens a chunk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.model.encoding import Encoding
from llmlab.model.linear import Linear, Role
from llmlab.model.norms import LayerNorm, RMSNorm
from llmlab.model.places import Places
from llmlab.recipe import Section


class Cache(Protocol):
    """What earlier tokens left behind; `inference/cache.py` has the ones that ship."""

    def extend(self, at: Places) -> Places:
        """Called once a forward pass with the places of the new tokens; answers the places of all keys."""

    def update(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of a layer; answer all of them, [B, G, S, K]."""

    def recall(self, layer: int) -> tuple[Tensor, ...] | None:
        """The state that a layer without keys left, rows first; None before the first call."""

    def remember(self, layer: int, state: tuple[Tensor, ...]) -> None:
        """Keep that state."""


@dataclass(frozen=True)
class Numbered:
    """A run of the keys' columns that share one numbering, and where the new tokens and these keys stand in it."""

    columns: slice
    queries: Places
    keys: Places


@runtime_checkable
class Renumbering(Protocol):
    """A cache that numbers tokens anew as the text goes on, and forgets: of what it answers a token sees the `window`
    newest, itself included, and the first `sinks`. It holds keys before they are turned; they are turned in every pass.
    """

    window: int
    sinks: int

    def numbered(self, at: Places, keys: Places) -> list[Numbered]:
        """The columns of all `keys`, which `extend` answered, in runs from the first to the last."""


@dataclass(frozen=True)
class Told:
    """What an encoding made of a `Numbered` run: for its queries, and for its keys where they are yet to be turned."""

    columns: slice
    queries: Any
    keys: Any = None


@dataclass(frozen=True)
class Sight:
    """What the layers of one forward pass share: where the new tokens stand, what they see, and how they are told.

    `mask` is bool or additive float, [B, 1 or H, T, S]; `prepared` is what the encoding made of the places. Where a
    cache numbers tokens anew, `runs` has that for each of its runs of columns.
    """

    at: Places
    position: Encoding
    prepared: Any
    mask: Tensor
    cache: Cache | None = None
    role: Role = None
    strict: bool = False  # whether a token may see nothing at all, not even itself
    runs: tuple[Told, ...] = ()
    kept: dict[str, Any] = field(default_factory=dict)  # what a layer found out that the next need not

    @property
    def told(self) -> tuple[Told, ...]:
        """All columns in runs: one where nothing was numbered anew."""
        return self.runs or (Told(slice(None), self.prepared),)


class Mixer(nn.Module, ABC):
    """What stands in a block's first half and carries information between tokens: [B, T, D] -> [B, T, D]."""

    @abstractmethod
    def forward(self, x_BTD: Tensor, sight: Sight, layer: int) -> Tensor: ...


class Held(NamedTuple):
    """Numbers that a layer leaves in a cache, for one text: so many heads of so wide a key and value for each token, or
    a state of so many numbers, whatever the length."""

    heads: int = 0
    width: int = 0
    state: int = 0


class MixerPart(Section, ABC):
    """The settings of a mixer. What it cannot go with is declared here and refused by name."""

    @property
    @abstractmethod
    def scores(self) -> bool:
        """Whether each query has a score for each key, so that any mask and any encoding will do."""

    @abstractmethod
    def width(self, dim: int) -> int:
        """The width K of a head; an impossible shape is an `InputError`."""

    @abstractmethod
    def held(self, dim: int) -> Held:
        """What a cache holds of it."""

    @abstractmethod
    def build(self, dim: int, norm: LayerNorm | RMSNorm) -> Mixer: ...


class _Part(MixerPart, ABC):
    heads: int = Field(4, gt=0, description="query heads")
    head_dim: int | None = Field(None, gt=0, description="width of a head; null: dim / heads")
    window: int | None = Field(None, gt=0, description="how many tokens back a query sees, itself included; null: all")
    sinks: int = Field(0, ge=0, description="first tokens that are seen from outside the window too (StreamingLLM)")
    bias: bool = Field(False, description="whether the linears of queries, keys and values have biases")
    output_bias: bool | None = Field(None, description="whether the output has one; null: as the others")
    norm: bool = Field(False, description="whether each head's queries and keys are normalised (QK-norm)")
    scale: float | None = Field(None, gt=0, description="what scores are multiplied by; null: 1 / sqrt(head_dim)")

    @property
    @abstractmethod
    def key_heads(self) -> int: ...

    @property
    def scores(self) -> bool:
        return True

    def width(self, dim: int) -> int:
        if self.head_dim is None and dim % self.heads:
            near = min((h for h in range(1, 4096) if dim % h == 0), key=lambda h: abs(h - self.heads))
            raise InputError("model.attention.heads", f"{self.heads} heads do not divide dim {dim}", f"{near} would")
        if self.heads % self.key_heads:
            raise InputError("model.attention.kv_heads", f"{self.key_heads} does not divide {self.heads} heads")
        return self.head_dim or dim // self.heads

    def held(self, dim: int) -> Held:
        return Held(heads=self.key_heads, width=self.width(dim))

    @property
    def biased_output(self) -> bool:
        return self.bias if self.output_bias is None else self.output_bias

    def build(self, dim: int, norm: LayerNorm | RMSNorm) -> Attention:
        return Attention(self, dim, norm)


class MultiHead(_Part):
    """As many key/value heads as queries (Vaswani et al. 2017, arXiv 1706.03762)."""

    kind: Literal["mha"] = "mha"

    @property
    def key_heads(self) -> int:
        return self.heads


class GroupedQuery(_Part):
    """Groups of queries share a key/value head (Ainslie et al. 2023, arXiv 2305.13245)."""

    kind: Literal["gqa"] = "gqa"
    kv_heads: int = Field(2, gt=0, description="key/value heads; divides heads")

    @property
    def key_heads(self) -> int:
        return self.kv_heads


class MultiQuery(_Part):
    """All queries share one key/value head (Shazeer 2019, arXiv 1911.02150)."""

    kind: Literal["mqa"] = "mqa"

    @property
    def key_heads(self) -> int:
        return 1


class Attention(Mixer):
    """softmax(q k^T scale + mask) v, then the output projection.

    `keys` and `attend` are its two halves: cross-attention and a second stream bring queries of their own.
    """

    def __init__(self, part: _Part, dim: int, norm: LayerNorm | RMSNorm) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_dim = part.heads, part.key_heads, part.width(dim)
        self.scale = self.head_dim**-0.5 if part.scale is None else part.scale
        self.query = Linear(dim, self.heads * self.head_dim, part.bias)
        self.key = Linear(dim, self.key_heads * self.head_dim, part.bias)
        self.value = Linear(dim, self.key_heads * self.head_dim, part.bias)
        self.output = Linear(self.heads * self.head_dim, dim, part.biased_output)
        self.query_norm = norm.build(self.head_dim) if part.norm else None
        self.key_norm = norm.build(self.head_dim) if part.norm else None

    def forward(self, x_BTD: Tensor, sight: Sight, layer: int) -> Tensor:
        return self.attend(x_BTD, *self.keys(x_BTD, sight, layer), sight, layer)

    def keys(self, x_BTD: Tensor, sight: Sight, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the new tokens after those of the cache, [B, G, S, K]."""
        k_BGTK = self._heads(self.key(x_BTD, sight.role), self.key_heads)
        v_BGTK = self._heads(self.value(x_BTD, sight.role), self.key_heads)
        if self.key_norm is not None:
            k_BGTK = self.key_norm(k_BGTK)
        if not sight.runs or sight.cache is None:
            k_BGTK = sight.position.key(k_BGTK, sight.prepared)
            return (k_BGTK, v_BGTK) if sight.cache is None else sight.cache.update(layer, k_BGTK, v_BGTK)
        k_BGSK, v_BGSK = sight.cache.update(layer, k_BGTK, v_BGTK)
        if sight.position.turns:
            turned = [sight.position.key(k_BGSK[:, :, run.columns], run.keys) for run in sight.runs]
            k_BGSK = turned[0] if len(turned) == 1 else torch.cat(turned, 2)
        return k_BGSK, v_BGSK

    def attend(self, x_BTD: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, sight: Sight, layer: int) -> Tensor:
        """What the queries of `x_BTD` take from these keys and values, [B, T, D]."""
        q_BHTK = self._heads(self.query(x_BTD, sight.role), self.heads)
        if self.query_norm is not None:
            q_BHTK = self.query_norm(q_BHTK)
        mask = sight.mask.to(q_BHTK.dtype) if sight.mask.is_floating_point() else sight.mask
        if sight.position.content or sight.strict or len(sight.told) > 1:
            mixed_BHTK = self._shown(q_BHTK, k_BGSK, v_BGSK, mask, sight, layer)
        else:
            q_BHTK = sight.position.query(q_BHTK, sight.told[0].queries)
            mixed_BHTK = F.scaled_dot_product_attention(
                q_BHTK, k_BGSK, v_BGSK, mask, scale=self.scale, enable_gqa=self.key_heads != self.heads
            )
        y: Tensor = self.output(mixed_BHTK.transpose(1, 2).flatten(2), sight.role)
        return y

    def _shown(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Tensor, sight: Sight, layer: int) -> Tensor:
        """The same with the weights in the open: for encodings that look at queries, keys or weights, and for keys in
        several runs, each of which has the queries turned its own way. A token that sees nothing takes nothing."""
        if self.key_heads != self.heads:
            k_BGSK, v_BGSK = (x.repeat_interleave(self.heads // self.key_heads, 1) for x in (k_BGSK, v_BGSK))
        position = sight.position
        by_run = []
        for run in sight.told:
            turned_BHTK, k_BHSK = position.query(q_BHTK, run.queries), k_BGSK[:, :, run.columns]
            scores = turned_BHTK @ k_BHSK.transpose(2, 3)
            by_place = position.scores(layer, turned_BHTK, k_BHSK, run.queries)
            by_run.append(scores if by_place is None else scores + by_place)
        scores = torch.cat(by_run, -1) * self.scale
        if mask.is_floating_point():
            scores, mask = scores + mask, mask > float("-inf")
        # The lowest finite number and not -inf: a row that sees nothing must have a gradient of zero, not NaN.
        scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
        scores = scores.masked_fill(~mask, torch.finfo(torch.float32).min)
        weights = scores.softmax(-1).masked_fill(~mask, 0.0).to(v_BGSK.dtype)
        mixed = weights @ v_BGSK
        for run in sight.told:
            columns = run.columns
            extra = position.values(layer, weights[..., columns], v_BGSK[:, :, columns], run.queries)
            mixed = mixed if extra is None else mixed + extra
        return mixed

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, self.head_dim).transpose(1, 2)


# ---------------------------------------------------------------- linear


class LinearAttention(MixerPart):
    """phi(q) (phi(k)^T v) / phi(q) sum phi(k), phi = elu + 1: time linear in the length, a state that does not grow
    (Katharopoulos et al. 2020, arXiv 2006.16236). It sees all that came before and nothing else: no window, no prefix.
    """

    kind: Literal["linear"] = "linear"
    heads: int = Field(4, gt=0, description="heads")
    chunk: int = Field(64, gt=0, description="tokens that are multiplied at once; changes time and memory only")

    @property
    def scores(self) -> bool:
        return False

    def width(self, dim: int) -> int:
        return MultiHead(heads=self.heads).width(dim)

    def held(self, dim: int) -> Held:
        width = self.width(dim)
        return Held(state=self.heads * width * (width + 1))

    def build(self, dim: int, norm: LayerNorm | RMSNorm) -> ChunkedLinearAttention:
        return ChunkedLinearAttention(dim, self.heads, self.width(dim), self.chunk)


class ChunkedLinearAttention(Mixer):
    """Inside a chunk as masked products, between chunks through the state: the sum of phi(k) v^T and of phi(k) over
    the document at hand. Its state in a cache is (that sum [B, H, K, K + 1], the document [B])."""

    def __init__(self, dim: int, heads: int, head_dim: int, chunk: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.chunk = heads, head_dim, chunk
        self.query, self.key, self.value, self.output = (Linear(dim, heads * head_dim, False) for _ in range(4))

    def forward(self, x_BTD: Tensor, sight: Sight, layer: int) -> Tensor:
        document_BT = in_order(sight.at, "linear attention")
        q, k, v = (part(x_BTD, sight.role) for part in (self.query, self.key, self.value))
        q, k, v = (y.view(*y.shape[:2], self.heads, self.head_dim).transpose(1, 2) for y in (q, k, v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)  # the last column adds up the denominator
        held = None if sight.cache is None else sight.cache.recall(layer)
        if held is None:
            held = k.new_zeros(*k.shape[:2], self.head_dim, self.head_dim + 1), document_BT.new_full((len(k),), -1)
        state_BHKK, last_B = held
        mixed = []
        for start in range(0, x_BTD.shape[1], self.chunk):
            cut = slice(start, start + self.chunk)
            q_C, k_C, v_C, document_BC = q[:, :, cut], k[:, :, cut], v[:, :, cut], document_BT[:, cut]
            same_BCC = (document_BC[:, :, None] == document_BC[:, None, :]).tril()
            old_BC1 = (document_BC == last_B[:, None])[:, None, :, None]
            mixed.append((q_C @ k_C.mT * same_BCC[:, None]) @ v_C + (q_C @ state_BHKK) * old_BC1)
            # From here on the state is of the last real token's document: what came of others is forgotten.
            newest_B = torch.where(document_BC >= 0, torch.arange(document_BC.shape[1], device=q.device), -1).amax(1)
            now_B = torch.where(newest_B >= 0, document_BC.gather(1, newest_B.clamp(min=0)[:, None])[:, 0], last_B)
            own_B1C1 = (document_BC == now_B[:, None])[:, None, :, None] & (document_BC >= 0)[:, None, :, None]
            state_BHKK = state_BHKK * (now_B == last_B)[:, None, None, None] + (k_C * own_B1C1).mT @ v_C
            last_B = now_B
        if sight.cache is not None:
            sight.cache.remember(layer, (state_BHKK, last_B))
        whole = torch.cat(mixed, 2)
        mixed_BHTK = whole[..., :-1] / whole[..., -1:].clamp(min=1e-6)
        y: Tensor = self.output(mixed_BHTK.transpose(1, 2).flatten(2), sight.role)
        return y


def in_order(at: Places, name: str) -> Tensor:
    """The documents [B, T] of places in which every token sees what came before it in its row, and nothing else."""
    follows = (at.order[:, 1:] > at.order[:, :-1]) | (at.document[:, 1:] != at.document[:, :-1])
    if not bool((follows | (at.document[:, 1:] < 0)).all()):
        raise InputError("model.attention", f"{name} sees what came before and nothing else", "use mha, gqa or mqa")
    return at.document
