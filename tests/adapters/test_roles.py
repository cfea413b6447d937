"""The role table: who sees what, who learns, what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmlab.adapters.lora import LoRA
from llmlab.adapters.part import adapter_parameters
from llmlab.adapters.roles import Role, RoleModel, Roles, counted_bytes, separate_bytes, static_bytes
from llmlab.errors import InputError
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.runtime import generator

VOCABULARY = 40
SMALL: dict[str, Any] = {"layers": 2, "dim": 32, "context": 32, "initial_std": 0.2}
DEFAULT = Roles()


def build(**parts: Any) -> Transformer:
    return parse(Architecture, SMALL | parts).build(VOCABULARY, 0).eval()


def stirred(roles: Roles = DEFAULT) -> RoleModel:
    model = RoleModel(build(), roles.table(), LoRA(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or ".adapters." in name or "heads" in name:
                parameter.normal_(0, 0.1, generator=generator(1, name))
    return model.eval()


def inputs() -> tuple[torch.Tensor, Places]:
    return torch.randint(VOCABULARY, (3, 6), generator=generator(0, "ids")), Places.causal(3, 6)


def test_the_reference_is_the_base_and_the_others_are_not() -> None:
    ids, at = inputs()
    base = build()(ids, at)
    model = stirred()
    assert torch.equal(model.logits("reference", ids, at), base)
    assert not torch.allclose(model.logits("policy", ids, at), base, atol=1e-3)
    assert model.values("critic", ids, at).shape == (3, 6)
    assert not torch.allclose(model.values("critic", ids, at), model.values("reward", ids, at), atol=1e-3)


def test_untrained_values_and_scores_are_zero() -> None:
    model = RoleModel(build(), Roles().table(), LoRA(), seed=0)
    ids, at = inputs()
    assert not model.values("critic", ids, at).any()
    assert not model.values("reward", ids, at).any()


def test_only_the_trained_rows_learn() -> None:
    model = stirred()
    ids, at = inputs()
    (model.logits("policy", ids, at).square().mean() + model.values("critic", ids, at).square().mean()).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(".adapters.policy." in n or ".adapters.critic." in n or n.startswith("heads.critic.") for n in moved)
    assert {n.partition(".adapters.")[2].partition(".")[0] for n in moved} == {"policy", "critic", ""}


def test_roles_that_share_an_adapter_share_the_pass() -> None:
    shared = Roles(critic=Role(adapter="policy", head="scalar", trained=True))
    model = stirred(shared)
    ids, at = inputs()
    policy, critic, reference = model.hiddens(("policy", "critic", "reference"), ids, at)
    assert policy is critic
    assert reference is not policy
    assert torch.equal(critic, model.hidden("critic", ids, at))
    assert torch.equal(reference, model.hidden("reference", ids, at))


@pytest.mark.parametrize(
    "roles",
    [
        Roles(),
        Roles(critic=Role(adapter="policy", head="scalar", trained=True)),
        Roles(critic=Role(head="scalar", trained=True)),
    ],
)
@pytest.mark.parametrize("lora", [LoRA(rank=2), LoRA(rank=5, targets=("query", "down"))])
def test_the_bytes_foretold_are_the_bytes_there(roles: Roles, lora: LoRA) -> None:
    model = RoleModel(build(), roles.table(), lora, seed=0)
    told = static_bytes(
        model.base.architecture, VOCABULARY, roles.table(), dict.fromkeys(("policy", "critic", "reward"), lora)
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids, at = inputs()
    (model.logits("policy", ids, at).mean() + model.values("critic", ids, at).mean()).backward()
    optimizer.step()
    counted = counted_bytes(model)
    counted["optimizer"] = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if value.ndim or value.numel() > 1
    )
    # A head's bias is a number without an axis: the optimizer's step counters have that shape too.
    counted["optimizer"] += sum(8 for p in optimizer.state if p.ndim == 0)
    assert told == counted


def test_one_base_is_cheaper_than_four_models() -> None:
    roles, lora = Roles().table(), LoRA(rank=2)
    architecture = parse(Architecture, SMALL | {"dim": 128})
    one = sum(static_bytes(architecture, 2000, roles, dict.fromkeys(("policy", "critic", "reward"), lora)).values())
    four = sum(separate_bytes(architecture, 2000, roles).values())
    assert four > 6 * one  # 40 N against little more than 4 N


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ({"policy": {"head": "scalar", "trained": True}}, "policy needs the head 'lm'"),
        ({"reward": {"adapter": "policy", "head": "scalar"}}, "reward is frozen but shares the adapter 'policy'"),
        ({"critic": {"adaptor": "c"}}, "no field 'adaptor'.*adapter"),
    ],
)
def test_impossible_tables(rows: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        parse(Roles, rows)


def test_who_has_no_head_of_that_kind() -> None:
    model = stirred()
    ids, at = inputs()
    with pytest.raises(InputError, match="scalar head and no logits"):
        model.logits("critic", ids, at)
    with pytest.raises(InputError, match="no values"):
        model.values("policy", ids, at)
    with pytest.raises(InputError, match=r"did you mean 'critic'"):
        model.hidden("critics", ids, at)


def test_adapters_that_are_there_are_kept() -> None:
    first = stirred()
    before = {key: p.detach().clone() for key, p in adapter_parameters(first.base, "policy").items()}
    second = RoleModel(first.base, Roles().table(), LoRA(rank=2), seed=9)
    assert all(torch.equal(p, before[key]) for key, p in adapter_parameters(second.base, "policy").items())


def test_scores_are_read_in_float32_under_autocast() -> None:
    """A score in bfloat16 has three digits: too few to tell two answers apart."""
    model = stirred()
    hidden = torch.randn(5, 32, generator=generator(0, "hidden"))
    exact = model.read("reward", hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.read("reward", hidden), exact)
