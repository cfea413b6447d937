"""Equal budgets: what is changed in an arm so that it spends as much as the first one.

tokens      steps of pretraining, so that steps * rows * length are equal
flops       steps of pretraining, so that the FLOPs of its matrix products are equal
parameters  one integer field, a width, so that the weights are equal within 1 %
none        nothing

Steps are whole, so tokens and FLOPs are equal to half a step. Schedules are shares of the steps and move with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmlab.errors import InputError, unknown
from llmlab.model.places import Places
from llmlab.race.arms import Arm, changed, on_meta
from llmlab.run import Run

Equal = Literal["tokens", "flops", "parameters", "none"]

STEPS, WIDTH = "pretrain.training.steps", "model.feedforward.width"
TOLERANCE = 0.01
_LARGEST = 1 << 20  # width that is tried
_GAP = 64  # impossible values in a row after which a field is given up


def equalised(arms: Sequence[Arm], equal: str, adjust: str = WIDTH) -> list[Arm]:
    """The arms, each with the budget of the first; `changed` of an arm says which field went from what to what.

    Errors: InputError for an unknown budget, a budget of steps where the steps are what is varied, a field that is no
    number, and parameters that cannot come within 1 %.
    """
    if equal not in get_args(Equal):
        raise unknown("--equal", equal, get_args(Equal))
    if equal == "none":
        return list(arms)
    if equal == "parameters":
        return [arms[0], *(_of_parameters(arm, parameters(arms[0]), adjust) for arm in arms[1:])]
    if arms[0].recipe.pretrain is None:
        if equal == "tokens":
            return list(arms)  # what starts from a base has no pretraining to stretch
        raise InputError("--equal flops", "the recipe starts from a base: there is no pretraining to scale")
    if any(STEPS in arm.values for arm in arms):
        raise InputError(f"--vary {STEPS}", f"--equal {equal} sets the steps", "--equal none leaves them")
    cost: Callable[[Arm], int] = _tokens if equal == "tokens" else _flops
    first = arms[0].recipe.pretrain.training.steps * cost(arms[0])
    return [arms[0], *(_of_steps(arm, first, cost(arm)) for arm in arms[1:])]


def _of_steps(arm: Arm, budget: int, each: int) -> Arm:
    assert arm.recipe.pretrain is not None
    before, after = arm.recipe.pretrain.training.steps, max(1, round(budget / each))
    return arm if before == after else _set(arm, STEPS, before, after)


def _set(arm: Arm, path: str, before: Any, after: int) -> Arm:
    said = {"path": path, "from": before, "to": after}
    return replace(arm, recipe=changed(arm.recipe, {path: after}), changed=(*arm.changed, said))


# ---------------------------------------------------------------- what an arm costs


def _tokens(arm: Arm) -> int:
    """Tokens of one step of pretraining, padding included."""
    assert arm.recipe.pretrain is not None
    assert arm.length is not None
    return arm.recipe.pretrain.batch_size * arm.length


def _flops(arm: Arm) -> int:
    """FLOPs of one step of pretraining."""
    assert arm.recipe.pretrain is not None
    return arm.recipe.pretrain.batch_size * row_flops(arm)


def row_flops(arm: Arm) -> int:
    """FLOPs of the matrix products of one training row, forward and backward, as torch.utils.flop_counter counts them.

    Backward is taken as twice forward (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Scores that the mask throws
    away are counted, since they are computed. One real forward pass: some parts look at values, which meta has not.
    """
    recipe = arm.recipe
    assert recipe.model is not None
    assert recipe.tokenizer is not None
    model = recipe.model.build(recipe.tokenizer.vocab_size, 0).eval()
    ids_BT = torch.zeros(1, arm.length or 1, dtype=torch.long)
    # The CPU's fused kernels of attention and of recurrent nets are not among those that the counter knows; their plain
    # forms are. In double precision recurrent nets have no other.
    model, counter = model.double(), FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(ids_BT, Places.causal(1, ids_BT.shape[1]))
    return 3 * int(counter.get_total_flops())


def parameters(arm: Arm) -> int:
    """Weights of an arm's model with the vocabulary that its tokenizer is asked for."""
    if arm.recipe.model is None or arm.recipe.tokenizer is None:
        raise InputError("--equal parameters", "the recipe starts from a base, whose weights are what they are")
    model = on_meta(arm.recipe.model, arm.recipe.tokenizer.vocab_size)
    return sum(parameter.numel() for parameter in model.parameters())


# ---------------------------------------------------------------- equal parameters


def _of_parameters(arm: Arm, wanted: int, path: str) -> Arm:
    """The arm with the value of `path` that comes nearest, by bisection: more width never means fewer weights."""
    before = parameters(arm)
    if abs(before - wanted) <= TOLERANCE * wanted:
        return arm
    if path in arm.values:
        raise InputError(f"--adjust {path}", "is what is varied", "name another field of a width")
    low = high = _possible(arm, path, 1)
    while high[1] < wanted and high[0] < _LARGEST:
        low, high = high, _possible(arm, path, high[0] * 2)
    while high[0] - low[0] > 1:
        middle = _possible(arm, path, (low[0] + high[0]) // 2)
        if middle[0] >= high[0]:  # nothing possible between them
            break
        low, high = (middle, high) if middle[1] < wanted else (low, middle)
    best, count = min((low, high), key=lambda pair: abs(pair[1] - wanted))
    if abs(count - wanted) > TOLERANCE * wanted:
        raise InputError(
            f"--adjust {path}",
            f"no value of it gives arm {arm.name} within 1 % of {wanted} parameters; {best} gives {count}",
            "name a field that moves the number of weights by less, as model.feedforward.width does",
        )
    return _set(arm, path, _value(arm.recipe, path), best)


def _possible(arm: Arm, path: str, value: int) -> tuple[int, int]:
    """This value, or the next larger one that makes a model (heads must divide dim), and the parameters it gives."""
    refusals = []
    for near in range(value, value + _GAP):
        try:
            return near, parameters(replace(arm, recipe=changed(arm.recipe, {path: near})))
        except InputError as error:
            refusals.append(error)
    raise InputError(f"--adjust {path}", refusals[0].problem, refusals[0].hint)


def _value(recipe: Run, path: str) -> Any:
    found: Any = recipe
    for name in path.split("."):
        found = getattr(found, name)
    return found
