"""What lies between the matrix products of a training step, fused: `kernels.cpp` as operators of torch.

They are defined in torch's own registry, so fake tensors, profilers and dispatch modes know their shapes as they know
torch's. Gradients are `fused.py`'s.

M rows, D width, F feed-forward width, V vocabulary; B texts, T tokens, H heads, G key/value heads, E head width, P
turned pairs. Halves are bfloat16. All tensors are contiguous and on the CPU; widths are multiples of 16. Threads are
torch's.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmlab.compiled import Compiled

KERNELS = Compiled(Path(__file__).with_name("kernels.cpp"), "the training kernels", "-fopenmp")
NAMESPACE = "llmlab"
WIDTH = 16  # numbers that are computed at once: every width is a multiple
_ROWS = 32  # as in the source: rows whose sums are taken together


def available() -> str | None:
    """None where the kernels can be used, else the reason in a few words."""
    return KERNELS.available()


def rms(x_MD: Tensor, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """gain x / rms(x) in halves [M, D], and 1 / rms [M]. x and gain are float32."""
    inverse, y = x_MD.new_empty(x_MD.shape[0]), torch.empty_like(x_MD, dtype=torch.bfloat16)
    _call("rms_forward", x_MD, None, gain_D, eps, *x_MD.shape, None, inverse, y)
    return y, inverse


def add_rms(x_MD: Tensor, add_MD: Tensor, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same of x + add, halves, and the sum itself, float32."""
    after = torch.empty_like(x_MD)
    inverse, y = x_MD.new_empty(x_MD.shape[0]), torch.empty_like(x_MD, dtype=torch.bfloat16)
    _call("rms_forward", x_MD, add_MD, gain_D, eps, *x_MD.shape, after, inverse, y)
    return y, inverse, after


