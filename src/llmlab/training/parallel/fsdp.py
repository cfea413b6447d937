"""fsdp: parameters, gradients and optimizer's state cut across ranks (ZeRO stage 3), by torch's `fully_shard`.

Each block is put together when it computes and taken apart afterwards; embedding, last norm and head are one more
piece, which stays together from the forward pass to the backward one. With `tensor` above 1 the linears are cut first,
across neighbouring ranks, and the rest is done across what is left.
"""

from typing import Any

from torch import Tensor, nn

from llmlab.training.optimizer import Optimizer, trained
from llmlab.training.parallel.kinds import divided
from llmlab.training.parallel.pieces import Piece, add_up, held
from llmlab.training.parallel.ranks import Ranks, add_gradients, norm_of_pieces
from llmlab.training.parallel.replica import give_back, taken, transformer_in
from llmlab.training.parallel.tensor import Cut, inside
from llmlab.world import World

CALLS = ("hidden", "logits", "encode", "queries")  # what objectives call on a transformer beside `forward`


class FullyShardedRanks(Ranks):
    """fsdp. `owned` has this rank's part of each parameter, in the same memory as the model's own pieces."""

    lockstep = True

    def __init__(self, world: World, model: nn.Module, tensor: int, device: str) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self._readers, self._tensor = divided("parallel.tensor", tensor, world.size), tensor
        mesh = init_device_mesh(device, (self._readers, tensor), mesh_dim_names=("data", "tensor"))
        self._given, replica = model, taken(model)
        base = transformer_in(replica)
        self._before, self._cut = inside(replica, base), None
        if tensor > 1:
            self._cut = Cut(base, world.rank % tensor, tensor, mesh.get_group("tensor"))
        self._data = mesh.get_group("data")
        _shard(base, mesh["data"])
        # Kept from now on: what is put together for an evaluation is no piece meanwhile.
        self._spread = {name for name, parameter in trained(replica).items() if _is_piece(parameter)}
        self._pieces = {name: self._piece(name, parameter) for name, parameter in trained(replica).items()}
        self._mine = {name: p if not _is_piece(p) else nn.Parameter(_local(p)) for name, p in trained(replica).items()}
        super().__init__(world, replica, held(self._mine))
        self.shapes = {name: piece.shape for name, piece in self._pieces.items()}

    def _piece(self, name: str, parameter: nn.Parameter) -> Piece:
        """Where this rank's part lies: cut by `tensor` first, and that by the first dimension."""
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        inner = Piece.whole(parameter)
        if self._cut is not None:
            inner = self._cut.piece(name.removeprefix(self._before), parameter)
        if not isinstance(parameter, DTensor):
            return inner
        _, start = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
        return Piece(inner.shape, tuple(a + b for a, b in zip(inner.start, start, strict=True)))

    # ------------------------------------------------------------ who reads what

    @property
    def readers(self) -> int:
        return self._readers

    @property
    def reader(self) -> int:
        return self.world.rank // self._tensor

    def heard(self, answer: Any) -> list[Any]:
        return self.world.all(lambda: answer)[:: self._tensor]

    # ------------------------------------------------------------ gradients and weights

    def add_gradients(self) -> None:
        """Those of pieces were added up with each micro-batch; what is no piece (a scalar head) is added up here."""
        whole = {name: p for name, p in trained(self.model).items() if name not in self._spread}
        if whole:
            add_gradients(whole, self.world, self._data)
        for name, parameter in trained(self.model).items():
            self._mine[name].grad = None if parameter.grad is None else _local(parameter.grad)
        if self._cut is not None:
            partial = [
                p.grad
                for name, p in self._mine.items()
                if p.grad is not None and name.removeprefix(self._before) in self._cut.partial
            ]
            add_up(partial, self._cut.group)

    def norm(self) -> Tensor | None:
        cut = {} if self._cut is None else self._cut.dims
        of_both: list[Tensor] = []  # cut by tensor and by fsdp; by fsdp alone; by none
        of_data: list[Tensor] = []
        of_none: list[Tensor] = []
        for name, parameter in self._mine.items():
            if (gradient := parameter.grad) is not None:
                both = name.removeprefix(self._before) in cut
                (of_both if both else of_data if name in self._spread else of_none).append(gradient)
        if not of_both:
            return norm_of_pieces(of_data, of_none, lambda square: add_up([square], self._data))
        inner = norm_of_pieces(of_both, [], lambda square: add_up([square]))
        outer = norm_of_pieces(of_data, of_none, lambda square: add_up([square], self._data))
        assert inner is not None
        return inner if outer is None else (inner.square() + outer.square()).sqrt()

    def update(self, optimizer: Optimizer) -> None:
        optimizer.step()
        optimizer.zero_grad()
        self.model.zero_grad(set_to_none=True)

    def spread(self) -> None:
        from torch.distributed.fsdp import FSDPModule

        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what was put together for an evaluation is of the weights before

    def finish(self) -> None:
        def whole(name: str, parameter: nn.Parameter) -> Tensor:
            from torch.distributed.tensor import DTensor

            part = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.data
            return part if self._cut is None else self._cut.whole(name.removeprefix(self._before), part)

        self.spread()
        give_back(self._given, self.model, whole)

    # ------------------------------------------------------------ checkpoints

    @property
    def in_pieces(self) -> bool:
        return True

    def piece(self, name: str) -> Piece:
        return self._pieces[name]

    def keeps(self, name: str) -> bool:
        cut = self._cut is not None and name.removeprefix(self._before) in self._cut.dims
        if not cut and self.world.rank % self._tensor:
            return False
        return self.reader == 0 or name in self._spread


def _shard(base: Any, mesh: Any) -> None:
    """Sums, not means, of gradients: each rank's loss is divided by the whole step's counts already."""
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    for stack in (base.blocks, base.encoder.blocks if base.encoder is not None else ()):
        for block in stack:
            fully_shard(block, mesh=mesh)
            register_fsdp_forward_method(block, "streams")
    fully_shard(base, mesh=mesh)
    for name in CALLS:
        register_fsdp_forward_method(base, name)
    for module in base.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
            # Room for whole weights is made now. Made while answers are drawn, in inference mode, it could not be
            # written to in training.
            module.unshard()
            module.reshard()


def _is_piece(parameter: Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor)


def _local(tensor: Tensor) -> Tensor:
    """This rank's part, in the same memory."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor
