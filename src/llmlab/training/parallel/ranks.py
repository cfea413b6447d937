"""How one training lies on the ranks: what the loop asks, and the answers of one process, of ddp and of zero1.

Every rank makes the same list of a step's micro-batches and runs its share of them, so what a term is a mean of needs
no message, and the place in the data is the same whatever the number of ranks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from llmlab.errors import InputError
from llmlab.training.optimizer import Optimizer, trained
from llmlab.training.parallel.pieces import Piece, add_up, held, send
from llmlab.world import World

A = TypeVar("A")


class Ranks(ABC):
    """One rank's part in a training.

    `model` computes here. `owned` has the parameters that this rank updates and saves, under the names they have in the
    model: the model itself, a share of its parameters, or a part of each of them.
    """

    lockstep: ClassVar[bool] = False  # whether all ranks must go through the model equally often

    def __init__(self, world: World, model: nn.Module, owned: nn.Module) -> None:
        self.world, self.model, self.owned = world, model, owned
        self.shapes = {name: tuple(parameter.shape) for name, parameter in trained(model).items()}

    # ------------------------------------------------------------ who reads what

    @property
    def readers(self) -> int:
        """How many ranks run micro-batches of their own."""
        return self.world.size

    @property
    def reader(self) -> int:
        """Which of them this rank is."""
        return self.world.rank

    def share(self, learns: Sequence[bool]) -> list[tuple[int, bool]]:
        """The micro-batches of this rank by number, and whether each counts; `learns` says which have something to
        learn. In lockstep, who has none runs another's once more and lets it count for nothing."""
        size = self.readers
        if len(learns) < size:
            raise InputError(
                "micro_batch",
                f"world size larger than the batch: {len(learns)} micro-batches a step for {size} ranks",
                f"lower micro_batch to the step's rows / {size}, or start fewer processes",
            )
        if not self.lockstep:
            return [(number, True) for number in range(self.reader, len(learns), size) if learns[number]]
        shared = []
        for start in range(0, len(learns), size):
            full = [number for number in range(start, min(start + size, len(learns))) if learns[number]]
            if full:
                mine = start + self.reader
                shared.append((mine, True) if mine in full else (full[0], False))
        return shared

    def heard(self, answer: A) -> list[A]:
        """What the readers found, one answer a reader."""
        return self.world.all(lambda: answer)

    # ------------------------------------------------------------ gradients and weights

    @abstractmethod
    def add_gradients(self) -> None:
        """After the last micro-batch: gradients of `owned` become those of the whole step."""

    def norm(self) -> Tensor | None:
        """Of the whole gradient, None where there is none."""
        return norm_of(self.model.parameters())

    def clip(self, most: float, norm: Tensor) -> None:
        """Scale gradients of `owned`, whose whole norm is `norm`, to a norm of `most`."""
        clip_grads_with_norm_(self.owned.parameters(), most, norm)

    def update(self, optimizer: Optimizer) -> None:
        """One step of the optimizer over `owned`, and no gradient afterwards."""
        optimizer.step()
        optimizer.zero_grad()

    @abstractmethod
    def spread(self) -> None:
        """After weights of `owned` were set: all ranks compute with them."""

    @abstractmethod
    def finish(self) -> None:
        """At the end: the model that was given has all weights, whole, on every rank."""

    # ------------------------------------------------------------ checkpoints

    @property
    def in_pieces(self) -> bool:
        """Whether each rank saves what it owns, in place of the first saving all."""
        return False

    def piece(self, name: str) -> Piece:
        """Where this rank's part of a parameter of `owned` lies in the whole one."""
        return Piece.whole(self.owned.get_parameter(name))

    def keeps(self, name: str) -> bool:
        """Whether it is this rank that saves its part: of equal parts one is enough."""
        return self.world.first

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor: of the parameter, or of optimizer state that is shaped like it."""
        piece = self.piece(name)
        if whole.ndim == 0 or piece.shape == tuple(self.owned.get_parameter(name).shape):
            return whole
        return piece.of(whole, self.owned.get_parameter(name).shape)

    def parts(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's part of an optimizer's whole state; names that no training here knows stay for it to refuse."""
        mine = trained(self.owned)
        return {
            key: self.part(name, state[key]) if name in mine else state[key]
            for key in state
            if (name := key.partition(":")[0]) in mine or name not in self.shapes
        }


class Alone(Ranks):
    """One process: the plain thing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(World(), model, model)

    def share(self, learns: Sequence[bool]) -> list[tuple[int, bool]]:
        return [(number, True) for number, learn in enumerate(learns) if learn]

    def add_gradients(self) -> None: ...

    def spread(self) -> None: ...

    def finish(self) -> None: ...


class Replicas(Ranks):
    """ddp: a whole model a rank. Gradients are added up in buckets after the last micro-batch."""

    def __init__(self, world: World, model: nn.Module) -> None:
        super().__init__(world, model, model)

    def add_gradients(self) -> None:
        add_gradients(trained(self.model), self.world)

    def spread(self) -> None: ...

    def finish(self) -> None: ...


class ZeroOne(Ranks):
    """zero1: a whole model a rank, and a share of the optimizer's state. Whole parameters are shared out, so that any
    optimizer will do, one that looks at matrices too."""

    def __init__(self, world: World, model: nn.Module) -> None:
        self._owner = owners({name: p.numel() for name, p in trained(model).items()}, world.size)
        super().__init__(world, model, held(self._of(model, world.rank)))

    def _of(self, model: nn.Module, rank: int) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in trained(model).items() if self._owner[name] == rank}

    def add_gradients(self) -> None:
        add_gradients(trained(self.model), self.world)

    def update(self, optimizer: Optimizer) -> None:
        optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.spread()

    def spread(self) -> None:
        for rank in range(self.world.size):
            send([parameter.data for parameter in self._of(self.model, rank).values()], rank)

    def finish(self) -> None: ...

    @property
    def in_pieces(self) -> bool:
        return True

    def keeps(self, name: str) -> bool:
        return True


def owners(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """Who owns which parameter: the largest first, each to the rank that has least. InputError for fewer parameters
    than ranks."""
    if len(sizes) < ranks:
        problem = f"zero1 shares out whole tensors, and {len(sizes)} are trained for {ranks} ranks"
        raise InputError("parallel", problem, "use ddp")
    load, owner = [0] * ranks, {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owner[name] = load.index(min(load))
        load[owner[name]] += sizes[name]
    return owner


def add_gradients(parameters: Mapping[str, nn.Parameter], world: World, group: Any = None) -> None:
    """Gradients become their sums over the group. One that no rank has stays away: its parameter is not updated."""
    mine = [parameter.grad is not None for parameter in parameters.values()]
    anywhere = [any(found) for found in zip(*world.all(lambda: mine), strict=True)]
    gradients = []
    for parameter, there in zip(parameters.values(), anywhere, strict=True):
        if there:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
    add_up(gradients, group)


def norm_of(parameters: Any) -> Tensor | None:
    """Of all gradients together; None where there is none."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return get_total_norm(gradients) if gradients else None


def norm_of_pieces(pieces: Sequence[Tensor], wholes: Sequence[Tensor], add: Callable[[Tensor], None]) -> Tensor | None:
    """The norm of gradients of which some are cut across ranks; `add` sums a number over those ranks."""
    if not pieces and not wholes:
        return None
    like = (*pieces, *wholes)[0]
    square = get_total_norm(pieces).square() if pieces else like.new_zeros(())
    add(square)
    return (square + get_total_norm(wholes).square() if wholes else square).sqrt()
