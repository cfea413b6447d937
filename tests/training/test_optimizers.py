"""Every optimizer of the union: its first steps against a reference, its state by name and by bytes."""

import typing
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.training.adafactor import Adafactor
from llmlab.training.adamw import AdamW
from llmlab.training.eight_bit import BLOCK, AdamW8bit, Codes, dynamic_values
from llmlab.training.galore import GaLore
from llmlab.training.lion import Lion
from llmlab.training.muon import Muon
from llmlab.training.optimizer import Optimizer, OptimizerPart, hidden_matrices, trained
from llmlab.training.optimizers import OptimizerKind
from llmlab.training.sgd import SGD

SCALES = (0.3, 1.0, 0.6, 0.2)
EVERY: list[OptimizerPart] = [
    AdamW(),
    AdamW(moments="bf16"),
    Muon(),
    AdamW8bit(smallest=300),
    Adafactor(),
    Lion(),
    GaLore(rank=5, refresh=3),
    SGD(),
    SGD(momentum=0.9, weight_decay=0.1),
]
each = pytest.mark.parametrize("settings", EVERY, ids=lambda part: "-".join([part.kind, getattr(part, "moments", "")]))


def gradients(model: nn.Module, step: int) -> None:
    noise = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=noise)


def run(optimizer: Optimizer, model: nn.Module, steps: Sequence[int]) -> dict[str, Tensor]:
    for step in steps:
        gradients(model, step)
        optimizer.set_scale(SCALES[step])
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_every_member_is_tested() -> None:
    union = typing.get_args(typing.get_args(OptimizerKind)[0])
    assert {type(part) for part in EVERY} == set(union)


# ---------------------------------------------------------------- what holds of all


@each
def test_state_by_name_goes_on_bit_for_bit(lab: Any, settings: OptimizerPart) -> None:
    unbroken = lab.model()
    expected = run(settings.build(unbroken), unbroken, range(4))
    first, second = lab.model(), lab.model()
    optimizer = settings.build(first)
    run(optimizer, first, range(2))
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    second.load_state_dict(first.state_dict())
    resumed = settings.build(second)
    resumed.load(state)
    run(optimizer, first, range(2, 4))  # must not reach into the state that was taken
    assert all(torch.equal(value, expected[name]) for name, value in run(resumed, second, range(2, 4)).items())
    assert {name.split(":")[0] for name in state} == (set(trained(first)) if state else set())


@each
@pytest.mark.parametrize("fields", [{}, {"tied": False}, {"norm": "layernorm", "shared": True}], ids=str)
def test_state_has_the_bytes_that_were_foretold(lab: Any, settings: OptimizerPart, fields: dict[str, Any]) -> None:
    model = lab.model(**fields)
    optimizer = settings.build(model)
    run(optimizer, model, range(2))
    shapes = {name: p.shape for name, p in trained(model).items()}
    assert sum(tensor.nbytes for tensor in optimizer.state().values()) == settings.state_bytes(shapes)


@each
def test_one_parameter_after_another_is_the_same_step(lab: Any, settings: OptimizerPart) -> None:
    together, alone = lab.model(), lab.model()
    expected = run(settings.build(together), together, range(3))
    optimizer = settings.build(alone)
    for step in range(3):
        gradients(alone, step)
        made = {p: p.grad for p in alone.parameters()}
        optimizer.zero_grad()
        optimizer.set_scale(SCALES[step])
        for parameter in reversed(made):
            parameter.grad = made[parameter]
            optimizer.step_one(parameter)
            parameter.grad = None
    assert all(torch.equal(p, expected[name]) for name, p in alone.named_parameters())


@each
def test_a_parameter_without_gradient_has_no_state_and_stays(lab: Any, settings: OptimizerPart) -> None:
    model = lab.model()
    left = ("embedding.weight", "blocks.0.attention.query.weight", "final_norm.weight")
    before = {name: model.get_parameter(name).detach().clone() for name in left}
    optimizer = settings.build(model)
    gradients(model, 0)
    for name in left:
        model.get_parameter(name).grad = None
    optimizer.step()
    assert all(torch.equal(model.get_parameter(name), before[name]) for name in left)
    assert not any(name.startswith(left) for name in optimizer.state())
    assert not torch.equal(model.blocks[1].attention.query.weight, lab.model().blocks[1].attention.query.weight)


