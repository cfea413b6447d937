"""Every storage and every operation of a computation, in order: what the planner reads memory and time from.

The code that is watched is the real one, of a stage's own step; its tensors are fake (`FakeTensorMode`), so nothing is
computed and no memory is taken. Whatever a recipe asks for (adapters, checkpointing, an optimizer, a chunked loss) is
in the census because it happens, and needs no formula here. Over real tensors a census is the same, and a test holds
the one against the other.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from llmlab.planner.work import OWN, Work, scratch, tensors_of, work_of

aten = torch.ops.aten


@dataclass(eq=False)
class Block:
    """Memory of one storage. `cause` is why it is there; it may be told later, when that is known."""

    size: int
    cause: str
    home: str = "heap"  # `file` where it is a view of a mapped file


def _there(alive: dict[str, int]) -> dict[str, int]:
    return {cause: size for cause, size in alive.items() if size}


@dataclass
class Census:
    """What happened: `events` has each block when it came (+1) and when it went (-1), `works` each operation."""

    events: list[tuple[int, Block]] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    operations: int = 0
    cuts: list[tuple[int, str]] = field(default_factory=lambda: [(0, "begin")])  # event -> what goes on from there

    def peak(self) -> tuple[int, dict[str, int]]:
        """Most bytes that were alive at once, and by cause what they were."""
        return max(self.peaks().values(), key=lambda found: found[0])

    def peaks(self) -> dict[str, tuple[int, dict[str, int]]]:
        """The same of each part of the computation, by the names of the cuts; parts of one name count as one."""
        ends = [*(place for place, _ in self.cuts[1:]), len(self.events)]
        alive: dict[str, int] = {}
        now, found = 0, dict[str, tuple[int, dict[str, int]]]()
        for (begin, name), end in zip(self.cuts, ends, strict=True):
            most, at = max(now, found[name][0] if name in found else 0), begin
            for place in range(begin, end):
                sign, block = self.events[place]
                now += sign * block.size
                if now > most:
                    most, at = now, place + 1
            fuller = name not in found or most > found[name][0]
            for place in range(begin, end):
                if fuller and place == at:
                    found[name] = most, _there(alive)
                sign, block = self.events[place]
                alive[block.cause] = alive.get(block.cause, 0) + sign * block.size
            if fuller and at == end:
                found[name] = most, _there(alive)
        return found

    @property
    def flops(self) -> float:
        return sum(work.flops for work in self.works)


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """`with watched(...) as watch:` notes every operation. `cause` names what is made from here on.

    Ids, targets and places of a batch are real, and so is what is computed from them alone: how many targets are learnt
    is known. What would be read from numbers that a fake tensor does not have is answered by what holds of a sound
    step: every scalar is 1, every mask is set.
    """

    def __init__(self, fake: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.census = Census()
        self.cause = "activations"
        self.vocabulary = 0  # float tensors as wide as this are logits
        self._fake = fake
        self.noting = True
        self.marks: list[int] = []  # how many operations there had been
        self._blocks: dict[int, Block] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch imports its compiler for every mode that does not say this: seconds, and memory that stays."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self._run(function, args, kwargs or {})
        if function.namespace not in OWN:
            return out
        for tensor in tensors_of((out,)):
            self._see(tensor)
        if self.noting and not function.is_view:
            self.census.operations += 1
            work = work_of(function, args, out)._replace(called=torch.is_grad_enabled())
            self.census.works.append(work)
            if inside := scratch(function, args, out):
                block = Block(inside, self.cause)
                self.census.events += [(1, block), (-1, block)]
        return out

    def _run(self, function: Any, args: Any, kwargs: Any) -> Any:
        tensors = [*tensors_of(args), *tensors_of(kwargs.values())]
        if self._fake and not any(map(_is_fake, tensors)) and (tensors or _counts(function, args, kwargs)):
            with unset_fake_temporarily():  # whole numbers of the data: they are there, so they are computed
                return function(*args, **kwargs)
        if tensors and _is_fake(tensors[0]):
            if function is aten._local_scalar_dense.default:
                return 1.0 if args[0].is_floating_point() else 1
            if function is aten.equal.default:
                return True
            if function is aten.nonzero.default:
                places = args[0].numel()
                return args[0].new_empty((places, args[0].ndim), dtype=torch.int64)
            if function is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
                return self._picked(function, args)
        return function(*args, **kwargs)

    def _picked(self, function: Any, args: Any) -> Any:
        """Indexing by a mask: by as many places as are set in it."""
        indices = list[Any]()
        for index in args[1]:
            if index is None or index.dtype != torch.bool:
                indices.append(index)
                continue
            places = index.new_empty(index.numel(), dtype=torch.int64)
            indices += [places] * index.ndim
        return function(args[0], indices)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._blocks:
            return
        wide = tensor.is_floating_point() and self.vocabulary and tensor.ndim > 0
        logits = wide and tensor.shape[-1] == self.vocabulary and self.cause == "activations"
        self._hold(storage, Block(storage.nbytes(), "logits" if logits else self.cause))

    def _hold(self, storage: Any, block: Block) -> None:
        key = storage._cdata
        self._blocks[key] = block
        self.census.events.append((1, block))
        weakref.finalize(storage, self._gone, key, block).atexit = False

    def _gone(self, key: int, block: Block) -> None:
        if self._blocks.get(key) is block:
            del self._blocks[key]
            self.census.events.append((-1, block))

    def mark(self) -> None:
        """Note where the operations are now."""
        self.marks.append(len(self.census.works))

    def cut(self, name: str) -> None:
        """What comes from here on is called so."""
        self.census.cuts.append((len(self.census.events), name))

    # ------------------------------------------------------------ causes

    def know(self, tensors: Iterable[Tensor | None], cause: str) -> None:
        """These are there, or were made a moment ago, for this cause."""
        for tensor in tensors:
            if tensor is None:
                continue
            storage = tensor.untyped_storage()
            block = self._blocks.get(storage._cdata)
            if block is None:
                self._hold(storage, Block(storage.nbytes(), cause))
            else:
                block.cause = cause

    @contextmanager
    def at(self, cause: str) -> Iterator[None]:
        """What is made inside is there for this cause."""
        before, self.cause = self.cause, cause
        try:
            yield
        finally:
            self.cause = before

    @contextmanager
    def unnoted(self) -> Iterator[None]:
        """Memory is followed, work is not."""
        before, self.noting = self.noting, False
        try:
            yield
        finally:
            self.noting = before


@contextmanager
def watched(fake: bool = True) -> Iterator[Watch]:
    """All that is computed inside, on fake tensors unless told."""
    watch = Watch(fake)
    if not fake:
        with watch:
            yield watch
        return
    with FakeTensorMode(allow_non_fake_inputs=True), watch:
        yield watch


def _is_fake(tensor: Tensor) -> bool:
    return getattr(tensor, "fake_mode", None) is not None


FACTORIES = (aten.arange, aten.zeros, aten.ones, aten.full, aten.empty, aten.scalar_tensor)


def _counts(function: Any, args: Any, kwargs: Any) -> bool:
    """Whether this makes whole numbers out of nothing."""
    if function.overloadpacket not in FACTORIES:
        return False
    dtype = kwargs.get("dtype")
    if dtype is None:
        return function.overloadpacket is aten.arange and all(isinstance(value, int) for value in args)
    return not dtype.is_floating_point
