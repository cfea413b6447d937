"""Watching modules and putting words into their mouths: what every probe is made of.

B rows, T tokens, S keys, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.model.attention import Sight
from llmlab.model.block import Memory
from llmlab.model.places import Places
from llmlab.model.transformer import Transformer
from llmlab.runtime import generator


@dataclass(frozen=True)
class Call:
    """One call of a module, in the order in which they ended."""

    module: nn.Module
    args: tuple[Any, ...]
    output: Any

    def again(self, x: Tensor) -> Tensor:
        """What the module answers where its first argument is `x`."""
        y: Tensor = self.module(x, *self.args[1:])
        return y


@contextmanager
def watching(modules: Iterable[nn.Module]) -> Iterator[list[Call]]:
    """The calls of these modules while the context is open."""
    calls: list[Call] = []
    handles = [
        module.register_forward_hook(lambda module, args, output: calls.append(Call(module, args, output)))
        for module in set(modules)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def saying(outputs: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Each module answers what its function makes of its own answer."""

    def hook(change: Callable[[Tensor], Tensor]) -> Any:
        return lambda module, args, output: change(output)

    handles = [module.register_forward_hook(hook(change)) for module, change in outputs.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def leaves(module: nn.Module) -> list[nn.Module]:
    """The modules below, or the module itself, that have no modules below them."""
    return [part for part in module.modules() if not any(True for _ in part.children())]


def is_linear(module: nn.Module) -> bool:
    """Whether its own weights are a matrix."""
    return any(parameter.ndim == 2 for parameter in module.parameters(recurse=False))


def size(x: Tensor) -> float:
    """Root mean square."""
    return float(x.double().square().mean().sqrt())


def apart(one: Tensor, other: Tensor) -> float:
    """How far two tensors lie apart, in sizes of the first."""
    return size(one - other) / max(size(one), 1e-30)


def noise(*shape: int, name: str = "") -> Tensor:
    """float64, normal, the same in every run."""
    return torch.randn(*shape, generator=generator(0, "xray", name), dtype=torch.float64)


# ---------------------------------------------------------------- layers


@dataclass(frozen=True)
class Layer:
    """A block and what it was called with: x [1, T, D], what it sees, its depth, an encoder's output."""

    block: nn.Module
    x: Tensor
    sight: Sight
    depth: int
    memory: Memory | None

    def run(self, x: Tensor | None = None) -> Tensor:
        y: Tensor = self.block(self.x if x is None else x, self.sight, self.depth, self.memory)
        return y

    def exact(self) -> Layer:
        """The same in float64, so that zero is zero and logarithms can be read."""
        memory = self.memory
        if memory is not None:
            memory = replace(memory, states=memory.states.double(), sight=doubled(memory.sight))
        return Layer(copy.deepcopy(self.block).double(), self.x.double(), doubled(self.sight), self.depth, memory)


def doubled(sight: Sight) -> Sight:
    """What a float64 copy of a layer sees."""
    mask = sight.mask.double() if sight.mask.is_floating_point() else sight.mask
    return replace(sight, position=copy.deepcopy(sight.position).double(), mask=mask)


class _Enough(Exception):
    """All was seen that a probe asked for."""


class Patient:
    """A model on the table: its blocks as they are called, on ids of its vocabulary and at any places."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        rows = model.embedding.weight.shape[0]
        for length in (16, 8, 4, 2):
            ids = torch.randint(rows, (1, length), generator=generator(0, "xray", "ids"))
            self.ids = model.prompted(ids)
            try:
                self.layers(self.ids)
            except InputError as error:  # longer than its table of positions
                refused = error
            else:
                return
        raise refused

    def layers(self, ids: Tensor, at: Places | None = None, encoder: bool = False) -> list[Layer]:
        """The calls of the blocks of one stack, first to last."""
        seen: list[Layer] = []

        def note(block: nn.Module, args: tuple[Any, ...]) -> None:
            memory = args[3] if len(args) > 3 else None
            seen.append(Layer(block, args[0].detach(), args[1], args[2], memory))

        if at is None and not encoder:
            at = self.places(ids)
        blocks = self.model.encoder.blocks if encoder and self.model.encoder is not None else self.model.blocks
        handles = [block.register_forward_pre_hook(note) for block in set(blocks)]
        try:
            if encoder:
                self.encode(ids, at)
            else:
                self.hidden(ids, at)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def open_layers(self, encoder: bool = False) -> tuple[list[Layer], bool]:
        """The same where every token sees every other, whatever the mask and its windows; and whether the mixers are
        of a kind that can only read in order, so that each token saw what came before."""
        if encoder:
            return self.layers(self.ids, encoder=True), False
        at = self.places(self.ids)
        try:
            return self.layers(self.ids, at.bidirectional()), False
        except InputError:
            return self.layers(self.ids, at), True

    def hidden(self, ids: Tensor, at: Places | None = None) -> Tensor:
        """[1, T, D]; with an encoder, the same ids are its text."""
        memory = None if self.model.encoder is None else self.encode(ids, None)
        if at is None:
            at = self.places(ids)
        return self.model.hidden(ids, at, memory=memory)

    def encode(self, ids: Tensor, at: Places | None) -> Memory:
        return self.model.encode(ids, Places.causal(*ids.shape) if at is None else at)

    def places(self, ids: Tensor) -> Places:
        """Where the model puts these ids where nothing is said."""
        found: list[Places] = []

        def note(block: nn.Module, args: tuple[Any, ...]) -> None:
            found.append(args[1].at)
            raise _Enough

        memory = None if self.model.encoder is None else self.encode(ids, None)
        handle = self.model.blocks[0].register_forward_pre_hook(note)
        try:
            self.model(ids, memory=memory)
        except _Enough:
            pass
        finally:
            handle.remove()
        return found[0]

    def embedded(self, ids: Tensor, at: Places, table: Callable[[Tensor], Tensor], encoder: bool = False) -> Tensor:
        """What the first module after the table is given, [1, T, E], where the table answers what `table` makes of
        its answer."""
        found: list[Tensor] = []
        open_ = [False]

        def opened(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            open_[0] = True
            return table(output)

        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            if open_[0]:
                found.append(args[0].detach())
                raise _Enough

        memory = None if self.model.encoder is None or encoder else self.encode(ids, None)
        handles = [self.model.embedding.register_forward_hook(opened)]
        others = [module for module in self.model.modules() if module not in (self.model, self.model.embedding)]
        handles += [module.register_forward_pre_hook(note) for module in others]
        try:
            if encoder:
                self.encode(ids, at)
            else:
                self.model.hidden(ids, at, memory=memory)
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return found[0]
