"""Weights of bfloat16: what they hold, how they learn, and that a stopped training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llmlab.data.batch import Batch
from llmlab.data.state import State
from llmlab.errors import InputError, Stopped
from llmlab.model import kernels
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.objectives.language import NextToken
from llmlab.runtime import generator
from llmlab.stages import Session
from llmlab.training.adamw import AdamW
from llmlab.training.loop import Training, train
from llmlab.training.narrow import Bf16, Narrow, by_chance, joined, split
from llmlab.training.sgd import SGD

FLOATS = st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1)


@settings(deadline=None)
@given(FLOATS)
def test_two_halves_are_the_whole(values: list[float]) -> None:
    wide = torch.tensor(values)
    high, low = split(wide)
    assert torch.equal(joined(high, low).view(torch.int32), wide.view(torch.int32))
    nearest = wide.bfloat16()
    ties = (wide.view(torch.int32) & 0xFFFF) == 0x8000  # either neighbour is right
    assert torch.equal(high[~ties], nearest[~ties])


def test_chance_is_right_on_average_and_never_far() -> None:
    wide = torch.linspace(-3, 3, 97)
    draws = torch.stack([by_chance(wide, generator(0, "chance", str(n))).float() for n in range(400)])
    spacing = (wide.abs() * 2**-7).clamp(min=1e-30)
    assert bool(((draws - wide).abs() <= spacing).all())
    assert bool(((draws.mean(0) - wide).abs() < 5 * spacing / 400**0.5).all())
    exact = wide.bfloat16().float()
    assert torch.equal(by_chance(exact, generator(0, "chance")).float(), exact)


def followed(section: Any, steps: int = 20) -> tuple[Tensor, Tensor]:
    """A parameter as it is held, joined, beside a float32 one that learns from the very same gradients."""
    draw = generator(0, "narrow")
    start = torch.randn(37, 19, generator=draw)
    held, plain = (nn.ParameterDict({"w": nn.Parameter(start.clone())}) for _ in range(2))
    narrow, exact = Bf16().held(section.build(held), 0), section.build(plain)
    assert isinstance(narrow, Narrow)
    for step in range(steps):
        slope = (held["w"].detach().float() * 0.3 + torch.randn(37, 19, generator=draw)).bfloat16()
        held["w"].grad, plain["w"].grad = slope, slope.float()
        for optimizer in (narrow, exact):
            optimizer.set_scale(1 - step / steps)
            optimizer.step()
            optimizer.zero_grad()
    return joined(held["w"].data, narrow.state()["w:low"]), plain["w"].data


def test_kept_bits_make_it_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMLAB_NATIVE", "0")
    for section in (AdamW(lr=1e-2), SGD(lr=1e-2, momentum=0.9)):
        found, exact = followed(section)
        assert torch.equal(found, exact)


@pytest.mark.skipif(kernels.available() is not None, reason=f"plain path only: {kernels.available()}")
def test_the_kernel_is_torchs_adamw() -> None:
    found, exact = followed(AdamW(lr=1e-2, weight_decay=0.2))
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-7)


def test_small_updates_are_not_lost() -> None:
    """A thousandth of a spacing, a thousand times: plain bfloat16 would stand still."""
    for rounding in ("split", "stochastic"):
        model = nn.ParameterDict({"w": nn.Parameter(torch.ones(500))})
        optimizer = Bf16(rounding=rounding).held(SGD(lr=2**-7 / 1000).build(model), 0)
        for _ in range(1000):
            model["w"].grad = torch.ones(500, dtype=torch.bfloat16)
            optimizer.step()
        assert model["w"].detach().float().mean().item() == pytest.approx(1 - 2**-7, abs=2**-9)


SMALL = Architecture.model_validate(
    {"layers": 2, "dim": 32, "context": 32, "attention": {"kind": "gqa", "heads": 2, "kv_heads": 1}}
)


class Rows:
    def __init__(self) -> None:
        self.step = 0

    def next(self, model: Any) -> list[Batch]:
        draw = generator(0, "narrow rows", str(self.step))
        self.step += 1
        start = torch.randint(40, (4, 1), generator=draw)
        ids = (start + torch.arange(25)) % 40  # counting, which is soon learnt
        return [Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), Places.causal(4, 24))]

    def state(self) -> State:
        return State({}, {"step": self.step})

    def load(self, state: State) -> None:
        assert isinstance(state.values["step"], int)
        self.step = state.values["step"]


def settings_of(weights: Any, **changes: Any) -> Training:
    return Training.model_validate(
        {"steps": 30, "optimizer": {"kind": "adamw", "lr": 1e-2}, "checkpoint_every": 10, "weights": weights} | changes
    )


def trained(out: Path, weights: Any, stop_after: int | None = None, **changes: Any) -> tuple[Transformer, float]:
    model, session = SMALL.build(40), Session(dtype=torch.bfloat16, until=stop_after)
    figures = train(model, NextToken(), Rows(), settings_of(weights, **changes), out, session)
    return model, figures["training"]["loss"]


ROUNDINGS = [{"kind": "bf16", "rounding": "split"}, {"kind": "bf16", "rounding": "stochastic"}]


@pytest.mark.parametrize("weights", ROUNDINGS, ids=lambda w: w["rounding"])
def test_it_learns_and_ends_in_float32(tmp_path: Path, weights: dict[str, str]) -> None:
    _, exact = trained(tmp_path / "fp32", "fp32")
    model, loss = trained(tmp_path / "bf16", weights)
    assert abs(loss - exact) < 0.05 * exact + 0.05
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, parameter.bfloat16().float())  # what was computed with


@pytest.mark.parametrize("weights", ROUNDINGS, ids=lambda w: w["rounding"])
@pytest.mark.parametrize("changes", [{}, {"ema": {"decay": 0.9}}], ids=["plain", "averaged"])
def test_a_stopped_training_goes_on_bit_for_bit(
    tmp_path: Path, weights: dict[str, str], changes: dict[str, Any]
) -> None:
    whole, _ = trained(tmp_path / "whole", weights, **changes)
    with pytest.raises(Stopped):
        trained(tmp_path / "cut", weights, stop_after=13, **changes)
    again, _ = trained(tmp_path / "cut", weights, **changes)
    for (name, one), other in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_what_it_takes(tmp_path: Path) -> None:
    model = SMALL.build(40)
    count = sum(p.numel() for p in model.parameters())
    optimizer = Bf16().held(AdamW().build(model), 0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())
    optimizer.step()
    weights = sum(p.nbytes for p in model.parameters())
    kept = sum(t.nbytes for t in optimizer.state().values() if t.ndim)
    assert (weights, kept) == (2 * count, (2 + 8) * count)


def test_what_cannot_be_held_so_is_refused_by_name(tmp_path: Path) -> None:
    model = SMALL.build(40)
    model.embedding.requires_grad_(False)
    for session, net, hint in (
        (Session(dtype=torch.bfloat16), model, "trained whole"),
        (Session(), SMALL.build(40), "products in bfloat16"),
    ):
        with pytest.raises(InputError, match=hint):
            train(net, NextToken(), Rows(), settings_of("bf16"), tmp_path, session)
