"""Questions 44 to 48: the specification's numbers, experiments that can fail, and races whatever their outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmlab.handbook import depth, q44_deepnorm, q45_deepnorm_code, q46_deepnorm_advantages, q47_norm_position
from llmlab.handbook.literal.blind import Blind
from llmlab.handbook.literal.deepnorm import NormedMLP
from llmlab.handbook.question import Figures, Verdict, load
from llmlab.handbook.raced import Told, race
from llmlab.handbook.runner import shipped
from llmlab.handbook.towers import Tower, tower_gradients
from llmlab.model import initial, transformer
from llmlab.model.block import Block, DeepNorm, Post, Pre
from llmlab.model.transformer import Architecture
from llmlab.recipe import parse

RACED = (44, 46, 47)


def recorded(number: int) -> Figures:
    """The shipped figures without those of races."""
    found, question = shipped(number), load(number)
    assert found is not None
    raced = (
        {}
        if question.raced is None
        else question.raced({"wiring": told("wiring", EXPECTED), "norms": told("norms", NORMS)})
    )
    return {name: value for name, value in found["figures"].items() if name not in raced}


# ---------------------------------------------------------------- the specification's numbers


def test_the_constants_are_the_papers() -> None:
    f = recorded(44)
    for name, alpha, beta in (
        ("12", 2.213, 0.319),
        ("100", 3.761, 0.188),
        ("18_encoder", 1.999, 0.353),
        ("18_decoder", 2.711, 0.261),
    ):
        assert (f[f"alpha_{name}"], f[f"beta_{name}"]) == (
            pytest.approx(alpha, abs=6e-4),
            pytest.approx(beta, abs=6e-4),
        )


def test_towers_have_the_specifications_gradients() -> None:
    """Computed independently (numpy): last over first gradient 64 sublayers deep, the last gradient by depth."""
    f46, f47 = recorded(46), recorded(47)
    assert f46["deepnorm_tower_ratio"] == pytest.approx(1.02, abs=0.05)
    assert f46["pre_tower_ratio"] == pytest.approx(0.23, abs=0.05)
    assert f46["post_tower_ratio"] == pytest.approx(0.84, abs=0.5)
    assert f46["deepnorm_tower_ratio_std"] < 0.05 < f46["post_tower_ratio_std"]
    for sublayers, post, pre in ((8, 5.89, 3.71), (32, 6.05, 2.02), (128, 5.74, 1.15)):
        assert f47[f"post_tower_{sublayers}"] == pytest.approx(post, rel=0.15)
        assert f47[f"pre_tower_{sublayers}"] == pytest.approx(pre, rel=0.15)
    assert f47["pre_tower_slope"] == pytest.approx(-0.42, abs=0.05)


def test_a_pre_norm_tower_swells_as_specified() -> None:
    """Variance 1.3 after the first of 64 sublayers, 21 after the last."""
    tower = Tower(Pre(), 64, 64, 256, 0).double()
    seen: list[float] = []
    for block in tower.blocks:
        block.register_forward_hook(lambda _, __, x: seen.append(float(x.detach().var(-1).mean())))
    tower(torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert seen[0] == pytest.approx(1 + 2 * 0.32, abs=0.25)  # two sublayers a block
    assert seen[-1] == pytest.approx(21, rel=0.25)


def test_the_printed_network_has_the_handbooks_shape() -> None:
    network = NormedMLP(100, [64, 32], 10)
    assert network(torch.randn(32, 100)).shape == (32, 10)
    assert sum(p.numel() for norm in network.norms for p in norm.parameters()) == 192
    assert [tuple(linear.weight.shape) for linear in network.linears] == [(64, 100), (32, 64)]
    by_hand = torch.randn(5, 100)
    x = by_hand
    for linear, norm in zip(network.linears, network.norms, strict=True):
        x = norm(linear(x)).clamp(min=0)
    assert torch.equal(network(by_hand), network.last(x))


# ---------------------------------------------------------------- instruments


def test_one_step_moves_as_far_as_it_does_with_autograd() -> None:
    """`Start.sgd` against the derivative of the answer along the gradient."""
    model = depth.untrained("pre", 3, 0)
    ids, answers = depth.texts(0)
    matrices = {n: p for n, p in model.named_parameters() if n.startswith("blocks") and p.ndim > 1}
    hidden = model.hidden(ids, model.architecture.mask.places(ids))
    loss = nn.functional.cross_entropy(model.logits(hidden).flatten(0, 1), answers.flatten())
    gradients = dict(zip(matrices, torch.autograd.grad(loss, list(matrices.values())), strict=True))

    def answer(changed: dict[str, Tensor]) -> Tensor:
        class Hidden(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self) -> Tensor:
                return model.hidden(ids, model.architecture.mask.places(ids))

        named = {f"model.{name}": value for name, value in changed.items()}
        out: Tensor = torch.func.functional_call(Hidden(), named)
        return out

    start = {name: parameter.detach() for name, parameter in matrices.items()}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, moved = torch.func.jvp(answer, (start,), (gradients,))
    assert depth.start("pre", 3, 0).sgd == pytest.approx(float(moved.detach().norm(dim=-1).mean()), rel=1e-3)


def test_towers_are_wired_by_our_block() -> None:
    """A tower of DeepNorm by hand."""
    tower = Tower(DeepNorm(), 4, 8, 16, 3).double()
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y, alpha = x, 4**0.25
    for block in tower.blocks:
        for part in (block.get_submodule("attention.inner"), block.get_submodule("feedforward")):
            y = nn.functional.layer_norm(alpha * y + part(y), (8,))
    assert torch.allclose(tower(x), y, atol=1e-12)
    assert len(tower.outputs()) == len(tower_gradients(Post(), 4, 0, 8)) == 4


def test_slopes_are_exponents() -> None:
    assert depth.slope((2, 8, 32), [3 * n**-0.7 for n in (2, 8, 32)]) == pytest.approx(-0.7)
    assert depth.geometric([1, 100]) == pytest.approx(10)


def test_the_blind_arm_sees_nothing() -> None:
    shape = {"layers": 1, "dim": 16, "context": 8, "attention": {"kind": "mha", "heads": 2}, "wiring": "post"}
    model = parse(Architecture, {**shape, "position": Blind().kind}).build(9)
    logits = model(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]))
    assert torch.equal(logits, logits[:1, :1].expand_as(logits))


# ---------------------------------------------------------------- experiments that can fail


def without_alpha(layers: int, encoder_layers: int = 0, encoder: bool = False) -> tuple[float, float]:
    return 1.0, (8 * layers) ** -0.25


def normalised(self: NormedMLP, x: Tensor) -> Tensor:
    for linear, norm in zip(self.linears, self.norms, strict=True):
        x = torch.relu(norm(linear(x)))
    y: Tensor = nn.functional.layer_norm(self.last(x), (self.last.out_features,))
    return y


def skipping(self: NormedMLP, x: Tensor) -> Tensor:
    return x + 0 * x if x.shape[-1] == self.last.out_features else x[:, : self.last.out_features]


def post_for_pre(self: Block, x: Tensor, part: Callable[[Tensor], Tensor], norm: nn.Module, after: Any) -> Tensor:
    y: Tensor = norm(x + part(x))
    return y


@pytest.mark.parametrize(
    ("number", "measure", "owner", "name", "broken"),
    [
        (44, q44_deepnorm._rule, transformer, "deepnorm", without_alpha),
        (45, q45_deepnorm_code._skips, NormedMLP, "forward", skipping),
        (45, q45_deepnorm_code._real, initial, "DEEPNORM", ()),
        (46, q46_deepnorm_advantages._sizes, NormedMLP, "forward", normalised),
        (47, q47_norm_position._depths, Block, "_wired", post_for_pre),
    ],
)
def test_a_broken_part_changes_the_verdict(
    number: int, measure: Any, owner: Any, name: str, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is broken is measured again, the rest is as recorded."""
    monkeypatch.setattr(q47_norm_position, "SEEDS", 1)
    monkeypatch.setattr(owner, name, broken)
    question = load(number)
    assert question.verdict(recorded(number) | measure(0)) is Verdict.NOT_REPRODUCED


