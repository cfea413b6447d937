"""Training some of the model's own parameters and freezing the rest: BitFit, and the first or last layers.

Nothing is put on the model, and nothing lies beside it: the stage leaves whole weights. So these cannot be one of
several roles on a shared base.
"""

from abc import abstractmethod
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from llmlab.adapters.part import AdapterPart
from llmlab.errors import InputError
from llmlab.model.transformer import Transformer

EMBEDDING = ["embedding.", "embedding_norm.", "project.", "position.", "local_position.", "segment"]


class _Chosen(AdapterPart):
    apart: ClassVar[bool] = False

    @abstractmethod
    def learns(self, model: Transformer) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name; at least one."""

    def put(self, model: Transformer, name: str, seed: int) -> None:
        for parameter in self.learns(model).values():
            parameter.requires_grad_(True)


class BitFit(_Chosen):
    """Biases learn, of linears and norms, and nothing else (Ben Zaken et al. 2022, arXiv 2106.10199)."""

    kind: Literal["bitfit"] = "bitfit"

    def learns(self, model: Transformer) -> dict[str, nn.Parameter]:
        found = {
            name: parameter
            for name, parameter in model.named_parameters()
            if name.rpartition(".")[2] in ("bias", "head_bias")
        }
        if not found:
            hint = "a model with biases has model.attention.bias, model.feedforward.bias or layernorm; ia3 is as small"
            raise InputError("adapter bitfit", "this model has no bias to train", hint)
        return found


class Freeze(_Chosen):
    """The last layers and the final norm learn; what comes before stays as it is (Lee et al. 2019, arXiv 1911.03090).

    A tied head is the embedding, and learns or stays with it.
    """

    kind: Literal["freeze"] = "freeze"
    first: int = Field(1, ge=0, description="how many of the first layers stay")
    embedding: bool = Field(True, description="whether the embedding stays, and a head that is tied to it")
    head: bool = Field(False, description="whether a head of its own stays")

    def learns(self, model: Transformer) -> dict[str, nn.Parameter]:
        a = model.architecture
        if self.first > a.layers:
            raise InputError("freeze.first", f"{self.first} layers stay", f"the model has {a.layers}")
        if a.shared and 0 < self.first < a.layers:
            raise InputError("freeze.first", "all layers of this model are one block", f"0 or {a.layers}")
        stay = [f"blocks.{layer}." for layer in range(self.first)]
        stay += EMBEDDING * self.embedding
        stay += ["head."] * self.head
        found = {name: parameter for name, parameter in model.named_parameters() if not name.startswith(tuple(stay))}
        if not found:
            raise InputError("adapter freeze", "leaves nothing to train", "freeze fewer layers")
        return found
