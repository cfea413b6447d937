"""Blocks that compute twice: the same numbers, fewer bytes, and nothing left behind."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmlab.adapters.lora import LoRA
from llmlab.adapters.part import add_adapter, train_only
from llmlab.adapters.prefix import Prefix
from llmlab.inference.engine import generate
from llmlab.inference.sampling import Sampling
from llmlab.model.block import Block
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.stages import Session
from llmlab.training.checkpointing import Checkpointing, checkpointed

Equal = Callable[[dict[str, Tensor], dict[str, Tensor]], bool]
both = pytest.mark.parametrize("how", ["full", "selective"])
B, T, V = 3, 12, 13

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.3},
    "shared": {"shared": True, "dropout": 0.2},
    "encoder": {"encoder_layers": 2, "position": "t5", "dropout": 0.1},
    "streams": {"streams": 2, "position": "xl", "dropout": 0.1},
    "bias": {"position": "t5"},
    "shown": {"position": "shaw"},
    "linear": {"attention": "linear", "position": "none"},
    "recurrent": {"attention": "gru", "position": "none"},
    "parallel": {"wiring": "parallel"},
    "sandwich": {"wiring": "sandwich", "norm": "layernorm", "feedforward": "gelu"},
    "local": {"local": {"layers": [1], "window": 3}},
}


def build(fields: dict[str, Any]) -> Transformer:
    return Architecture(layers=3, dim=16, context=T, initial_std=0.2, **fields).build(V, 1)


def loss(model: Transformer, role: str | None = None) -> Tensor:
    """Of packed rows: two documents and padding in each."""
    noise = torch.Generator().manual_seed(0)
    ids = torch.randint(V, (B, T), generator=noise)
    document = torch.tensor([0] * 5 + [1] * 5 + [-1] * 2).expand(B, T)
    order = torch.tensor([*range(5), *range(5), 0, 0]).expand(B, T)
    at = Places(order, order, document)
    memory = model.encode(ids, at) if model.encoder is not None else None
    hidden = (
        model.queries(ids, at) if model.query_start is not None else model.hidden(ids, at, role=role, memory=memory)
    )
    return model.logits(hidden[:, :10]).square().mean()


def gradients(model: Transformer, how: Checkpointing, role: str | None = None) -> dict[str, Tensor]:
    model.train()
    torch.manual_seed(5)
    with checkpointed(model, how):
        loss(model, role).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@both
@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_gradients_are_equal_bit_for_bit(equal: Equal, fields: dict[str, Any], how: Checkpointing) -> None:
    plain, twice = gradients(build(fields), "none"), gradients(build(fields), how)
    assert plain
    assert equal(plain, twice)


@both
def test_virtual_tokens_stand_before_what_is_computed_twice(equal: Equal, how: Checkpointing) -> None:
    """They are no memory of a text, so blocks compute twice all the same, and keep less."""
    found, kept = [], []
    for way in ("none", how):
        model, sizes = build({}), list[int]()
        add_adapter(model, "p", Prefix(tokens=2), seed=3)

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            found.append(gradients(model, way, "p"))  # type: ignore[arg-type]
        kept.append(sum(sizes))
    assert found[0]
    assert equal(*found)
    assert kept[1] < kept[0]


@both
def test_training_is_equal_bit_for_bit(lab: Any, equal: Equal, tmp_path: Path, how: Checkpointing) -> None:
    """The whole loop, under autocast, stepping inside the backward pass too."""
    for name, fields in (("plain", {}), ("twice", {"activation_checkpointing": how, "in_backward": True})):
        options = {"clip": None, "session": Session(dtype=torch.bfloat16), "dropout": 0.2, "optimizer": "adamw"}
        lab.train(tmp_path / name, lab.Rows((3,)), **options, **fields)
    assert equal(lab.weights(tmp_path / "plain"), lab.weights(tmp_path / "twice"))


@both
def test_adapters_of_a_role_a_row(equal: Equal, how: Checkpointing) -> None:
    """A frozen base, two adapters with dropout, rows of both and of neither."""
    found = []
    for way in ("none", how):
        model = build({})
        for name in ("a", "b"):
            add_adapter(model, name, LoRA(rank=2, dropout=0.3), 0)
        train_only(model, ["a", "b"])
        model.train()
        torch.manual_seed(5)
        with checkpointed(model, way):  # type: ignore[arg-type]
            ids = torch.arange(T).expand(3, T)
            model.hidden(ids, Places.causal(3, T), role=("a", "b", "nobody")).square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert len(found[0]) == 2 * 2 * 7 * 3
    assert equal(*found)


def kept_bytes(model: Transformer, how: Checkpointing) -> int:
    """Bytes of tensors that a forward pass leaves to the backward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        at = tensor.untyped_storage().data_ptr()
        if at not in weights:
            seen[at] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept), checkpointed(model, how):
        hidden = model.hidden(torch.zeros(B, T, dtype=torch.int64), Places.causal(B, T))
        del hidden
    return sum(seen.values())


def test_memory_falls_by_what_a_block_keeps() -> None:
    """A block that is computed again leaves its input to the backward pass, and nothing else."""
    sizes = {
        (how, layers): kept_bytes(Architecture(layers=layers, dim=16, context=T).build(V, 1), how)
        for how in ("none", "full")
        for layers in (2, 6)
    }
    rest = sizes["none", 6] - sizes["none", 2], sizes["full", 6] - sizes["full", 2]
    hidden = B * T * 16 * 4
    assert rest[1] == 4 * hidden
    assert rest[0] > 4 * 8 * hidden


@both
def test_nothing_is_computed_twice_without_gradients_or_with_a_cache(how: Checkpointing) -> None:
    model, calls = build({}), 0
    expected = [done.ids for done in generate(model, [[1, 2, 3]], Sampling(max_new_tokens=5), (), [0])]

    def count(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal calls
        calls += 1

    handle = model.blocks[0].attention.query.register_forward_hook(count)
    with checkpointed(model, how), torch.enable_grad():
        found = [done.ids for done in generate(model, [[1, 2, 3]], Sampling(max_new_tokens=5), (), [0])]
        generated = calls
        loss(model).backward()  # type: ignore[no-untyped-call]
    handle.remove()
    assert found == expected
    assert generated <= 5
    assert calls == generated + 2


@both
def test_nothing_is_left_and_copies_are_their_own(how: Checkpointing) -> None:
    model = build({})
    before = list(vars(model.blocks[0]))
    with checkpointed(model, how):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.blocks[0].attention.output.weight.zero_()
        assert not torch.equal(loss(other), loss(model))
    assert list(vars(model.blocks[0])) == before
    assert all(type(block) is Block for block in model.blocks)