def test_deepnorm_without_its_small_weights_loses_even_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initial, "DEEPNORM", ())
    gradients = depth.start("deepnorm", 24, 0).gradients
    figures = recorded(46) | {"deepnorm_spread": max(gradients) / min(gradients)}
    claim = next(claim for claim in load(46).claims if claim.name == "gradients")
    assert claim.judged(recorded(46)) is Verdict.CONFIRMED
    assert claim.judged(figures) is Verdict.REFUTED


# ---------------------------------------------------------------- races, run or not


def told(name: str, ends: dict[str, float]) -> Told:
    """A record in which each arm ends near its value; `other` is what all others end at."""
    arms = race(name).arms
    rows = {arm: [ends.get(arm, ends["other"]) + 0.002 * ((7 * i + len(arm)) % 5) for i in range(5)] for arm in arms}
    return Told({"name": name, "rows": {"bits_per_byte": rows}, "arms": dict.fromkeys(arms)})


EXPECTED = {
    **{"other": 3.22, "deepnorm, middle, cold": 2.95, "deepnorm, middle, warm": 2.93, "pre, fast, cold": 2.92},
    **{"pre, middle, cold": 3.15, "sandwich, fast, cold": 2.94, "post, shallow, warm": 3.15},
}
NORMS = {"other": 2.4, "batch": 2.7}


def raced(number: int, wiring: dict[str, float], norms: dict[str, float]) -> Figures:
    question = load(number)
    assert question.raced is not None
    return recorded(number) | question.raced({"wiring": told("wiring", wiring), "norms": told("norms", norms)})


@pytest.mark.parametrize("number", RACED)
def test_a_race_as_expected_decides_all_claims(number: int) -> None:
    question = load(number)
    figures = raced(number, EXPECTED, NORMS)
    assert set(question.decided(figures)) == set(question.claims)
    assert {claim.judged(figures) for claim in question.claims if claim.race} <= {Verdict.CORRECTED, Verdict.CONFIRMED}
    assert question.verdict(figures) is question.verdict(recorded(number))
    for spoken, unraced in zip(question.evidence(figures), question.evidence(recorded(number)), strict=True):
        assert len(spoken) > len(unraced)
        assert "nan" not in spoken


@pytest.mark.parametrize("number", RACED)
def test_a_race_in_which_nothing_differs_decides_nothing(number: int) -> None:
    question = load(number)
    figures = raced(number, {"other": 3.22}, {"other": 2.4})
    judged = {claim.judged(figures) for claim in question.claims if claim.race}
    assert judged <= {Verdict.NOT_REPRODUCED, Verdict.REFUTED}
    assert judged


def test_the_race_of_wirings_stays_small() -> None:
    assert len(race("wiring").arms) <= 16
