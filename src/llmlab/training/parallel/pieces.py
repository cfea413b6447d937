"""Where a rank's part of a parameter lies in the whole one, and bundles of tensors that travel together."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

BUCKET = 25_000_000  # bytes that are sent at once, as in torch's DDP


class Piece(NamedTuple):
    """A part of a tensor of `shape`, beginning at `start`; how far it reaches is its own shape."""

    shape: tuple[int, ...]
    start: tuple[int, ...]

    @staticmethod
    def whole(tensor: Tensor) -> "Piece":
        return Piece(tuple(tensor.shape), (0,) * tensor.ndim)

    def of(self, whole: Tensor, extent: Sequence[int]) -> Tensor:
        """This part, of that extent, of the whole tensor: a view."""
        for dim, (start, length) in enumerate(zip(self.start, extent, strict=True)):
            whole = whole.narrow(dim, start, length)
        return whole


def held(parameters: Mapping[str, nn.Parameter]) -> nn.Module:
    """A tree of empty modules that has these parameters under their names."""
    root = nn.Module()
    for name, parameter in parameters.items():
        *path, leaf = name.split(".")
        module = root
        for step in path:
            if step not in module._modules:
                module.add_module(step, nn.Module())
            module = module.get_submodule(step)
        module.register_parameter(leaf, parameter)
    return root


# ---------------------------------------------------------------- bundles


def add_up(tensors: Sequence[Tensor], group: Any = None) -> None:
    """Each tensor becomes its sum over the ranks of the group, in place."""
    import torch.distributed as dist

    for bundle in _bundles(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bundle])
        dist.all_reduce(flat, group=group)
        _unpack(flat, bundle)


def send(tensors: Sequence[Tensor], source: int) -> None:
    """Each tensor becomes what rank `source` has, in place."""
    import torch.distributed as dist

    for bundle in _bundles(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bundle])
        dist.broadcast(flat, src=source)
        _unpack(flat, bundle)


def _bundles(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype, as many as make a bucket."""
    bundle: list[Tensor] = []
    for tensor in tensors:
        full = sum(one.nbytes for one in bundle) + tensor.nbytes > BUCKET
        if bundle and (full or bundle[0].dtype != tensor.dtype):
            yield bundle
            bundle = []
        bundle.append(tensor)
    if bundle:
        yield bundle


@torch.no_grad()
def _unpack(flat: Tensor, bundle: Sequence[Tensor]) -> None:
    for tensor, part in zip(bundle, torch.split(flat, [tensor.numel() for tensor in bundle]), strict=True):
        tensor.copy_(part.view_as(tensor))
