"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): blocks forget what they computed and compute it again.

Put on from outside: while training lasts, each block's `forward` and `streams` go through torch's non-reentrant
checkpoint. The model's modules, names and weights stay as they are, and so do its numbers: dropout's noise is drawn
again from the generator's state of the first time.

`full` keeps what goes into a block. `selective` keeps the outputs of matrix products and of attention too, which cost
most to compute, and makes the rest again: norms, activations, rotations (Korthikanti et al. 2022, arXiv 2205.05198).

The fused step (`model/fused.py`) keeps just these and makes the rest again by itself: `selective` leaves it alone.

A recurrent net is made again whole either way: torch's cells go on working in the outputs of their products, and what
was kept of those would not be what they were.

A pass without gradients keeps nothing anyway, and one with a cache (generation) must not run twice: neither is changed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from llmlab.model.attention import Sight
from llmlab.model.block import Block, Memory
from llmlab.model.fused import FusedBlock
from llmlab.model.recurrent import Recurrent

Checkpointing = Literal["none", "full", "selective"]

PRODUCTS = (  # aten's names, of whatever overload
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
)


@contextmanager
def checkpointed(model: nn.Module, how: Checkpointing) -> Iterator[None]:
    """The blocks of `model` compute so in here; a shared one once more at each depth."""
    blocks = [] if how == "none" else [module for module in model.modules() if isinstance(module, Block)]
    if how == "selective":
        blocks = [block for block in blocks if not isinstance(block, FusedBlock)]
    try:
        for block in blocks:
            way: Checkpointing = "full" if isinstance(block.attention, Recurrent) else how
            # Attributes of the object stand before its class's methods; taken away again, nothing is left.
            vars(block)["forward"] = _Twice(block.forward, way)
            vars(block)["streams"] = _Twice(block.streams, way)
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)
            vars(block).pop("streams", None)


class _Twice:
    """A block's method that computes a second time when its gradients are asked for. An object and no closure: a deep
    copy of the block has one of its own."""

    def __init__(self, compute: Callable[..., Any], how: Checkpointing) -> None:
        self.compute, self.how = compute, how

    def __call__(self, *given: Any) -> Any:
        if not torch.is_grad_enabled() or any(map(_remembers, given)):
            return self.compute(*given)
        if self.how == "full":
            return checkpoint(self.compute, *given, use_reentrant=False)
        contexts = partial(create_selective_checkpoint_contexts, _policy)
        return checkpoint(self.compute, *given, use_reentrant=False, context_fn=contexts)


def _remembers(given: Any) -> bool:
    """Whether a block's argument would be changed by a second pass."""
    if isinstance(given, Sight):
        return given.cache is not None and getattr(given.cache, "remembers", True)
    return isinstance(given, Memory) and given.kept is not None


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operation.name().partition(".")[0] in PRODUCTS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
