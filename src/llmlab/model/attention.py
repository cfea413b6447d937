"""Attention: multi-head, grouped-query and multi-query, all of one module that differs in key/value heads.

B rows, T queries, S keys, D width, H heads, G key/value heads, K head width.
"""

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal, Protocol

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.model.linear import Linear, Role
from llmlab.model.places import Places
from llmlab.model.positions import Encoding
from llmlab.recipe import KINDS, Section


class Cache(Protocol):
    """Keys and values of earlier tokens; `inference/cache.py` has the ones that ship."""

    def extend(self, at: Places) -> Places:
        """Called once a forward pass with the places of the new tokens; answers the places of all keys."""

    def update(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of a layer; answer all of them, [B, G, S, K]."""


class _Part(Section, ABC):
    heads: int = Field(4, gt=0, description="query heads")
    head_dim: int | None = Field(None, gt=0, description="width of a head; null: dim / heads")
    window: int | None = Field(None, gt=0, description="how many tokens back a query sees, itself included; null: all")
    bias: bool = Field(False, description="whether the four linears have biases")

    @property
    @abstractmethod
    def key_heads(self) -> int: ...

    def width(self, dim: int) -> int:
        """The width K of a head; an impossible shape is an error."""
        if self.head_dim is None and dim % self.heads:
            near = min((h for h in range(1, 4096) if dim % h == 0), key=lambda h: abs(h - self.heads))
            raise InputError("model.attention.heads", f"{self.heads} heads do not divide dim {dim}", f"{near} would")
        if self.heads % self.key_heads:
            raise InputError("model.attention.kv_heads", f"{self.key_heads} does not divide {self.heads} heads")
        return self.head_dim or dim // self.heads

    def build(self, dim: int) -> "Attention":
        return Attention(dim, self.heads, self.key_heads, self.width(dim), self.bias)


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


class Attention(nn.Module):
    """softmax(q k^T / sqrt(K) + mask) v, then the output projection."""

    def __init__(self, dim: int, heads: int, key_heads: int, head_dim: int, bias: bool) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_dim = heads, key_heads, head_dim
        self.query = Linear(dim, heads * head_dim, bias)
        self.key = Linear(dim, key_heads * head_dim, bias)
        self.value = Linear(dim, key_heads * head_dim, bias)
        self.output = Linear(heads * head_dim, dim, bias)

    def forward(
        self,
        x_BTD: Tensor,
        position: Encoding,
        prepared: Any,
        mask: Tensor,
        layer: int,
        cache: Cache | None = None,
        role: Role = None,
    ) -> Tensor:
        """`mask` is bool or additive float, [B, 1 or H, T, S]."""
        B, T, _ = x_BTD.shape
        q_BHTK = self.query(x_BTD, role).view(B, T, self.heads, self.head_dim).transpose(1, 2)
        k_BGTK = self.key(x_BTD, role).view(B, T, self.key_heads, self.head_dim).transpose(1, 2)
        v_BGTK = self.value(x_BTD, role).view(B, T, self.key_heads, self.head_dim).transpose(1, 2)
        q_BHTK, k_BGTK = position.rotate(q_BHTK, prepared), position.rotate(k_BGTK, prepared)
        if cache is not None:
            k_BGTK, v_BGTK = cache.update(layer, k_BGTK, v_BGTK)
        if mask.is_floating_point():
            mask = mask.to(q_BHTK.dtype)
        mixed_BHTK = F.scaled_dot_product_attention(
            q_BHTK, k_BGTK, v_BGTK, attn_mask=mask, enable_gqa=self.key_heads != self.heads
        )
        y: Tensor = self.output(mixed_BHTK.transpose(1, 2).reshape(B, T, -1), role)
        return y


AttentionPart = Annotated[MultiHead | GroupedQuery | MultiQuery, *KINDS]