@each
def test_it_learns(lab: Any, settings: OptimizerPart) -> None:
    """A matrix and a bias go towards a linear map, from noise that is new at every step."""
    rate = {"adamw": 0.02, "muon": 0.05, "adamw8bit": 0.02, "adafactor": 0.1, "lion": 0.005, "galore": 0.1, "sgd": 0.5}
    quick = settings.model_copy(update={"lr": rate[settings.kind], "weight_decay": 0.0, "adamw_lr": 0.02})  # type: ignore[attr-defined]
    model = nn.ModuleDict({"blocks": nn.Linear(20, 20)})
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model["blocks"].weight.copy_(torch.randn(20, 20, generator=noise) / 4)
        model["blocks"].bias.zero_()
    wanted, optimizer, losses = torch.randn(20, 20, generator=noise) / 4, quick.build(model), []
    for _ in range(150):
        x = torch.randn(32, 20, generator=noise)
        loss = (model["blocks"](x) - x @ wanted.T - 1).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0]


def test_foreign_state_is_refused(lab: Any) -> None:
    with pytest.raises(InputError, match="nowhere"):
        AdamW().build(lab.model()).load({"nowhere:step": torch.tensor(1.0)})


def test_hidden_matrices_are_those_of_the_blocks(lab: Any) -> None:
    model = lab.model(tied=False)
    model.blocks[0].attention.query.weight.requires_grad_(False)
    names = hidden_matrices(model)
    assert len(names) == 2 * 7 - 1  # query, key, value, output, gate, up, down
    assert all(name.startswith("blocks.") for name in names)
    assert "blocks.0.attention.query.weight" not in trained(model)


# ---------------------------------------------------------------- against torch's own


def run_torch(parts: list[torch.optim.Optimizer], model: nn.Module) -> dict[str, Tensor]:
    base = [[group["lr"] for group in part.param_groups] for part in parts]
    for step, scale in enumerate(SCALES):
        gradients(model, step)
        for part, rates in zip(parts, base, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                group["lr"] = rate * scale
            part.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def decayed(model: nn.Module, names: list[str], weight_decay: float) -> list[dict[str, Any]]:
    parameters = dict(model.named_parameters())
    return [
        {"params": [parameters[name] for name in names if parameters[name].ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameters[name] for name in names if parameters[name].ndim < 2], "weight_decay": 0.0},
    ]


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor], atol: float = 1e-6, rtol: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=atol, rtol=rtol, msg=name)


def test_adamw_is_torchs_with_decay_on_matrices(lab: Any) -> None:
    settings = AdamW(lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.5)
    ours, theirs = lab.model(), lab.model()
    names = list(dict(theirs.named_parameters()))
    plain = torch.optim.AdamW(decayed(theirs, names, 0.5), lr=0.01, betas=(0.8, 0.9), eps=1e-6)
    close(run(settings.build(ours), ours, range(4)), run_torch([plain], theirs))


