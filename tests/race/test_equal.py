"""Equal budgets: what each changes, that it is equal then, and what cannot be made equal."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import InputError
from llmlab.race.arms import Arm, arms, changed
from llmlab.race.equal import equalised, parameters, row_flops
from llmlab.run import Run, read_recipe


def steps(arm: Arm) -> int:
    assert arm.recipe.pretrain is not None
    return arm.recipe.pretrain.training.steps


def test_equal_tokens_moves_the_steps_only_where_it_must(tiny_recipe: Run) -> None:
    same = arms(tiny_recipe, {"model.layers": [1, 2]})
    assert equalised(same, "tokens") == same
    rows = equalised(arms(tiny_recipe, {"pretrain.batch_size": [8, 16, 5]}), "tokens")
    assert [steps(arm) for arm in rows] == [6, 3, 10]  # 48 rows, 48 rows, 50 rows
    assert [list(arm.changed) for arm in rows][1] == [{"path": "pretrain.training.steps", "from": 6, "to": 3}]
    context = equalised(arms(tiny_recipe, {"model.context": [8, 4]}), "tokens")
    assert [steps(arm) for arm in context] == [6, 12]


@pytest.mark.parametrize("position", ["rope", "alibi", "learned", "none"])
def test_flops_are_those_of_the_formula(tiny_recipe: Run, position: str) -> None:
    """2 a weight and token in linears and head; 4 T S K a head in scores and mixture; backward is twice that."""
    arm = Arm("x", changed(tiny_recipe, {"model.position": position}))
    T, D, F, V, layers = 8, 16, 32, 280, 1
    linears = layers * (4 * D * D + 3 * D * F) + V * D
    assert row_flops(arm) == 3 * (2 * T * linears + layers * 4 * T * T * D)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_recurrent_nets_are_counted_too(tiny_recipe: Run, kind: str) -> None:
    """At least 6 a weight of a matrix and token: no kernel may hide what it computes."""
    arm = Arm("x", changed(tiny_recipe, {"model.attention": kind, "model.position": "none"}))
    assert arm.recipe.model is not None
    matrices = [weight for weight in arm.recipe.model.build(280, 0).parameters() if weight.ndim == 2]
    assert row_flops(arm) >= 6 * 8 * sum(weight.numel() for weight in matrices)


def test_equal_flops(tiny_recipe: Run) -> None:
    first, second = equalised(arms(tiny_recipe, {"model.layers": [1, 3]}), "flops")
    assert steps(first) == 6
    assert steps(second) < 6
    assert abs(steps(second) * row_flops(second) - 6 * row_flops(first)) <= row_flops(second) / 2


@settings(deadline=None, max_examples=15)
@given(dim=st.sampled_from([16, 24, 32, 40]), kind=st.sampled_from(["relu", "swiglu"]), tied=st.booleans())
def test_equal_parameters_within_a_hundredth(dim: int, kind: str, tied: bool) -> None:
    recipe = changed(read_recipe("smoke"), {"model.feedforward": {"kind": kind, "width": 128}, "model.tied": tied})
    first, second = equalised(arms(recipe, {"model.dim": [32, dim]}), "parameters")
    assert abs(parameters(second) - parameters(first)) <= 0.01 * parameters(first)
    assert [change["path"] for change in second.changed] in ([], ["model.feedforward.width"])


def test_equal_parameters_by_another_width(tiny_recipe: Run) -> None:
    """Widths that the heads do not divide are stepped over."""
    recipe = changed(tiny_recipe, {"model.dim": 1024})
    first, second = equalised(arms(recipe, {"model.layers": [2, 3]}), "parameters", "model.dim")
    assert second.recipe.model is not None
    assert second.recipe.model.dim % 4 == 0  # two heads, and rotary positions turn pairs
    assert second.changed[0]["from"] == 1024
    assert abs(parameters(second) - parameters(first)) <= 0.01 * parameters(first)


def test_what_cannot_be_equal_is_said(tiny_recipe: Run) -> None:
    layers = arms(tiny_recipe, {"model.layers": [1, 4]})
    base = arms(read_recipe("adapt-smollm2"), {"sft.batch_size": [2, 4]})
    several = arms(tiny_recipe, {"pretrain.training.steps": [6, 8]})
    for given_arms, equal, adjust, says in (
        (layers, "flop", "", "did you mean 'flops'"),
        (several, "tokens", "", "--equal none leaves them"),
        (several, "flops", "", "--equal none leaves them"),
        (layers, "parameters", "model.layers", "is what is varied"),
        (layers, "parameters", "model.feedforward.width", "within 1 %"),
        (layers, "parameters", "model.wdith", "--adjust model.wdith: no field 'wdith'"),
        (layers, "parameters", "pretrain.batch_size", "no value of it"),
        (base, "parameters", "model.dim", "starts from a base"),
        (base, "flops", "", "starts from a base"),
    ):
        with pytest.raises(InputError) as caught:
            equalised(given_arms, equal, adjust or "model.feedforward.width")
        assert says in str(caught.value)
    assert equalised(several, "none") == several
    assert equalised(base, "tokens") == base
