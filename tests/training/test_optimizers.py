"""Our optimizers against torch's own, and their state by name."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.training.adamw import AdamW
from llmlab.training.muon import Muon
from llmlab.training.optimizer import Optimizer, hidden_matrices, trained

SCALES = (0.3, 1.0, 0.6, 0.2)


def gradients(model: nn.Module, step: int) -> None:
    noise = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=noise)


def run(optimizer: Optimizer, model: nn.Module, steps: range) -> dict[str, Tensor]:
    for step in steps:
        gradients(model, step)
        optimizer.set_scale(SCALES[step])
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


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


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-5, msg=name)


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


def test_hidden_matrices_are_those_of_the_blocks(lab: Any) -> None:
    model = lab.model(tied=False)
    model.blocks[0].attention.query.weight.requires_grad_(False)
    names = hidden_matrices(model)
    assert len(names) == 2 * 7 - 1  # query, key, value, output, gate, up, down
    assert all(name.startswith("blocks.") for name in names)
    assert "blocks.0.attention.query.weight" not in trained(model)


@pytest.mark.parametrize("settings", [AdamW(), Muon()], ids=["adamw", "muon"])
def test_state_by_name_goes_on_bit_for_bit(lab: Any, settings: AdamW | Muon) -> None:
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
    assert {name.split(":")[0] for name in state} == set(trained(first))


def test_a_parameter_without_gradient_has_no_state_and_stays(lab: Any) -> None:
    model = lab.model()
    before = model.embedding.weight.detach().clone()
    optimizer = AdamW().build(model)
    gradients(model, 0)
    model.embedding.weight.grad = None
    optimizer.step()
    assert torch.equal(model.embedding.weight, before)
    assert not any(name.startswith("embedding") for name in optimizer.state())


def test_foreign_state_is_refused(lab: Any) -> None:
    with pytest.raises(InputError, match="nowhere"):
        AdamW().build(lab.model()).load({"nowhere:step": torch.tensor(1.0)})
