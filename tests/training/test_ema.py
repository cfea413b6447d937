"""The average is the weighted mean that its formula says, stands where weights are looked at, and survives a stop."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llmlab.adapters.lora import LoRA
from llmlab.adapters.part import add_adapter
from llmlab.data.batch import Batch
from llmlab.errors import InputError, Stopped
from llmlab.stages import Session
from llmlab.training.ema import EMA, Average
from llmlab.training.optimizer import Optimizer

Equal = Callable[[dict[str, Tensor], dict[str, Tensor]], bool]
DECAY = 0.8


def named(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def after_each(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The trained weights after each update of the test."""
    seen: list[dict[str, Tensor]] = []
    plain = Optimizer.step

    def step(self: Optimizer) -> None:
        plain(self)
        seen.append({name: p.detach().clone() for name, p in self.parameters.items()})

    monkeypatch.setattr(Optimizer, "step", step)
    return seen


def mean(history: list[dict[str, Tensor]], decay: float = DECAY) -> dict[str, Tensor]:
    """The plain formula: each step weighs `decay` of the one after it."""
    shares = torch.tensor([decay**age for age in reversed(range(len(history)))], dtype=torch.float64)
    stacked = {name: torch.stack([at[name] for at in history]).double() for name in history[0]}
    return {name: torch.tensordot(shares / shares.sum(), value, 1) for name, value in stacked.items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name].double(), b[name].double(), rtol=0, atol=1e-6)


def test_the_model_ends_with_the_weighted_mean(lab: Any, tmp_path: Path, after_each: list[dict[str, Tensor]]) -> None:
    model = lab.model()
    lab.train(tmp_path, model=model, ema={"decay": DECAY})
    assert len(after_each) == 9
    same(named(model), mean(after_each))


def test_training_itself_does_not_see_it(lab: Any, tmp_path: Path, after_each: list[dict[str, Tensor]]) -> None:
    for name, ema in (("without", None), ("with", {"decay": DECAY})):
        lab.train(tmp_path / name, ema=ema, probe=lambda model: {"score": 1.0})
    for plain, averaged in zip(after_each[:9], after_each[9:], strict=True):
        assert all(torch.equal(plain[name], averaged[name]) for name in plain)


def test_the_probe_and_the_best_are_of_the_average(
    lab: Any, tmp_path: Path, after_each: list[dict[str, Tensor]]
) -> None:
    looked: list[dict[str, Tensor]] = []
    values = iter([5.0, 2.0, 1.0, 4.0])  # before, at 4, at 8, at 9

    def probe(model: nn.Module) -> Mapping[str, float]:
        looked.append(named(model))
        return {"score": next(values)}

    model = lab.model()
    before = named(model)
    figures = lab.train(tmp_path, model=model, ema={"decay": DECAY}, probe=probe, best="score")
    same(looked[0], before)
    for seen, steps in zip(looked[1:], (4, 8, 9), strict=True):
        same(seen, mean(after_each[:steps]))
    assert figures["kept_step"] == 8
    same(named(model), mean(after_each[:8]))
    same(load_file(tmp_path / "best" / "step-000008" / "weights.safetensors"), looked[2])


def test_adapters_are_averaged_and_nothing_else(lab: Any, tmp_path: Path, after_each: list[dict[str, Tensor]]) -> None:
    model = lab.model()
    model.requires_grad_(False)
    add_adapter(model, "one", LoRA(rank=2), 0)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    lab.train(tmp_path, objective=WithRole(), model=model, ema={"decay": DECAY})
    same(named(model), mean(after_each))
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if not p.requires_grad)
    saved = lab.weights(tmp_path)
    averages = {name for name in saved if name.endswith(":average")}
    assert {name.removeprefix("optimizer/").removesuffix(":average") for name in averages} == set(named(model))


def WithRole() -> Any:
    """Next tokens, asked of the adapter."""
    from llmlab.adapters.roles import Actor
    from llmlab.objectives.language import NextToken

    class Asked(NextToken):
        def __call__(self, model: Any, batch: Batch) -> Any:
            return super().__call__(Actor(model, "one"), batch)

    return Asked()


