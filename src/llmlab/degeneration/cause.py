"""A reason for which a model may repeat itself, and what speaks for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cause:
    """`strength` is what was measured over the threshold that was set beforehand: above 1 the cause is likely."""

    name: str
    strength: float
    evidence: str
    figures: dict[str, Any]

    @property
    def likely(self) -> bool:
        return self.strength > 1

    def json(self) -> dict[str, Any]:
        strength = round(self.strength, 3) if math.isfinite(self.strength) else None
        told = {"cause": self.name, "likely": self.likely, "strength": strength, "evidence": self.evidence}
        return told | {"figures": {name: rounded(value) for name, value in self.figures.items()}}


def rounded(value: Any) -> Any:
    """For JSON, which has no infinity."""
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value
