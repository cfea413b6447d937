"""Quantised linears and embeddings: integer codes with scales, weights only, put on the module tree from outside.

    int8   w = scale * code                    one symmetric scale an output row, code in [-127, 127]
    int4   w = minimum + scale * code          one scale and minimum a group of columns, code in [0, 15]

Both are round-to-nearest (Dettmers et al. 2022, arXiv 2208.07339, for int8 by rows; llama.cpp's Q4_1 for int4 by
groups). Scales are rounded *up* and minima *down* to the few bits they are stored in, before the codes are chosen. So
every weight lies within half a stored step of its code's value, float32 holds each dequantised weight exactly, and
quantising those gives the same codes and scales again.

Two ways to multiply: dequantise and `F.linear`, always there and exact; and PyTorch's packed CPU kernels on bf16
activations, for generation, taken only after `use_kernels` has held them against the first on the CPU at hand. What a
kernel packs is never saved: its layout depends on the CPU.

N output rows, K input columns, R = K / group.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.model.groups import GROUP, Groups
from llmlab.model.linear import Role
from llmlab.runtime import generator

log = logging.getLogger(__name__)

GROUPS = (32, 64, 128, 256)  # what the int4 kernel takes
_ROWS = 16  # the int4 kernel packs rows by sixteen
_TOLERANCE = 0.02  # of a kernel's output against the plain path, relative, Euclidean; bf16 alone costs about 0.004
_STEPS8, _STEPS4 = 127, 15
_EXPONENT = {
    torch.float32: (torch.int32, 0x7F800000),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
}
_AT_ONCE = 1 << 18  # numbers looked at together: few enough that they stay in the cache


# ---------------------------------------------------------------- codes and scales


def quantize_rows(weight_NK: Tensor, name: str = "weight") -> tuple[Tensor, Tensor]:
    """int8 codes [N, K] and float32 scales [N] of 16 significant bits. InputError for a weight that is not finite."""
    wide = checked(weight_NK, name).double()
    ideal = wide.abs().amax(1) / _STEPS8
    near = ideal.float()
    above = torch.where(near.double() < ideal, torch.nextafter(near, torch.full_like(near, torch.inf)), near)
    scale = ((above.view(torch.int32) + 0xFF) & ~0xFF).view(torch.float32)
    step = torch.where(scale > 0, scale, torch.ones_like(scale)).double()
    return torch.round(wide / step[:, None]).to(torch.int8), scale


def dequantize_rows(codes_NK: Tensor, scale_N: Tensor) -> Tensor:
    """float32 [N, K]; the products are exact."""
    return codes_NK.float() * scale_N.float()[:, None]


def quantize_groups(weight_NK: Tensor, group: int, name: str = "weight") -> tuple[Tensor, Tensor, Tensor]:
    """uint8 codes [N, K] in [0, 15], fp16 scales and minima [N, R].

    Errors: InputError for columns that are no whole number of groups, and for weights beyond fp16 or not finite.
    """
    rows, columns = weight_NK.shape
    if columns % group:
        fit = [str(size) for size in GROUPS if columns % size == 0]
        hint = f"groups of {' or '.join(fit)} would fit" if fit else "quantise to int8, which takes any width"
        raise InputError(name, f"{columns} columns are no whole number of groups of {group}", hint)
    wide = checked(weight_NK, name, torch.finfo(torch.float16).max).double().view(rows, -1, group)
    lowest, highest = wide.amin(2), wide.amax(2)
    minimum = _half(lowest, up=False)
    # A step of at least two spacings of the stored minimum keeps the lowest weight on code 0, which makes quantising
    # twice the same as once; it only ever binds for a group whose weights are nearly equal and far from zero.
    exponent = torch.frexp(minimum.double())[1].where(minimum != 0, -24)
    spacing = torch.ldexp(torch.ones_like(lowest), (exponent - 11).clamp(min=-24))
    scale = _half(torch.maximum((highest - minimum.double()) / _STEPS4, 2 * spacing), up=True)
    codes = torch.round((wide - minimum.double()[..., None]) / scale.double()[..., None])
    return codes.to(torch.uint8).view(rows, columns), scale, minimum


def dequantize_groups(codes_NK: Tensor, scale_NR: Tensor, minimum_NR: Tensor) -> Tensor:
    """float32 [N, K]."""
    grouped = codes_NK.view(*scale_NR.shape, -1).float()
    weight = grouped * scale_NR.float()[..., None] + minimum_NR.float()[..., None]
    return weight.view(codes_NK.shape)


def pack_nibbles(codes_NK: Tensor) -> Tensor:
    """Codes in [0, 15], two a byte: even columns low, odd columns high. [N, K] -> [N, K / 2] uint8."""
    return codes_NK[:, 0::2] | (codes_NK[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """[N, K / 2] -> [N, K] uint8."""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)


def checked(weight: Tensor, name: str, largest: float | None = None) -> Tensor:
    """The weight without its history. InputError where it is not finite, or beyond `largest`."""
    weight = weight.detach()
    if not _finite(weight):
        raise InputError(name, "holds a weight that is not finite")
    if largest is not None and weight.numel() and float(weight.abs().max()) > largest:
        raise InputError(name, f"holds a weight beyond {largest:g}, the largest that half-precision scales can hold")
    return weight


def _finite(weight: Tensor) -> bool:
    """By the bits of exponents, a hundred times faster than torch in half precision."""
    if weight.dtype not in _EXPONENT or weight.device.type != "cpu":
        return bool(torch.isfinite(weight).all())
    integer, exponent = _EXPONENT[weight.dtype]
    parts = torch.split(weight.contiguous().view(integer).flatten(), _AT_ONCE)
    return not any(bool((part.numpy() & exponent == exponent).any()) for part in parts)


def _half(wide: Tensor, up: bool) -> Tensor:
    """float64 to fp16, never below (`up`) or never above the value."""
    near = wide.half()
    bits = near.view(torch.int16)
    away = (bits >= 0) == up  # one more in a sign-magnitude format is one away from zero
    beyond_zero = torch.full_like(bits, 1 if up else -32767)  # the smallest number on that side of either zero
    neighbour = torch.where(near == 0, beyond_zero, torch.where(away, bits + 1, bits - 1)).view(torch.float16)
    return torch.where(near.double() < wide if up else near.double() > wide, neighbour, near)


# ---------------------------------------------------------------- modules


class QuantizedLinear(nn.Module, ABC):
    """y = x W^T + b with W held as codes; takes the place of `model.linear.Linear`. Nothing in it is trained."""

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.kernel = False

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The weight as multiplied by the plain path, float32 [N, K], computed on each call."""

    @abstractmethod
    def groups(self) -> Groups | str:
        """The very same weights in groups of 32, as the native step takes them, or in a few words why not."""

    @abstractmethod
    def prepare(self) -> str | None:
        """Make what the packed kernel needs; a reason where it cannot serve this shape."""

    @abstractmethod
    def packed(self, x_MK: Tensor) -> Tensor:
        """bf16 [M, K] -> bf16 [M, N] by the packed kernel, without the bias."""

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """The weight in runs of rows, float32, as many as are made dense at a time: all of them."""
        yield slice(0, self.out_features), self.weight

    def plain(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N] through the dequantised weight, which nothing keeps: a backward pass makes it again."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if not (x.requires_grad and torch.is_grad_enabled()):
            return _product(x, self, bias)
        y: Tensor = _Through.apply(x, self)  # type: ignore[no-untyped-call]
        return y if bias is None else y + bias.to(y.dtype)

    def forward(self, x: Tensor, role: Role = None) -> Tensor:
        """[..., K] -> [..., N] in the dtype of x."""
        if not self.kernel or x.device.type != "cpu" or (x.requires_grad and torch.is_grad_enabled()):
            return self.plain(x)
        y = self.packed(x.reshape(-1, self.in_features).to(torch.bfloat16).contiguous())
        y = y.view(*x.shape[:-1], self.out_features).to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, kernel={self.kernel}"


