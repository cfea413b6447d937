"""What a source of batches must remember so that a killed run goes on bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from llmlab.errors import InputError

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


@dataclass(frozen=True)
class State:
    """Tensors (for safetensors) and JSON values. Holds what was *consumed*, never what was merely prepared."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, JSON] = field(default_factory=dict)

    @staticmethod
    def join(**parts: State) -> State:
        """Several states as one: tensors as `part.name`, values as {part: values}. `part(name)` takes them out."""
        tensors = {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.tensors.items()}
        return State(tensors, {part: dict(state.values) for part, state in parts.items()})

    def part(self, name: str) -> State:
        """The state that was joined under `name`."""
        values = self.values.get(name)
        if not isinstance(values, dict):
            raise InputError(
                "saved state", f"holds no part {name!r}", f"it holds {', '.join(self.values) or 'nothing'}"
            )
        prefix = f"{name}."
        inside = {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}
        return State(inside, values)

    def integer(self, name: str) -> int:
        """The whole number saved as `name`."""
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError("saved state", f"{name!r} is {value!r}, not a whole number")
        return value
