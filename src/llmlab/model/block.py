"""A block: attention and feed-forward, each with its norm, wired one way or another."""

from typing import Any, Literal

from torch import Tensor, nn

from llmlab.model.attention import Attention, Cache
from llmlab.model.linear import Role
from llmlab.model.positions import Encoding

# Where the norm stands: before each part (Xiong et al. 2020, arXiv 2002.04745) or after the sum (Vaswani et al. 2017).
Wiring = Literal["pre", "post"]


class Block(nn.Module):
    def __init__(
        self,
        attention: Attention,
        feedforward: nn.Module,
        norms: tuple[nn.Module, nn.Module],
        wiring: Wiring,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention_norm, self.feedforward_norm = norms
        self.attention = attention
        self.feedforward = feedforward
        self.dropout = nn.Dropout(dropout)
        self.wiring = wiring

    def forward(
        self,
        x: Tensor,
        position: Encoding,
        prepared: Any,
        mask: Tensor,
        layer: int,
        cache: Cache | None = None,
        role: Role = None,
    ) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""

        def attend(y: Tensor) -> Tensor:
            out: Tensor = self.dropout(self.attention(y, position, prepared, mask, layer, cache, role))
            return out

        def think(y: Tensor) -> Tensor:
            out: Tensor = self.dropout(self.feedforward(y, role))
            return out

        match self.wiring:
            case "pre":
                x = x + attend(self.attention_norm(x))
                x = x + think(self.feedforward_norm(x))
            case "post":
                x = self.attention_norm(x + attend(x))
                x = self.feedforward_norm(x + think(x))
        return x
