"""The `adapt-smollm2` preset on real weights and real pairs: the user's file, and an adapter that peft opens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llmlab.adapters.opening import open_policy
from llmlab.checkpoints.hf import save_hf
from llmlab.checkpoints.where import open_model
from llmlab.run import read_recipe, run


@pytest.mark.usefixtures("smollm2")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft calls it
def test_adapter_on_real_weights_opens_in_peft_with_equal_logits(shared: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="a test dependency")
    peft = pytest.importorskip("peft", reason="a test dependency")
    polite = json.loads((shared / "rasbt" / "instruction_data_with_preference.json").read_text(encoding="utf-8"))
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps(polite[:40]))
    few = ["sft.training.steps=2", "sft.batch_size=4", "sft.watched=4", "reward=null", "ppo=null", "evaluate=null"]
    recipe = read_recipe("adapt-smollm2", [*few, f"sft.data=[{{kind: file, path: {mine}}}]", "dtype=fp32"])
    done = run(recipe, tmp_path / "run", quiet=True)
    assert [stage["name"] for stage in done["stages"]] == ["sft"]

    base = open_model("smollm2")
    save_hf(tmp_path / "hf", base)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").float().eval()
    ids = torch.tensor([base.tokenizer.encode("Rewrite politely: give me the salt.")])  # type: ignore[union-attr]
    with torch.no_grad():
        before = theirs(ids).logits
        assert (before - base.model(ids)).abs().max() < 1e-3
        theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "run" / "sft" / "adapter").eval()
        after = theirs(ids).logits
        assert (after - open_policy(tmp_path / "run" / "sft").model(ids)).abs().max() < 1e-3
    assert (after - before).abs().max() > 1e-3, "two steps moved nothing"
