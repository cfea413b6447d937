"""Each kernel of a training step against the same written out in float32."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.model import kernels
from llmlab.runtime import generator, threads

pytestmark = pytest.mark.skipif(kernels.available() is not None, reason=f"plain path only: {kernels.available()}")

HALF = 2**-8  # relative spacing of bfloat16


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "kernels", *map(str, shape)))


def close(found: Tensor, exact: Tensor, spacings: float = 1.0) -> None:
    """Within so many spacings of bfloat16, of each value and of the largest one."""
    limit = spacings * HALF * (exact.abs() + 0.1 * exact.abs().max())
    assert bool(((found.float() - exact).abs() <= limit).all()), float(((found.float() - exact).abs() / limit).max())


def apart(found: Tensor, exact: Tensor) -> float:
    return float(torch.linalg.vector_norm(found.float() - exact) / torch.linalg.vector_norm(exact))


@pytest.mark.parametrize(("rows", "width"), [(1, 16), (31, 48), (70, 96)])
def test_rms(rows: int, width: int) -> None:
    x, add, gain = draw(rows, width), draw(rows, width, seed=1).bfloat16(), draw(width, seed=2) + 1
    y, inverse, after = torch.ops.llmlab.add_rms(x, add, gain, 1e-5)
    assert torch.equal(after, x + add.float())
    exact, g = after.clone().requires_grad_(), gain.clone().requires_grad_()
    normed = g * exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-5)
    close(y, normed.detach())
    assert torch.equal(torch.ops.llmlab.rms(after, gain, 1e-5)[0], y)
    dy, dx = draw(rows, width, seed=3).bfloat16(), draw(rows, width, seed=4)
    normed.backward(dy.float())
    assert exact.grad is not None
    assert g.grad is not None
    whole = dx.clone()
    dgain, short = torch.ops.llmlab.rms_backward(after, inverse, gain, dy, whole)
    torch.testing.assert_close(whole, dx + exact.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dgain, g.grad, rtol=1e-5, atol=1e-4)
    assert torch.equal(short, whole.bfloat16())


@pytest.mark.parametrize(("rows", "width"), [(1, 16), (33, 80)])
def test_swiglu(rows: int, width: int) -> None:
    both, dy = draw(rows, 2 * width).bfloat16() * 4, draw(rows, width, seed=1).bfloat16()
    exact = both.float().requires_grad_()
    y = F.silu(exact[:, :width]) * exact[:, width:]
    y.backward(dy.float())
    assert exact.grad is not None
    close(torch.ops.llmlab.swiglu(both), y.detach())
    again, dboth = torch.ops.llmlab.swiglu_backward(both, dy)
    assert torch.equal(again, torch.ops.llmlab.swiglu(both))
    close(dboth, exact.grad)


def firsts(rows: int, length: int, kind: str) -> Tensor:
    """int32 [B, T]: where what a query sees begins."""
    own = torch.arange(length).expand(rows, length)
    if kind == "causal":
        return torch.zeros_like(own).int()
    if kind == "window":
        return (own - 6).clamp(min=0).int()
    begins = torch.rand(rows, length, generator=generator(0, "begins", rows, length)) < 0.1
    return torch.where(begins, own, 0).cummax(1).values.int()


SHAPES = [(2, 64, 4, 2, 32), (3, 77, 2, 2, 16), (1, 200, 3, 1, 64), (2, 1, 2, 1, 16), (1, 130, 2, 1, 48)]


@pytest.mark.parametrize("kind", ["causal", "packed", "window"])
@pytest.mark.parametrize(("B", "T", "H", "G", "E"), SHAPES)
def test_attention(B: int, T: int, H: int, G: int, E: int, kind: str) -> None:
    qkv, first = draw(B, T, (H + 2 * G) * E).bfloat16(), firsts(B, T, kind)
    own = torch.arange(T)
    mask = (own[None, None, :] <= own[None, :, None]) & (own[None, None, :] >= first[:, :, None])
    exact = qkv.float().requires_grad_()
    q, k, v = exact.view(B, T, H + 2 * G, E).transpose(1, 2).split([H, G, G], 1)
    wanted = F.scaled_dot_product_attention(q, k, v, mask[:, None], enable_gqa=True).transpose(1, 2).flatten(2)
    out, lse = torch.ops.llmlab.attention(qkv, first, H, G, E, E**-0.5)
    assert apart(out, wanted.detach()) < HALF
    scores = (q @ k.repeat_interleave(H // G, 1).mT) * E**-0.5
    torch.testing.assert_close(lse, scores.masked_fill(~mask[:, None], -math.inf).logsumexp(-1).detach())
    dout = draw(B, T, H * E, seed=1).bfloat16()
    wanted.backward(dout.float())
    assert exact.grad is not None
    dqkv = torch.ops.llmlab.attention_backward(qkv, first, out, lse, dout, H, G, E, E**-0.5)
    assert apart(dqkv, exact.grad) < HALF


@pytest.mark.parametrize("vocabulary", [3, 16, 250, 1003])
def test_cross_entropy(vocabulary: int) -> None:
    logits = (draw(50, vocabulary) * 3).bfloat16()
    targets = torch.randint(vocabulary, (50,), generator=generator(0, "targets"))
    exact = logits.float().requires_grad_()
    nats = F.cross_entropy(exact, targets, reduction="none")
    nats.sum().backward()
    assert exact.grad is not None
    best = logits.argmax(-1)
    found, hit = torch.ops.llmlab.cross_entropy(logits, targets)
    torch.testing.assert_close(found, nats.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(hit.bool(), best == targets)
    close(logits, exact.grad)


@pytest.mark.parametrize("pairs", [4, 8, 32])
def test_turning_there_and_back(pairs: int) -> None:
    heads, width = 3, 2 * pairs + 16
    x = draw(2, 5, 4 * width).bfloat16()
    angle = draw(2, 5, pairs, seed=1)
    turned = x.clone()
    torch.ops.llmlab.turn(turned, angle.cos(), angle.sin(), heads, width, False)
    exact = x.float().view(2, 5, 4, width)
    a, b = exact[:, :, :heads, :pairs], exact[:, :, :heads, pairs : 2 * pairs]
    cos, sin = angle.cos()[:, :, None], angle.sin()[:, :, None]
    wanted = exact.clone()
    wanted[:, :, :heads, :pairs], wanted[:, :, :heads, pairs : 2 * pairs] = a * cos - b * sin, b * cos + a * sin
    close(turned, wanted.flatten(2))
    torch.ops.llmlab.turn(turned, angle.cos(), angle.sin(), heads, width, True)
    close(turned, x.float(), 3)


def test_what_is_no_number_stays_none() -> None:
    """A model that has diverged must say so."""
    poisoned = draw(4, 64)
    poisoned[2, 5] = math.nan
    half = poisoned.bfloat16()
    assert bool(torch.ops.llmlab.rms(poisoned, torch.ones(64), 1e-5)[0][2].isnan().all())
    assert bool(torch.ops.llmlab.swiglu(half)[2, 5].isnan())
    out, _ = torch.ops.llmlab.attention(half.repeat(1, 3)[None], firsts(1, 4, "causal"), 4, 4, 16, 0.25)
    assert bool(out[0, 2, 0].isnan())
    nats, _ = torch.ops.llmlab.cross_entropy(half.clone(), torch.zeros(4, dtype=torch.long))
    assert nats.isnan().tolist() == [False, False, True, False]


def test_the_number_of_threads_changes_no_byte() -> None:
    qkv, first = draw(3, 90, 4 * 32).bfloat16(), firsts(3, 90, "packed")
    x, gain, dy = draw(100, 48), draw(48, seed=1), draw(100, 48, seed=2).bfloat16()

    def everything() -> list[Tensor]:
        out, lse = torch.ops.llmlab.attention(qkv, first, 2, 1, 32, 0.2)
        _, inverse = torch.ops.llmlab.rms(x, gain, 1e-5)
        dx = x.clone()
        return [
            out,
            torch.ops.llmlab.attention_backward(qkv, first, out, lse, out, 2, 1, 32, 0.2),
            *torch.ops.llmlab.rms_backward(x, inverse, gain, dy, dx),
            dx,
        ]

    with threads(1):
        alone = everything()
    with threads(2):
        assert all(map(torch.equal, alone, everything()))


def test_shapes_without_numbers_are_the_same_shapes() -> None:
    qkv, first = draw(2, 7, 4 * 16).bfloat16(), firsts(2, 7, "causal")
    real = torch.ops.llmlab.attention(qkv, first, 2, 1, 16, 0.25)
    told = torch.ops.llmlab.attention(qkv.to("meta"), first.to("meta"), 2, 1, 16, 0.25)
    assert [(x.shape, x.dtype) for x in real] == [(x.shape, x.dtype) for x in told]
