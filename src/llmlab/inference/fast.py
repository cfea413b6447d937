"""A model made ready for speed: packed weights, a pool of pages for keys and values, and the native step.

M rows of one call (tokens of any sequences), R rows that ask for logits, D width, V vocabulary, E head width.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmlab.inference import native
from llmlab.inference.packing import BITS, KINDS, TILE, Kind, Packed, Room, fits, loses, pack_together, unpacked
from llmlab.inference.pages import PAGE
from llmlab.inference.stepper import Piece
from llmlab.model.block import Pre
from llmlab.model.feedforward import SwiGLU
from llmlab.model.groups import GROUP, Groups, Weight, dense
from llmlab.model.heads import PlainHead
from llmlab.model.linear import Linear, Wrapped
from llmlab.model.masks import Causal
from llmlab.model.mixers import SoftmaxAttention
from llmlab.model.norms import RMSNorm
from llmlab.model.places import Places
from llmlab.model.quantized import QuantizedLinear
from llmlab.model.rotary import DynamicNTK, LogN, Rope
from llmlab.model.transformer import Transformer
from llmlab.runtime import threads as torch_threads


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
        (rope.fraction == rope.axes == 1, "its rope is partial"),
        # Angles and factor of the others are in the tables of cosines and sines.
        (not isinstance(rope.scaling, DynamicNTK), "its rope turns every key anew as the text grows"),
        (not isinstance(rope.scaling, LogN), "its rope lets queries grow with their places"),
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
    if model.beginning is not None:
        return "its texts begin with virtual tokens"
    for name, module in [*model.blocks.named_modules(), ("head", model.head)]:
        if isinstance(module, Wrapped):
            return f"{name} keeps an adapter"
        if isinstance(module, nn.Linear) and not fits(*module.weight.shape):
            return f"{name} is no whole tiles of {TILE} x {GROUP}"
        if isinstance(module, (nn.Linear, QuantizedLinear)) and type(module) is not Linear:
            return f"{name} is a {type(module).__name__}"
    return None


Read = Callable[[str], Weight]


class _Loses(Exception):
    """Packing would change a weight."""


def quickened(model: Transformer, weights: str, read: Read | None = None) -> FastModel:
    """The model in packed weights of a kind, or `auto`: int4, else int8, where that changes no matrix of a block, and
    else bf16. `read`: as of `FastModel`."""
    pages, cores = 2 * -(-model.architecture.context // PAGE), torch.get_num_threads()
    for kind in KINDS:
        if kind == weights:
            return FastModel(model, kind, pages, cores, read)
    for kind in KINDS[:-1]:
        with contextlib.suppress(_Loses):
            return FastModel(model, kind, pages, cores, read, exact=True)
    return FastModel(model, KINDS[-1], pages, cores, read)


class FastModel:
    """A llama-like model in packed weights. `pages` bounds the tokens held at once, of all sequences, to 16 a page;
    their memory is taken when it is first written. `read` answers a weight by name, as stored; without it they are
    the model's own, else `model` may be a skeleton. The model is not kept, nor changed: `transformer` makes another.

    Errors: ValueError for a model that is `unfit`; InputError for weights that are not finite or beyond the scales.
    """

    def __init__(
        self,
        model: Transformer,
        kind: Kind,
        pages: int,
        threads: int = 1,
        read: Read | None = None,
        exact: bool = False,
    ) -> None:
        if (reason := unfit(model)) is not None:
            raise ValueError(reason)
        a = model.architecture
        self.architecture, self.vocab_size, self.kind, self.pages = a, model.vocab_size, kind, pages
        self.threads = threads
        self._read = read or model.state_dict().__getitem__
        self._kept: list[Tensor] = []
        self._room = Room()
        self._matrices: dict[str, Packed] = {}
        self._vectors: dict[str, Tensor] = {}
        layers = (_Layer * a.layers)(*(self._layer(f"blocks.{n}.", exact) for n in range(a.layers)))
        embedding = self._table("embedding.weight")
        head = embedding if a.tied else self._table("head.weight")
        heads, key_heads, width = a.keyed.heads, a.keyed.key_heads, a.keyed.width(a.dim)
        places = Places.causal(1, a.context)
        with torch_threads(1):
            prepared = a.position.build(a.shape()).prepare(places, places)
        cosine, sine = (self._floats(part[0, 0, :, 0, : width // 2]) for part in (prepared.cos, prepared.sin))
        shape = pages, a.layers, key_heads * width * PAGE
        # numpy asks for memory that the system fills with zeros page by page, torch writes them all at once
        self._keys, self._values = (np.zeros(shape, dtype=np.uint16) for _ in range(2))
        self._fresh = set(range(pages))
        self._model = _Model(
            a.layers, a.dim, heads, key_heads, width, a.feedforward.hidden_width(a.dim), self.vocab_size, pages,
            a.norm.eps, a.keyed.scale or width**-0.5, cosine, sine, self._vector("final_norm.weight"), layers,
            embedding, head, self._keys.ctypes.data, self._values.ctypes.data,
        )  # fmt: skip
        del self._read  # files need not stay open
        self._library = native.library()
        self._library.llmlab_open.restype = ctypes.c_void_p
        self._engine = ctypes.c_void_p(self._library.llmlab_open(ctypes.byref(self._model), threads))

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._library.llmlab_close(self._engine)

    def transformer(self) -> Transformer:
        """A model of the weights as packed, float32: the plain path says what the native step approaches."""
        with torch.device("meta"):
            model = Transformer(self.architecture, self.vocab_size)
        state = {name: unpacked(packed) for name, packed in self._matrices.items()}
        model.load_state_dict(state | {name: vector.clone() for name, vector in self._vectors.items()}, assign=True)
        return model.requires_grad_().eval()

    def _layer(self, block: str, exact: bool) -> _Layer:
        attention, feedforward = block + "attention.", block + "feedforward."
        projections = [f"{attention}{part}." for part in ("query", "key", "value")]
        biases = [f"{part}bias" for part in projections] if self.architecture.keyed.bias else []
        return _Layer(
            self._vector(f"{block}attention_norm.weight"),
            self._vector(f"{block}feedforward_norm.weight"),
            self._matrix([f"{part}weight" for part in projections], exact, biases),
            self._matrix([f"{attention}output.weight"], exact),
            self._matrix([f"{feedforward}gate.weight", f"{feedforward}up.weight"], exact),
            self._matrix([f"{feedforward}down.weight"], exact),
        )

    def _table(self, name: str) -> _Matrix:
        """Four bits are too few for the table of the vocabulary, whose rows differ in size, unless they are all there
        is; llama.cpp's files agree."""
        weight = self._read(name)
        four = isinstance(weight, Groups) and weight.bits == BITS["int4"]
        return self._packed({name: weight}, "bf16" if self.kind == "bf16" else "int4" if four else "int8")

    def _matrix(self, names: Sequence[str], exact: bool, biases: Sequence[str] = ()) -> _Matrix:
        """One matrix of several that read the same inputs."""
        weights = {name: self._read(name) for name in names}
        if exact and any(loses(weight, self.kind) for weight in weights.values()):
            raise _Loses
        at = None
        if biases:
            self._vectors |= {name: dense(self._read(name)).float() for name in biases}
            at = self._floats(torch.cat([self._vectors[name] for name in biases]))
        return self._packed(weights, self.kind, at)

    def _packed(self, weights: Mapping[str, Weight], kind: Kind, bias: int | None = None) -> _Matrix:
        packed, first = pack_together(list(weights.values()), kind, self._room), 0
        for name, weight in weights.items():
            self._matrices[name] = packed.rows(first, rows := weight.shape[0])
            first += rows
        return _Matrix(packed.data.data_ptr(), bias, packed.outputs, packed.inputs, KINDS.index(kind))

    def _vector(self, name: str) -> int:
        self._vectors[name] = dense(self._read(name)).detach().float().clone()
        return self._vectors[name].data_ptr()

    def _floats(self, values: Tensor) -> int:
        self._kept.append(values.detach().float().contiguous().clone())
        return self._kept[-1].data_ptr()

    def step(self, pieces: Sequence[Piece], ask: Sequence[int]) -> Tensor:
        """float32 [R, V]: the logits after the tokens `ask`, counted through all pieces."""
        ids = [id for piece in pieces for id in piece.ids]
        places = [place for piece in pieces for place in range(piece.start, piece.start + len(piece.ids))]
        longest = max(len(piece.pages) for piece in pieces)
        padded = np.array([[*piece.pages, *[0] * (longest - len(piece.pages))] for piece in pieces], np.int32)
        return self._rows(ids, places, padded.repeat([len(piece.ids) for piece in pieces], 0), ask)

    def clear(self, page: int) -> None:
        """Zeros on a page. The first time they are there already, and are not touched before they are written."""
        if page in self._fresh:
            self._fresh.remove(page)
        else:
            self._keys[page], self._values[page] = 0, 0

    def copy(self, source: int, target: int) -> None:
        """One page as another."""
        self._keys[target], self._values[target] = self._keys[source], self._values[source]

    def _rows(self, ids: Sequence[int], places: Sequence[int], tables: NDArray[np.int32], ask: Sequence[int]) -> Tensor:
        """Row i is token ids[i] at places[i] of the text whose pages are tables[i] ([M, pages of the longest])."""
        logits = torch.empty(len(ask), self.vocab_size)
        numbers = [np.array(values, np.int32) for values in (ids, places, ask)]
        tables = np.ascontiguousarray(tables, np.int32)
        native.library().llmlab_step(
            self._engine, len(ids), *(ctypes.c_void_p(n.ctypes.data) for n in (*numbers[:2], tables)), tables.shape[1],
            len(ask), ctypes.c_void_p(numbers[2].ctypes.data), ctypes.c_void_p(logits.data_ptr()),
        )  # fmt: skip
        return logits