def test_muon_is_torchs_for_hidden_matrices_and_adamw_for_the_rest(lab: Any) -> None:
    settings = Muon(lr=0.05, momentum=0.9, weight_decay=0.2, adamw_lr=0.01)
    ours, theirs = lab.model(tied=False), lab.model(tied=False)
    hidden = [name for name, p in theirs.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
    others = [name for name, _ in theirs.named_parameters() if name not in hidden]
    assert {"embedding.weight", "head.weight", "final_norm.weight"} <= set(others)
    parameters = dict(theirs.named_parameters())
    parts: list[torch.optim.Optimizer] = [
        torch.optim.Muon([parameters[name] for name in hidden], lr=0.05, momentum=0.9, weight_decay=0.2),
        torch.optim.AdamW(decayed(theirs, others, 0.2), lr=0.01, betas=settings.betas, eps=settings.eps),
    ]
    close(run(settings.build(ours), ours, range(4)), run_torch(parts, theirs))


def test_sgd_is_torchs(lab: Any) -> None:
    ours, theirs = lab.model(), lab.model()
    names = list(dict(theirs.named_parameters()))
    plain = torch.optim.SGD(decayed(theirs, names, 0.5), lr=0.01, momentum=0.8, foreach=True)
    close(run(SGD(lr=0.01, momentum=0.8, weight_decay=0.5).build(ours), ours, range(4)), run_torch([plain], theirs))


# ---------------------------------------------------------------- against formulas


@pytest.mark.parametrize("settings", [AdamW(moments="bf16", weight_decay=0.3), AdamW8bit(smallest=1, weight_decay=0.3)])
def test_coarse_moments_change_nothing_at_first_and_little_later(lab: Any, settings: AdamW | AdamW8bit) -> None:
    """The first update sees exact moments; later ones a rounding that is bounded by a share of the learning rate."""
    exact = AdamW(weight_decay=0.3)
    mine, theirs = lab.model(), lab.model()
    coarse, fine = settings.build(mine), exact.build(theirs)
    close(run(coarse, mine, range(1)), run(fine, theirs, range(1)), atol=1e-7)
    run(coarse, mine, range(1, 4)), run(fine, theirs, range(1, 4))
    gaps = [(a - b).abs().mean() / settings.lr for a, b in zip(mine.parameters(), theirs.parameters(), strict=True)]
    assert 0 < max(gaps) < 0.1


def test_moments_in_bf16_refuse_a_decay_that_they_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"beta of 0.999.*at most 0.998"):
        AdamW(moments="bf16", betas=(0.9, 0.999))
    second = torch.tensor(1.0, dtype=torch.bfloat16)
    assert (second.float() * 0.999).bfloat16() == second  # why
    assert (second.float() * 0.998).bfloat16() < second


def test_lions_first_steps(lab: Any) -> None:
    settings = Lion(lr=0.01, betas=(0.9, 0.99), weight_decay=0.5)
    model = lab.model()
    weight = model.blocks[0].attention.query.weight
    expected, momentum = weight.detach().clone(), torch.zeros_like(weight)
    optimizer = settings.build(model)
    for step in range(3):
        gradients(model, step)
        gradient = weight.grad
        expected -= 0.01 * (torch.sign(0.9 * momentum + 0.1 * gradient) + 0.5 * expected)
        momentum = 0.99 * momentum + 0.01 * gradient
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected, atol=1e-7, rtol=1e-6)


def test_adafactors_first_step_is_the_papers() -> None:
    """Algorithm 4 of Shazeer and Stern: at step 1 the decay is 0, so the estimate is the outer product of means."""
    model = nn.Linear(6, 4)
    x, g = model.weight.detach().clone(), torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    model.weight.grad = g.clone()
    Adafactor(lr=0.02, threshold=1.0).build(model).step()
    second = g.square().mean(1, keepdim=True) @ g.square().mean(0, keepdim=True) / g.square().mean()
    update = g / second.sqrt()
    update /= max(1.0, float(update.square().mean().sqrt()) / 1.0)
    step = 0.02 * max(1e-3, float(x.square().mean().sqrt()))
    torch.testing.assert_close(model.weight.detach(), x - step * update)


def galore_by_hand(weight: Tensor, steps: list[Tensor], rank: int, refresh: int, rate: float) -> Tensor:
    """The paper's algorithm 2 on a wide matrix, betas 0.9 and 0.95, in float64, by projections that no sign changes."""
    weight, m, v = weight.double(), 0.0, 0.0
    for t, g in enumerate(steps):
        if t % refresh == 0:
            basis = torch.linalg.svd(g, full_matrices=False).U[:, :rank].double()
        small = basis.T @ g.double()
        m, v = 0.9 * m + 0.1 * small, 0.95 * v + 0.05 * small**2
        direction = (m / (1 - 0.9 ** (t + 1))) / ((v / (1 - 0.95 ** (t + 1))).sqrt() + 1e-8)
        weight = weight - rate * 0.25 * basis @ direction
    return weight


