"""The recipe's `parallel`: a closed union of ways in which a training lies on the processes that torchrun started."""

from typing import Annotated, Literal

from pydantic import Field

from llmlab.errors import InputError
from llmlab.recipe import KINDS, Section


class DDP(Section):
    """Every rank has the whole model; micro-batches are shared out and gradients added up (Li et al. 2020, arXiv
    2006.15704)."""

    kind: Literal["ddp"] = "ddp"

    def readers(self, size: int) -> int:
        """How many of `size` ranks read micro-batches of their own."""
        return size


class Zero1(Section):
    """As ddp, but each rank keeps the optimizer's state of its share of the parameters, updates those and sends them
    round (ZeRO stage 1, Rajbhandari et al. 2020, arXiv 1910.02054)."""

    kind: Literal["zero1"] = "zero1"

    def readers(self, size: int) -> int:
        return size


class TensorParallel(Section):
    """The linears of attention and feed-forward are cut across ranks, heads and hidden units side by side (Shoeybi et
    al. 2019, Megatron-LM, arXiv 1909.08053). Embedding and head stay whole."""

    kind: Literal["tensor"] = "tensor"
    size: int | None = Field(None, gt=0, description="ranks that share one model; null: all. The others repeat them")

    def readers(self, size: int) -> int:
        return divided("parallel.size", self.size or size, size)


class FSDP(Section):
    """Parameters, gradients and optimizer's state are cut across ranks and put together block by block as they are
    needed (ZeRO stage 3; FSDP, Zhao et al. 2023, arXiv 2304.11277; torch's fully_shard)."""

    kind: Literal["fsdp"] = "fsdp"
    tensor: int = Field(1, gt=0, description="ranks of a machine that also cut the linears as `tensor` does; 1: none")

    def readers(self, size: int) -> int:
        return divided("parallel.tensor", self.tensor, size)


def divided(field: str, part: int, size: int) -> int:
    """How often `part` ranks go into `size`. InputError where they do not."""
    if size % part:
        raise InputError(field, f"{part} ranks do not divide the {size} that there are", "take a divisor")
    return size // part


Parallel = Annotated[DDP | Zero1 | FSDP | TensorParallel, *KINDS]
