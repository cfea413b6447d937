"""Arms: the product of what varies, and everything that is refused before any work."""

from __future__ import annotations

from typing import Any

import pytest

from llmlab.errors import InputError
from llmlab.evaluation.measures import read_measures
from llmlab.model.positions import Alibi, Rope
from llmlab.model.transformer import Architecture
from llmlab.race.arms import Arm, arms, changed, check, on_meta, read_vary
from llmlab.run import Run, read_recipe
from llmlab.training.adamw import AdamW
from llmlab.training.muon import Muon

BITS = read_measures(["bits_per_byte"])


def test_vary_is_yaml_between_commas() -> None:
    found = read_vary(["model.position=rope,{kind: rope, base: 500},none", "model.layers=1,2"])
    assert found == {"model.position": ["rope", {"kind": "rope", "base": 500}, "none"], "model.layers": [1, 2]}
    for bad in ("model.layers", "=1,2", "model.layers=[1,2"):
        with pytest.raises(InputError, match="--vary"):
            read_vary([bad])
    with pytest.raises(InputError, match="twice"):
        read_vary(["model.layers=1", "model.layers=2"])


def test_arms_are_the_product_and_named_by_what_differs(tiny_recipe: Run) -> None:
    one = arms(tiny_recipe, {"model.position": ["rope", "alibi"]})
    assert [arm.name for arm in one] == ["rope", "alibi"]
    assert [arm.recipe.model.position for arm in one if arm.recipe.model] == [Rope(), Alibi()]
    two = arms(tiny_recipe, {"model.position": ["rope", "alibi"], "model.layers": [1, 2]})
    assert [arm.name for arm in two] == [
        "position=rope, layers=1", "position=rope, layers=2", "position=alibi, layers=1", "position=alibi, layers=2"
    ]  # fmt: skip
    assert two[3].values == {"model.position": "alibi", "model.layers": 2}
    based = arms(tiny_recipe, {"model.position": ["rope", {"kind": "rope", "base": 500}]})
    assert [arm.name for arm in based] == ["rope", "rope(base=500)"]


def test_a_new_kind_keeps_what_was_written_and_no_default_of_the_old(tiny_recipe: Run) -> None:
    """smoke writes only the kind muon, whose lr is a default: adamw comes with its own. Here lr is written."""
    adamw = changed(read_recipe("smoke"), {"pretrain.training.optimizer": "adamw"})
    assert adamw.pretrain is not None
    assert adamw.pretrain.training.optimizer == AdamW()
    muon = changed(tiny_recipe, {"pretrain.training.optimizer": "muon"})
    assert muon.pretrain is not None
    assert muon.pretrain.training.optimizer == Muon(lr=0.01)
    assert changed(tiny_recipe, {}) == tiny_recipe


def test_recipes_made_in_python_lose_no_kind(tiny_recipe: Run) -> None:
    made = tiny_recipe.model_copy(update={"model": Architecture(layers=1, dim=16, position=Alibi())})
    assert changed(made, {"model.layers": 2}).model == Architecture(layers=2, dim=16, position=Alibi())


def test_the_key_is_of_what_decides_a_figure(tiny_recipe: Run) -> None:
    def key(seed: int = 0, **values: Any) -> str:
        return Arm("any name", changed(tiny_recipe, {k.replace("__", "."): v for k, v in values.items()})).key(seed)

    assert key() == key(name="other") == key(compare={"measures": ["loss"]}) == key(evaluate={}) == key(seed=0)
    assert len({key(), key(1), key(model__layers=2), key(dtype="bf16")}) == 4
    assert key(model__position="rope") == key()  # resolved: what is written or left to its default is the same


@pytest.mark.parametrize(
    ("vary", "says"),
    [
        ({}, "a race needs two"),
        ({"model.position": ["rope"]}, "a race needs two"),
        ({"model.position": []}, "has no values"),
        ({"model.positon": ["rope", "alibi"]}, "did you mean 'position'"),
        ({"model.position": ["rope", "rotary"]}, "unknown kind 'rotary'"),
        ({"model.layers": [1, "x"]}, "recipe.model.layers: got 'x'"),
        ({"model.position": ["rope", "rope"]}, "'rope' is there twice"),
        ({"model.position": ["rope", {"kind": "rope", "base": 1e4}]}, "one and the same recipe"),
        ({"seed": [1, 2]}, "--seeds says how many"),
        ({"evaluate.tasks": [["samples"], []]}, "changes nothing that a race measures"),
        ({"model.attention.heads": [2, 3]}, "3 heads do not divide dim"),
        ({"model.dim": [16, 2_000_000_000_000]}, "arm dim=2000000000000: cannot be built"),
        ({"pretrain.length": [8, 9]}, "pretrain.length: 9 is beyond the model's context of 8"),
        ({"text.held_out": [0.1, 0.2]}, "the arms differ in their text"),
    ],
    ids=str,
)
def test_refused_before_any_work(tiny_recipe: Run, vary: dict[str, list[Any]], says: str) -> None:
    with pytest.raises(InputError) as caught:
        check(arms(tiny_recipe, vary), [0, 1], BITS)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("vary", "measure", "says"),
    [
        ({"tokenizer.vocab_size": [270, 280]}, "loss", "only bits_per_byte compares tokenizers"),
        ({"tokenizer.vocab_size": [270, 280]}, "bits_per_byte@1x", "differ in their tokenizer"),
        ({"model.context": [8, 16]}, "bits_per_byte@2x", "differ in their trained length"),
        ({"model.context": [8, 16]}, "bits_per_byte@context", "differ in the context that they are read in"),
    ],
)
def test_figures_of_different_things_are_not_set_beside_each_other(
    tiny_recipe: Run, vary: dict[str, list[Any]], measure: str, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        check(arms(tiny_recipe, vary), [0, 1], read_measures([measure]))
    check(arms(tiny_recipe, vary), [0, 1], BITS)


def test_arms_of_different_rows_may_be_read_in_one_context(tiny_recipe: Run) -> None:
    check(arms(tiny_recipe, {"pretrain.length": [4, 8]}), [0, 1], read_measures(["bits_per_byte@context"]))


def test_seeds_and_held_out_text_are_needed(tiny_recipe: Run) -> None:
    two = arms(tiny_recipe, {"model.layers": [1, 2]})
    for seeds, says in (([0], "no interval"), ([], "no interval"), ([1, 1], "twice")):
        with pytest.raises(InputError, match=says):
            check(two, seeds, BITS)
    adapted = arms(read_recipe("adapt-smollm2"), {"sft.batch_size": [2, 4]})
    with pytest.raises(InputError, match="needs held-out text"):
        check(adapted, [0, 1], BITS)
    check(adapted, [0, 1], read_measures(["seconds", "parameters"]))


def test_on_meta_takes_no_memory() -> None:
    model = on_meta(Architecture(layers=2, dim=1 << 14), 1 << 17)
    assert all(parameter.is_meta for parameter in model.parameters())