@pytest.mark.parametrize("tall", [False, True])
def test_galores_first_steps(tall: bool) -> None:
    noise = torch.Generator().manual_seed(0)
    steps = [torch.randn(6, 9, generator=noise) for _ in range(4)]
    model = nn.ModuleDict({"blocks": nn.Linear(6, 9, bias=False) if tall else nn.Linear(9, 6, bias=False)})
    weight = model["blocks"].weight
    start = (weight.T if tall else weight).detach().clone()
    optimizer = GaLore(lr=0.01, rank=3, refresh=2, weight_decay=0.0).build(model)
    for g in steps:
        weight.grad = (g.T if tall else g).contiguous()
        optimizer.step()
    expected = galore_by_hand(start, steps, 3, 2, 0.01).float()
    torch.testing.assert_close((weight.T if tall else weight).detach(), expected, atol=1e-6, rtol=1e-4)
    assert torch.linalg.matrix_rank(weight.detach() - (start.T if tall else start)) <= 6  # two sets of three directions


# ---------------------------------------------------------------- eight bits


def test_eight_bits_are_a_quarter_and_a_scale_a_block() -> None:
    size = 3 * BLOCK + 7
    shapes = {"blocks.0.w": (size,)}
    exact, coded = AdamW().state_bytes(shapes), AdamW8bit(smallest=1).state_bytes(shapes)
    assert coded - 4 == (exact - 4) / 4 + 2 * 4 * 4  # counters aside; two moments, four blocks, four bytes a scale
    assert AdamW8bit().state_bytes({"embedding.weight": (10_000, 8)}) == AdamW().state_bytes(
        {"embedding.weight": (10_000, 8)}
    )
    assert AdamW8bit().state_bytes({"norm.weight": (64,)}) == AdamW().state_bytes({"norm.weight": (64,)})


@pytest.mark.parametrize("signed", [True, False])
def test_the_values_of_the_codes(signed: bool) -> None:
    values = dynamic_values(signed)
    assert len(values) == len(values.unique()) == 256
    assert (values == values.sort().values).all()
    assert 0.0 in values
    assert values[-1] == 1.0
    assert values[0] == pytest.approx(-0.99296875 if signed else 0.0)
    assert values[values > 0][0] == pytest.approx(0.55e-6 if signed else 0.325e-6)


@given(st.integers(1, 3 * BLOCK), st.booleans(), st.integers(0, 99), st.sampled_from([1e-20, 1.0, 1e15]))
def test_every_number_comes_back_near(size: int, signed: bool, seed: int, scale: float) -> None:
    """To the nearest value of its block, found by brute force; a number above zero never to zero."""
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=noise) ** 3 * scale
    x = x if signed else x.abs()
    x[torch.rand(size, generator=noise) < 0.1] = 0.0
    codes, scales = torch.empty(size, dtype=torch.uint8), torch.empty(-(-size // BLOCK))
    table = Codes(signed)
    table.encode(x, codes, scales)
    back = table.decode(codes, scales)
    for block in range(len(scales)):
        mine, found = x[block * BLOCK :][:BLOCK], back[block * BLOCK :][:BLOCK]
        most = mine.abs().max()
        assert scales[block] == most
        allowed = dynamic_values(signed) if signed else dynamic_values(signed)[1:]
        best = (mine[:, None] - allowed * most).abs().amin(1)
        best = best if signed else torch.where(mine > 0, best, 0.0)
        assert ((mine - found).abs() <= best + 1e-6 * most).all()
    assert signed or ((back > 0) == (x > 0)).all()
    assert ((back == 0) | (x != 0)).all()


def test_a_gradient_that_ends_moves_nothing_far() -> None:
    """A second moment of zero beside a first moment that is not would be divided by eps (why it is rounded up)."""
    model = nn.ModuleDict({"blocks": nn.Linear(BLOCK, 1, bias=False)})
    weight = model["blocks"].weight
    optimizer = AdamW8bit(lr=1.0, smallest=1, weight_decay=0.0).build(model)
    for step in range(30):
        weight.grad = torch.full_like(weight, 1.0 if step < 10 else 0.0)
        weight.grad[0, 1:] *= 3e-5  # of which the first moment has a code and the second none
        before = weight.detach().clone()
        optimizer.step()
        assert (weight - before).abs().max() < 5.0
