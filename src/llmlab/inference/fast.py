"""A model made ready for speed: packed weights, a pool of pages for keys and values, and the native step.

M rows of one call (tokens of any sequences), R rows that ask for logits, D width, V vocabulary, E head width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from llmlab.inference import native
from llmlab.inference.packing import GROUP, KINDS, TILE, Kind, fits, pack, unpacked
from llmlab.inference.pages import PAGE
from llmlab.inference.stepper import Piece
from llmlab.model.attention import Attention
from llmlab.model.block import Block, Pre
from llmlab.model.feedforward import GatedFeedForward, SwiGLU
from llmlab.model.heads import PlainHead
from llmlab.model.linear import Linear
from llmlab.model.masks import Causal
from llmlab.model.mixers import SoftmaxAttention
from llmlab.model.norms import RMSNorm, RootMeanSquare
from llmlab.model.places import Places
from llmlab.model.quantized import QuantizedLinear
from llmlab.model.rotary import NoScaling, Rope
from llmlab.model.transformer import Transformer


class _Matrix(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("outputs", "inputs", "kind")),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("attention_norm", ctypes.c_void_p),
        ("feedforward_norm", ctypes.c_void_p),
        *((name, _Matrix) for name in ("qkv", "output", "gate_up", "down")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in ("layers", "dim", "heads", "key_heads", "head_dim", "width", "vocabulary", "pages")
        ),
        *((name, ctypes.c_float) for name in ("eps", "scale")),
        *((name, ctypes.c_void_p) for name in ("cosine", "sine", "final_norm")),
        ("layer", ctypes.POINTER(_Layer)),
        *((name, _Matrix) for name in ("embedding", "head")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
    ]


def unfit(model: Transformer) -> str | None:
    """Why the native step cannot run this model, in a few words; None where it can."""
    a, attention, rope = model.architecture, model.architecture.attention, model.architecture.position
    if not isinstance(attention, SoftmaxAttention):
        return "its attention has no keys"
    if not isinstance(rope, Rope):
        return "its positions are no rope"
    wanted = [
        (isinstance(a.wiring, Pre), "its norms do not stand before the parts"),
        (isinstance(a.norm, RMSNorm) and a.norm.partial == 1 and not a.norm.offset, "its norm is no plain RMSNorm"),
        (rope.fraction == rope.axes == 1 and isinstance(rope.scaling, NoScaling), "its rope is partial or scaled"),
        (isinstance(a.mask, Causal), "its mask is not causal"),
        (attention.window is None and not attention.norm, "its attention has a window or QK-norm"),
        (isinstance(a.feedforward, SwiGLU) and a.feedforward.beta == 1 and not a.feedforward.learnt, "no SwiGLU"),
        (not a.feedforward.bias and not attention.biased_output, "its outputs have biases"),
        (isinstance(a.head, PlainHead) and a.head.scale == 1 and not a.head.bias, "its head is no plain matrix"),
        (a.embedding.scale == 1 and not a.embedding.norm and not a.embedding.dim, "its embedding is no plain table"),
        (not a.embedding.segments and a.local is None and not a.shared and a.streams == 1, "its layers differ"),
        (not a.encoder_layers, "it has an encoder"),
        (attention.width(a.dim) % GROUP == 0, f"its heads are no multiple of {GROUP} wide"),
        (model.vocab_size % TILE == 0, f"its vocabulary is no multiple of {TILE}"),
    ]
    for fine, reason in wanted:
        if not fine:
            return reason
    for name, module in [*model.blocks.named_modules(), ("head", model.head)]:
        if isinstance(module, nn.Linear) and not fits(*module.weight.shape):
            return f"{name} is no whole tiles of {TILE} x {GROUP}"
        if isinstance(module, (nn.Linear, QuantizedLinear)) and type(module) is not Linear:
            return f"{name} is a {type(module).__name__}"
    return None


class _Loses(Exception):
    """Packing would change a weight."""


def quickened(model: Transformer, weights: str) -> FastModel:
    """The model in packed weights of a kind, or `auto`: int4 where that changes no matrix of a block, and else bf16.
    The model itself is given the weights as packed, so that the plain path says what the native step approaches."""
    pages, cores = 2 * -(-model.architecture.context // PAGE), torch.get_num_threads()
    for kind in KINDS:
        if kind == weights:
            return FastModel(model, kind, pages, cores)
    try:
        return FastModel(model, "int4", pages, cores, exact=True)
    except _Loses:
        return FastModel(model, "bf16", pages, cores)


class FastModel:
    """A llama-like model in packed weights. `pages` bounds the tokens held at once, of all sequences, to 16 a page;
    their memory is taken when it is first written. `model` is given the weights as packed.

    Errors: ValueError for a model that is `unfit`; InputError for weights that are not finite or beyond the scales.
    """

    def __init__(self, model: Transformer, kind: Kind, pages: int, threads: int = 1, exact: bool = False) -> None:
        if (reason := unfit(model)) is not None:
            raise ValueError(reason)
        a = model.architecture
        self.architecture, self.vocab_size, self.kind, self.pages = a, model.vocab_size, kind, pages
        self._kept: list[Tensor] = []
        self._exact = exact
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        layers = (_Layer * len(blocks))(*(self._layer(block, kind) for block in blocks))
        self._exact = False
        # Four bits are too few for the table of the vocabulary, whose rows differ in size; llama.cpp's files agree.
        table: Kind = "bf16" if kind == "bf16" else "int8"
        embedding = self._packed([model.embedding], table)
        head = embedding if model.head is None else self._packed([model.head], table)
        heads, key_heads, width = a.keyed.heads, a.keyed.key_heads, a.attention.width(a.dim)
        prepared = model.position.prepare(Places.causal(1, a.context), Places.causal(1, a.context))
        cosine, sine = (self._floats(part[0, 0, :, 0, : width // 2]) for part in (prepared.cos, prepared.sin))
        shape = pages, a.layers, key_heads * width * PAGE
        # numpy asks for memory that the system fills with zeros page by page, torch writes them all at once
        self._keys, self._values = (np.zeros(shape, dtype=np.uint16) for _ in range(2))
        attention, feedforward, final = blocks[0].attention, blocks[0].feedforward, model.final_norm
        assert isinstance(attention, Attention)
        assert isinstance(feedforward, GatedFeedForward)
        assert isinstance(final, RootMeanSquare)
        self._model = _Model(
            a.layers, a.dim, heads, key_heads, width, feedforward.gate.out_features, self.vocab_size, pages,
            a.norm.eps, attention.scale, cosine, sine, self._floats(final.weight), layers,
            embedding, head, self._keys.ctypes.data, self._values.ctypes.data,
        )  # fmt: skip
        library = native.library()
        library.llmlab_open.restype = ctypes.c_void_p
        self._engine = ctypes.c_void_p(library.llmlab_open(ctypes.byref(self._model), threads))

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            native.library().llmlab_close(self._engine)

    def _layer(self, block: Block, kind: Kind) -> _Layer:
        attention, feedforward = block.attention, block.feedforward
        assert isinstance(attention, Attention)
        assert isinstance(feedforward, GatedFeedForward)
        projections = [attention.query, attention.key, attention.value]
        bias = None if attention.query.bias is None else torch.cat([p.bias for p in projections])
        first, second = block.attention_norm, block.feedforward_norm
        assert isinstance(first, RootMeanSquare)
        assert isinstance(second, RootMeanSquare)
        return _Layer(
            self._floats(first.weight),
            self._floats(second.weight),
            self._packed(projections, kind, bias),
            self._packed([attention.output], kind),
            self._packed([feedforward.gate, feedforward.up], kind),
            self._packed([feedforward.down], kind),
        )

    def _packed(self, parts: Sequence[nn.Linear | nn.Embedding], kind: Kind, bias: Tensor | None = None) -> _Matrix:
        """One matrix of several that read the same inputs; each part is left with the weights as packed."""
        packed = pack(torch.cat([part.weight.detach() for part in parts]), kind)
        self._kept.append(packed.data)
        pieces = torch.split(unpacked(packed), [len(part.weight) for part in parts])
        if self._exact and not all(torch.equal(p.weight, piece) for p, piece in zip(parts, pieces, strict=True)):
            raise _Loses
        for part, piece in zip(parts, pieces, strict=True):
            part.weight.data = piece.contiguous()
        at = None if bias is None else self._floats(bias)
        return _Matrix(packed.data.data_ptr(), at, packed.outputs, packed.inputs, KINDS.index(kind))

    def _floats(self, values: Tensor) -> int:
        self._kept.append(values.detach().float().contiguous().clone())
        return self._kept[-1].data_ptr()

    def step(self, pieces: Sequence[Piece], ask: Sequence[int]) -> Tensor:
        """float32 [R, V]: the logits after the tokens `ask`, counted through all pieces."""
        ids = [id for piece in pieces for id in piece.ids]
        places = [piece.start + at for piece in pieces for at in range(len(piece.ids))]
        longest = max(len(piece.pages) for piece in pieces)
        padded = torch.tensor([[*piece.pages, *[0] * (longest - len(piece.pages))] for piece in pieces])
        counts = torch.tensor([len(piece.ids) for piece in pieces])
        return self._rows(ids, places, padded.repeat_interleave(counts, 0), ask)

    def clear(self, page: int) -> None:
        """Zeros on a page."""
        self._keys[page], self._values[page] = 0, 0

    def _rows(self, ids: Sequence[int], places: Sequence[int], tables: Tensor, ask: Sequence[int]) -> Tensor:
        """Row i is token ids[i] at places[i] of the text whose pages are tables[i] ([M, pages of the longest])."""
        logits = torch.empty(len(ask), self.vocab_size)
        numbers = [torch.tensor(values, dtype=torch.int32) for values in (ids, places, ask)]
        tables = tables.to(torch.int32).contiguous()
        native.library().llmlab_step(
            self._engine, len(ids), *(ctypes.c_void_p(t.data_ptr()) for t in (*numbers[:2], tables)), tables.shape[1],
            len(ask), ctypes.c_void_p(numbers[2].data_ptr()), ctypes.c_void_p(logits.data_ptr()),
        )  # fmt: skip
        return logits
