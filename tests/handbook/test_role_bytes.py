"""The ledger of alignment's models: the arithmetic of the papers, and what the role table itself says."""

from __future__ import annotations

import pytest

from llmlab.adapters.lora import LoRA
from llmlab.adapters.roles import Roles, separate_bytes, static_bytes
from llmlab.handbook.role_bytes import BY_NAME
from llmlab.model.transformer import Architecture

TOLD = {
    "PPO, four models": 36,
    "GRPO or RLOO with a reward model": 20,
    "DPO": 18,
    "DPO, reference log-probabilities kept": 16,
    "PPO, adapters on one base": 2.17,
}


@pytest.mark.parametrize("name", TOLD)
def test_bytes_a_parameter_in_mixed_precision(name: str) -> None:
    assert BY_NAME[name].bytes_a_parameter("mixed") == pytest.approx(TOLD[name], abs=0.005)


def test_seven_billion_in_four_models() -> None:
    assert BY_NAME["PPO, four models"].bytes_a_parameter("mixed") * 7e9 == pytest.approx(252e9)


def test_the_role_table_counts_the_same() -> None:
    """In float32: of models of their own, and of adapters on one base. Scalar heads are a vector, next to nothing."""
    architecture = Architecture(layers=4, dim=128, context=64)
    roles, section = Roles().table(), LoRA(rank=4)
    shared = static_bytes(architecture, 2000, roles, dict.fromkeys(("policy", "critic", "reward"), section))
    numbers = shared["base"] / 4
    share = shared["adapters"] / 4 / 3 / numbers
    ours = BY_NAME["PPO, adapters on one base"].bytes_a_parameter("fp32", share)
    assert sum(shared.values()) / numbers == pytest.approx(ours, rel=0.005)
    apart = separate_bytes(architecture, 2000, roles)
    four = BY_NAME["PPO, four models"].bytes_a_parameter("fp32")
    assert sum(apart.values()) / numbers == pytest.approx(four, rel=0.005)
