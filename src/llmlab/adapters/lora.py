"""LoRA (Hu et al. 2021, arXiv 2106.09685): a frozen linear plus a trained product of two thin matrices.

    y = x W^T + (alpha / rank) dropout(x) A^T B^T          A [rank, in], B [out, rank]

B starts at zero, so a fresh adapter changes nothing. Adapters are put on a model from outside and picked by the role
of a call: no role, or one that names no adapter, is the frozen base. That is how one base serves policy, critic,
reward model and reference at once (Hydra-RLHF, Santacroce et al. 2023, arXiv 2309.00754).
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from llmlab.errors import InputError, LlmlabError
from llmlab.model.linear import Linear, Role
from llmlab.model.places import Places
from llmlab.model.quantized import QuantizedLinear
from llmlab.model.transformer import Transformer
from llmlab.recipe import Section
from llmlab.runtime import generator

# Parity of a merge: largest allowed |logit difference| as a share of the largest |logit|. Rounding of fp32 is 1e-5.
MERGE_BOUND = 1e-3


class LoRA(Section):
    """Low-rank adapters on the linears of every block."""

    rank: int = Field(8, gt=0, description="inner width of the product of A and B")
    alpha: float = Field(16.0, gt=0, description="the product is scaled by alpha / rank")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the adapter's inputs dropped in training, never in scoring"
    )
    targets: Literal["all"] | tuple[str, ...] = Field(
        "all", description="all linears of the blocks, or a list of name endings such as [query, value]"
    )


class LowRank(nn.Module):
    """The trained part: x [..., in] -> (alpha / rank) dropout(x) A^T B^T, [..., out]."""

    def __init__(self, inputs: int, outputs: int, section: LoRA) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(section.rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, section.rank))
        self.section = section
        self.scale = section.alpha / section.rank

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(F.dropout(x, self.section.dropout, self.training), self.A), self.B) * self.scale

    def product(self) -> Tensor:
        """What is added to the weight, [out, in] float32."""
        return (self.B.float() @ self.A.float()) * self.scale


class LoRALinear(nn.Module):
    """Takes the place of a `Linear`; `role` picks the adapter of the whole batch, or of each row."""

    def __init__(self, base: Linear | QuantizedLinear) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()

    def forward(self, x: Tensor, role: Role = None) -> Tensor:
        y: Tensor = self.base(x)
        if isinstance(role, tuple):
            if len(role) != len(x):
                raise ValueError(f"{len(role)} roles for {len(x)} rows")
            # Rows of one adapter mostly stand together; runs keep it to one product each.
            pieces, start = [], 0
            for name, run in groupby(role):
                end = start + len(list(run))
                pieces.append(self._one(x[start:end], y[start:end], name))
                start = end
            return torch.cat(pieces)
        return self._one(x, y, role)

    def _one(self, x: Tensor, y: Tensor, name: str | None) -> Tensor:
        return y + self.adapters[name](x) if name is not None and name in self.adapters else y


def add_lora(model: Transformer, name: str, section: LoRA, seed: int) -> None:
    """Put a fresh adapter `name` on the model and freeze everything else. A is as peft's: Kaiming uniform (a = sqrt 5).

    Its numbers are keyed by (seed, adapter name, parameter name): other adapters do not move them.
    """
    if not name or "." in name:
        raise InputError("adapter", f"{name!r} is no name for an adapter", "letters without a dot")
    paths = target_paths(model, section)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for path in paths:
        linear = model.get_submodule(path)
        if not isinstance(linear, LoRALinear):
            assert isinstance(linear, Linear | QuantizedLinear)
            linear = LoRALinear(linear).train(model.training)
            _replace(model, path, linear)
        if name in linear.adapters:
            raise InputError("adapter", f"the model has an adapter {name!r} already")
        inputs = linear.base.in_features
        part = LowRank(inputs, linear.base.out_features, section)
        bound = 1 / math.sqrt(inputs)  # Kaiming uniform with a = sqrt 5, written out
        with torch.no_grad():
            part.A.uniform_(-bound, bound, generator=generator(seed, "lora", name, f"{path}.A"))
        linear.adapters[name] = part.to(linear.base.weight.device).train(model.training)
    train_only(model, [name])


def target_paths(model: Transformer, section: LoRA) -> list[str]:
    """Module paths of the linears that `section` means; an ending that no linear has is an error."""
    linears = [
        path
        for path, module in model.blocks.named_modules(prefix="blocks")
        if isinstance(module, LoRALinear)
        or (isinstance(module, Linear | QuantizedLinear) and not path.endswith(".base"))
    ]
    if section.targets == "all":
        return linears
    for ending in section.targets:
        if not any(_ends(path, ending) for path in linears):
            names = sorted({path.split(".", 2)[-1] for path in linears})
            raise InputError("lora.targets", f"no linear ends in {ending!r}", f"there are: {', '.join(names)}")
    return [path for path in linears if any(_ends(path, ending) for ending in section.targets)]


def _ends(path: str, ending: str) -> bool:
    return path == ending or path.endswith(f".{ending}")


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


# ---------------------------------------------------------------- looking at a model's adapters


def lora_linears(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield path, module


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters on a model, sorted."""
    return sorted({name for _, linear in lora_linears(model) for name in linear.adapters})


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """{`<linear's path>.A` or `.B`: parameter} of one adapter."""
    found = {
        f"{path}.{key}": parameter
        for path, linear in lora_linears(model)
        if name in linear.adapters
        for key, parameter in linear.adapters[name].named_parameters()
    }
    if not found:
        raise InputError(
            "adapter", f"the model has no adapter {name!r}", f"it has: {', '.join(adapter_names(model)) or 'none'}"
        )
    return found


