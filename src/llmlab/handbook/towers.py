"""Towers of feed-forwards: residual stacks without attention, small enough to be trained 64 deep in a second.

R rows or T tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.handbook.measures import draw
from llmlab.model.attention import Mixer, Sight
from llmlab.model.block import Block, DeepNorm, Wired, deepnorm, norms_of
from llmlab.model.encoding import Encoding
from llmlab.model.feedforward import ReLU
from llmlab.model.norms import LayerNorm
from llmlab.model.places import Places
from llmlab.runtime import generator

DIM, CLASSES, BATCH, HELD_OUT = 32, 10, 64, 1000


class Alone(Mixer):
    """A feed-forward where attention stands: no token sees another."""

    def __init__(self, feedforward: nn.Module) -> None:
        super().__init__()
        self.inner = feedforward

    def forward(self, x_BTD: Tensor, sight: Sight, layer: int) -> Tensor:
        y_BTD: Tensor = self.inner(x_BTD)
        return y_BTD


class Tower(nn.Module):
    """Residual blocks of two feed-forwards each, as our `Block` wires them, ended as that wiring is ended."""

    def __init__(self, wiring: Wired, sublayers: int, dim: int, width: int, seed: int, bias: bool = False) -> None:
        super().__init__()
        alpha, beta = deepnorm(sublayers // 2) if isinstance(wiring, DeepNorm) else (1.0, 1.0)
        part = ReLU(width=width, bias=bias)
        self.blocks = nn.ModuleList(
            Block(
                Alone(part.build(dim)),
                part.build(dim),
                wiring,
                [LayerNorm().build(dim) for _ in range(norms_of(wiring, False))],
                0.0,
                alpha,
            )
            for _ in range(sublayers // 2)
        )
        self.final = nn.Identity() if wiring.kind in ("post", "deepnorm") else LayerNorm().build(dim)
        for name, parameter in self.blocks.named_parameters():
            if parameter.ndim > 1:
                nn.init.xavier_normal_(parameter, beta, generator=generator(seed, "handbook", "tower", name))
            else:
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)

    def outputs(self) -> list[nn.Parameter]:
        """The last matrix of each sublayer, first to last."""
        names = ("attention.inner.down.weight", "feedforward.down.weight")
        return [block.get_parameter(name) for block in self.blocks for name in names]

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        x_BTD = x_TD[None]
        at = Places.causal(1, len(x_TD))
        sight = Sight(at, Encoding(), None, torch.ones(1, 1, 1, 1, dtype=torch.bool))
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, sight, layer)
        y_BTD: Tensor = self.final(x_BTD)
        return y_BTD[0]


def tower_gradients(wiring: Wired, sublayers: int, seed: int, dim: int = 64) -> list[float]:
    """Those of a tower at its start."""
    return gradients_of(Tower(wiring, sublayers, dim, 4 * dim, seed).double(), seed, dim)


def gradients_of(tower: Tower, seed: int, dim: int) -> list[float]:
    """Norm of the gradient by the last matrix of each sublayer, for half the squared distance a token from random
    answers; 64 random tokens."""
    x_TD, answers_TD = draw(seed, "tower.x", 64, dim), draw(seed, "tower.answers", 64, dim)
    loss = (tower(x_TD) - answers_TD).square().sum() / (2 * len(x_TD))
    return [float(gradient.norm()) for gradient in torch.autograd.grad(loss, tower.outputs())]


# ---------------------------------------------------------------- something to learn


def examples(seed: int, name: str, rows: int) -> tuple[Tensor, Tensor]:
    """Random inputs, and the largest output of one fixed random network on them."""
    x_RD = draw(seed, f"towers.{name}", rows, DIM)
    first, second = draw(0, "towers.teacher.first", DIM, 2 * DIM), draw(0, "towers.teacher.second", 2 * DIM, CLASSES)
    return x_RD.float(), (torch.tanh(2 * x_RD @ first / DIM**0.5) @ second).argmax(-1)


def learnt(network: nn.Module, seed: int, steps: int, rate: float) -> float:
    """Nats on fresh examples after so many steps of Adam."""
    optimizer = torch.optim.Adam(network.parameters(), rate)
    inputs, answers = examples(seed, "train", steps * BATCH)
    for x_RD, answers_R in zip(inputs.view(steps, BATCH, DIM), answers.view(steps, BATCH), strict=True):
        loss = F.cross_entropy(network(x_RD), answers_R)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    fresh, truth = examples(seed, "test", HELD_OUT)
    with torch.no_grad():
        return float(F.cross_entropy(network(fresh), truth))


def frequencies(seed: int, steps: int) -> float:
    """Nats on the same fresh examples of who only knows how frequent the classes were."""
    shares = torch.bincount(examples(seed, "train", steps * BATCH)[1], minlength=CLASSES) / (steps * BATCH)
    return float(-shares.log()[examples(seed, "test", HELD_OUT)[1]].mean())
