"""Watching a stage's own step on fake tensors: what it holds and how long its operations take here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import _disable_current_modes

from llmlab.data.state import State
from llmlab.model.block import Block
from llmlab.objectives.objective import Objective
from llmlab.planner.census import Census, Watch, watched
from llmlab.planner.heap import resident
from llmlab.planner.machine import Machine
from llmlab.planner.work import Work
from llmlab.runtime import device
from llmlab.stages import Session
from llmlab.training.loop import Training, stepping
from llmlab.training.step import Made


def line(two: float, three: float, layers: int) -> float:
    """What is linear in the number of equal blocks, from what it is for 2 and for 3 of them."""
    return two + (layers - 2) * (three - two)


@dataclass(frozen=True)
class Moment:
    """What a process holds at its fullest in some phase, by cause, and shapes of bf16 products it went through.
    `parts` are the fullest moments of parts of the phase, what the allocator keeps beside left out."""

    by_cause: dict[str, int]
    shapes: frozenset[Work] = frozenset()
    parts: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(self.by_cause.values())

    def with_more(self, **causes: int) -> Moment:
        """The same moment with something beside it."""
        sums = {name: self.by_cause.get(name, 0) + causes.get(name, 0) for name in {*self.by_cause, *causes}}
        return replace(self, by_cause={name: size for name, size in sums.items() if size})

    def deeper(self, three: Moment, layers: int) -> Moment:
        """Of so many equal blocks, where this is of 2 and `three` of 3. What is alive in the first block, the last, and
        around them is linear in their number, and between them it is between them; which of the parts is the fullest
        may change. What the allocator keeps is taken as the same share."""
        if not self.parts:
            return replace(three, by_cause=_lines(self.by_cause, three.by_cause, layers))
        parts = {name: _lines(part, three.parts[name], layers) for name, part in self.parts.items()}
        fullest = max(parts.values(), key=lambda part: sum(part.values()))
        beside = three.by_cause.get("allocator", 0) / max(three.bytes - three.by_cause.get("allocator", 0), 1)
        kept = round(beside * sum(fullest.values()))
        return Moment(fullest | ({"allocator": kept} if kept else {}), three.shapes, parts)


def _lines(two: dict[str, int], three: dict[str, int], layers: int) -> dict[str, int]:
    sizes = {name: round(line(two.get(name, 0), three.get(name, 0), layers)) for name in {*two, *three}}
    return {name: size for name, size in sizes.items() if size > 0}


@dataclass(frozen=True)
class Step:
    """A training step: its fullest moment, what stays between steps, and what it costs."""

    moment: Moment
    stays: Moment  # weights, optimizer, adapters
    seconds: float
    flops: float
    trained_bytes: int  # weights that learn, as a checkpoint holds them
    optimizer_bytes: int
    trained: int = 0  # numbers that learn
    parameters: int = 0

    def deeper(self, three: Step, layers: int) -> Step:
        """As of `Moment`; all other figures are sums over the blocks."""
        whole = ("trained_bytes", "optimizer_bytes", "trained", "parameters")
        return Step(
            moment=self.moment.deeper(three.moment, layers),
            stays=self.stays.deeper(three.stays, layers),
            seconds=line(self.seconds, three.seconds, layers),
            flops=line(self.flops, three.flops, layers),
            **{name: round(line(getattr(self, name), getattr(three, name), layers)) for name in whole},
        )


@dataclass
class Fixed:
    """Batches that are the same every time."""

    batches: Sequence[Any]

    def next(self, model: Any) -> list[Any]:
        return list(self.batches)

    def state(self) -> State:
        return State({}, {})

    def load(self, state: State) -> None:
        pass


@dataclass(frozen=True)
class Stepped:
    """A stage's model and objective, made on the meta device, and its batches: the widest for memory, a typical
    one for time, and how many a step has."""

    build: Callable[[], tuple[nn.Module, Objective[Any]]]
    widest: Any
    typical: Any
    micro_batches: float
    training: Training
    vocabulary: int


def step_of(stage: Stepped, machine: Machine, dtype: torch.dtype | None, fuse: bool = True) -> Step:
    """Watch two micro-batches, each with its update: the typical one for time, then the widest for memory, with the
    optimizer's state there, and with the gradients of the first where a step has several.
    (Clipping is counted with each micro-batch: it is a thousandth of one.)"""
    session = Session(device=device("cpu"), dtype=dtype, fuse=fuse)
    with watched() as watch, ExitStack() as stack:
        model, objective = made(stage, watch)
        batches = Fixed([])
        loop = stack.enter_context(stepping(model, objective, batches, stage.training, session))
        for parameter in loop.optimizer.parameters.values():
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda p: watch.know([p.grad], "gradients")
            )
        loop.gradients.of = _marking(loop.gradients.of, watch)  # type: ignore[method-assign]
        clear = loop.optimizer.zero_grad
        for part in (stage.typical, stage.widest):
            batches.batches = [part]
            watch.cut("begin")
            if stage.micro_batches > 1 and part is stage.typical:
                loop.optimizer.zero_grad = _nothing  # type: ignore[method-assign]
            loop.update()
            loop.optimizer.zero_grad = clear  # type: ignore[method-assign]
            watch.know(loop.optimizer.state().values(), "optimizer")
            watch.mark()
        gradients, update = (watch.census.works[slice(*cut)] for cut in ((0, watch.marks[0]), watch.marks[:2]))
        weights = loop.optimizer.parameters.values()
        stays = {"optimizer": sizes(loop.optimizer.state().values())}
        named = {"trained": sum(p.numel() for p in weights), "parameters": sum(p.numel() for p in model.parameters())}
        trained = sizes(weights)
        all_weights = sizes(model.parameters()) + sizes(model.buffers())
    adapters = trained if trained < all_weights else 0
    stays |= {"weights": all_weights - adapters, "adapters": adapters}
    return Step(
        moment=moment_of(watch.census),
        stays=Moment({name: size for name, size in stays.items() if size}),
        seconds=stage.micro_batches * machine.seconds(gradients) + machine.seconds(update),
        flops=sum(stage.micro_batches * work.flops for work in gradients) + sum(work.flops for work in update),
        trained_bytes=trained,
        optimizer_bytes=stays["optimizer"],
        **named,
    )


def _nothing() -> None:
    """Gradients stay, as between the micro-batches of a step."""


def _marking(of: Callable[..., Made], watch: Watch) -> Callable[..., Made]:
    """The same, noting how many operations there were when the gradients were there."""

    def marked(*args: Any) -> Made:
        answer = of(*args)
        watch.mark()
        watch.cut("update")
        return answer

    return marked


def made(stage: Stepped, watch: Watch) -> tuple[nn.Module, Objective[Any]]:
    """The model and the objective of a stage; the work of making them is not noted."""
    with unset_fake_temporarily(), torch.device("meta"), _disable_current_modes():
        model, objective = stage.build()
    with watch.unnoted(), watch.at("weights"):
        _real(model)
    watch.vocabulary = stage.vocabulary
    _cutting(model, watch)
    learning = [p for p in model.parameters() if p.requires_grad]
    if len(learning) < len(list(model.parameters())):
        watch.know(learning, "adapters")
    return model, objective


def _cutting(model: nn.Module, watch: Watch) -> None:
    """Have what the first block and the last do, forward and backward, told apart from the rest."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    names = {id(block): "between" for block in blocks} | {id(block): "first" for block in blocks[:1]}
    names |= {id(block): "last" for block in blocks[-1:]}

    def before(block: nn.Module, inputs: Any) -> None:
        watch.cut(f"forward {names[id(block)]}")

    def after(block: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda _: watch.cut(f"backward {names[id(block)]}"))  # type: ignore[no-untyped-call]

    for block in blocks:
        block.register_forward_pre_hook(before)
        block.register_forward_hook(after)