def _product(x: Tensor, linear: QuantizedLinear, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, one piece of W at a time."""
    parts = [F.linear(x, weight.to(x.dtype), None if bias is None else bias[rows]) for rows, weight in linear.pieces()]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class _Through(torch.autograd.Function):
    """x W^T with W made of codes, forward and backward; between the two there are the codes alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: QuantizedLinear) -> Tensor:
        ctx.linear, ctx.dtype = linear, x.dtype
        return _product(x, linear)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total: Tensor | None = None
        for rows, weight in ctx.linear.pieces():
            part = gradient[..., rows] @ weight.to(gradient.dtype)
            total = part if total is None else total + part
        assert total is not None
        return total.to(ctx.dtype), None


class Int8Linear(QuantizedLinear):
    """`codes` int8 [N, K], `scale` float32 [N]. The kernel reads the codes as they are and the scales in bf16."""

    codes: Tensor
    scale: Tensor
    short_scale: Tensor

    def __init__(self, codes_NK: Tensor, scale_N: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(codes_NK.shape[1], codes_NK.shape[0], bias)
        self.register_buffer("codes", codes_NK)
        self.register_buffer("scale", scale_N)
        self.register_buffer("short_scale", None, persistent=False)

    @classmethod
    def of(cls, weight_NK: Tensor, bias: Tensor | None = None, name: str = "weight") -> Int8Linear:
        return cls(*quantize_rows(weight_NK, name), bias)

    @property
    def weight(self) -> Tensor:
        return dequantize_rows(self.codes, self.scale)

    def groups(self) -> Groups | str:
        step, count = self.scale.half(), self.in_features // GROUP
        if self.in_features % GROUP:
            return f"{self.in_features} columns are no multiple of {GROUP}"
        if not torch.equal(step.float(), self.scale) or not torch.isfinite(-128 * step).all():
            return "their scales of 16 bits are finer than the half precision of the native step"
        codes = (self.codes.view(torch.uint8) ^ 128).view(len(step), count, GROUP)
        steps = step[:, None].expand(-1, count)
        return Groups(codes.numpy(), steps.numpy(), (-128 * steps).numpy())

    def prepare(self) -> str | None:
        # The kernel does not check this itself: widths of 580 and 584 gave inf in silence.
        if self.in_features % 16:
            return f"{self.in_features} columns are no multiple of 16"
        self.short_scale = self.scale.to(torch.bfloat16)
        return None

    def packed(self, x_MK: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int8pack_mm(x_MK, self.codes, self.short_scale)
        return y


class Int4Linear(QuantizedLinear):
    """`codes` uint8 [N, K / 2] (two a byte), `scale` and `minimum` fp16 [N, R]."""

    codes: Tensor
    scale: Tensor
    minimum: Tensor
    tiles: Tensor
    pairs: Tensor

    def __init__(self, codes: Tensor, scale_NR: Tensor, minimum_NR: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(2 * codes.shape[1], codes.shape[0], bias)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale_NR)
        self.register_buffer("minimum", minimum_NR)
        self.register_buffer("tiles", None, persistent=False)
        self.register_buffer("pairs", None, persistent=False)

    @classmethod
    def of(cls, weight_NK: Tensor, group: int, bias: Tensor | None = None, name: str = "weight") -> Int4Linear:
        codes, scale, minimum = quantize_groups(weight_NK, group, name)
        return cls(pack_nibbles(codes), scale, minimum, bias)

    @property
    def group(self) -> int:
        return self.in_features // self.scale.shape[1]

    @property
    def weight(self) -> Tensor:
        return dequantize_groups(unpack_nibbles(self.codes), self.scale, self.minimum)

    def groups(self) -> Groups | str:
        codes = unpack_nibbles(self.codes).view(self.out_features, -1, GROUP)
        again = self.group // GROUP
        scales = (part.repeat_interleave(again, 1).numpy() for part in (self.scale, self.minimum))
        return Groups((codes[..., : GROUP // 2] | (codes[..., GROUP // 2 :] << 4)).numpy(), *scales)

    def prepare(self) -> str | None:
        if self.group not in GROUPS:
            return f"groups of {self.group}"
        short = -self.out_features % _ROWS
        codes = F.pad(unpack_nibbles(self.codes).int(), (0, 0, 0, short))
        self.tiles = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
        # The kernel multiplies (code - 8) * scale + zero, both of the activations' dtype, [R, N, 2].
        zero = self.minimum.float() + 8 * self.scale.float()
        pairs = torch.stack([self.scale.float(), zero], -1).transpose(0, 1)
        self.pairs = F.pad(pairs, (0, 0, 0, short)).to(torch.bfloat16).contiguous()
        return None

    def packed(self, x_MK: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x_MK, self.tiles, self.group, self.pairs)
        return y[:, : self.out_features]


class Int8Embedding(nn.Module):
    """An embedding table held as int8 rows with a scale each."""

    codes: Tensor
    scale: Tensor

    def __init__(self, codes_VD: Tensor, scale_V: Tensor) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = codes_VD.shape
        self.register_buffer("codes", codes_VD)
        self.register_buffer("scale", scale_V)

    @property
    def weight(self) -> Tensor:
        return dequantize_rows(self.codes, self.scale)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [...] -> float32 [..., D]."""
        return F.embedding(ids, self.codes).float() * F.embedding(ids, self.scale[:, None]).float()


# ---------------------------------------------------------------- kernels


def use_kernels(model: nn.Module, on: bool = True) -> list[str]:
    """Let every quantised linear multiply by its packed kernel; the answer says which could not, and why.

    Each kind and shape is first held against the plain path on this CPU; where a kernel is missing, fails or differs,
    the plain path stays and the reason is logged.
    """
    told: dict[tuple[object, ...], str | None] = {}
    for module in model.modules():
        if not isinstance(module, QuantizedLinear):
            continue
        module.kernel = False
        if not on:
            continue
        shape = (type(module).__name__, module.out_features, module.in_features, getattr(module, "group", None))
        try:
            reason = module.prepare()
            if shape not in told:
                told[shape] = reason or _differs(module)
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            told[shape] = f"no kernel here: {str(error).splitlines()[0]}"
        module.kernel = told[shape] is None
    reasons = [
        f"{kind} [{rows} x {columns}] multiplies by the plain path: {reason}"
        for (kind, rows, columns, _), reason in told.items()
        if reason
    ]
    for reason in reasons:
        log.warning(reason)
    return reasons


@torch.no_grad()
def _differs(module: QuantizedLinear) -> str | None:
    """Hold the kernel against the plain path for one row and for several."""
    draw = generator(0, "kernel check")
    weight = module.weight
    for rows in (1, 7):
        x_MK = torch.randn(rows, module.in_features, generator=draw).to(torch.bfloat16)
        exact = x_MK.float() @ weight.T
        error = torch.linalg.vector_norm(module.packed(x_MK).float() - exact)
        limit = _TOLERANCE * torch.linalg.vector_norm(exact)
        if not bool(error <= limit):  # NaN differs too
            return f"the kernel is off by {float(error):.3g} where {float(limit):.3g} is allowed"
    return None
