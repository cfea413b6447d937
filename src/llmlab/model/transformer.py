"""The decoder: embeddings, blocks, a final norm, a head. One screen; every part is named in `Architecture`."""

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.model.attention import AttentionPart, Cache, GroupedQuery
from llmlab.model.block import Block, Wiring
from llmlab.model.feedforward import FeedForwardPart, SwiGLU
from llmlab.model.initial import initialise
from llmlab.model.linear import Linear, Role
from llmlab.model.norms import Norm, RMSNorm
from llmlab.model.places import Places
from llmlab.model.positions import Position, Rope
from llmlab.recipe import Section


class Architecture(Section):
    """A decoder from named parts. The vocabulary is the tokenizer's and not written here."""

    layers: int = Field(4, gt=0, description="blocks")
    dim: int = Field(256, gt=0, description="width of the residual stream")
    context: int = Field(256, gt=0, description="longest text that the model is trained for, in tokens")
    position: Position = Field(Rope(), description="how a token's place is told")
    norm: Norm = Field(RMSNorm(), description="normalisation of each token")
    attention: AttentionPart = Field(GroupedQuery(), description="how tokens look at each other")
    feedforward: FeedForwardPart = Field(SwiGLU(), description="the network at each position")
    wiring: Wiring = Field("pre", description="where the norms stand: before each part, or after each sum")
    tied: bool = Field(
        True, description="whether the head is the embedding matrix (Press & Wolf 2017, arXiv 1608.05859)"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of activations dropped in training")
    initial_std: float = Field(0.02, gt=0, description="standard deviation of the initial matrices")

    @model_validator(mode="after")
    def _possible(self) -> "Architecture":
        try:
            width = self.attention.width(self.dim)
            with torch.device("meta"):
                self.position.build(self.dim, self.attention.heads, width, 1)
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    def build(self, vocab_size: int, seed: int = 0) -> "Transformer":
        """The model with initial weights of this seed, float32 on the CPU."""
        with torch.device("meta"):
            model = Transformer(self, vocab_size)
        model = model.to_empty(device="cpu")
        initialise(model, seed, self.initial_std, self.layers)
        return model


class Transformer(nn.Module):
    """`forward(ids, at) -> logits`; `hidden` and `logits` are its two halves, for losses that need few positions."""

    def __init__(self, architecture: Architecture, vocab_size: int) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.vocab_size = vocab_size
        head_dim = a.attention.width(a.dim)
        self.embedding = nn.Embedding(vocab_size, a.dim, _weight=torch.empty(vocab_size, a.dim))
        self.position = a.position.build(a.dim, a.attention.heads, head_dim, a.context)
        self.dropout = nn.Dropout(a.dropout)
        self.blocks = nn.ModuleList(
            Block(
                a.attention.build(a.dim),
                a.feedforward.build(a.dim),
                (a.norm.build(a.dim), a.norm.build(a.dim)),
                a.wiring,
                a.dropout,
            )
            for _ in range(a.layers)
        )
        # Post-wiring ends each block with a norm already; one more would be the identity up to its gain.
        self.final_norm = a.norm.build(a.dim) if a.wiring == "pre" else nn.Identity()
        self.head = None if a.tied else Linear(a.dim, vocab_size, bias=False)

    def hidden(self, ids_BT: Tensor, at: Places, cache: Cache | None = None, role: Role = None) -> Tensor:
        """[B, T, D] after the final norm."""
        keys = at if cache is None else cache.extend(at)
        mask = at.sees(keys, self.architecture.attention.window)[:, None]
        bias = self.position.bias(at, keys)
        if bias is not None:
            mask = bias.masked_fill(~mask, float("-inf"))
        prepared: Any = self.position.prepare(at)
        x_BTD = self.dropout(self.position.embed(self.embedding(ids_BT), at))
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, self.position, prepared, mask, layer, cache, role)
        normed: Tensor = self.final_norm(x_BTD)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        if self.head is None:
            return F.linear(hidden, self.embedding.weight)
        out: Tensor = self.head(hidden)
        return out

    def forward(
        self, ids_BT: Tensor, at: Places | None = None, cache: Cache | None = None, role: Role = None
    ) -> Tensor:
        """[B, T, V]. Without places: one causal document a row."""
        if at is None:
            rows, length = ids_BT.shape
            at = Places.causal(rows, length, ids_BT.device)
        return self.logits(self.hidden(ids_BT, at, cache, role))
