"""The plain step: any causal model whose past is keys and values, in PyTorch, on the device and in the dtype it has.

It answers what the native step answers (`stepper.py`), for models and machines that the native one does not know.
Texts bring pieces of different lengths; pieces of one length go through the model together. Products of floats round
by the number of rows in PyTorch, so a token's last bits may depend on its company: only the native step promises more.

B pieces of one length, T their tokens, S all keys of the longest text in whole pages, G key/value heads, K head width,
R rows that ask for logits, V vocabulary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llmlab.inference.pages import PAGE
from llmlab.inference.stepper import Piece
from llmlab.model.heads import NoHead
from llmlab.model.masks import Causal
from llmlab.model.mixers import SoftmaxAttention
from llmlab.model.places import Places
from llmlab.model.rotary import DynamicNTK
from llmlab.model.transformer import Transformer, positions_of


def unpaged(model: Transformer) -> str | None:
    """Why keys and values of this model cannot lie in pages, in a few words; None where they can."""
    a = model.architecture
    if not isinstance(a.attention, SoftmaxAttention):
        return f"{a.attention.kind} keeps a state and no keys"
    scalings = (getattr(position, "scaling", None) for position in positions_of(a))
    wanted = [
        (isinstance(a.mask, Causal), f"its mask is {a.mask.kind}, not causal"),
        (not a.encoder_layers, "it has an encoder"),
        (a.streams == 1, "it has a second stream"),
        (not isinstance(a.head, NoHead), "it has no head"),
        (not any(isinstance(scaling, DynamicNTK) for scaling in scalings), "dynamic NTK turns every key anew"),
    ]
    return next((reason for fine, reason in wanted if not fine), None)


class PlainModel:
    """A `Transformer` as a stepper. `pages` bounds the tokens held at once, of all texts, to 16 a page; on the CPU
    their memory is taken when it is first written.

    Errors: ValueError for a model that is `unpaged`.
    """

    def __init__(self, model: Transformer, pages: int) -> None:
        if (reason := unpaged(model)) is not None:
            raise ValueError(reason)
        self.model, self.pages = model.eval(), pages
        self.architecture, self.vocab_size = model.architecture, model.vocab_size
        self._pools: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> keys and values [pages * PAGE, G, K]

    @torch.inference_mode()
    def step(self, pieces: Sequence[Piece], ask: Sequence[int]) -> Tensor:
        """float32 [R, V]: the logits after the tokens `ask`, counted through all pieces."""
        starts = [0]
        for piece in pieces:
            starts.append(starts[-1] + len(piece.ids))
        alike = defaultdict[int, list[int]](list)
        for index, piece in enumerate(pieces):
            alike[len(piece.ids)].append(index)
        wanted, found = set(ask), dict[int, Tensor]()
        for length, indexes in alike.items():
            hidden_BTD = self._hidden([pieces[index] for index in indexes])
            for row, index in enumerate(indexes):
                for at in range(length):
                    if starts[index] + at in wanted:
                        found[starts[index] + at] = hidden_BTD[row, at]
        if not ask:
            return torch.empty(0, self.vocab_size)
        return self.model.logits(torch.stack([found[row] for row in ask])).float().cpu()

    @torch.inference_mode()
    def clear(self, page: int) -> None:
        """Zeros on a page."""
        for keys, values in self._pools.values():
            for pool in (keys, values):
                pool[page * PAGE : (page + 1) * PAGE] = 0

    @torch.inference_mode()
    def copy(self, source: int, target: int) -> None:
        """One page as another."""
        for keys, values in self._pools.values():
            for pool in (keys, values):
                pool[target * PAGE : (target + 1) * PAGE] = pool[source * PAGE : (source + 1) * PAGE]

    def _hidden(self, pieces: Sequence[Piece]) -> Tensor:
        """[B, T, D] of pieces of one length."""
        device = self.model.embedding.weight.device
        start_B1 = torch.tensor([[piece.start] for piece in pieces], device=device)
        place_BT = start_B1 + torch.arange(len(pieces[0].ids), device=device)
        held = -(-(int(place_BT.max()) + 1) // PAGE)  # pages of the longest text
        tables_BP = torch.tensor([[*piece.pages[:held], *[0] * (held - len(piece.pages))] for piece in pieces])
        slot_BS = (tables_BP[:, :, None] * PAGE + torch.arange(PAGE)).flatten(1).to(device)
        ids_BT = torch.tensor([list(piece.ids) for piece in pieces], device=device)
        at = Places(place_BT, place_BT, torch.zeros_like(place_BT))
        return self.model.hidden(ids_BT, at, _Held(self, slot_BS, place_BT))

    def pool(self, layer: int, like_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, [places, G, K], made at its first use."""
        if layer not in self._pools:
            shape = self.pages * PAGE, like_BGTK.shape[1], like_BGTK.shape[3]
            keys, values = _zeros(shape, like_BGTK), _zeros(shape, like_BGTK)
            self._pools[layer] = keys, values
        return self._pools[layer]


class _Held:
    """The cache of one forward pass: what the texts at hand hold in pages (`model.attention.Cache`)."""

    def __init__(self, owner: PlainModel, slot_BS: Tensor, place_BT: Tensor) -> None:
        self._owner, self._slot_BS, self._place_BT = owner, slot_BS, place_BT
        self._new_BT = slot_BS.gather(1, place_BT)

    def extend(self, at: Places) -> Places:
        """All keys of each text; what lies behind its last one belongs to no document."""
        line = torch.arange(self._slot_BS.shape[1], device=at.order.device).expand_as(self._slot_BS)
        real = line <= self._place_BT[:, -1:]
        line = torch.where(real, line, 0)
        return Places(line, line, torch.where(real, 0, -1))

    def update(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of a layer; all of them, [B, G, S, K]."""
        all_BGSK = []
        for pool, new_BGTK in zip(self._owner.pool(layer, k_BGTK), (k_BGTK, v_BGTK), strict=True):
            pool[self._new_BT] = new_BGTK.transpose(1, 2)
            all_BGSK.append(pool[self._slot_BS].transpose(1, 2))
        return all_BGSK[0], all_BGSK[1]

    def recall(self, layer: int) -> tuple[Tensor, ...] | None:
        raise NotImplementedError  # `unpaged` refuses layers that keep a state

    def remember(self, layer: int, state: tuple[Tensor, ...]) -> None:
        raise NotImplementedError


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros in the dtype and on the device of `like`. numpy asks for memory that the system fills with zeros page by
    page; torch writes them all at once."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    return torch.from_numpy(np.zeros(math.prod(shape) * like.element_size(), np.uint8)).view(like.dtype).view(shape)
