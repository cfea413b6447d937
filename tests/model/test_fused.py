"""The fused step of a block against the plain one."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llmlab.adapters.lora import LoRA
from llmlab.adapters.part import add_adapter
from llmlab.adapters.prefix import Prefix
from llmlab.data.batch import IGNORE, Batch, collate, pack
from llmlab.data.corruption import FOLLOWING, Rows
from llmlab.model import kernels
from llmlab.model.block import Block
from llmlab.model.fused import FusedBlock, before, fused
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.objectives.language import NextToken
from llmlab.runtime import generator

only_fused = pytest.mark.skipif(kernels.available() is not None, reason=f"plain path only: {kernels.available()}")

VOCABULARY = 61
SMALL: dict[str, Any] = {
    "layers": 2,
    "dim": 32,
    "context": 64,
    "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 16},
    "feedforward": {"kind": "swiglu", "width": 48},
}


def model(**changes: Any) -> Transformer:
    return Architecture.model_validate(SMALL | changes).build(VOCABULARY).train()


def batch(packed: bool = False) -> Batch:
    draw = generator(0, "fused batch")
    ids = torch.randint(VOCABULARY, (3, 41), generator=draw)
    targets = ids[:, 1:].clone()
    targets[:, ::5] = IGNORE
    at = Places.causal(3, 40)
    if packed:
        document = (torch.rand(3, 40, generator=draw) < 0.1).long().cumsum(1)
        document[:, -3:] = -1  # padding
        targets[:, -3:] = IGNORE
        begin = (
            torch.where(document.diff(dim=1, prepend=document[:, :1] - 1) != 0, torch.arange(40), 0).cummax(1).values
        )
        at = Places(at.position - begin, at.order - begin, document)
    return Batch(ids[:, :-1].contiguous(), targets, at)


def learnt(net: nn.Module, what: Batch, bf16: bool = True, fuse: bool = False) -> tuple[float, dict[str, Tensor]]:
    """The loss of a micro-batch, and every gradient."""
    net.zero_grad()
    with fused(net) if fuse else nullcontext(), torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        terms = NextToken()(net, what)
        loss = terms.sums["cross_entropy"] / what.learnt
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def apart(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    assert found.keys() == exact.keys()
    miss = torch.stack([(found[name].float() - exact[name].float()).square().sum() for name in exact]).sum()
    return float((miss / torch.stack([g.float().square().sum() for g in exact.values()]).sum()).sqrt())


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "no positions": {"position": "none"},
    "half turned": {"position": {"kind": "rope", "fraction": 0.5}},
    "stretched": {"position": {"kind": "rope", "scaling": {"kind": "yarn", "by": 4, "trained": 16}}},
    "untied": {"tied": False},
    "one block": {"shared": True},
    "window": {"attention": SMALL["attention"] | {"window": 7}},
    "multi-head": {"attention": {"kind": "mha", "heads": 2, "scale": 0.3}},
}


@only_fused
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_are_as_near_to_float32_as_autocast_is(name: str, packed: bool) -> None:
    net, what = model(**ARCHITECTURES[name]), batch(packed)
    exact, wanted = learnt(net, what, bf16=False)
    plain, autocast = learnt(net, what)
    quick, found = learnt(net, what, fuse=True)
    assert quick != plain  # it was taken
    assert abs(quick - exact) < 0.02
    assert apart(found, wanted) < 1.5 * apart(autocast, wanted) + 1e-3


@only_fused
def test_a_document_does_not_see_another() -> None:
    net, what = model(), batch(packed=True)
    document = what.at.document
    ids = what.ids_BT.clone()
    ids[document == 1] = (ids[document == 1] + 1) % VOCABULARY
    with fused(net), torch.autocast("cpu", torch.bfloat16):
        before, after = net.hidden(what.ids_BT, what.at), net.hidden(ids, what.at)
    others = (document != 1) & (document >= 0)
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[document == 1], after[document == 1])


UNFIT: dict[str, dict[str, Any]] = {
    "norm": {"norm": "layernorm"},
    "wiring": {"wiring": "post"},
    "gate": {"feedforward": "geglu"},
    "dropout": {"dropout": 0.1},
    "bias": {"attention": SMALL["attention"] | {"bias": True}},
    "width": {"feedforward": {"kind": "swiglu", "width": 40}},
    "heads": {"attention": SMALL["attention"] | {"norm": True}},
}


@only_fused
@pytest.mark.parametrize("name", UNFIT)
def test_what_it_does_not_compute_is_said_and_left_alone(name: str) -> None:
    net = model(**UNFIT[name])
    with fused(net) as reason:
        assert reason
        assert not any(isinstance(module, FusedBlock) for module in net.modules())


@only_fused
@pytest.mark.parametrize("position", ["alibi", "t5", "rope_interleaved"])
def test_places_that_it_does_not_know_take_the_plain_path(position: str) -> None:
    net, what = model(position=position), batch()
    assert learnt(net, what, fuse=True)[0] == learnt(net, what)[0]


@only_fused
@pytest.mark.parametrize("way", ["packed", "right", "left", "an epoch's last row"])
def test_padding_is_no_reason_for_the_plain_path(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = [([1 + n] * n, [True] * n) for n in (37, 20, 9)]
    if way == "packed":
        what = pack(sequences, 0)
    elif way == "an epoch's last row":
        document = np.array([[0] * 15 + [1] * 10 + [-1] * 15])
        inside = np.array([[*range(15), *range(10), *[0] * 15]])
        ids = np.ones_like(document)
        what = FOLLOWING.learn(Rows(ids, ids, inside, document, document >= 0), np.empty((0, 1, 40)))
    else:
        what = collate(sequences, 0, side=way)
    assert not what.at.real.all()
    seen = []
    monkeypatch.setattr("llmlab.model.fused.before", lambda sight: seen.append(before(sight)) or seen[-1])
    learnt(model(), what, fuse=True)
    assert seen
    assert all(found is not None for found in seen)


@only_fused
def test_an_adapter_is_left_alone() -> None:
    net = model()
    add_adapter(net, "sft", LoRA(rank=2), 0)
    with fused(net) as reason:
        assert "adapters" in str(reason)


@only_fused
def test_virtual_tokens_before_a_text_are_said_and_left_alone() -> None:
    net = model()
    add_adapter(net, "p", Prefix(tokens=2), seed=3)
    with fused(net) as reason:
        assert "virtual tokens" in str(reason)
        assert all(type(block) is Block for block in net.blocks)


@only_fused
def test_looking_is_exact_while_blocks_are_fused() -> None:
    net, what = model(), batch()
    with torch.no_grad():
        plain = net(what.ids_BT)
        with fused(net):
            assert any(isinstance(module, FusedBlock) for module in net.modules())
            assert torch.equal(net(what.ids_BT), plain)
    assert all(type(module) is Block for module in net.blocks)


@only_fused
def test_frozen_weights_get_no_gradient_and_the_others_keep_theirs() -> None:
    net, what = model(), batch()
    _, whole = learnt(net, what, fuse=True)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("query" in name or "down" in name or "norm" in name)
    _, some = learnt(net, what, fuse=True)
    assert 0 < len(some) < len(whole)
    assert all(torch.equal(gradient, whole[name]) for name, gradient in some.items())


def test_without_kernels_all_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMLAB_NATIVE", "0")
    with fused(model()) as reason:
        assert "LLMLAB_NATIVE" in str(reason)