@pytest.mark.parametrize("stop_every", [1, 2])
def test_a_stopped_training_has_the_same_bytes(lab: Any, equal: Equal, tmp_path: Path, stop_every: int) -> None:
    whole, given = lab.model(dropout=0.2), {"ema": {"decay": DECAY}, "dropout": 0.2}
    given |= {"probe": lambda model: {"score": abs(float(model.final_norm.weight.mean()) - 1.002)}, "best": "score"}
    expected = lab.train(tmp_path / "unbroken", model=whole, **given)
    again, stops = whole, 0
    for _ in range(10):
        session, again = Session(), lab.model(dropout=0.2)

        class Asking(lab.Rows):  # type: ignore[misc, name-defined]
            def next(self, model: Any) -> list[Batch]:
                session.stop.requested = len(self.log) + 1 == stop_every  # noqa: B023
                return super().next(model)  # type: ignore[no-any-return]

        try:
            figures = lab.train(tmp_path / "stopped", Asking(), model=again, session=session, **given)
            break
        except Stopped:
            stops += 1
    assert stops >= 4
    assert figures == expected | {"resumed_from_step": figures["resumed_from_step"]}
    assert equal(lab.weights(tmp_path / "stopped"), lab.weights(tmp_path / "unbroken"))
    assert equal(again.state_dict(), whole.state_dict())


def test_it_costs_one_more_copy_and_no_byte_without(lab: Any, tmp_path: Path) -> None:
    for name, ema in (("without", None), ("with", {"decay": DECAY})):
        lab.train(tmp_path / name, ema=ema)
    plain, averaged = lab.weights(tmp_path / "without"), lab.weights(tmp_path / "with")
    added = sum(averaged[name].nbytes for name in averaged.keys() - plain.keys())
    weights = sum(value.nbytes for name, value in plain.items() if name.startswith("weights/"))
    count = sum(name.startswith("weights/") for name in plain)
    assert added == weights + 8 * count  # and each one's count of updates
    assert all(torch.equal(plain[name], averaged[name]) for name in plain)


def nothing() -> None: ...


def test_steps_without_an_update_have_no_share() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    average = Average(EMA(decay=0.5), {"w": weight})
    with average.shown(nothing):
        assert weight.item() == 1.0  # nothing was averaged yet
    for value in (2.0, 4.0):
        with torch.no_grad():
            weight.fill_(value)
        average.update()
    with average.shown(nothing):
        assert math.isclose(weight.item(), (0.5 * 2 + 4) / 1.5, rel_tol=1e-6)
    assert weight.item() == 4.0


def test_weights_of_few_bits_are_averaged_in_float32() -> None:
    """A step of a hundredth of the distance is below the rounding of bfloat16, and adds up all the same."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    average = Average(EMA(decay=0.999), {"w": weight})
    average.update()
    with torch.no_grad():
        weight.fill_(1.0078125)  # the next number of its type
    for _ in range(9):
        average.update()
    shares = torch.tensor([0.999**age for age in range(9, -1, -1)], dtype=torch.float64)
    expected = float(1 + 0.0078125 * shares[1:].sum() / shares.sum())
    assert average.state()["w:average"].item() == pytest.approx(expected, abs=1e-6)
    with average.shown(nothing):
        assert weight.dtype == torch.bfloat16
    assert weight.item() == 1.0078125
    assert average.state()["w:average"].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("change", [None, {"decay": 0.9}])
def test_another_average_is_refused_on_resume(lab: Any, tmp_path: Path, change: Any) -> None:
    lab.train(tmp_path, ema={"decay": DECAY})
    with pytest.raises(InputError, match="its checkpoint has ema"):
        lab.train(tmp_path, ema=change)
    lab.train(tmp_path / "without")
    with pytest.raises(InputError, match="its checkpoint has ema None"):
        lab.train(tmp_path / "without", ema={"decay": DECAY})
