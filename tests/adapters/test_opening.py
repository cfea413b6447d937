"""What a path opens to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmlab.adapters.lora import LoRA
from llmlab.adapters.opening import base_of, open_policy
from llmlab.adapters.part import adapter_parameters, add_adapter
from llmlab.adapters.peft_format import CONFIG, save_adapter
from llmlab.checkpoints.native import save_model
from llmlab.errors import InputError
from llmlab.model.heads import ScalarHead
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.runtime import generator

SMALL: dict[str, Any] = {"layers": 2, "dim": 32, "context": 32, "initial_std": 0.2}


def build(seed: int = 0) -> Transformer:
    return parse(Architecture, SMALL).build(40, seed).eval()


def logits(model: Transformer, role: str | None = None) -> Tensor:
    ids = torch.randint(40, (2, 9), generator=generator(0, "ids"))
    with torch.no_grad():
        return model(ids, role=role)


def on_top(model: Transformer, folder: Path, base: Path, seed: int, head: ScalarHead | None = None) -> Tensor:
    """Write a stage with an adapter over `base`; the logits it should have."""
    add_adapter(model, "new", LoRA(rank=2), seed=0)
    with torch.no_grad():
        for key, parameter in adapter_parameters(model, "new").items():
            parameter.normal_(0, 0.1, generator=generator(seed, key))
    save_adapter(folder / "adapter", model, "new", base, head)
    return logits(model, "new")


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """pretrain (whole), sft (adapter), ppo (adapter over sft): all finished; and what each should say."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("seed: 0\n")
    model = build()
    save_model(folder / "pretrain" / "model", model, None)
    expected = {"pretrain": logits(model)}
    expected["sft"] = on_top(model, folder / "sft", folder / "pretrain", 1)
    expected["ppo"] = on_top(open_policy(folder / "sft").model, folder / "ppo", folder / "sft", 2)
    for stage in expected:
        finish(folder / stage)
    return folder, expected


def finish(stage: Path) -> None:
    (stage / "manifest.json").write_text(json.dumps({"key": "k"}))


def test_stages_adapters_and_the_whole_run(run: tuple[Path, dict[str, Tensor]]) -> None:
    folder, expected = run
    for stage, wanted in expected.items():
        assert torch.allclose(logits(open_policy(folder / stage).model), wanted, atol=1e-3)
    assert torch.allclose(logits(open_policy(folder / "ppo" / "adapter").model), expected["ppo"], atol=1e-3)
    assert torch.equal(logits(open_policy(folder / "pretrain" / "model").model), expected["pretrain"])
    opened = open_policy(folder)
    assert torch.allclose(logits(opened.model), expected["ppo"], atol=1e-3)
    assert opened.origin == str(folder.resolve())
    assert all(parameter.requires_grad for parameter in opened.model.parameters())


def test_only_finished_stages_count(run: tuple[Path, dict[str, Tensor]]) -> None:
    folder, expected = run
    (folder / "ppo" / "manifest.json").unlink()
    assert torch.allclose(logits(open_policy(folder).model), expected["sft"], atol=1e-3)
    for stage in ("sft", "pretrain"):
        (folder / stage / "manifest.json").unlink()
    with pytest.raises(InputError, match="no stage that makes a policy is finished"):
        open_policy(folder)


def test_a_moved_run_still_opens(run: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, expected = run
    shutil.move(folder, tmp_path / "elsewhere" / "deeper")
    assert torch.allclose(logits(open_policy(tmp_path / "elsewhere" / "deeper").model), expected["ppo"], atol=1e-3)


def test_a_circle_is_named(run: tuple[Path, dict[str, Tensor]]) -> None:
    folder, _ = run
    config = folder / "sft" / "adapter" / CONFIG
    values = json.loads(config.read_text())
    for base in ("../../ppo", ".", "../../sft", "../.."):
        config.write_text(json.dumps(values | {"base_model_name_or_path": base}))
        with pytest.raises(InputError, match="is its own base"):
            open_policy(folder / "ppo")


def test_a_missing_base_and_an_unknown_name(run: tuple[Path, dict[str, Tensor]]) -> None:
    folder, _ = run
    shutil.rmtree(folder / "pretrain")
    with pytest.raises(InputError, match=r"its base '../../pretrain' is not there"):
        open_policy(folder / "ppo")
    config = folder / "sft" / "adapter" / CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "smollm9"}))
    assert base_of(folder / "sft" / "adapter") == "smollm9"
    with pytest.raises(InputError, match="smollm2"):
        open_policy(folder / "sft")


def test_a_reward_model_is_no_policy(run: tuple[Path, dict[str, Tensor]]) -> None:
    folder, _ = run
    on_top(open_policy(folder / "sft").model, folder / "reward", folder / "sft", 3, ScalarHead(32))
    with pytest.raises(InputError, match="reward model, not a language model"):
        open_policy(folder / "reward")


def test_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model"):
        open_policy(tmp_path)
