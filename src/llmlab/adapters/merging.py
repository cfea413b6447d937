"""Adapters into weights and out again, in float32, each way behind a gate: the logits must stay what they were.

LoRA, DoRA and (IA)^3 can be said by weights alone and are merged. Bottlenecks and virtual tokens cannot: they are kept,
as modules that no role leaves out, and so is a part on top of one that is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab.adapters.adapted import AdaptedLinear, KeptLinear, LinearPart, adapted_linears, replace
from llmlab.adapters.beginning import Beginning, keep
from llmlab.adapters.part import adapter_parts
from llmlab.errors import InputError, LlmlabError
from llmlab.model.linear import Linear
from llmlab.model.places import Places
from llmlab.model.quantized import QuantizedLinear
from llmlab.model.transformer import Transformer
from llmlab.runtime import generator

# Parity of a merge: largest allowed |logit difference| as a share of the largest |logit|. Rounding of fp32 is 1e-5.
MERGE_BOUND = 1e-3


@dataclass(frozen=True)
class Merged:
    """What a merge did: the largest |logit difference| it made, and the parts it took off, by their linear's path."""

    name: str
    difference: float
    parts: dict[str, LinearPart]


def merge(model: Transformer, name: str, bound: float = MERGE_BOUND) -> Merged:
    """Add the adapter into the weights, in float32, and take it off.

    Logits on fixed ids are compared before and after. Above `bound` times the largest |logit| the weights are put
    back and the merge is refused: so ends a merge into bfloat16 weights, or one that touched the wrong tensor. Errors:
    InputError for an adapter that is more than weights, and for one over quantised weights.
    """
    parts = adapter_parts(model, name)
    linears = {path: linear for path, linear in adapted_linears(model) if path in parts}
    if any(isinstance(linear.base, QuantizedLinear) for linear in linears.values()):
        raise InputError(f"adapter {name!r}", "does not fit into quantised weights", "merge it first, then quantise")
    for path, part in parts.items():
        if path not in linears or not _mergeable(linears[path], part):
            problem = f"is more than weights: {type(part).__name__} at {path} stays beside them"
            raise InputError(f"adapter {name!r}", problem, "open it as it is; chat, generate and evaluate take it so")
    return _merged(model, name, bound)


def settle(model: Transformer, name: str, bound: float = MERGE_BOUND) -> float:
    """Make the adapter what the model is, whatever the role: merged where that can be, kept elsewhere. Answers the
    largest |logit difference| it made, which `bound` holds as in `merge`."""
    before = _logits(model, name)
    for path, part in adapter_parts(model, name).items():
        holder = model.get_submodule(path)
        if isinstance(holder, Beginning):
            keep(model, name)
        elif isinstance(holder, AdaptedLinear) and not _mergeable(holder, part):
            assert isinstance(part, LinearPart)
            del holder.adapters[name]
            holder.base = KeptLinear(holder.base, part).train(model.training)
            _bare(model, path)
    if any(name in linear.adapters for _, linear in adapted_linears(model)):
        _merged(model, name, bound)
    return _held(before, _logits(model), name, bound, "settling", lambda: None)


def unmerge(model: Transformer, merged: Merged, bound: float = MERGE_BOUND) -> float:
    """Take a merged adapter out of the weights and put it on again. Answers the largest |logit difference|, held by
    `bound`; the weights come back up to the rounding of float32."""
    before, put = _logits(model), dict[str, Tensor]()
    for path, part in merged.parts.items():
        linear = model.get_submodule(path)
        if not isinstance(linear, AdaptedLinear):
            assert isinstance(linear, Linear)
            linear = AdaptedLinear(linear).train(model.training)
            replace(model, path, linear)
        put |= _write(linear, part.unmerged, path)
        linear.adapters[merged.name] = part

    def undo() -> None:
        for path in merged.parts:
            linear = model.get_submodule(path)
            assert isinstance(linear, AdaptedLinear)
            del linear.adapters[merged.name]
            _put_back(linear, put, path)
            _bare(model, path)

    return _held(before, _logits(model, merged.name), merged.name, bound, "unmerging", undo)


# ---------------------------------------------------------------- the two steps


@torch.no_grad()
def _merged(model: Transformer, name: str, bound: float) -> Merged:
    before = _logits(model, name)
    linears = {path: linear for path, linear in adapted_linears(model) if name in linear.adapters}
    parts, put = dict[str, LinearPart](), dict[str, Tensor]()
    for path, linear in linears.items():
        part = linear.adapters[name]
        assert isinstance(part, LinearPart)
        put |= _write(linear, part.merged, path)
        parts[path] = part
        del linear.adapters[name]

    def undo() -> None:
        for path, linear in linears.items():
            linear.adapters[name] = parts[path]
            _put_back(linear, put, path)

    difference = _held(before, _logits(model), name, bound, "merging", undo)
    for path in linears:
        _bare(model, path)
    return Merged(name, difference, parts)


@torch.no_grad()
def _write(linear: AdaptedLinear, change: Callable[[Tensor, Tensor | None], object], path: str) -> dict[str, Tensor]:
    """Change a linear's weight and bias, in float32; what they were."""
    base = linear.base
    assert isinstance(base, Linear)
    made = change(base.weight.float(), None if base.bias is None else base.bias.float())
    assert isinstance(made, tuple)
    old = {f"{path}.weight": base.weight.data}
    base.weight.data = made[0].to(base.weight.dtype)
    if base.bias is not None:
        old[f"{path}.bias"] = base.bias.data
        base.bias.data = made[1].to(base.bias.dtype)
    return old


def _put_back(linear: AdaptedLinear, old: dict[str, Tensor], path: str) -> None:
    assert isinstance(linear.base, Linear)
    linear.base.weight.data = old[f"{path}.weight"]
    if linear.base.bias is not None:
        linear.base.bias.data = old[f"{path}.bias"]


def _held(before: Tensor, after: Tensor, name: str, bound: float, doing: str, undo: Callable[[], None]) -> float:
    """The largest |logit difference|; above the bound `undo` is called and the merge refused."""
    difference = float((after - before).abs().max())
    if not difference <= bound * max(1.0, float(before.abs().max())):  # `not <=` so that NaN is refused
        undo()
        raise LlmlabError(
            f"adapter {name!r}: {doing} changes logits by {difference:.3g}; the weights were left as they were"
        )
    return difference


def _mergeable(linear: AdaptedLinear, part: object) -> bool:
    """Whether weights alone can say this part; nothing is computed."""
    changed = isinstance(part, LinearPart) and type(part).merged is not LinearPart.merged
    return changed and isinstance(linear.base, Linear)


def _bare(model: Transformer, path: str) -> None:
    """A linear without parts is itself again."""
    linear = model.get_submodule(path)
    if isinstance(linear, AdaptedLinear) and not len(linear.adapters):
        replace(model, path, linear.base)


@torch.no_grad()
def _logits(model: Transformer, role: str | None = None) -> Tensor:
    """[2, T, V] float32, of fixed ids, without dropout."""
    training = model.training
    model.eval()
    rows, length = 2, min(32, model.architecture.context)
    device = next(model.parameters()).device
    ids = torch.randint(model.vocab_size, (rows, length), generator=generator(0, "merge parity")).to(device)
    said: Tensor = model(ids, Places.causal(rows, length, device), role=role).float()
    model.train(training)
    return said
