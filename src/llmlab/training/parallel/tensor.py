"""tensor: the linears of attention and feed-forward cut across ranks (Megatron-LM, arXiv 1909.08053).

query, key, value, gate and up are cut by outputs, so each rank has whole heads and whole hidden units; output and down
by inputs, and their products are added up. Two messages a block forward, and as many backward as linears that are cut
by outputs. Embedding, norms and head are on every rank, and so is the text.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.model.attention import Attention
from llmlab.model.feedforward import FeedForward, GatedFeedForward
from llmlab.model.linear import Linear, Role
from llmlab.model.transformer import Transformer, positions_of
from llmlab.training.optimizer import trained
from llmlab.training.parallel.kinds import divided
from llmlab.training.parallel.pieces import Piece, add_up
from llmlab.training.parallel.ranks import Ranks, add_gradients, norm_of_pieces
from llmlab.training.parallel.replica import give_back, taken, transformer_in
from llmlab.world import World

ENCODINGS = ("none", "sinusoidal", "learned", "rope", "rope_interleaved")  # those that treat all heads alike


class _Copied(torch.autograd.Function):
    """The same forward; backward each rank has a part of the gradient, and the parts are added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        import torch.distributed as dist

        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole, group=ctx.group)
        return whole, None


class _Summed(torch.autograd.Function):
    """Forward the ranks' parts are added up; backward each has the whole gradient already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        import torch.distributed as dist

        whole = x.contiguous().clone()
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class ByOutputs(nn.Module):
    """A linear's outputs of one rank: x [..., in] -> [..., out / size]."""

    def __init__(self, linear: Linear, rank: int, size: int, group: Any) -> None:
        super().__init__()
        self.group = group
        self.weight = _cut(linear.weight, 0, rank, size)
        self.bias = None if linear.bias is None else _cut(linear.bias, 0, rank, size)

    def forward(self, x: Tensor, role: Role = None) -> Tensor:
        copied: Tensor = _Copied.apply(x, self.group)  # type: ignore[no-untyped-call]
        return F.linear(copied, self.weight, self.bias)


class ByInputs(nn.Module):
    """A linear over one rank's inputs, added up over ranks: x [..., in / size] -> [..., out]."""

    def __init__(self, linear: Linear, rank: int, size: int, group: Any) -> None:
        super().__init__()
        self.group = group
        self.weight = _cut(linear.weight, 1, rank, size)
        self.bias = linear.bias

    def forward(self, x: Tensor, role: Role = None) -> Tensor:
        y: Tensor = _Summed.apply(F.linear(x, self.weight), self.group)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias


def _cut(parameter: Tensor, dim: int, rank: int, size: int) -> nn.Parameter:
    return nn.Parameter(parameter.detach().chunk(size, dim)[rank].clone(), parameter.requires_grad)


class Cut:
    """The blocks of a model cut across the ranks of a group, in place: `dims` names the parameters that are, and along
    which dimension; `partial` those on every rank whose gradient is there in parts."""

    def __init__(self, base: Transformer, rank: int, size: int, group: Any) -> None:
        self.rank, self.size, self.group = rank, size, group
        self.dims: dict[str, int] = {}
        self.partial: set[str] = set()
        _check(base, size)
        for path, module in list(base.named_modules()):
            if isinstance(module, Attention):
                module.heads, module.key_heads = module.heads // size, module.key_heads // size
                self._cut(path, module, ("query", "key", "value"), "output")
            elif isinstance(module, GatedFeedForward | FeedForward):
                ups = ("gate", "up") if isinstance(module, GatedFeedForward) else ("up",)
                self._cut(path, module, ups, "down")

    def _cut(self, path: str, module: nn.Module, outwards: tuple[str, ...], inwards: str) -> None:
        for name in outwards:
            setattr(module, name, ByOutputs(_plain(path, module, name), self.rank, self.size, self.group))
            self.dims |= {f"{path}.{name}.weight": 0, f"{path}.{name}.bias": 0}
        setattr(module, inwards, ByInputs(_plain(path, module, inwards), self.rank, self.size, self.group))
        self.dims[f"{path}.{inwards}.weight"] = 1
        known = {f"{path}.{name}." for name in (*outwards, inwards)}
        for name, _ in module.named_parameters(prefix=path):
            if not any(name.startswith(prefix) for prefix in known):
                self.partial.add(name)  # a norm of heads, a learnt activation: it saw this rank's units only

    def piece(self, name: str, parameter: Tensor) -> Piece:
        """Where this rank's part of a parameter lies; `name` as in the transformer."""
        dim = self.dims.get(name)
        if dim is None:
            return Piece.whole(parameter)
        shape, start = list(parameter.shape), [0] * parameter.ndim
        shape[dim], start[dim] = shape[dim] * self.size, parameter.shape[dim] * self.rank
        return Piece(tuple(shape), tuple(start))

    def whole(self, name: str, part: Tensor) -> Tensor:
        """A parameter put together from the ranks of the group."""
        import torch.distributed as dist

        if name not in self.dims:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous(), group=self.group)
        return torch.cat(parts, self.dims[name])


