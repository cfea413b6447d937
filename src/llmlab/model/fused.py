"""A block's training step in few operators: matrix products in bfloat16, and between them the kernels of `kernels.py`.

    y = norm(x)            [q k v] = y W_qkv, turned         a = attention(q, k, v)      x' = x + a W_o
    z = norm(x')           [g u] = z W_gu                    x'' = x' + (silu(g) u) W_d

Kept for the backward pass: x and x' (float32), q k v, a, g u (halves). Norms and gates are computed again there. The
residual stream is float32, as under autocast; queries, keys and values go through one product, gate and up through one.
Put on a model's blocks from outside for the time of a training: names, parameters and the plain path stay.

B texts, T tokens, M = B T rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmlab.model import kernels
from llmlab.model.attention import Attention, Sight
from llmlab.model.block import Block, Memory
from llmlab.model.encoding import Encoding
from llmlab.model.feedforward import GatedFeedForward, SwishFunction
from llmlab.model.linear import Linear
from llmlab.model.norms import RootMeanSquare
from llmlab.model.rotary import RotaryEncoding, Turn
from llmlab.model.transformer import Transformer

ops = torch.ops.llmlab


class Sizes(NamedTuple):
    """Heads, key/value heads, their width, the scale of scores, and the norms' eps."""

    H: int
    G: int
    E: int
    scale: float
    eps: tuple[float, float]


class FusedBlock(Block):
    """A block that takes the fused step where it can, and the plain one everywhere else: without gradients, with a
    cache, in float32, or where a token sees anything but the tokens right before it."""

    def forward(self, x: Tensor, sight: Sight, layer: int, memory: Memory | None = None) -> Tensor:
        seen = _before(sight) if self._now(x, sight) else None
        if seen is None:
            return super().forward(x, sight, layer, memory)
        attention, feed = self.attention, self.feedforward
        assert isinstance(attention, Attention)
        assert isinstance(feed, GatedFeedForward)
        norms = self.attention_norm, self.feedforward_norm
        sizes = Sizes(
            attention.heads,
            attention.key_heads,
            attention.head_dim,
            attention.scale,
            (float(norms[0].eps), float(norms[1].eps)),  # type: ignore[arg-type]
        )
        matrices = attention.query, attention.key, attention.value, attention.output, feed.gate, feed.up, feed.down
        gains = [norm.weight for norm in norms]
        y: Tensor = _Step.apply(x.float(), *seen, sizes, *(part.weight for part in matrices), *gains)  # type: ignore[no-untyped-call]
        return y

    def _now(self, x: Tensor, sight: Sight) -> bool:
        return (
            torch.is_grad_enabled()
            and x.device.type == "cpu"
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and sight.cache is None
            and not sight.strict
        )


class _Step(torch.autograd.Function):
    """x [B, T, D] float32 -> the same. `first`, `cos`, `sin` as `kernels` has them (no turn: empty cos); W as torch has
    linears, [out, in]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, cos: Tensor, sin: Tensor, sizes: Sizes, *weights: Tensor) -> Tensor:
        *matrices, gain, gain2 = weights
        (B, T, D), s = x.shape, sizes
        x = x.reshape(B * T, D).contiguous()
        y, inverse = ops.rms(x, gain.float(), s.eps[0])
        qkv = _product(y, _joined(matrices[:3])).view(B, T, -1)
        if cos.numel():
            ops.turn(qkv, cos, sin, s.H + s.G, s.E, False)
        a, lse = ops.attention(qkv, first, s.H, s.G, s.E, s.scale)
        z, inverse2, after = ops.add_rms(x, _product(a.view(B * T, -1), _half(matrices[3])), gain2.float(), s.eps[1])
        both = _product(z, _joined(matrices[4:6]))
        out = ops.add_halves(after, _product(ops.swiglu(both), _half(matrices[6])))
        ctx.sizes = sizes
        ctx.save_for_backward(x, inverse, qkv, a, lse, after, inverse2, both, first, cos, sin, *weights)
        y_BTD: Tensor = out.view(B, T, D)
        return y_BTD

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, qkv, a, lse, after, inverse2, both, first, cos, sin, *weights = ctx.saved_tensors
        *matrices, gain, gain2 = weights
        s: Sizes = ctx.sizes
        B, T, D = dout.shape
        wanted = ctx.needs_input_grad[5:]
        grads: list[Tensor | None] = [None] * len(weights)

        def learn(first: int, dy: Tensor, inputs: Tensor) -> None:
            """The gradients of the matrices from `first` on that stand below each other: dy^T inputs."""
            part = {0: matrices[:3], 3: matrices[3:4], 4: matrices[4:6], 6: matrices[6:]}[first]
            if not any(wanted[first : first + len(part)]):
                return
            for n, dw in enumerate(torch.split(_product(dy.t(), inputs.t()), [len(w) for w in part])):
                grads[first + n] = dw.to(part[n].dtype) if wanted[first + n] else None

        dx = dout.reshape(B * T, D).to(torch.float32, copy=True).contiguous()
        half = dx.bfloat16()
        dy = half @ _half(matrices[6])
        gated, both = ops.swiglu_backward(both, dy)
        learn(6, half, gated)
        del gated, dy
        z, _ = ops.rms(after, gain2.float(), s.eps[1])
        learn(4, both, z)
        grads[8], half = ops.rms_backward(after, inverse2, gain2.float(), both @ _joined(matrices[4:6]), dx)
        del both, z
        learn(3, half, a.view(B * T, -1))
        dattended = (half @ _half(matrices[3])).view(B, T, -1)
        dqkv = ops.attention_backward(qkv, first, a, lse, dattended, s.H, s.G, s.E, s.scale)
        if cos.numel():
            ops.turn(dqkv, cos, sin, s.H + s.G, s.E, True)
        dqkv = dqkv.view(B * T, -1)
        y, _ = ops.rms(x, gain.float(), s.eps[0])
        learn(0, dqkv, y)
        grads[7], _ = ops.rms_backward(x, inverse, gain.float(), dqkv @ _joined(matrices[:3]), dx)
        for n, g in ((7, gain), (8, gain2)):
            grads[n] = grads[n].to(g.dtype) if wanted[n] and grads[n] is not None else None  # type: ignore[union-attr]
        return dx.view(B, T, D), None, None, None, None, *grads


def _half(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.bfloat16)


def _joined(weights: list[Tensor]) -> Tensor:
    """Matrices of one input below each other, in halves."""
    out = weights[0].new_empty(sum(len(w) for w in weights), weights[0].shape[1], dtype=torch.bfloat16)
    for part, weight in zip(torch.split(out, [len(w) for w in weights]), weights, strict=True):
        part.copy_(weight.detach())
    return out


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x [M, in], weight [out, in] -> [M, out]."""
    return x @ weight.t()


# ---------------------------------------------------------------- who can


def unfit(block: nn.Module) -> str | None:
    """Why this block cannot take the fused step, in a few words; None where it can."""
    if not isinstance(block, Block) or block.wiring != "pre" or block.cross is not None:
        return "it computes blocks that add what follows a norm, without an encoder"
    attention, feed = block.attention, block.feedforward
    if not isinstance(attention, Attention) or attention.query_norm is not None:
        return "it computes attention without norms of its own"
    if not isinstance(feed, GatedFeedForward) or not _is_silu(feed.activation):
        return "it computes feed-forward networks gated by SiLU"
    linears = attention.query, attention.key, attention.value, attention.output, feed.gate, feed.up, feed.down
    if any(type(linear) is not Linear or linear.bias is not None for linear in linears):
        return "it computes plain linears without biases: no adapters, no quantised weights"
    norms = block.attention_norm, block.feedforward_norm
    if any(not isinstance(norm, RootMeanSquare) or norm.offset or norm.measured != len(norm.weight) for norm in norms):
        return "it computes RMSNorm over the whole width"
    if block.dropout.p:
        return "it has no dropout"
    widths = attention.query.in_features, attention.head_dim, feed.gate.out_features
    if odd := next((width for width in widths if width % kernels.WIDTH), None):
        return f"its widths are multiples of {kernels.WIDTH}, and {odd} is not"
    return None


def _is_silu(activation: Any) -> bool:
    return isinstance(activation, SwishFunction) and isinstance(activation.beta, float) and activation.beta == 1.0


@contextmanager
def fused(model: nn.Module) -> Iterator[str | None]:
    """Blocks of `model` take the fused step for a while. Yields why none does, in a few words, else None."""
    blocks = [module for module in model.modules() if type(module) is Block]
    reason = kernels.available() or next((why for block in blocks if (why := unfit(block))), None)
    if reason is None and not blocks:
        reason = "there is no block"
    if reason is None and any(isinstance(m, Transformer) and m.beginning is not None for m in model.modules()):
        reason = "it computes texts without virtual tokens before them"
    chosen = [] if reason else blocks
    for block in chosen:
        block.__class__ = FusedBlock
    try:
        yield reason
    finally:
        for block in chosen:
            block.__class__ = Block


Before = tuple[Tensor, Tensor, Tensor]


def _before(sight: Sight) -> Before | None:
    """`before`, once for all layers of a pass."""
    if "before" not in sight.kept:
        sight.kept["before"] = before(sight)
    found: Before | None = sight.kept["before"]
    return found


def before(sight: Sight) -> Before | None:
    """(first, cos, sin) of tokens that see themselves and some right before them, never fewer of them gone; None where
    they see anything else, or places are told in another way than by turning."""
    position, mask, told = sight.position, sight.mask, sight.prepared
    if mask.is_floating_point() or mask.shape[1] != 1 or mask.shape[-1] != mask.shape[-2] or sight.runs:
        return None
    seen = mask[:, 0]
    T = seen.shape[-1]
    first = seen.int().argmax(-1)
    own = torch.arange(T, device=seen.device)
    count = seen.int().cumsum(-1)
    up_to_own = count.diagonal(0, 1, 2)  # of each query: how many keys up to itself it sees
    whole = (up_to_own == own - first + 1) & (count[..., -1] == up_to_own)
    if not bool(whole.all() and (first[:, 1:] >= first[:, :-1]).all()):
        return None
    first = first.to(torch.int32).contiguous()
    if type(position) is Encoding:
        return first, first.new_empty(0, dtype=torch.float32), first.new_empty(0, dtype=torch.float32)
    if (
        type(position) is not RotaryEncoding
        or not isinstance(told, Turn)
        or told.query is not None
        or told.cos.shape[3] != 1
    ):
        return None
    P = told.cos.shape[-1] // 2
    cos, sin = (part[:, 0, :, 0, :P].expand(*first.shape, P).float().contiguous() for part in (told.cos, told.sin))
    return first, cos, sin
