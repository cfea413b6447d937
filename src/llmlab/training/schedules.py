"""Learning-rate schedules: a closed union of shapes, each with a linear warm-up.

`scale(step, total)` is the factor of the learning rate for the update with index `step` (from 0) of `total`. It is a
pure function, so there is no schedule state to lose: a resumed run asks the same question and hears the same answer.
"""

import math
from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field

from llmlab.recipe import KINDS, Section


class _Warm(Section):
    """What all shapes share: the warm-up, and the question."""

    warmup: float = Field(0.02, ge=0.0, le=1.0, description="share of the steps over which the rate rises linearly")

    def scale(self, step: int, total: int) -> float:
        """The factor, in (0, 1] while the shape's floor is above 0, for 0 <= step < total."""
        rise = round(self.warmup * total)
        if step < rise:
            return (step + 1) / (rise + 1)
        return self._shape((step - rise) / max(1, total - rise))

    @abstractmethod
    def _shape(self, progress: float) -> float:
        """The factor after the warm-up, for progress in [0, 1); 1 at progress 0."""


class Constant(_Warm):
    """The full rate to the end."""

    kind: Literal["constant"] = "constant"

    def _shape(self, progress: float) -> float:
        return 1.0


class Linear(_Warm):
    """Falls in a straight line to `floor`."""

    kind: Literal["linear"] = "linear"
    floor: float = Field(0.0, ge=0.0, le=1.0, description="the factor that the end approaches")

    def _shape(self, progress: float) -> float:
        return 1.0 - (1.0 - self.floor) * progress


class Cosine(_Warm):
    """Falls along half a cosine to `floor` (SGDR without restarts, Loshchilov and Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"
    floor: float = Field(0.1, ge=0.0, le=1.0, description="the factor that the end approaches")

    def _shape(self, progress: float) -> float:
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


class WarmupStableDecay(_Warm):
    """Stays at the full rate, then falls in a straight line over the last `decay` (WSD, Hu et al. 2024)."""

    kind: Literal["wsd"] = "wsd"
    decay: float = Field(0.4, gt=0.0, le=1.0, description="share of the steps after the warm-up over which it falls")
    floor: float = Field(0.0, ge=0.0, le=1.0, description="the factor that the end approaches")

    def _shape(self, progress: float) -> float:
        fallen = max(0.0, (progress - (1.0 - self.decay)) / self.decay)
        return 1.0 - (1.0 - self.floor) * fallen


Schedule = Annotated[Constant | Linear | Cosine | WarmupStableDecay, *KINDS]
