"""AdamW with 8-bit moments (Dettmers et al. 2021, arXiv 2110.02861): a code a number, a scale a block.

A block of 256 numbers is divided by its largest and each is put to the nearest of 256 values, whose spacing follows
their size over seven decades (the paper's dynamic tree, by decades and means as its released code has it). Blocks are
those of the later releases; the paper has 2048. Moments are decoded, updated in float32 and coded again.

As in the paper embeddings stay in float32 (rows of rare tokens have gradients of another size than their neighbours),
and as in its code so do small tensors. Beyond it, a second moment above zero is never coded as zero: where the next
gradient is zero and the first moment is not, the update would be divided by eps alone.
"""

from collections.abc import Mapping
from math import ceil, prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from llmlab.training.adamw import AdamW, adam_step, adamw
from llmlab.training.optimizer import COUNTER, PIECE, Optimizer, OptimizerPart, Rule, Shapes, by_decay, largest, trained

BLOCK = 256
SMALLEST = 4096  # numbers; what has fewer stays in float32
DECADES = 7


class AdamW8bit(OptimizerPart):
    """AdamW whose moments take a byte each, and a float32 a block of 256 (Dettmers et al. 2021)."""

    kind: Literal["adamw8bit"] = "adamw8bit"
    betas: tuple[float, float] = Field((0.9, 0.95), description="decay of the two moments")
    eps: float = Field(1e-8, gt=0.0, description="added to the root of the second moment")
    weight_decay: float = Field(0.1, ge=0.0, description="decay of matrices, times the learning rate, a step")
    smallest: int = Field(SMALLEST, gt=0, description="tensors of fewer numbers keep float32 moments")

    def build(self, model: nn.Module) -> Optimizer:
        names = trained(model)
        coded = [p for name, p in names.items() if self._is_coded(name, p.shape)]
        inside = {id(p) for p in coded}
        plain = [p for p in names.values() if id(p) not in inside]
        parts: list[torch.optim.Optimizer] = []
        if coded:
            options = {"lr": self.lr, "betas": self.betas, "eps": self.eps}
            parts.append(CodedAdamW(by_decay(coded, self.weight_decay), options))
        if plain:
            parts.append(adamw(plain, self.lr, self.betas, self.eps, self.weight_decay))
        return Optimizer(parts, names)

    def state_bytes(self, shapes: Shapes) -> int:
        coded = {name: shape for name, shape in shapes.items() if self._is_coded(name, shape)}
        sizes = [prod(shape) for shape in coded.values()]
        plain = {name: shape for name, shape in shapes.items() if name not in coded}
        return sum(2 * (n + 4 * ceil(n / BLOCK)) + COUNTER for n in sizes) + AdamW().state_bytes(plain)

    def scratch_bytes(self, shapes: Shapes) -> int:
        """Both moments decoded, one divided by its scales, and its codes as int32, then as bytes."""
        coded = {name: shape for name, shape in shapes.items() if self._is_coded(name, shape)}
        return 17 * min(PIECE, largest(coded))

    def _is_coded(self, name: str, shape: Any) -> bool:
        return prod(shape) >= self.smallest and "embedding" not in name.split(".")


def dynamic_values(signed: bool) -> Tensor:
    """The 256 values that codes stand for, ascending, in [-1, 1] or [0, 1]: of each decade below 1 the middles of
    equal parts, twice as many as of the decade below it; and 0 and 1."""
    found = [torch.tensor([0.0, 1.0], dtype=torch.float64)]
    for decade in range(DECADES):
        edges = torch.linspace(0.1, 1, 2 ** (decade if signed else decade + 1) + 1, dtype=torch.float64)
        middles = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - DECADES + 1)
        found += [middles, -middles] if signed else [middles]
    return torch.cat(found).sort().values.float()


class Codes:
    """Numbers as a byte each and a scale a block; `signed` chooses the values."""

    def __init__(self, signed: bool) -> None:
        self.signed, self.values = signed, dynamic_values(signed)
        self.middles = (self.values[1:] + self.values[:-1]) / 2

    def encode(self, x: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Flat `x` into `codes` (uint8, as long) and `scales` (one a block, the last of which may be short)."""
        blocks = F.pad(x, (0, -len(x) % BLOCK)).view(-1, BLOCK)
        torch.amax(blocks.abs() if self.signed else blocks, 1, out=scales)
        part = (blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).view(-1)[: len(x)]
        found = torch.bucketize(part, self.middles.to(x.device), out_int32=True)
        if not self.signed:
            found.clamp_(min=1).mul_(part > 0)
        codes.copy_(found)

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """The flat float32 numbers."""
        values = self.values.to(codes.device).index_select(0, codes.int())
        whole = len(codes) // BLOCK * BLOCK
        values[:whole].view(-1, BLOCK).mul_(scales[: whole // BLOCK, None])
        values[whole:].mul_(scales[-1])
        return values


class CodedAdamW(Rule):
    """AdamW between decoding and coding."""

    def __init__(self, groups: list[dict[str, Any]], options: dict[str, Any]) -> None:
        super().__init__(groups, options)
        self._codes = {"exp_avg": Codes(signed=True), "exp_avg_sq": Codes(signed=False)}

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Mapping[str, Any]) -> None:
        size = parameter.numel()
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in self._codes:  # code 127 is a signed zero; with a scale of zero every code is
                state[name] = torch.zeros(size, dtype=torch.uint8, device=parameter.device)
                state[f"{name}_scales"] = torch.zeros(ceil(size / BLOCK), device=parameter.device)
        state["step"] += 1
        weights, slopes = parameter.view(-1), gradient.reshape(-1)
        for start in range(0, size, PIECE):
            piece, blocks = slice(start, start + PIECE), slice(start // BLOCK, -(-(start + PIECE) // BLOCK))
            kept = {name: (state[name][piece], state[f"{name}_scales"][blocks]) for name in self._codes}
            m, v = (self._codes[name].decode(*pair) for name, pair in kept.items())
            adam_step(weights[piece], slopes[piece], m, v, state["step"].item(), group)
            for name, moment in (("exp_avg", m), ("exp_avg_sq", v)):
                self._codes[name].encode(moment, *kept[name])
