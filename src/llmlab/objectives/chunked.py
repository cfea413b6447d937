"""Cross entropy through a head without the logits of all positions: some at a time, whose gradient is made at once.

The head's products, softmax and gradient of a chunk follow one another while it lies near; kept are the gradient of the
hidden states and that of the head. Logits of all positions are what a step with a large vocabulary holds most of
(Hsu et al. 2024, Liger kernels, arXiv 2410.10989; Wijmans et al. 2024, Cut Cross-Entropy, arXiv 2411.09009).

N positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.model import kernels

LOGITS_BYTES = 1 << 26  # of the logits that exist at once, where nothing else is asked


class Nats(NamedTuple):
    """Summed cross entropy, with its graph, and at how many positions the target was the likeliest."""

    sum: Tensor
    hits: Tensor


def positions_at_once(vocabulary: int, itemsize: int) -> int:
    """How many positions' logits fit `LOGITS_BYTES`; a round number, which products are quicker with."""
    most = LOGITS_BYTES // (vocabulary * itemsize)
    return max(16, most // 256 * 256 or most // 16 * 16)


def cross_entropy(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, at_once: int, half: bool) -> Nats:
    """Of logits `hidden head^T`, `at_once` positions at a time. `half`: products in bfloat16, sums in float32."""
    total, hits = _Chunked.apply(hidden_ND, head_VD, targets_N, at_once, half)  # type: ignore[no-untyped-call]
    return Nats(total, hits)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, at_once: int, half: bool
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        dtype = torch.bfloat16 if half else hidden.dtype
        weight = head.detach().to(dtype)
        dhidden = torch.empty_like(hidden) if wanted[0] else None
        dhead = torch.empty_like(weight) if wanted[1] else None
        total, hits = hidden.new_zeros((), dtype=torch.float32), targets.new_zeros(())
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), at_once):
                cut = slice(start, start + at_once)
                some = hidden[cut].detach().to(dtype)
                dlogits, nats, hit = _gradient(some @ weight.t(), targets[cut])
                total, hits = total + nats, hits + hit
                if dhidden is not None:
                    dhidden[cut] = dlogits @ weight
                if dhead is not None and start:
                    dhead.addmm_(dlogits.t(), some)
                elif dhead is not None:
                    torch.mm(dlogits.t(), some, out=dhead)
                del dlogits
        ctx.save_for_backward(dhidden, dhead)
        ctx.dtypes = hidden.dtype, head.dtype
        ctx.mark_non_differentiable(hits)
        return total, hits

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor, dhits: Tensor) -> tuple[Tensor | None, ...]:
        def scaled(part: Tensor, dtype: torch.dtype) -> Tensor:
            """In the wider type, where there is one: a product in bfloat16 would be rounded twice."""
            wide = part.to(dtype)
            return part * dtotal.to(dtype) if wide is part else wide.mul_(dtotal)

        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        parts = [None if part is None else scaled(part, dtype) for part, dtype in pairs]
        return *parts, None, None, None


def _gradient(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """softmax - one_hot, perhaps in the place of the logits; summed nats; how often the target was the likeliest."""
    if logits_NV.dtype == torch.bfloat16 and logits_NV.device.type == "cpu" and kernels.available() is None:
        nats, hit = torch.ops.llmlab.cross_entropy(logits_NV, targets_N)
        return logits_NV, nats.sum(), hit.sum()
    wide = logits_NV.float()
    hits = (wide.argmax(-1) == targets_N).sum()
    nats = F.cross_entropy(wide, targets_N, reduction="sum")
    wide = wide.softmax(-1)
    wide[torch.arange(len(wide), device=wide.device), targets_N] -= 1
    return wide.to(logits_NV.dtype), nats, hits
