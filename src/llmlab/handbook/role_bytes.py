"""Question 27's ledger: what alignment keeps in memory between steps, in bytes a parameter, by who takes part.

A model that learns with Adam is 16 bytes a parameter, in float32 (weight, gradient, two moments) as in mixed precision
(weight and gradient in halves, float32 master and moments; Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1). A
frozen one is its weights. Adapters on one frozen base put that only on their own few numbers (Santacroce et al. 2023,
arXiv 2309.00754). Activations and caches are not in it. A lower training frequency changes no line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "mixed"]
LEARNS: dict[Precision, int] = {"fp32": 4 + 4 + 8, "mixed": 2 + 2 + 4 + 8}
FROZEN: dict[Precision, int] = {"fp32": 4, "mixed": 2}


@dataclass(frozen=True)
class Way:
    """Whole models that learn and whole models that do not; adapters on a frozen one, the same."""

    name: str
    learning: int
    frozen: int
    learning_adapters: int = 0
    frozen_adapters: int = 0

    def bytes_a_parameter(self, precision: Precision, share: float = 0.005) -> float:
        """`share`: numbers of an adapter over those of its base."""
        learning = self.learning + share * self.learning_adapters
        return LEARNS[precision] * learning + FROZEN[precision] * (self.frozen + share * self.frozen_adapters)


WAYS = (
    Way("PPO, four models", 2, 2),
    Way("GRPO or RLOO with a reward model", 1, 2),
    Way("GRPO or RLOO, scored by a program", 1, 1),
    Way("DPO", 1, 1),
    Way("DPO, reference log-probabilities kept", 1, 0),
    Way("PPO, adapters on one base", 0, 1, 2, 1),
    Way("DPO, an adapter", 0, 1, 1),
)
BY_NAME = {way.name: way for way in WAYS}
