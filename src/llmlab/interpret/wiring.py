"""What a block is made of and how it is wired, by scaling and silencing its parts.

B rows, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.interpret.hooks import Layer, apart, leaves, noise, saying, size, watching
from llmlab.interpret.norm_kind import is_norm


@dataclass(frozen=True)
class Parts:
    """The children of a block by what they do: one lets tokens see each other, one works on each token alone, norms
    ignore the size of what they are given. `cross`: one is used that looks elsewhere."""

    mixer: nn.Module
    feedforward: nn.Module
    norms: list[nn.Module]
    cross: bool


@dataclass(frozen=True)
class Wired:
    """How often a number grows when what it depends on grows tenfold: 10 where nothing normalises, 1 where a norm
    stands between. `stream` is the block's answer by its input, `before` the mixer's input by the block's, `after` what
    the mixer adds to the stream by the mixer's answer. `alpha` is the factor of the stream where it is added to."""

    kind: str
    stream: float
    before: float
    after: float
    parallel: float
    alpha: float


def parts_of(layer: Layer) -> Parts:
    """The parts of a block; a block without a mixer or a feed-forward is an `InputError`."""
    children = list(layer.block.children())
    with watching(children) as calls:
        layer.run()
    mixer = feedforward = None
    norms: list[nn.Module] = []
    for call in calls:
        x = call.args[0]
        if not isinstance(call.output, Tensor) or torch.equal(call.output, x):
            continue  # dropout at rest
        first = x.clone()
        first[:, 0] += noise(x.shape[-1], name="first").to(x.dtype)
        if not torch.equal(call.again(first)[:, 1:], call.output[:, 1:]):
            mixer = call.module
        elif is_norm(call.again, x):
            norms.append(call.module)
        else:
            feedforward = call.module
    if mixer is None or feedforward is None:
        raise InputError("model", "a block lacks a mixer or a feed-forward", "only blocks that have both are read")
    called = {call.module for call in calls}
    silent = [leaf for child in children if child not in called for leaf in leaves(child)]
    with watching(silent) as elsewhere:
        layer.run()
    return Parts(mixer, feedforward, norms, bool(elsewhere))


def wiring_of(layer: Layer, parts: Parts) -> Wired:
    """The wiring of a block. Scaling the stream that enters shows a norm after the addition, scaling what a part
    answers shows a norm inside the branch: the first probe alone takes OLMo 2 for pre-norm."""
    x = layer.x / size(layer.x)

    def inputs(x: Tensor, watched: nn.Module) -> Tensor:
        with watching([watched]) as calls:
            layer.run(x)
        given: Tensor = calls[0].args[0]
        return given

    def nothing(y: Tensor) -> Tensor:
        return torch.zeros_like(y)

    stream = size(layer.run(1e4 * x)) / size(layer.run(1e3 * x))
    before = size(inputs(1e4 * x, parts.mixer)) / size(inputs(1e3 * x, parts.mixer))
    with saying({parts.feedforward: nothing}):
        with saying({parts.mixer: nothing}):
            rest = layer.run(x)
        grown = []
        for factor in (1e3, 1e4):
            with saying({parts.mixer: lambda y, factor=factor: factor * y / size(y)}):  # type: ignore[misc]
                grown.append(size(layer.run(x) - rest))
    after = grown[1] / grown[0]
    heard = inputs(x, parts.feedforward)
    with saying({parts.mixer: lambda y: noise(*y.shape, name="mixer").to(y.dtype)}):
        parallel = apart(heard, inputs(x, parts.feedforward))
    alpha = 1.0
    outer = stream < 10**0.5
    if outer:
        with saying({parts.mixer: nothing}):
            added = inputs(x, parts.norms[0])
        alpha = float((added * x).sum() / x.square().sum())
    if outer:
        kind = "post" if abs(alpha - 1) < 1e-4 else "deepnorm"
    elif after < 10**0.5:
        kind = "sandwich" if before < 10**0.5 else "branch"
    else:
        kind = "none" if before > 10**0.5 else "parallel" if parallel < 1e-9 else "pre"
    return Wired(kind, stream, before, after, parallel, alpha)
