"""What an operation is, in numbers that a machine's speed can be asked about: arithmetic, bytes, and its kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmlab.model import kernels

aten = torch.ops.aten

PRODUCTS = {aten.mm: (0, 1), aten.addmm: (1, 2), aten.bmm: (0, 1), aten.baddbmm: (1, 2)}
FORWARD = aten._scaled_dot_product_flash_attention_for_cpu
BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward
KEYS_TOGETHER = 512  # of torch's attention on a CPU
FUSED = getattr(torch.ops, kernels.NAMESPACE)
OWN = ("aten", kernels.NAMESPACE)  # the operations that are counted


class Work(NamedTuple):
    """One operation: its name (with the type of its numbers for products and attention), the bytes it reads and
    writes, its arithmetic, and of a product its sizes (rows, inner, columns). `called`: a module asked for it in a
    forward pass, which costs more around it than the engine of gradients or an optimizer does."""

    name: str
    bytes: int
    flops: float = 0.0
    sizes: tuple[int, ...] = ()
    called: bool = False


def work_of(function: Any, args: Any, out: Any) -> Work:
    """The work of one call."""
    packet = function.overloadpacket
    name = packet.__name__
    moved = sum(map(_bytes, (*tensors_of(args), *tensors_of((out,)))))
    if packet in PRODUCTS:
        left, right = (args[at] for at in PRODUCTS[packet])
        rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
        many = left.shape[0] if left.ndim == 3 else 1
        kind = f"{'bmm' if left.ndim == 3 else 'mm'}:{_type(left)}"
        return Work(kind, moved, 2.0 * many * rows * inner * columns, (many, rows, inner, columns))
    if packet in (FORWARD, BACKWARD):
        q, k = args[:2] if packet is FORWARD else args[1:3]
        rows, heads, queries, width = q.shape
        keys = k.shape[-2]
        at = 4 if packet is FORWARD else 7
        if len(args) > at and args[at]:
            keys = min(keys, (keys + KEYS_TOGETHER) // 2)  # causal: keys that no query of a block sees are left out
        factor = 4.0 if packet is FORWARD else 10.0
        flops = factor * rows * heads * queries * keys * width
        return Work(f"{'attention' if packet is FORWARD else 'attention_backward'}:{_type(q)}", moved, flops,
                    (rows * heads, queries, width, keys))  # fmt: skip
    if packet in (FUSED.attention, FUSED.attention_backward):
        back = packet is FUSED.attention_backward
        (rows, length), (heads, width) = args[1].shape, (args[5], args[7]) if back else (args[2], args[4])
        flops = (5.0 if back else 2.0) * rows * heads * length**2 * width  # half of it is never looked at
        return Work(f"{name}:fused", moved, flops, (rows * heads, length, width, length))
    if packet is aten.embedding or packet is aten.embedding_dense_backward:
        moved = 2 * _bytes(out)
    return Work(name.removesuffix("_") if not name.startswith("_fused") else name, moved)


def tensors_of(values: Iterable[Any]) -> list[Tensor]:
    """Tensors among the arguments or answers of an operation, and in their lists."""
    found = list[Tensor]()
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [one for one in value if isinstance(one, Tensor)]
    return found


def scratch(function: Any, args: Any, out: Any) -> int:
    """Bytes that a kernel takes for itself and gives back."""
    packet = function.overloadpacket
    if packet in PRODUCTS:
        left, right = (args[at] for at in PRODUCTS[packet])
        if left.dtype == torch.bfloat16:
            return _numel_bytes(right)  # oneDNN lays the weights out anew
    return 0


def _numel_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _bytes(tensor: Tensor) -> int:
    """Of what is really read: an expanded tensor is as small as its storage."""
    return min(_numel_bytes(tensor), tensor.untyped_storage().nbytes())


def _type(tensor: Tensor) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}.get(tensor.dtype, "fp32")