def _plain(path: str, module: nn.Module, name: str) -> Linear:
    linear = module.get_submodule(name)
    if type(linear) is not Linear:
        problem = f"tensor cuts plain linears, and {path}.{name} is a {type(linear).__name__}"
        raise InputError("parallel", problem, "with adapters use ddp, zero1 or fsdp")
    return linear


def _check(base: Transformer, size: int) -> None:
    """InputError, by name, for what cannot be cut into `size` equal parts."""
    a = base.architecture
    for position in positions_of(a):
        if position.kind not in ENCODINGS:
            problem = f"tensor parts heads, and {position.kind} has something of its own for each"
            raise InputError("model.position", problem, f"use one of {', '.join(ENCODINGS)}")
    if not a.attention.scores:
        raise InputError("model.attention", f"tensor cannot cut {a.attention.kind}", "use mha or gqa, or parallel=fsdp")
    counts = {"model.attention.heads": a.attention.heads, "model.attention.kv_heads": a.keyed.key_heads}
    counts["model.feedforward.width"] = a.feedforward.hidden_width(a.dim)
    for field, count in counts.items():
        if count % size:
            near = max(part for part in range(1, size) if count % part == 0)
            raise InputError(field, f"{count} cannot be cut into {size} equal parts", f"{near} ranks could share it")


def inside(model: nn.Module, base: nn.Module) -> str:
    """What stands before the names of a transformer's parameters in the names of the model around it."""
    path = next(path for path, module in model.named_modules() if module is base)
    return f"{path}." if path else ""


class TensorRanks(Ranks):
    """tensor: `size` ranks share one model; where there are more, groups of them are replicas that read texts of their
    own, their gradients added up as in ddp."""

    lockstep = True

    def __init__(self, world: World, model: nn.Module, size: int, device: str) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self._readers, self._size = divided("parallel.size", size, world.size), size
        mesh = init_device_mesh(device, (self._readers, size), mesh_dim_names=("data", "tensor"))
        self._data, group = mesh.get_group("data"), mesh.get_group("tensor")
        _check(transformer_in(model), size)
        self._given, replica = model, taken(model)
        base = transformer_in(replica)
        self._before = inside(replica, base)
        self._cut = Cut(base, world.rank % size, size, group)
        super().__init__(world, replica, replica)
        self.shapes = {name: self.piece(name).shape for name in self.shapes}

    @property
    def readers(self) -> int:
        return self._readers

    @property
    def reader(self) -> int:
        return self.world.rank // self._size

    def heard(self, answer: Any) -> list[Any]:
        return self.world.all(lambda: answer)[:: self._size]

    def add_gradients(self) -> None:
        partial = [gradient for name, gradient in self._gradients().items() if name in self._cut.partial]
        add_up(partial, self._cut.group)
        if self._readers > 1:
            add_gradients(trained(self.model), self.world, self._data)

    def _gradients(self) -> dict[str, Tensor]:
        """By the transformer's names."""
        parameters = trained(self.model).items()
        return {name.removeprefix(self._before): p.grad for name, p in parameters if p.grad is not None}

    def norm(self) -> Tensor | None:
        gradients = self._gradients()
        cut = [gradient for name, gradient in gradients.items() if name in self._cut.dims]
        whole = [gradient for name, gradient in gradients.items() if name not in self._cut.dims]
        return norm_of_pieces(cut, whole, lambda square: add_up([square], self._cut.group))

    def spread(self) -> None: ...

    def finish(self) -> None:
        give_back(self._given, self.model, lambda name, p: self._cut.whole(name.removeprefix(self._before), p.data))

    @property
    def in_pieces(self) -> bool:
        return True

    def piece(self, name: str) -> Piece:
        return self._cut.piece(name.removeprefix(self._before), self.owned.get_parameter(name))

    def keeps(self, name: str) -> bool:
        return self.reader == 0 and (self._cut.rank == 0 or name.removeprefix(self._before) in self._cut.dims)
