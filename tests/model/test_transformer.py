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


def test_jacobian_is_the_mask(mixing: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Cell by cell: causal, packed, and, where every query has a score for every key, bidirectional, prefix,
    permutation and blank infilling. What cannot have these says so."""
    position, attention = mixing
    model = build(position=position, attention=attention, layers=1)
    line = torch.arange(9)
    packed = Places(
        position=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 0]]),
        order=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 0]]),
        document=torch.tensor([[0, 0, 0, 0, 1, 1, 1, -1, -1]]),
    )
    causal = Places.causal(1, 9)
    shuffled = torch.tensor([[3, 0, 8, 1, 5, 2, 7, 4, 6]])
    anywhere = [
        causal.bidirectional(),
        causal.prefix([4]),
        Places(line[None], shuffled, causal.document),
        Places(line[None], torch.tensor([[0, 0, 0, 0, 3, 1, 2, 4, 5]]), causal.document),
    ]
    part = model.architecture.attention
    window, sinks = getattr(part, "window", None), getattr(part, "sinks", 0)
    for at in (causal, packed, *(anywhere if part.scores else [])):
        mask = at.sees(at, window, sinks)[0]
        if not part.scores:
            mask &= at.real[0]  # padding goes nowhere
            assert torch.equal(depends(model, at)[at.real[0]], reachable(mask, 1)[at.real[0]])
        else:
            assert torch.equal(depends(model, at), reachable(mask, 1))
    if not part.scores:
        for at in anywhere:
            with pytest.raises(InputError, match=r"model\.attention: .* what came before and nothing else"):
                depends(model, at)


def test_parts_that_do_not_fit_are_refused_by_name(misfit: tuple[dict[str, Any], dict[str, Any]]) -> None:
    position, attention = misfit
    with pytest.raises(
        InputError, match=rf"model\.position: {position['kind']} acts on scores, which {attention['kind']}"
    ):
        build(position=position, attention=attention)


def test_window_and_sinks() -> None:
    causal = Places.causal(1, 9)
    assert causal.sees(causal, 3)[0, 5].tolist() == [False, False, False, True, True, True, False, False, False]
    assert causal.sees(causal, 3, 2)[0, 5].tolist() == [True, True, False, True, True, True, False, False, False]
    assert not causal.sees(causal, strict=True)[0].diagonal().any()


def test_every_part_builds_and_learns(norm_kind: type, feedforward_kind: type, wiring_kind: type) -> None:
    gradients(build(norm=norm_kind(), feedforward=feedforward_kind(), wiring=wiring_kind()))


def test_every_mixing_builds_and_learns(mixing: tuple[dict[str, Any], dict[str, Any]]) -> None:
    gradients(build(position=mixing[0], attention=mixing[1]))


def gradients(model: Transformer) -> None:
    """Every parameter has a gradient that is not zero, under bf16 autocast too, as training is by default."""
    for autocast in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            backward(model)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def backward(model: Transformer) -> None:
    ids = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    at = Places.causal(2, 12)
    at = Places(at.position, at.order, at.document, (at.position > 6).long())
    model(ids, at).log_softmax(-1).gather(-1, ids[..., None]).sum().backward()


@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=3), extra=st.integers(0, 3))
@settings(max_examples=4, deadline=None)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(mixing: Any, side: str, lengths: list[int], extra: int) -> None:
    """Trap 14: a row's logits do not depend on its padding, for every encoding and attention."""
    model = build(position=mixing[0], attention=mixing[1])
    width = max(lengths) + extra
    at = Places.of_lengths(lengths, width, side)
    ids = torch.randint(VOCABULARY, (len(lengths), width), generator=torch.Generator().manual_seed(3))
    logits = model(ids, at)
    for row, length in enumerate(lengths):
        alone = ids[row, -length:] if side == "left" else ids[row, :length]
        inside = logits[row, -length:] if side == "left" else logits[row, :length]
        torch.testing.assert_close(model(alone[None])[0], inside, atol=2e-5, rtol=1e-4)


def test_packing_equals_separate(mixing: Any) -> None:
    """Traps 15 and 16: documents packed in one row neither see nor move each other."""
    model = build(position=mixing[0], attention=mixing[1])
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
        ({"attention": {"kind": "mha", "heads": 4, "head_dim": 7}}, "turns 7 of a head's 7"),
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
