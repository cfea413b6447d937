"""Virtual tokens: keys and values that stand before every text and are nobody's words.

They are seen by every token of every document (`places.EVERY`), through any window, and see nothing of it. So they are
the same for all documents of a packed row and all rows of a batch: computed once a pass, handed to attention as the
beginning of its cache. Packing, padding, caches and pages know nothing of them, and a text keeps its own positions:
virtual tokens stand at -P .. -1, which for encodings by distance is the same as moving the text by P (as peft does),
and takes nothing of the context. Encodings that are added to embeddings are left out: a trained vector holds its own.

A row whose role has none has columns of padding there.

B rows, P virtual tokens, S keys, L layers, G key/value heads, K head width.
"""

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.adapters.part import AdapterPart, Draw, draws
from llmlab.errors import InputError
from llmlab.model.attention import Cache, Renumbering
from llmlab.model.linear import Role
from llmlab.model.masks import Blank
from llmlab.model.places import EVERY, FAR, Places
from llmlab.model.transformer import Architecture, Transformer

Pairs = list[tuple[Tensor, Tensor]]  # keys, turned as they are to be seen, and values, [1 or B, G, P, K] by layer


class VirtualPart(nn.Module):
    """The trained part of an adapter that is virtual tokens."""

    section: "VirtualAdapter"

    def pairs(self, model: Transformer, before: Cache | None) -> Pairs:
        """What it begins every text with; `before` holds what stands before it in turn."""
        raise NotImplementedError


class VirtualAdapter(AdapterPart):
    """An adapter that is virtual tokens before every text."""

    def check(self, architecture: Architecture) -> None:
        a = architecture
        for fine, problem in (
            (a.attention.scores, f"{a.attention.kind} has no keys"),
            (not a.encoder_layers, "a model with an encoder"),
            (a.streams == 1, "a model with a second stream"),
            (not isinstance(a.mask, Blank), "positions on two axes"),
        ):
            if not fine:
                raise InputError(f"adapter {self.kind}", f"cannot go with this model: {problem}", "lora can")

    @abstractmethod
    def part(self, model: Transformer, draw: Draw) -> VirtualPart:
        """A fresh part for the model, on the device at hand."""

    def put(self, model: Transformer, name: str, seed: int) -> None:
        if model.beginning is None:
            model.beginning = Beginning()
        assert isinstance(model.beginning, Beginning)
        if name in model.beginning.adapters:
            raise InputError("adapter", f"the model has an adapter {name!r} already")
        where = next(model.parameters()).device
        with torch.device("meta" if where.type == "meta" else "cpu"):
            part = self.part(model, draws(seed, self.kind, name, "beginning"))
        model.beginning.adapters[name] = part.to(where)
        model.beginning.train(model.training)


class Beginning(nn.Module):
    """What texts begin with: what is `kept` for all, then what the role has."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict()
        self.kept = nn.ModuleList()

    def forward(self, model: Transformer, cache: Cache | None, role: Role, rows: int) -> Cache | None:
        """The cache of a pass over `rows` rows: the given one, with the virtual tokens of each row's role before it."""
        asked: tuple[str | None, ...] = role if isinstance(role, tuple) else (role,)
        names = tuple(name if name is not None and name in self.adapters else None for name in asked)
        if len(names) not in (1, rows):
            raise ValueError(f"{len(names)} roles for {rows} rows")
        if not len(self.kept) and not any(names):
            return cache
        if isinstance(cache, Renumbering):
            raise InputError("cache", "a rolling cache cannot go with virtual tokens", "use dense or int8")
        kinds = list(dict.fromkeys(names))
        every = [self.pairs(model, name) for name in kinds]
        width = max(pairs[0][0].shape[2] if pairs else 0 for pairs in every)
        which_B = torch.tensor([kinds.index(name) for name in names], device=next(model.parameters()).device)
        document = [[EVERY] * (size := pairs[0][0].shape[2] if pairs else 0) + [-1] * (width - size) for pairs in every]
        shape = next(pairs for pairs in every if pairs)
        stacked: Pairs = []
        for layer in range(model.architecture.layers):
            sides = []
            for side in (0, 1):
                like = shape[layer][side]
                nothing = like.new_zeros(1, like.shape[1], 0, like.shape[3])
                found = [pairs[layer][side] if pairs else nothing for pairs in every]
                padded = [F.pad(one, (0, 0, 0, width - one.shape[2])) for one in found]
                sides.append(torch.cat(padded)[which_B] if len(padded) > 1 else padded[0])
            stacked.append((sides[0], sides[1]))
        document_BP = torch.tensor(document, device=which_B.device)[which_B].expand(rows, -1)
        return Begun(cache, stacked, places_of(width, document_BP))

    def pairs(self, model: Transformer, name: str | None = None) -> Pairs:
        """Keys and values of what is kept, then of an adapter; empty where there is neither."""
        found: Pairs = []
        parts: list[nn.Module] = [*self.kept, *([self.adapters[name]] if name is not None else [])]
        for part in parts:
            assert isinstance(part, VirtualPart)
            size = found[0][0].shape[2] if found else 0
            document = torch.full((1, size), EVERY, device=next(model.parameters()).device)
            new = part.pairs(model, Begun(None, found, places_of(size, document)) if found else None)
            found = (
                [(torch.cat([k, l], 2), torch.cat([v, w], 2)) for (k, v), (l, w) in zip(found, new, strict=True)]
                if found
                else new
            )
        return found


