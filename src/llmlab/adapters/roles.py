"""The role table: policy, reference, critic and reward model as rows that name an adapter and a head on one base.

A role without an adapter is the frozen base itself, so the reference costs nothing. Full PPO, PPO with a critic on the
policy's own adapter, or RLOO without a critic differ only in rows. What they cost is a function of the table
(Hydra-RLHF, Santacroce et al. 2023, arXiv 2309.00754), told before a weight is made.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from llmlab.adapters.count import trained_parameters
from llmlab.adapters.part import AdapterPart, adapter_names, adapter_parameters, add_adapter, train_only
from llmlab.errors import InputError, unknown
from llmlab.model.attention import Cache
from llmlab.model.heads import ScalarHead
from llmlab.model.linear import Role as Caller
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import Section


class Role(Section):
    """One row: which adapter computes, what it ends in, and whether it learns."""

    adapter: str | None = Field(None, description="name of the adapter; null: the frozen base")
    head: Literal["lm", "scalar"] = Field("lm", description="the language model's head, or one number a token")
    trained: bool = Field(False, description="whether its adapter and scalar head learn")


class Roles(Section):
    """Who takes part, and as what. Two roles may share an adapter."""

    policy: Role = Field(Role(adapter="policy", trained=True), description="writes the answers")
    reference: Role = Field(Role(), description="what the policy is held close to")
    critic: Role = Field(Role(adapter="critic", head="scalar", trained=True), description="foretells the score")
    reward: Role = Field(Role(adapter="reward", head="scalar"), description="scores an answer")

    @model_validator(mode="after")
    def _possible(self) -> "Roles":
        for name, role in self.table().items():
            want = "scalar" if name in ("critic", "reward") else "lm"
            if role.head != want:
                raise ValueError(f"{name} needs the head {want!r}, not {role.head!r}")
        trained = {role.adapter for role in self.table().values() if role.trained}
        for name, role in self.table().items():
            if role.adapter is not None and not role.trained and role.adapter in trained:
                raise ValueError(f"{name} is frozen but shares the adapter {role.adapter!r} with a role that learns")
        return self

    def table(self) -> dict[str, Role]:
        return {"policy": self.policy, "reference": self.reference, "critic": self.critic, "reward": self.reward}


class RoleModel(nn.Module):
    """One shared base, the adapters and scalar heads of a table. Adapters that the base lacks are added fresh.

    Fresh adapters are keyed by (seed, name), scalar heads start at zero: an untrained value or score is 0.
    """

    def __init__(self, base: Transformer, table: Mapping[str, Role], fresh: AdapterPart, seed: int) -> None:
        super().__init__()
        self.base = base
        self.table = dict(table)
        for adapter in sorted({role.adapter for role in table.values() if role.adapter is not None}):
            if adapter not in adapter_names(base):
                add_adapter(base, adapter, fresh, seed)
        device = next(base.parameters()).device
        self.heads = nn.ModuleDict(
            {
                name: ScalarHead(base.architecture.dim).to(device)
                for name, role in table.items()
                if role.head == "scalar"
            }
        )
        self.freeze()

    def freeze(self) -> None:
        """Let exactly the trained rows learn; the base never does."""
        trained = {name: role for name, role in self.table.items() if role.trained}
        train_only(self.base, sorted({role.adapter for role in trained.values() if role.adapter is not None}))
        for name, head in self.heads.items():
            head.requires_grad_(name in trained)

    def role(self, name: str) -> Role:
        if name not in self.table:
            raise unknown("role", name, self.table)
        return self.table[name]

    def hidden(self, role: str, ids_BT: Tensor, at: Places, cache: Cache | None = None) -> Tensor:
        """[B, T, D] as this role sees the ids."""
        return self.base.hidden(ids_BT, at, cache, self.role(role).adapter)

    def hiddens(self, roles: Sequence[str], ids_BT: Tensor, at: Places) -> list[Tensor]:
        """[B, T, D] for each of `roles`; those that share an adapter share the pass."""
        passes: dict[str | None, Tensor] = {}
        for name in roles:
            adapter = self.role(name).adapter
            if adapter not in passes:
                passes[adapter] = self.base.hidden(ids_BT, at, role=adapter)
        return [passes[self.role(name).adapter] for name in roles]

    def logits(self, role: str, ids_BT: Tensor, at: Places, cache: Cache | None = None) -> Tensor:
        """[B, T, V]."""
        if self.role(role).head != "lm":
            raise InputError(f"role {role}", "has a scalar head and no logits")
        return self.base.logits(self.hidden(role, ids_BT, at, cache))

    def values(self, role: str, ids_BT: Tensor, at: Places) -> Tensor:
        """[B, T] float32: the scalar head at each token."""
        return self.read(role, self.hidden(role, ids_BT, at))

    def read(self, role: str, hidden: Tensor) -> Tensor:
        """[..., D] -> [...] float32 by the scalar head, outside autocast: scores are compared to their last bit."""
        with exactly(hidden):
            values: Tensor = self.head(role)(hidden)
        return values

    def head(self, role: str) -> ScalarHead:
        if self.role(role).head != "scalar":
            raise InputError(f"role {role}", "has the language model's head and no values")
        head = self.heads[role]
        assert isinstance(head, ScalarHead)
        return head


def exactly(tensor: Tensor) -> AbstractContextManager[Any]:
    """Autocast off, on the device of `tensor`."""
    return torch.autocast(tensor.device.type, enabled=False)


class Actor(nn.Module):
    """A model as one adapter of it sees the world, with a model's own calls; without that adapter, the model itself."""

    def __init__(self, base: Transformer, adapter: str) -> None:
        super().__init__()
        self.base, self.adapter = base, adapter

    @property
    def architecture(self) -> Architecture:
        return self.base.architecture

    @property
    def vocab_size(self) -> int:
        return self.base.vocab_size

    def hidden(self, ids_BT: Tensor, at: Places, cache: Cache | None = None, role: Caller = None) -> Tensor:
        """[B, T, D]; `role` says nothing here."""
        return self.base.hidden(ids_BT, at, cache, self.adapter)

    @property
    def projection(self) -> Tensor | None:
        """As of the model."""
        return self.base.projection

    def logits(self, hidden: Tensor) -> Tensor:
        return self.base.logits(hidden)


