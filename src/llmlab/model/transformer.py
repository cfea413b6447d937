"""The model: embeddings, blocks, a final norm, a head, and an encoder where there is one. Every part is named in
`Architecture`; the model knows no family."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.model.attention import Cache, GroupedQuery, Numbered, Renumbering, Sight, Told
from llmlab.model.block import Block, DeepNorm, Memory, Pre, Wiring, deepnorm, norms_of
from llmlab.model.embedding import Embedding
from llmlab.model.encoding import Encoding, PositionPart, Shape
from llmlab.model.feedforward import FeedForwardPart, SwiGLU
from llmlab.model.heads import Head, NoHead, PlainHead, PooledHead, Transform, TransformedHead
from llmlab.model.initial import initialise
from llmlab.model.linear import Linear, Role
from llmlab.model.masks import Causal, Mask
from llmlab.model.mixers import AttentionPart, SoftmaxAttention
from llmlab.model.norms import Norm, RMSNorm
from llmlab.model.places import Places
from llmlab.model.positions import Position
from llmlab.model.rotary import Rope
from llmlab.recipe import Section


class Local(Section):
    """Layers that see a window and may have positions of their own, among layers that see all (Gemma 3)."""

    layers: tuple[int, ...] = Field(description="which layers, from 0")
    window: int = Field(gt=0, description="how many tokens back they see, the token itself included")
    position: Position | None = Field(None, description="their position encoding; null: the model's")


class Architecture(Section):
    """A model from named parts. The vocabulary is the tokenizer's and not written here."""

    layers: int = Field(4, gt=0, description="blocks")
    dim: int = Field(256, gt=0, description="width of the residual stream")
    context: int = Field(256, gt=0, description="longest text that the model is trained for, in tokens")
    mask: Mask = Field(Causal(), description="who sees whom")
    embedding: Embedding = Field(Embedding(), description="what surrounds the table of the vocabulary")
    position: Position = Field(Rope(), description="how a token's place is told")
    norm: Norm = Field(RMSNorm(), description="normalisation of each token")
    attention: AttentionPart = Field(GroupedQuery(), description="how tokens look at each other")
    feedforward: FeedForwardPart = Field(SwiGLU(), description="the network at each position")
    wiring: Wiring = Field(Pre(), description="where the norms stand, and what they are added to")
    local: Local | None = Field(None, description="layers that see a window only")
    shared: bool = Field(False, description="whether all layers are one block, used again and again (ALBERT)")
    streams: Literal[1, 2] = Field(1, description="2: a query stream beside the content's, for permutations (XLNet)")
    encoder_layers: int = Field(0, ge=0, description="blocks of an encoder that the model looks at (T5); 0: none")
    start_id: int | None = Field(
        None, ge=0, description="the token that a decoder with an encoder begins its answer with (T5: 0, padding)"
    )
    head: Head = Field(PlainHead(), description="what is read off the last hidden states")
    pooled: int | None = Field(
        None,
        ge=0,
        description="classes read off the first token (BERT's next sentence: 2); 0: a pooler without; null: none",
    )
    tied: bool = Field(
        True, description="whether the head is the embedding matrix (Press & Wolf 2017, arXiv 1608.05859)"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of activations dropped in training")
    initial_std: float | None = Field(
        0.02, gt=0, description="standard deviation of the initial matrices; null: Glorot's sqrt(2 / (in + out))"
    )

    @model_validator(mode="after")
    def _possible(self) -> Architecture:
        try:
            _check(self)
            with torch.device("meta"):
                for position in positions_of(self):
                    position.build(self.shape(context=1))
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def keyed(self) -> SoftmaxAttention:
        """The attention, where it is one with queries and keys; others are refused."""
        if not isinstance(self.attention, SoftmaxAttention):
            raise InputError("model.attention", f"{self.attention.kind} has no keys", "mha, gqa and mqa have")
        return self.attention

    def shape(self, encoder: bool = False, context: int | None = None) -> Shape:
        """What positions need to know of the stack. Those that are added to embeddings are as wide as the table."""
        return Shape(
            dim=self.dim if self.position.in_attention else self.embedding.dim or self.dim,
            heads=self.attention.heads,
            head_dim=self.attention.width(self.dim),
            context=context or self.context,
            layers=self.encoder_layers if encoder else self.layers,
            one_way=isinstance(self.mask, Causal) and not encoder,
        )

    def build(self, vocab_size: int, seed: int = 0) -> Transformer:
        """The model with initial weights of this seed, float32 on the CPU."""
        with torch.device("meta"):
            model = Transformer(self, vocab_size)
        model = model.to_empty(device="cpu")
        betas = {}
        if isinstance(self.wiring, DeepNorm):
            for stack, encoder in (("encoder.", True), ("blocks.", False)):
                betas[stack] = self.wiring.beta or deepnorm(self.layers, self.encoder_layers, encoder)[1]
        initialise(model, seed, self.initial_std, self.layers, betas)
        return model


def positions_of(a: Architecture) -> list[PositionPart]:
    """The model's position encoding, and the local layers' own."""
    return [a.position, *([a.local.position] if a.local and a.local.position else [])]


def _check(a: Architecture) -> None:
    """Parts that cannot go with one another, each by name."""
    a.attention.width(a.dim)
    for position in positions_of(a):
        if position.in_attention and not a.attention.scores:
            problem = f"{position.kind} acts on scores, which {a.attention.kind} has none of"
            raise InputError("model.position", problem, "use none, sinusoidal or learned")
        if a.encoder_layers and not position.crosses:
            problem = f"{position.kind} cannot go with an encoder: its distances mean nothing in cross-attention"
            raise InputError("model.position", problem, "use t5, shaw or sinusoidal")
    if not a.attention.scores:
        if not isinstance(a.mask, Causal):
            problem = f"{a.mask.kind} cannot go with {a.attention.kind}, which sees what came before and nothing else"
            raise InputError("model.mask", problem, "use causal")
        if a.local is not None or a.encoder_layers:
            field = "local" if a.local is not None else "encoder_layers"
            raise InputError(f"model.{field}", f"cannot go with {a.attention.kind}", "use mha, gqa or mqa")
    if a.local is not None and a.local.position is not None and not a.local.position.in_attention:
        problem = f"{a.local.position.kind} is added to embeddings, which all layers share"
        raise InputError("model.local.position", problem, "use one that acts on scores, as rope")
    if a.local is not None and (wrong := [layer for layer in a.local.layers if not 0 <= layer < a.layers]):
        raise InputError("model.local.layers", f"{wrong[0]} is no layer", f"0 to {a.layers - 1} are")
    if a.streams == 2 and not a.attention.scores:
        raise InputError("model.streams", f"a second stream cannot go with {a.attention.kind}", "use mha, gqa or mqa")
    if a.wiring.kind == "parallel" and a.encoder_layers:
        raise InputError("model.wiring", "parallel cannot go with an encoder", "use pre or post")
    if a.embedding.dim and isinstance(a.head, PlainHead) and a.tied:
        problem = f"a table {a.embedding.dim} wide cannot be the head of states {a.dim} wide"
        raise InputError("model.embedding.dim", problem, "use head transformed, or tied false")
    if isinstance(a.head, NoHead) and not a.tied:
        raise InputError("model.tied", "false needs a head", "head none has no matrix of its own")


class Encoder(nn.Module):
    """The encoder's positions, blocks and last norm, kept beside the model's own."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.position = a.position.build(a.shape(encoder=True))
        self.blocks = blocks(a, encoder=True)
        self.final_norm = final_norm(a)


def blocks(a: Architecture, encoder: bool = False) -> nn.ModuleList:
    """The blocks of one stack; one and the same where they are shared."""
    layers = a.encoder_layers if encoder else a.layers
    cross = bool(a.encoder_layers) and not encoder
    alpha = 1.0
    if isinstance(a.wiring, DeepNorm):
        alpha = a.wiring.alpha or deepnorm(a.layers, a.encoder_layers, encoder)[0]
    return nn.ModuleList(
        Block(
            a.attention.build(a.dim, a.norm),
            a.feedforward.build(a.dim),
            a.wiring,
            [a.norm.build(a.dim) for _ in range(norms_of(a.wiring, cross))],
            a.dropout,
            alpha,
            a.keyed.build(a.dim, a.norm) if cross else None,
        )
        for _ in range(1 if a.shared else layers)
    )


def final_norm(a: Architecture) -> nn.Module:
    """Post and deepnorm end each block with a norm already; one more would be the identity up to its gain."""
    return nn.Identity() if a.wiring.kind in ("post", "deepnorm") else a.norm.build(a.dim)


class Transformer(nn.Module):
    """`forward(ids, at) -> logits`; `hidden` and `logits` are its two halves, for losses that need few positions."""

    def __init__(self, architecture: Architecture, vocab_size: int) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.vocab_size = vocab_size
        table = a.embedding.dim or a.dim
        self.embedding = nn.Embedding(vocab_size, table, _weight=torch.empty(vocab_size, table))
        shape = a.shape()
        self.position = a.position.build(shape)
        self.local_position = a.local.position.build(shape) if a.local and a.local.position else None
        self.segment = nn.Parameter(torch.empty(a.embedding.segments, table)) if a.embedding.segments else None
        self.embedding_norm = a.norm.build(table) if a.embedding.norm else nn.Identity()
        self.project = Linear(table, a.dim) if a.embedding.dim else nn.Identity()
        self.dropout = nn.Dropout(a.dropout)
        self.blocks = blocks(a)
        self.final_norm = final_norm(a)
        self.encoder = Encoder(a) if a.encoder_layers else None
        self.transform: nn.Module = nn.Identity()
        if isinstance(a.head, TransformedHead):
            self.transform = Transform(Linear(a.dim, table), a.head.activation, a.norm.build(table))
        biased = not isinstance(a.head, NoHead) and a.head.bias
        self.head = (
            None if a.tied else Linear(table if isinstance(a.head, TransformedHead) else a.dim, vocab_size, False)
        )
        self.head_bias = nn.Parameter(torch.empty(vocab_size)) if biased else None
        self.pooler = None if a.pooled is None else PooledHead(a.dim, a.pooled)
        self.query_start = nn.Parameter(torch.empty(1, table)) if a.streams == 2 else None
        self.beginning: nn.Module | None = None  # what every text is to begin with; put there from outside

    # ------------------------------------------------------------ ids to hidden states

    def hidden(
        self,
        ids_BT: Tensor,
        at: Places,
        cache: Cache | None = None,
        role: Role = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """[B, T, D] after the final norm. With an encoder, `memory` is what `encode` answered."""
        if self.beginning is not None:
            cache = self.beginning(self, cache, role, len(ids_BT))
        normed: Tensor = self.final_norm(self.through(self._embedded(ids_BT, at), at, cache, role, memory))
        return normed

    def through(
        self,
        x_BTD: Tensor,
        at: Places,
        cache: Cache | None = None,
        role: Role = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]: all blocks, before the final norm."""
        keys = at if cache is None else cache.extend(at)
        sights = self._sights(at, keys, cache, role)
        if memory is not None:
            seen = at.shares_document(memory.sight.at)[:, None]
            memory = replace(memory, sight=Sight(memory.sight.at, Encoding(), None, seen, None, role))
        for layer in range(self.architecture.layers):
            x_BTD = self.blocks[layer % len(self.blocks)](x_BTD, sights[self._is_local(layer)], layer, memory)
        return x_BTD

    def position_of(self, layer: int) -> Encoding:
        """The position encoding of a layer."""
        own = self.local_position if self._is_local(layer) else None
        return self.position if own is None else own

    def encode(self, ids_BS: Tensor, at: Places, role: Role = None, keep: bool = False) -> Memory:
        """The encoder's output for texts at these places, each token seeing all of its document. `keep` lets their
        keys and values be computed once, for a text that is generated token by token."""
        if self.encoder is None:
            raise InputError("model.encoder_layers", "this model has no encoder", "call it with ids alone")
        at, stack = at.bidirectional(), self.encoder
        seen = sight(stack.position, at, at, None, 0, None, role)
        x_BSD = self._embedded(ids_BS, at, stack.position)
        for layer in range(self.architecture.encoder_layers):
            x_BSD = stack.blocks[layer % len(stack.blocks)](x_BSD, seen, layer)
        return Memory(self.dropout(stack.final_norm(x_BSD)), seen, {} if keep else None)

    def queries(self, ids_BT: Tensor, at: Places, cache: Cache | None = None) -> Tensor:
        """[B, T, D] of the query stream: what can be said of each token from those before it in `at.order`, itself not
        seen (Yang et al. 2019, XLNet, arXiv 1906.08237)."""
        if self.query_start is None:
            raise InputError("model.streams", "this model has one stream", "a query stream needs model.streams=2")
        h_BTD = self._embedded(ids_BT, at)
        start = self.query_start.expand(*ids_BT.shape, -1)
        g_BTD = self.dropout(self.project(self.position.embed(start, at)))
        keys = at if cache is None else cache.extend(at)
        sights = self._sights(at, keys, cache, None)
        strict = self._sights(at, keys, cache, None, strict=True)
        for layer in range(self.architecture.layers):
            block, local = self.blocks[layer % len(self.blocks)], self._is_local(layer)
            assert isinstance(block, Block)
            h_BTD, g_BTD = block.streams(h_BTD, g_BTD, sights[local], strict[local], layer)
        normed: Tensor = self.final_norm(g_BTD)
        return normed

    def _embedded(self, ids_BT: Tensor, at: Places, position: Encoding | None = None) -> Tensor:
        """table -> scale -> + position, + segment -> norm -> dropout -> projection: [B, T, D]."""
        x_BTE = self.embedding(ids_BT)
        if (scale := self.architecture.embedding.scale) != 1:
            x_BTE = x_BTE * torch.tensor(scale, dtype=x_BTE.dtype, device=x_BTE.device)
        x_BTE = (position or self.position).embed(x_BTE, at)
        if self.segment is not None:
            x_BTE = x_BTE + F.embedding(at.segments, self.segment)
        y: Tensor = self.project(self.dropout(self.embedding_norm(x_BTE)))
        return y

    def _is_local(self, layer: int) -> bool:
        local = self.architecture.local
        return local is not None and layer in local.layers

    def _sights(
        self, at: Places, keys: Places, cache: Cache | None, role: Role, strict: bool = False
    ) -> dict[bool, Sight]:
        """What layers see: {False: the model's own rule, True: the local layers', where there are any}."""
        a = self.architecture
        window, sinks = None, 0
        if isinstance(a.attention, SoftmaxAttention):
            window, sinks = a.attention.window, a.attention.sinks
        sights = {False: sight(self.position, at, keys, window, sinks, cache, role, strict)}
        if a.local is not None:
            position = self.local_position or self.position
            sights[True] = sight(position, at, keys, a.local.window, 0, cache, role, strict)
        return sights

    def prompted(self, ids_BT: Tensor) -> Tensor:
        """The same ids, with the tokens put in that the model asks for where no places are given."""
        return self.architecture.mask.prompted(ids_BT)

    # ------------------------------------------------------------ hidden states to logits

    @property
    def projection(self) -> Tensor | None:
        """The matrix [V, D] where logits are a product with it and nothing else."""
        plain = isinstance(self.architecture.head, PlainHead) and self.architecture.head.scale == 1
        if not plain or self.head_bias is not None:
            return None
        table = self.embedding if self.head is None else self.head
        weight: Tensor | None = table.weight if type(table) in (nn.Embedding, Linear) else None
        return weight

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        if isinstance(self.architecture.head, NoHead):
            raise InputError("model.head", "this model has no head, so no logits", "its hidden states are its output")
        if isinstance(self.architecture.head, PlainHead) and self.architecture.head.scale != 1:
            hidden = hidden * self.architecture.head.scale
        hidden = self.transform(hidden)
        out: Tensor = F.linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)
        return out if self.head_bias is None else out + self.head_bias

    def forward(
        self,
        ids_BT: Tensor,
        at: Places | None = None,
        cache: Cache | None = None,
        role: Role = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """[B, T, V]. Without places: rows without padding, seen as the architecture's mask has it."""
        if at is None:
            at = self.architecture.mask.places(ids_BT)
        return self.logits(self.hidden(ids_BT, at, cache, role, memory))


def sight(
    position: Encoding,
    at: Places,
    keys: Places,
    window: int | None,
    sinks: int,
    cache: Cache | None,
    role: Role,
    strict: bool = False,
) -> Sight:
    """What one kind of layer sees in a forward pass."""
    mask = at.sees(keys, window, sinks, strict)[:, None]
    if isinstance(cache, Renumbering):
        mask = mask & at.sees(keys, cache.window, cache.sinks)[:, None]
        runs = tuple(_told(position, run) for run in cache.numbered(at, keys))
        prepared, biases = None, [position.bias(run.queries) for run in runs]
    else:
        prepared, runs = position.prepare(at, keys), ()
        biases = [position.bias(prepared)]
    if there := [bias for bias in biases if bias is not None]:
        mask = torch.cat(there, -1).masked_fill(~mask, float("-inf"))
    return Sight(at, position, prepared, mask, cache, role, strict, runs)


def _told(position: Encoding, run: Numbered) -> Told:
    keys = position.prepare(run.keys, run.keys) if position.turns else None
    return Told(run.columns, position.prepare(run.queries, run.keys), keys)
