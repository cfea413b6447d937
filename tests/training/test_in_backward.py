"""The step inside the backward pass is the ordinary step, with one gradient alive at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmlab.data.batch import Batch
from llmlab.errors import InputError
from llmlab.objectives.language import NextToken
from llmlab.objectives.objective import Terms
from llmlab.training.in_backward import InBackward
from llmlab.training.optimizer import Optimizer

Equal = Callable[[dict[str, Tensor], dict[str, Tensor]], bool]
OPTIMIZERS: list[Any] = [
    "adamw",
    {"kind": "adamw", "moments": "bf16"},
    "muon",
    {"kind": "adamw8bit", "smallest": 300},
    "adafactor",
    "lion",
    {"kind": "galore", "rank": 5, "refresh": 3},
    {"kind": "sgd", "momentum": 0.9},
]


def curve(out: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (out / "figures.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if "second" not in name} for row in rows]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o if isinstance(o, str) else o["kind"])
@pytest.mark.parametrize("fields", [{}, {"shared": True, "tied": False}], ids=str)
def test_it_is_the_ordinary_step_bit_for_bit(
    lab: Any, equal: Equal, tmp_path: Path, optimizer: Any, fields: dict[str, Any]
) -> None:
    """Weights, moments, losses, norms of gradients; a step without targets among them."""
    for name, inside in (("plain", False), ("inside", True)):
        model = lab.model(dropout=0.2, **fields)
        rows = lab.Rows((1,))
        figures = lab.train(
            tmp_path / name, rows, model=model, clip=None, optimizer=optimizer, in_backward=inside, steps=14
        )
        assert figures["empty_steps"] == rows.log.count([0]) > 0
    assert equal(lab.weights(tmp_path / "inside"), lab.weights(tmp_path / "plain"))
    for mine, theirs in zip(curve(tmp_path / "inside"), curve(tmp_path / "plain"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)


def test_one_gradient_at_a_time(lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = []
    plain = Optimizer.step_one

    def step_one(self: Optimizer, parameter: nn.Parameter) -> None:
        alive.append(sum(p.grad is not None for p in self.parameters.values()))
        plain(self, parameter)

    monkeypatch.setattr(Optimizer, "step_one", step_one)
    model = lab.model()
    lab.train(tmp_path, lab.Rows((3,)), model=model, clip=None, in_backward=True, steps=2)
    assert alive == [1] * (2 * len(list(model.parameters())))
    assert all(p.grad is None for p in model.parameters())
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())


def test_clipping_is_refused(lab: Any) -> None:
    with pytest.raises(ValueError, match=r"in_backward cannot clip to a norm of 1.0.*set clip to null"):
        lab.settings(in_backward=True)


def test_several_micro_batches_are_refused(lab: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"in_backward: this step has 2 micro-batches.*batch_size"):
        lab.train(tmp_path, lab.Rows((2, 1)), clip=None, in_backward=True)


class Poisoned(NextToken):
    """From the third batch on, the gradient of one norm is no number, and the loss is one."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 2

    def __call__(self, model: Any, batch: Batch) -> Terms:
        terms = super().__call__(model, batch)
        self.left -= 1
        if self.left >= 0:
            return terms
        poison = (model.blocks[0].attention_norm.weight[0] * 0).sqrt()
        return Terms({"cross_entropy": terms.sums["cross_entropy"] + poison}, terms.figures)


def test_a_gradient_that_is_no_number_stops_before_its_parameter(lab: Any, equal: Equal, tmp_path: Path) -> None:
    model = lab.model()
    options = {"clip": None, "in_backward": True, "optimizer": "adamw", "steps": 4}
    with pytest.raises(InputError, match=r"step 3: .*blocks.0.attention_norm.weight is nan.*step 2 is whole") as caught:
        lab.train(tmp_path / "cut", lab.Rows((3,)), model=model, objective=Poisoned(), **options)
    assert caught.value.exit_code == 2
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    lab.train(tmp_path / "cut", lab.Rows((3,)), **options)  # the last checkpoint can be gone on from
    lab.train(tmp_path / "whole", lab.Rows((3,)), **options)
    assert equal(lab.weights(tmp_path / "cut"), lab.weights(tmp_path / "whole"))


def test_the_norm_is_that_of_the_whole_gradient(lab: Any) -> None:
    model, other = lab.model(), lab.model()
    ids = torch.arange(8)[None]
    (model(ids).square().sum()).backward()
    expected = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    inside = InBackward(lab.settings(clip=None).optimizer.build(other))
    with inside.updating():
        (other(ids).square().sum()).backward()
    torch.testing.assert_close(inside.norm(), expected)