# ---------------------------------------------------------------- what a table costs


def static_bytes(
    architecture: Architecture,
    vocab_size: int,
    table: Mapping[str, Role],
    sections: Mapping[str, AdapterPart],
    moments: int = 2,
    base_held: int | None = None,
) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer state by cause, in float32, before anything is allocated.

    `sections` has the settings of each adapter in the table; `moments` is how many numbers the optimizer keeps for a
    trained weight (AdamW 2). A base in fewer bits takes `base_held` bytes (`count.base_bytes`). Activations are not
    static.
    """
    base, head = _sizes(architecture, vocab_size)
    adapters = {
        name: trained_parameters(sections[name], architecture, vocab_size)
        for name in {role.adapter: None for role in table.values()}
        if name is not None
    }
    trained = {role.adapter for role in table.values() if role.trained and role.adapter is not None}
    scalars = [role for role in table.values() if role.head == "scalar"]
    learning = sum(adapters[name] for name in trained) + head * sum(role.trained for role in scalars)
    return {
        "base": 4 * _numbers(base) if base_held is None else base_held,
        "adapters": 4 * sum(adapters.values()),
        "heads": 4 * head * len(scalars),
        "gradients": 4 * learning,
        "optimizer": 4 * learning * moments,
    }


def separate_bytes(
    architecture: Architecture, vocab_size: int, table: Mapping[str, Role], moments: int = 2
) -> dict[str, int]:
    """The same roles as whole models of their own, every weight of a trained one learning: what a table saves."""
    base, head = _sizes(architecture, vocab_size)
    sizes = {name: _numbers(base) + (head if role.head == "scalar" else 0) for name, role in table.items()}
    learning = sum(size for name, size in sizes.items() if table[name].trained)
    return {"models": 4 * sum(sizes.values()), "gradients": 4 * learning, "optimizer": 4 * learning * moments}


def counted_bytes(model: RoleModel) -> dict[str, int]:
    """What `model` holds now, under the causes of `static_bytes`; the optimizer's own state is not its to count."""
    adapters = [p for name in adapter_names(model.base) for p in adapter_parameters(model.base, name).values()]
    inside = {id(parameter) for parameter in adapters}
    held = {tensor.data_ptr(): tensor for tensor in (*model.base.parameters(), *model.base.buffers())}
    return {
        "base": _bytes(tensor for tensor in held.values() if id(tensor) not in inside),
        "adapters": _bytes(adapters),
        "heads": _bytes(model.heads.parameters()),
        "gradients": _bytes(p.grad for p in model.parameters() if p.grad is not None),
    }


def _sizes(architecture: Architecture, vocab_size: int) -> tuple[Transformer, int]:
    """The base without memory, and the numbers in one scalar head."""
    with torch.device("meta"):
        return Transformer(architecture, vocab_size), _numbers(ScalarHead(architecture.dim))


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
