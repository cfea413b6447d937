"""The one mask rule, proven on the model itself: what a token's output depends on is what the rule says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import InputError
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse

VOCABULARY = 50


def build(seed: int = 0, **parts: Any) -> Transformer:
    small: dict[str, Any] = {"layers": 2, "dim": 32, "context": 64, "initial_std": 0.2}
    model = parse(Architecture, small | parts).build(VOCABULARY, seed).eval()
    with torch.no_grad():  # learnt positions must matter from the start
        for parameter in model.position.parameters():
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(seed))
    return model


def depends(model: Transformer, at: Places) -> torch.Tensor:
    """bool [T, T]: does output i change with input j, by the Jacobian on the embeddings."""
    length = at.position.shape[1]
    x = torch.randn(length, 32, generator=torch.Generator().manual_seed(1))

    def run(embedded: torch.Tensor) -> torch.Tensor:
        hook = model.embedding.register_forward_hook(lambda *_: embedded[None])
        try:
            return model.hidden(torch.zeros(1, length, dtype=torch.long), at)[0].sum(-1)
        finally:
            hook.remove()

    jacobian = torch.autograd.functional.jacobian(run, x)
    return jacobian.abs().sum(-1) > 0


def reachable(mask: torch.Tensor, layers: int) -> torch.Tensor:
    """What `layers` applications of the mask let through."""
    return torch.linalg.matrix_power(mask.float(), layers) > 0


def test_jacobian_is_the_mask(position_kind: type, attention_kind: type) -> None:
    attention = {"kind": attention_kind.model_fields["kind"].default, "heads": 4, "window": 3}
    model = build(position=position_kind(), attention=attention, layers=1)
    line = torch.arange(9)
    packed = Places(
        position=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 0]]),
        order=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 0]]),
        document=torch.tensor([[0, 0, 0, 0, 1, 1, 1, -1, -1]]),
    )
    prefix = Places(line[None], (line - 4 + 1).clamp(min=0)[None], torch.zeros(1, 9, dtype=torch.long))
    for at in (Places.causal(1, 9), packed, prefix):
        mask = at.sees(at, window=3)[0]
        assert torch.equal(depends(model, at), reachable(mask, 1))
    assert not Places.causal(1, 9).sees(Places.causal(1, 9), 3)[0, 5, 2]


@pytest.mark.parametrize("wiring", ["pre", "post"])
def test_every_part_builds_and_learns(
    position_kind: type, norm_kind: type, feedforward_kind: type, wiring: str
) -> None:
    model = build(position=position_kind(), norm=norm_kind(), feedforward=feedforward_kind(), wiring=wiring)
    ids = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    model(ids).log_softmax(-1).gather(-1, ids[..., None]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=3), extra=st.integers(0, 3))
@settings(max_examples=10, deadline=None)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(position_kind: type, side: str, lengths: list[int], extra: int) -> None:
    """Trap 14: a row's logits do not depend on its padding, for every encoding."""
    model = build(position=position_kind())
    width = max(lengths) + extra
    at = Places.of_lengths(lengths, width, side)
    ids = torch.randint(VOCABULARY, (len(lengths), width), generator=torch.Generator().manual_seed(3))
    logits = model(ids, at)
    for row, length in enumerate(lengths):
        alone = ids[row, -length:] if side == "left" else ids[row, :length]
        inside = logits[row, -length:] if side == "left" else logits[row, :length]
        torch.testing.assert_close(model(alone[None])[0], inside, atol=2e-5, rtol=1e-4)


def test_packing_equals_separate(position_kind: type) -> None:
    """Traps 15 and 16: documents packed in one row neither see nor move each other."""
    model = build(position=position_kind())
    a, b = (torch.randint(VOCABULARY, (1, n), generator=torch.Generator().manual_seed(n)) for n in (5, 8))
    alone = torch.cat([model(a), model(b)], 1)
    first, second = Places.causal(1, 5), Places.causal(1, 8)
    at = first.cat(Places(second.position, second.order, second.document + 1))
    torch.testing.assert_close(model(torch.cat([a, b], 1), at), alone, atol=2e-5, rtol=1e-4)


def test_initial_weights_are_keyed_by_name() -> None:
    """Arms that differ in one part share every other weight."""
    plain, rotary = build(position="none", norm="layernorm"), build(position="rope", norm="rmsnorm")
    ours, theirs = plain.state_dict(), rotary.state_dict()
    common = {name for name in ours if name in theirs and ours[name].ndim == 2}
    assert len(common) == 15
    assert all(torch.equal(ours[name], theirs[name]) for name in common)
    assert not torch.equal(ours["embedding.weight"], build(seed=1).state_dict()["embedding.weight"])


def test_parameter_count_by_hand() -> None:
    """12 L d^2 + V d for plain multi-head blocks without biases, plus gains."""
    model = build(attention={"kind": "mha", "heads": 4}, feedforward="gelu", norm="rmsnorm", position="none")
    assert sum(p.numel() for p in model.parameters()) == 2 * 12 * 32 * 32 + VOCABULARY * 32 + 5 * 32


def test_two_thirds_rule_keeps_the_parameters() -> None:
    gated = build(dim=96, feedforward="swiglu").blocks[0].feedforward
    plain = build(dim=96, feedforward="relu").blocks[0].feedforward
    assert sum(p.numel() for p in gated.parameters()) == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"attention": {"kind": "mha", "heads": 5}}, "4 would"),
        ({"attention": {"kind": "gqa", "heads": 4, "kv_heads": 3}}, "does not divide"),
        ({"attention": {"kind": "mha", "heads": 4, "head_dim": 7}}, "odd"),
        ({"position": "rotary"}, "allowed: none, sinusoidal"),
        ({"layer": 3}, "did you mean 'layers'"),
    ],
)
def test_impossible_shapes_are_refused(parts: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build(**parts)


def test_learnt_positions_end_at_the_context() -> None:
    with pytest.raises(InputError, match="64 lies past the learnt table of 64"):
        build(position="learned")(torch.zeros(1, 65, dtype=torch.long))
