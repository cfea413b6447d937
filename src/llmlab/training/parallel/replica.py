"""A model taken apart: a copy of it is cut across ranks and trained, and the one that was given gets its weights back
at the end. In between it holds nothing."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.model.transformer import Transformer


def taken(model: nn.Module) -> nn.Module:
    """A copy of `model`, which is left without weights."""
    replica = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)
    return replica


@torch.no_grad()
def give_back(model: nn.Module, replica: nn.Module, whole: Callable[[str, nn.Parameter], Tensor]) -> None:
    """Fill `model` with the weights of its copy, each as `whole` puts it together."""
    own = dict(model.named_parameters())
    for name, parameter in replica.named_parameters():
        own[name].data = whole(name, parameter).to(own[name].device)


def transformer_in(model: nn.Module) -> Transformer:
    """The one transformer of a model, of a role's view of it, or of a table of roles."""
    for module in model.modules():
        if isinstance(module, Transformer):
            return module
    raise InputError("parallel", f"a {type(model).__name__} has no transformer to cut", "use ddp")


ELEMENTWISE = ("adamw", "lion", "sgd")  # what these do to a number depends on no other number of its tensor


def check_elementwise(optimizer: str, way: str, place: str = "parallel") -> None:
    """InputError for an update rule that looks at whole matrices, where no rank has one."""
    if optimizer not in ELEMENTWISE:
        hint = "use optimizer=adamw, or parallel=zero1"
        raise InputError(place, f"{way} cuts matrices, which {optimizer} needs whole", hint)
