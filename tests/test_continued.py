"""A base that goes on training on documents, angles rescaled or not: `base` + `rope` + `text` + `pretrain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmlab.adapters.opening import open_policy
from llmlab.checkpoints.convert import convert
from llmlab.checkpoints.native import load_model, save_model
from llmlab.errors import InputError
from llmlab.model.transformer import Architecture
from llmlab.recipe import parse
from llmlab.run import Run, read_recipe, run, stages
from llmlab.tokenization.train import BPE, train_tokenizer

CONTEXT = 64


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer(BPE(vocab_size=300), iter(["call me ishmael, the whale swims in the sea"] * 4))
    a = parse(Architecture, {"layers": 1, "dim": 32, "context": CONTEXT})
    path = tmp_path_factory.mktemp("base") / "base"
    save_model(path, a.build(tokenizer.vocab_size, 3), tokenizer)
    return path


def recipe(base: Path, *more: str) -> Run:
    book = base.with_name("book.txt")
    book.write_text("".join(f"Number {n}: the whale swims {n * 7} miles in the sea. " for n in range(400)))
    few = [
        f"text.sources=[{{kind: files, path: {book}}}]",
        "text.held_out=0.5",
        "pretrain.training.steps=4",
        "pretrain.training.checkpoint_every=2",
        "pretrain.length=96",
    ]
    return read_recipe(
        "extend-smollm2",
        [f"base={base}", *few, "evaluate.tasks=[{kind: loss_by_position, limit: 1, length: 80}]", *more],
    )


def test_the_preset_lives_and_each_stage_starts_from_the_one_before(base: Path, tmp_path: Path) -> None:
    done = run(recipe(base), tmp_path / "run", quiet=True)
    assert [stage["name"] for stage in done["stages"]] == ["text", "rope", "tokenizer", "pretrain", "evaluate"]
    figures = {stage["name"]: stage["figures"] for stage in done["stages"]}
    assert list(figures["evaluate"]["policies"]) == ["base", "rope", "pretrain"]
    results = json.loads((tmp_path / "run" / "evaluate" / "manifest.json").read_text())
    assert "[null, null]" in json.dumps(results), "of one stretch of text there is no interval"
    first, longer, tuned = (
        load_model(path) for path in (base, *(tmp_path / "run" / s / "model" for s in ("rope", "pretrain")))
    )
    assert longer.architecture.context == tuned.architecture.context == 2 * CONTEXT
    assert tuned.architecture == longer.architecture != first.architecture
    weights = [bundle.model.state_dict() for bundle in (first, longer, tuned)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[1][name], weights[2][name]) for name in weights[0])
    assert open_policy(tmp_path / "run").architecture == tuned.architecture
    written = convert(open_policy(tmp_path / "run"), tmp_path / "hf", "hf")
    assert written["parity"] < 1e-4
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["rope_scaling"]["rope_type"] == "yarn"
    assert config["max_position_embeddings"] == 2 * CONTEXT


def test_cut_and_resumed_is_bit_for_bit(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(recipe(base, "evaluate=null"), tmp_path / "whole", quiet=True)
    from llmlab.objectives.language import NextToken

    calls, real = [0], NextToken.__call__

    def cut(self: NextToken, model: Any, batch: Any) -> Any:
        calls[0] += model.training
        if calls[0] == 6:  # two a step: in the third
            raise RuntimeError("cut")
        return real(self, model, batch)

    monkeypatch.setattr(NextToken, "__call__", cut)
    with pytest.raises(RuntimeError, match="cut"):
        run(recipe(base, "evaluate=null"), tmp_path / "cut", quiet=True)
    done = run(recipe(base, "evaluate=null"), tmp_path / "cut", resume=True, quiet=True)
    assert done["stages"][-1]["resumed_from_step"] == 2
    whole, again = (load_model(tmp_path / name / "pretrain" / "model").model.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_base_learns_a_domain_without_other_angles_and_is_then_tuned(base: Path, tmp_path: Path) -> None:
    names = [stage.name for stage in stages(recipe(base, "rope=null"), tmp_path)]
    assert names == ["text", "tokenizer", "pretrain", "evaluate"]
    life = {stage.name: stage for stage in stages(recipe(base, "sft={}", "dpo={}"), tmp_path)}
    assert life["pretrain"].parents == ("tokenizer", "rope")
    assert life["sft"].parents == ("pretrain",)
    assert life["dpo"].parents == ("sft",)
    alone = {stage.name: stage for stage in stages(recipe(base, "text=null", "pretrain=null", "sft={}"), tmp_path)}
    assert alone["sft"].parents == ("rope",)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["text=null"], "text is missing: pretrain goes on training the base on documents"),
        (["tokenizer={}"], "base and tokenizer exclude each other: weights come with their tokenizer"),
        (["model={}"], "base and model exclude each other: weights come with their architecture"),
        (["rope.factor=0.5"], r"rope\.factor: 0.5 would shorten the context"),
        (["rope=yran"], "unknown value 'yran'.*did you mean 'yarn'"),
    ],
)
def test_what_does_not_go_together_is_named(base: Path, changes: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        recipe(base, *changes)
    with pytest.raises(InputError, match="rope rescales the angles of a base"):
        read_recipe("smoke", ["rope=yarn"])


def test_a_row_beyond_the_context_and_an_objective_of_other_tokens_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pretrain\.length: 300 is beyond the model's context of 128"):
        run(recipe(base, "pretrain.length=300"), tmp_path / "long", quiet=True)
    with pytest.raises(InputError, match="cannot go with the objective masked"):
        run(recipe(base, "pretrain.objective=masked", "evaluate=null"), tmp_path / "masked", quiet=True)


def test_recipes_without_rope_have_the_keys_they_had() -> None:
    """Manifest keys: what a finished run was made from."""
    for name in ("smoke", "demo", "adapt-smollm2"):
        for stage in stages(read_recipe(name), Path("runs")):
            assert "rope" not in stage.key, stage.name
