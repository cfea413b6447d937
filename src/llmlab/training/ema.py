"""The average of the weights over the steps, which is what is evaluated, kept and saved.

After the n-th update the average a of the weights w moves by

    a += (w - a) * (1 - decay) / (1 - decay^n)

which is the exponential moving average that starts from zero, divided by 1 - decay^n as Adam's moments are (Kingma & Ba
2015, arXiv 1412.6980, section 3): the weighted mean of the weights after every update so far, each weighing `decay` of
the one after it. So there is no warm-up to set and the initial weights have no share; a decay whose memory is longer
than the training, 1 / (1 - decay) steps, is nearly the plain mean of all of it, the poor weights of its beginning too.
Averaging over the steps: Polyak & Juditsky 1992; in this form in deep learning: Tarvainen & Valpola 2017, arXiv
1703.01780.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.recipe import Section

_UPDATES, _OF = ":updates", ":average"


class EMA(Section):
    """A moving average of the trained weights takes their place wherever they are looked at: at every evaluation, as
    the best weights, and as the model in the end. Training itself never sees it. Costs one more copy of the trained
    weights, in memory and in each checkpoint."""

    decay: float = Field(0.99, gt=0.0, lt=1.0, description="weight of a step beside the one after it; remembers "
                         "1 / (1 - decay) steps, far fewer than the training has")  # fmt: skip


class Average:
    """The average of these parameters, by their names; without a section it is nothing and costs nothing."""

    def __init__(self, section: EMA | None, parameters: Mapping[str, nn.Parameter]) -> None:
        self._decay = None if section is None else section.decay
        self._parameters, self._of, self._updates = parameters, dict[str, Tensor](), 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after an update. Steps that updated nothing have no share."""
        if self._decay is None:
            return
        self._updates += 1
        if not self._of:
            self._of = {name: _wide(parameter).clone() for name, parameter in self._parameters.items()}
            return
        share = (1.0 - self._decay) / (1.0 - self._decay**self._updates)
        for name, parameter in self._parameters.items():
            self._of[name].lerp_(_wide(parameter), share)

    @contextmanager
    def shown(self, spread: Callable[[], None]) -> Iterator[None]:
        """Meanwhile the model holds the average, and afterwards its own weights again, to the bit. Before the first
        update these are all there is. They lie aside where the gradients lie in a step, so no peak grows by them.
        `spread` is called after each change, for whoever else computes with these weights."""
        if not self._of:
            yield
            return
        aside = {name: self._parameters[name].detach().clone() for name in self._of}
        self.settle()
        spread()
        try:
            yield
        finally:
            self._put(aside)
            spread()

    @property
    def taken(self) -> bool:
        """Whether there is an average."""
        return bool(self._of)

    def settle(self) -> None:
        """The model holds the average from now on."""
        self._put(self._of)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._parameters[name].copy_(value)

    def state(self) -> dict[str, Tensor]:
        """As `<parameter>:average`, named as the optimizer's moments are: it lies and is cut into shards with them."""
        updates = {name + _UPDATES: torch.tensor(self._updates) for name in self._of}
        return {name + _OF: value for name, value in self._of.items()} | updates

    def load(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take what is of the average; the rest is answered. InputError where a parameter of it has another shape."""
        left = dict(tensors)
        updates = [left.pop(name + _UPDATES) for name in self._parameters if name + _UPDATES in left]
        self._updates, self._of = int(updates[0]) if updates else 0, {}
        for name, parameter in self._parameters.items() if updates else ():
            value = left.pop(name + _OF, None)
            if value is None or value.shape != parameter.shape:
                raise InputError("the average of the weights", f"has no {name!r} of this shape", "take a new --out")
            self._of[name] = value.to(parameter.device, copy=True)
        return left


def _wide(parameter: Tensor) -> Tensor:
    """In float32 at least: a small share of a difference would be lost in the rounding of bfloat16."""
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
