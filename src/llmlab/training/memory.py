"""What an optimizer step will take, by cause, before anything is allocated.

Weights, gradients, optimizer and logits are formulas of shapes. Activations are asked of the model itself: its hidden
states go forward and backward once on tensors without data (`FakeTensorMode`: every operation makes its result with
its true size and type, and nothing is computed), so a new part, an adapter or checkpointing needs no formula here.

The causes are not alive all at once. As the loss goes backward there are activations and logits and no gradient yet;
then gradients come while activations go; at the end there are gradients and what the update needs. The peak is that of
the worst moment. Memory that a kernel takes for itself is not in it, nor is the interpreter.

N learnt tokens of a micro-batch, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from llmlab.interpret.live_bytes import LiveBytes
from llmlab.model import kernels
from llmlab.model.linear import Role
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.objectives.chunked import positions_at_once
from llmlab.training.checkpointing import Checkpointing, checkpointed
from llmlab.training.loop import Training
from llmlab.training.optimizer import largest, trained


@dataclass(frozen=True)
class Load:
    """What goes through the model at once: rows of so many tokens, so many of which are learnt, so often a step."""

    rows: int
    length: int
    learnt: int
    micro_batches: int = 1
    autocast: torch.dtype | None = None
    logits_at_once: int | None = None


@dataclass(frozen=True)
class StepBytes:
    """The most bytes of each cause, and of all at once."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    peak: int


def foretell(model: Transformer, settings: Training, load: Load, role: Role = None) -> StepBytes:
    """The bytes of a step of next-token training, weights held as they are (`settings.weights` fp32). `model` has the
    parameters that are trained marked; its tensors may hold nothing (`on_paper`)."""
    shapes = {name: tuple(p.shape) for name, p in trained(model).items()}
    size = {name: p.element_size() for name, p in trained(model).items()}
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    every = sum(prod(shape) * size[name] for name, shape in shapes.items())
    optimizer, scratch = settings.optimizer.state_bytes(shapes), settings.optimizer.scratch_bytes(shapes)
    head = "embedding.weight" if model.head is None else "head.weight"
    of_head = prod(shapes[head]) * size[head] if head in shapes else 0

    repeated = load.micro_batches > 1
    freed = settings.in_backward or repeated  # a gradient goes as soon as it is there: into the weights, or a sum
    through = backward(model, load, settings.activation_checkpointing, freed, role)
    # What stays of the head's own gradient while the rest goes backward.
    waits = of_head if model.head is None or not freed else 0
    loss, slope = logit_bytes(load, model)
    before = every if repeated else 0  # the gradients of earlier micro-batches
    inside = scratch if settings.in_backward else 0
    peak = max(
        before + through.kept + loss,
        before + through.kept + slope + of_head + inside,
        before + waits + through.peak + inside,
        0 if settings.in_backward else every + scratch,
    )
    alive = every
    if settings.in_backward:
        alive = max(largest(shapes) * max(size.values()), waits + (of_head if model.head is None else 0))
    return StepBytes(weights, alive, optimizer, through.kept, loss, weights + optimizer + peak)


def logit_bytes(load: Load, model: Transformer) -> tuple[int, int]:
    """Of the loss: the most at once, and what is left when the head's own gradient is made.

    All logits at once: going backward, there are the log-probabilities, their gradient and that of the logits, N V
    float32 each; the gradient of the logits is left, under autocast a second time in its type. Some at a time
    (`objectives/chunked.py`): the logits of those, the head in their type and its gradient in that type, and the
    gradient of the hidden states; both gradients are left.
    """
    V, N = model.vocab_size, load.learnt
    narrow = 4 if load.autocast is None else load.autocast.itemsize
    at_once = load.logits_at_once or positions_at_once(V, narrow)
    if model.projection is None or (load.autocast is None and at_once >= N):
        return 12 * N * V, (4 + narrow * (load.autocast is not None)) * N * V
    head, hidden = narrow * model.projection.numel(), 4 * N * model.projection.shape[1]
    # The kernel needs no more than the logits; without it they are there in float32 as well, twice.
    wide = 0 if load.autocast is not None and kernels.available() is None else 8
    copies = head if load.autocast is not None else 0
    return min(N, at_once) * V * (narrow + wide) + copies + head + hidden, head + hidden


# ---------------------------------------------------------------- asked of the model


@dataclass(frozen=True)
class Through:
    """Bytes that hidden states leave to the backward pass, themselves included, and the most that pass has alive,
    gradients included where they stay."""

    kept: int
    peak: int


def backward(model: Transformer, load: Load, how: Checkpointing, freed: bool, role: Role = None) -> Through:
    """Hidden states forward and backward, gradients `freed` as they come or not. On tensors without data, so the
    sizes are true and nothing is computed."""
    training = model.training
    with _without_data(model) as fake, _Ends(load.length), checkpointed(fake, how), ExitStack() as hooks:
        fake.train()
        for parameter in trained(fake).values():
            if freed:
                handle = parameter.register_post_accumulate_grad_hook(_free)  # type: ignore[no-untyped-call]
                hooks.callback(handle.remove)
        ids = torch.zeros(load.rows, load.length, dtype=torch.int64)
        at = Places.causal(load.rows, load.length)
        known = [*fake.parameters(), *fake.buffers(), ids, at.position, at.order, at.document]
        with LiveBytes(known) as live:
            with torch.autocast("cpu", dtype=load.autocast, enabled=load.autocast is not None):
                hidden = fake.hidden(ids, at, role=role)
            kept = live.bytes
            slope = torch.empty_like(hidden)
            live.peak = 0
            hidden.backward(slope)  # type: ignore[no-untyped-call]
            peak = live.peak
        model.train(training)
    return Through(kept, peak)


class _Ends(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Positions without data still have a least and a greatest, and distances between them: encodings ask for those."""

    def __init__(self, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._last = length - 1
        self._told: list[tuple[Tensor, int]] = []  # kept, so that a tensor is known by what it is

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            for tensor, value in self._told:
                if tensor is args[0]:
                    return value
        out = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.max.default, torch.ops.aten.min.default):
            self._told.append((out, self._last if function is torch.ops.aten.max.default else -self._last))
        return out


def _free(parameter: Tensor) -> None:
    parameter.grad = None


def on_paper(architecture: Architecture, vocabulary: int) -> Transformer:
    """The model without memory."""
    with torch.device("meta"):
        return Transformer(architecture, vocabulary)


@contextmanager
def _without_data(model: nn.Module) -> Iterator[Transformer]:
    """The same model with empty tensors in place of its own, in a mode where all tensors are; then its own again."""
    mode = FakeTensorMode()
    places = [
        (table, name, tensor)
        for module in model.modules()
        for table in (module._parameters, module._buffers)
        for name, tensor in table.items()
        if tensor is not None
    ]
    made: dict[int, Tensor] = {}
    with mode:
        for _, _, tensor in places:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            made.setdefault(
                id(tensor), nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
            )
        try:
            for table, name, tensor in places:
                table[name] = made[id(tensor)]  # type: ignore[assignment]
            yield model  # type: ignore[misc]
        finally:
            for table, name, tensor in places:
                table[name] = tensor  # type: ignore[assignment]
