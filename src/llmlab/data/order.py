"""The order in which examples are taken: shuffled anew each epoch, known from one number."""

from __future__ import annotations

import torch

from llmlab.data.state import State
from llmlab.errors import InputError
from llmlab.runtime import generator


class ShuffledOrder:
    """An endless stream of indices: epoch e is the permutation drawn from (seed, purpose, e), and nothing else.

    The state is how many indices were taken, so a resumed run goes on inside any epoch, and a step that straddles an
    epoch's edge takes the end of one and the start of the next: nothing is dropped or repeated. `data` names the
    examples' content; going on with other examples is refused.
    """

    def __init__(self, size: int, seed: int, purpose: str, data: str = "") -> None:
        if size < 1:
            raise InputError(purpose, "there are no examples to take")
        self.size, self.seed, self.purpose, self.data = size, seed, purpose, data
        self.taken = 0
        self._epoch, self._permutation = -1, torch.empty(0)

    @property
    def epochs(self) -> float:
        """How often the examples were seen."""
        return self.taken / self.size

    def take(self, count: int) -> list[int]:
        """The next `count` indices."""
        indices = []
        for place in range(self.taken, self.taken + count):
            epoch, at = divmod(place, self.size)
            if epoch != self._epoch:
                shuffled = torch.randperm(self.size, generator=generator(self.seed, self.purpose, epoch))
                self._epoch, self._permutation = epoch, shuffled
            indices.append(int(self._permutation[at]))
        self.taken += count
        return indices

    def state(self) -> State:
        return State(values={"taken": self.taken, "size": self.size, "data": self.data})

    def load(self, state: State) -> None:
        """Go on where `state` stood. Refuses the state of other examples."""
        if (state.integer("size"), state.values.get("data")) != (self.size, self.data):
            raise InputError(
                self.purpose,
                f"the saved run had {state.values['size']} examples, these are {self.size} or read differently",
                "resume with the same data, or start anew",
            )
        self.taken = state.integer("taken")