def adapter_section(model: nn.Module, name: str) -> LoRA:
    """The settings that an adapter on a model was made with."""
    adapter_parameters(model, name)  # refuses an unknown name
    part = next(linear.adapters[name] for _, linear in lora_linears(model) if name in linear.adapters)
    assert isinstance(part, LowRank)
    return part.section


def train_only(model: nn.Module, names: Iterable[str]) -> None:
    """Freeze everything but the adapters named."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in names:
        for parameter in adapter_parameters(model, name).values():
            parameter.requires_grad_(True)


@torch.no_grad()
def load_adapter(model: Transformer, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Fill the adapter `name` from {path.A, path.B}; a missing, unknown or misshapen tensor is an error."""
    parameters = adapter_parameters(model, name)
    if missing := sorted(parameters.keys() - tensors.keys()):
        raise InputError(f"adapter {name!r}", f"tensor {missing[0]} is missing ({len(missing)} in all)")
    if extra := sorted(tensors.keys() - parameters.keys()):
        raise InputError(f"adapter {name!r}", f"tensor {extra[0]} belongs to nothing here ({len(extra)} in all)")
    for key, parameter in parameters.items():
        if tensors[key].shape != parameter.shape:
            raise InputError(
                f"adapter {name!r}",
                f"{key} has shape {tuple(tensors[key].shape)}, the model needs {tuple(parameter.shape)}",
            )
        parameter.copy_(tensors[key])


def copy_adapter(model: Transformer, source: str, target: str) -> None:
    """Give adapter `target` the numbers of `source`; both have the same shapes."""
    load_adapter(
        model, target, {key: value.detach().clone() for key, value in adapter_parameters(model, source).items()}
    )


# ---------------------------------------------------------------- merging


@torch.no_grad()
def merge(model: Transformer, name: str, bound: float = MERGE_BOUND) -> float:
    """Add the adapter into the weights, in float32, and take it off. Answers the largest |logit difference| it made.

    Logits on fixed ids are compared before and after. Above `bound` times the largest |logit| the weights are put
    back and the merge is refused: so ends a merge into bfloat16 weights, or one that touched the wrong tensor.
    """
    linears = [(path, linear) for path, linear in lora_linears(model) if name in linear.adapters]
    adapter_parameters(model, name)  # refuses an unknown name
    if any(isinstance(linear.base, QuantizedLinear) for _, linear in linears):
        raise InputError(f"adapter {name!r}", "does not fit into quantised weights", "merge it first, then quantise")
    training = model.training
    model.eval()
    ids, at = _parity_ids(model)
    before = model(ids, at, role=name).float()
    weights = [linear.base.weight.data for _, linear in linears]
    for _, linear in linears:
        part, weight = linear.adapters[name], linear.base.weight
        assert isinstance(part, LowRank)
        weight.data = (weight.float() + part.product()).to(weight.dtype)
    difference = float((model(ids, at).float() - before).abs().max())
    if not difference <= bound * max(1.0, float(before.abs().max())):  # `not <=` so that NaN is refused
        for (_, linear), weight in zip(linears, weights, strict=True):
            linear.base.weight.data = weight
        model.train(training)
        raise LlmlabError(
            f"adapter {name!r}: merging changes logits by {difference:.3g}; the weights were left as they were"
        )
    for path, linear in linears:
        del linear.adapters[name]
        if not len(linear.adapters):
            _replace(model, path, linear.base)
    model.train(training)
    return difference


def _parity_ids(model: Transformer) -> tuple[Tensor, Places]:
    rows, length = 2, min(32, model.architecture.context)
    device = next(model.parameters()).device
    ids = torch.randint(model.vocab_size, (rows, length), generator=generator(0, "merge parity")).to(device)
    return ids, Places.causal(rows, length, device)
