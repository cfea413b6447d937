"""Which way a training lies on the ranks of its session."""

from torch import nn

from llmlab.errors import InputError
from llmlab.stages import Session
from llmlab.training.parallel.fsdp import FullyShardedRanks
from llmlab.training.parallel.kinds import DDP, FSDP, TensorParallel, Zero1
from llmlab.training.parallel.ranks import Alone, Ranks, Replicas, ZeroOne
from llmlab.training.parallel.replica import check_elementwise
from llmlab.training.parallel.tensor import TensorRanks


def ranks_of(session: Session, model: nn.Module, optimizer: str) -> Ranks:
    """`model` on the ranks of the session, as its `parallel` says; ddp where it says nothing. InputError for an update
    rule (the `kind` of an optimizer) or a model that cannot lie so."""
    world, device = session.world, session.device.type
    if world.alone:
        return Alone(model)
    match session.parallel:
        case None | DDP():
            return Replicas(world, model)
        case Zero1():
            return ZeroOne(world, model)
        case FSDP(tensor=tensor):
            check_elementwise(optimizer, "fsdp")
            return FullyShardedRanks(world, model, tensor, device)
        case TensorParallel(size=size):
            check_elementwise(optimizer, "tensor")
            return TensorRanks(world, model, size or world.size, device)
        case other:
            raise InputError("parallel", f"{other!r} is no way to lie on ranks")
