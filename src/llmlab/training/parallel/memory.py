"""What a rank holds of weights, gradients and optimizer's state: ZeRO's arithmetic, from shapes alone.

With P parameters, b bytes a number and m moments a parameter, N ranks hold each (Rajbhandari et al. 2020, figure 1):

    ddp     b P (1 + 1 + m)        zero1   b P (1 + 1 + m / N)        fsdp    b P (1 + 1 + m) / N

Here the sums go over real tensors, so that what does not divide evenly counts as it lies. Activations, and the blocks
that fsdp puts together while it computes, come on top.
"""

import copy

from torch import nn

from llmlab.training.optimizer import trained
from llmlab.training.parallel.kinds import DDP, FSDP, TensorParallel, Zero1
from llmlab.training.parallel.ranks import owners
from llmlab.training.parallel.replica import transformer_in
from llmlab.training.parallel.tensor import Cut


def bytes_a_rank(
    model: nn.Module, way: DDP | Zero1 | FSDP | TensorParallel, ranks: int, moments: int = 2
) -> dict[str, int]:
    """`parameters`, `gradients` and `optimizer` of the rank that holds most; `model` may be on the meta device.
    `moments` is how many numbers the optimizer keeps a trained weight (AdamW 2, Muon 1). A frozen parameter has neither
    gradient nor moments."""
    readers = way.readers(ranks)
    cut = model
    if isinstance(way, TensorParallel | FSDP) and ranks // readers > 1:
        cut = copy.deepcopy(model).to("meta")
        Cut(transformer_in(cut), 0, ranks // readers, None)
    learning = {name: p.nbytes for name, p in trained(cut).items()}
    parameters, gradients = sum(p.nbytes for p in cut.parameters()), sum(learning.values())
    state = gradients
    if isinstance(way, Zero1):
        owner = owners({name: p.numel() for name, p in trained(cut).items()}, ranks)
        state = max(sum(learning[name] for name in learning if owner[name] == rank) for rank in range(ranks))
    if isinstance(way, FSDP):
        parameters = sum(_first_part(p, readers) for p in cut.parameters())
        gradients = state = sum(_first_part(p, readers) for p in trained(cut).values())
    return {"parameters": parameters, "gradients": gradients, "optimizer": moments * state}


def _first_part(parameter: nn.Parameter, ranks: int) -> int:
    """Bytes of the first of the parts that rows are cut into, the largest one."""
    if parameter.ndim == 0:
        return parameter.nbytes
    rows = len(parameter)
    return parameter.nbytes // max(rows, 1) * -(-rows // ranks)