def places_of(count: int, document_BP: Tensor) -> Places:
    """Where virtual tokens stand as others see them."""
    position = torch.arange(-count, 0, device=document_BP.device).expand_as(document_BP)
    return Places(position, torch.full_like(position, FAR), document_BP)


class Begun:
    """A cache (`model.attention.Cache`) with virtual tokens before all that it holds."""

    def __init__(self, inner: Cache | None, pairs: Pairs, at: Places) -> None:
        self._inner, self._pairs, self._at = inner, pairs, at

    @property
    def remembers(self) -> bool:
        """Whether what goes through it is written down: else it may go through twice (activation checkpointing)."""
        return self._inner is not None

    def extend(self, at: Places) -> Places:
        return self._at.cat(at if self._inner is None else self._inner.extend(at))

    def update(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        if self._inner is not None:
            k_BGTK, v_BGTK = self._inner.update(layer, k_BGTK, v_BGTK)
        first_k, first_v = (
            first.to(after.dtype).expand(len(after), -1, -1, -1)
            for first, after in zip(self._pairs[layer], (k_BGTK, v_BGTK), strict=True)
        )
        return torch.cat([first_k, k_BGTK], 2), torch.cat([first_v, v_BGTK], 2)

    def recall(self, layer: int) -> tuple[Tensor, ...] | None:
        return None if self._inner is None else self._inner.recall(layer)

    def remember(self, layer: int, state: tuple[Tensor, ...]) -> None:
        if self._inner is not None:
            self._inner.remember(layer, state)


class Collecting:
    """A cache that writes down the keys and values that a pass brings, and lets it see what stands `before`."""

    def __init__(self, before: Cache | None) -> None:
        self._before = before
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, at: Places) -> Places:
        return at if self._before is None else self._before.extend(at)

    def update(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        self.pairs[layer] = k_BGTK, v_BGTK
        return (k_BGTK, v_BGTK) if self._before is None else self._before.update(layer, k_BGTK, v_BGTK)

    def recall(self, layer: int) -> tuple[Tensor, ...] | None:
        raise NotImplementedError  # `VirtualAdapter.check` refuses layers that keep a state

    def remember(self, layer: int, state: tuple[Tensor, ...]) -> None:
        raise NotImplementedError


class Fixed(VirtualPart):
    """Keys and values as they once were computed: what virtual tokens become where nothing of them is trained."""

    def __init__(self, section: VirtualAdapter, pairs: Pairs) -> None:
        super().__init__()
        self.section = section
        self.register_buffer("keys", torch.stack([keys for keys, _ in pairs]).detach().clone())
        self.register_buffer("values", torch.stack([values for _, values in pairs]).detach().clone())

    def pairs(self, model: Transformer, before: Cache | None) -> Pairs:
        keys: Any = self.keys
        values: Any = self.values
        return list(zip(keys, values, strict=True))


@torch.no_grad()
def keep(model: Transformer, name: str) -> None:
    """From now on the virtual tokens of an adapter stand before every text, whatever the role."""
    beginning = model.beginning
    assert isinstance(beginning, Beginning)
    part = beginning.adapters[name]
    assert isinstance(part, VirtualPart)
    there = sum(len(found[0][0][0, 0]) for found in [beginning.pairs(model)] if found)
    new = [(keys[:, :, there:], values[:, :, there:]) for keys, values in beginning.pairs(model, name)]
    beginning.kept.append(Fixed(part.section, new))
    del beginning.adapters[name]


def row_of(vectors_PD: Tensor, model: Transformer, before: Cache | None) -> Pairs:
    """The keys and values that a row of vectors has in every layer, each seeing itself and those before it."""
    count = len(vectors_PD)
    line = torch.arange(-count, 0, device=vectors_PD.device)[None]
    seen = Collecting(before)
    model.through(vectors_PD[None], Places(line, line, torch.zeros_like(line)), seen)
    return [seen.pairs[layer] for layer in range(model.architecture.layers)]


def turned(keys_LGPK: Tensor, model: Transformer) -> list[Tensor]:
    """Keys by layer, [1, G, P, K], turned as if all of them stood right before the P virtual places: what keys are to
    a text that is moved by P and was never told where they stand."""
    count = keys_LGPK.shape[2]
    line = torch.full((1, count), -count, device=keys_LGPK.device)
    at = Places(line, line, torch.zeros_like(line))
    told = []
    for layer, keys in enumerate(keys_LGPK):
        position = model.position_of(layer)
        told.append(position.key(keys[None], position.prepare(at, at)) if position.turns else keys[None])
    return told


def sizes(architecture: Architecture) -> tuple[int, int, int]:
    """(layers, key/value heads, head width)."""
    held = architecture.attention.held(architecture.dim)
    return architecture.layers, held.heads, held.width