def rms_backward(
    x_MD: Tensor, inverse_M: Tensor, gain_D: Tensor, dy_MD: Tensor, dx_MD: Tensor
) -> tuple[Tensor, Tensor]:
    """Adds to `dx_MD` (float32) in place; answers the gain's gradient, and dx in halves."""
    rows, width = x_MD.shape
    half, dgain = torch.empty_like(dx_MD, dtype=torch.bfloat16), torch.empty_like(gain_D)
    sums = x_MD.new_empty(-(-rows // _ROWS), width)
    _call("rms_backward", x_MD, inverse_M, gain_D, dy_MD, rows, width, dx_MD, half, sums, dgain)
    return dgain, half


def add_halves(x: Tensor, add: Tensor) -> Tensor:
    """float32 + halves -> float32."""
    y = torch.empty_like(x)
    _call("add_halves", x, add, x.numel(), y)
    return y


def swiglu(both_MF: Tensor) -> Tensor:
    """[M, 2 F], gate beside up -> silu(gate) * up [M, F]."""
    y = both_MF.new_empty(both_MF.shape[0], both_MF.shape[1] // 2)
    _call("swiglu_forward", both_MF, *y.shape, y)
    return y


def swiglu_backward(both_MF: Tensor, dy_MF: Tensor) -> tuple[Tensor, Tensor]:
    """The forward's answer once more, and the gradient of `both_MF`."""
    y, dboth = torch.empty_like(dy_MF), torch.empty_like(both_MF)
    _call("swiglu_backward", both_MF, dy_MF, *dy_MF.shape, y, dboth)
    return y, dboth


def turn(x_BTK: Tensor, cos_BTP: Tensor, sin_BTP: Tensor, heads: int, width: int, back: bool) -> None:
    """Turn the first `heads` heads, `width` wide each, of every row in place; coordinate p with p + P."""
    rows, pairs = x_BTK.shape[0] * x_BTK.shape[1], cos_BTP.shape[-1]
    way = -1.0 if back else 1.0
    _call("turn", x_BTK, cos_BTP, sin_BTP, rows, x_BTK.shape[-1], heads, width, pairs, way)


def attention(qkv_BTK: Tensor, first_BT: Tensor, H: int, G: int, E: int, scale: float) -> tuple[Tensor, Tensor]:
    """Query t sees keys first[t] .. t (int32, never falling in a row) of [B, T, (H + 2 G) E]. Answers [B, T, H E] in
    halves, and the log of the softmax's denominators [B, H, T]."""
    rows, length = first_BT.shape
    out = qkv_BTK.new_empty(rows, length, H * E)
    lse = torch.empty(rows, H, length, device=out.device)
    _call("attention_forward", qkv_BTK, first_BT, rows, length, H, G, E, scale, out, lse)
    return out, lse


def attention_backward(
    qkv_BTK: Tensor, first_BT: Tensor, out: Tensor, lse: Tensor, dout: Tensor, H: int, G: int, E: int, scale: float
) -> Tensor:
    """The gradient of `qkv_BTK`."""
    dqkv = torch.empty_like(qkv_BTK)
    _call("attention_backward", qkv_BTK, first_BT, out, lse, dout, *first_BT.shape, H, G, E, scale, dqkv)
    return dqkv


def cross_entropy(logits_MV: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of each row, float32 [M], and whether the target was the likeliest, int32 [M]. The logits, in halves, give
    way to the gradient of the nats: softmax - one_hot."""
    rows = logits_MV.shape[0]
    loss, hit = (torch.empty(rows, dtype=kind, device=logits_MV.device) for kind in (torch.float32, torch.int32))
    _call("cross_entropy", logits_MV, targets_M, *logits_MV.shape, loss, hit)
    return loss, hit


def adamw(
    high: Tensor,
    low: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    rate: float,
    keep: float,
    beta1: float,
    beta2: float,
    root: float,
    eps: float,
) -> None:
    """AdamW's update of weights in two halves (`training/narrow.py`) and of their float32 moments, all in place.
    `rate` is the learning rate over 1 - beta1^t, `root` 1 / sqrt(1 - beta2^t), `keep` what weight decay leaves."""
    scalars = rate, keep, beta1, beta2, root, eps
    _call("adamw", high, low, gradient.contiguous(), first, second, high.numel(), *scalars)


# ---------------------------------------------------------------- torch's registry

_SCHEMAS = {
    rms: "(Tensor x, Tensor gain, float eps) -> (Tensor, Tensor)",
    add_rms: "(Tensor x, Tensor add, Tensor gain, float eps) -> (Tensor, Tensor, Tensor)",
    rms_backward: "(Tensor x, Tensor inverse, Tensor gain, Tensor dy, Tensor(a!) dx) -> (Tensor, Tensor)",
    add_halves: "(Tensor x, Tensor add) -> Tensor",
    swiglu: "(Tensor both) -> Tensor",
    swiglu_backward: "(Tensor both, Tensor dy) -> (Tensor, Tensor)",
    turn: "(Tensor(a!) x, Tensor cos, Tensor sin, int heads, int width, bool back) -> ()",
    attention: "(Tensor qkv, Tensor first, int H, int G, int E, float scale) -> (Tensor, Tensor)",
    attention_backward: "(Tensor qkv, Tensor first, Tensor out, Tensor lse, Tensor dout, int H, int G, int E, "
    "float scale) -> Tensor",
    adamw: "(Tensor(a!) high, Tensor(b!) low, Tensor gradient, Tensor(c!) first, Tensor(d!) second, float rate, "
    "float keep, float beta1, float beta2, float root, float eps) -> ()",
    cross_entropy: "(Tensor(a!) logits, Tensor targets) -> (Tensor, Tensor)",
}
_LIBRARY: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
for _function, _schema in _SCHEMAS.items():
    _LIBRARY.define(_function.__name__ + _schema)
    for _key in ("CPU", "Meta"):  # on meta all is allocated and nothing computed
        _LIBRARY.impl(_function.__name__, _function, _key)


def _call(name: str, *arguments: Tensor | int | float | None) -> None:
    """Tensors as pointers, ints as int64, floats as float32. Nothing where a tensor has a shape only."""
    if any(isinstance(value, Tensor) and value.device.type == "meta" for value in arguments):
        return
    getattr(KERNELS.library, name)(*map(_argument, arguments))


def _argument(value: Tensor | int | float | None) -> object:
    if isinstance(value, Tensor):
        assert value.is_contiguous()
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_float(value)
    return ctypes.c_void_p(None) if value is None else ctypes.c_int64(value)