def _real(model: nn.Module) -> None:
    """Parameters and buffers of the meta device, each once, as tensors of the CPU. (`to_empty` would make them anew for
    each name, and a shared one twice.)"""
    known: dict[int, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in known:
                    plain: Tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    if isinstance(tensor, nn.Parameter):
                        plain = nn.Parameter(plain, tensor.requires_grad)
                    known[id(tensor)] = plain
                held[name] = known[id(tensor)]  # type: ignore[assignment]


@dataclass(frozen=True)
class Pass:
    """Something without gradients that is done again and again: a probe's batch, a token of an answer."""

    moment: Moment
    seconds: float
    flops: float

    def times(self, count: float) -> Pass:
        """The same so often."""
        return Pass(self.moment, count * self.seconds, count * self.flops)

    def deeper(self, three: Pass, layers: int) -> Pass:
        """As of `Moment`."""
        moment = self.moment.deeper(three.moment, layers)
        return Pass(moment, line(self.seconds, three.seconds, layers), line(self.flops, three.flops, layers))


def pass_of(
    stage: Stepped,
    machine: Machine,
    run: Callable[[nn.Module, Objective[Any]], object],
    dtype: torch.dtype | None = None,
) -> Pass:
    """Watch `run(model, objective)` without gradients, in evaluation mode."""
    session = Session(device=device("cpu"), dtype=dtype)
    with watched() as watch:
        model, objective = made(stage, watch)
        model.eval()
        with torch.no_grad(), session.autocast():
            run(model, objective)
        census = watch.census
    works = [work._replace(called=True) for work in census.works]
    return Pass(moment_of(census), machine.seconds(works), census.flops)


def moment_of(census: Census) -> Moment:
    """The peak as the process will hold it: what was alive by cause, and what the allocator keeps beside."""
    peaks = census.peaks()
    live, by_cause = max(peaks.values(), key=lambda found: found[0])
    beside = max(0, resident(census.events) - live)
    products = (work for work in census.works if work.name in ("mm:bf16", "bmm:bf16"))
    shapes = frozenset(work._replace(bytes=0, called=False) for work in products)
    parts = {name: part for name, (_, part) in peaks.items() if "between" not in name}
    return Moment(by_cause | ({"allocator": beside} if beside else {}), shapes, parts)


def sizes(tensors: Any) -> int:
    """Bytes of storages, a shared one once."""
    found: dict[int, int] = {}
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            storage = tensor.untyped_storage()
            found[storage._cdata] = storage.nbytes()
    return sum(found.values())
