"""One step is one step however it is cut; what is reported is what happened; what goes wrong says so."""

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.data.batch import Batch
from llmlab.data.state import State
from llmlab.errors import InputError, Stopped
from llmlab.objectives.language import NextToken
from llmlab.objectives.objective import Terms
from llmlab.stages import Session
from llmlab.training.adamw import AdamW
from llmlab.training.muon import Muon
from llmlab.training.optimizer import Optimizer, trained
from llmlab.training.schedules import Cosine
from llmlab.training.state import Checkpoints, Saved

SPLITS = [(6,), (1,) * 6, (4, 2), (1, 5), (3, 1, 2)]


def rows_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "figures.jsonl").read_text().splitlines()]


def named(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The gradient that each optimizer step of the test saw."""
    seen: list[dict[str, Tensor]] = []
    plain = Optimizer.step

    def step(self: Optimizer) -> None:
        seen.append({name: p.grad.clone() for name, p in self.parameters.items() if p.grad is not None})
        plain(self)

    monkeypatch.setattr(Optimizer, "step", step)
    return seen


def token_mean(model: nn.Module, batches: list[Batch], z_loss: float = 0.0) -> Tensor:
    """The mean over all learnt tokens of a step, in one formula."""
    logits = torch.cat([model(batch.ids_BT, batch.at).flatten(0, 1) for batch in batches])
    targets = torch.cat([batch.targets_BT.flatten() for batch in batches])
    learnt = targets >= 0
    z = logits[learnt].logsumexp(-1).square().mean()
    return F.cross_entropy(logits[learnt], targets[learnt]) + z_loss * z


# ---------------------------------------------------------------- accumulation (traps 1 to 8)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(4))
def test_every_split_has_the_gradient_of_the_token_mean(
    lab: Any, tmp_path: Path, gradients: list[dict[str, Tensor]], seed: int, z_loss: float
) -> None:
    """Random mask lengths, an all-masked row, an auxiliary term."""
    model = lab.model()
    loss = token_mean(model, lab.Rows((6,), seed).next(model), z_loss)
    expected = dict(zip(trained(model), torch.autograd.grad(loss, list(trained(model).values())), strict=True))
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in expected.values()))
    for number, cuts in enumerate(SPLITS):
        out = tmp_path / str(number)
        lab.train(out, lab.Rows(cuts, seed), objective=NextToken(z_loss), steps=1, clip=None)
        row = rows_of(out)[-1]
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-6)  # not divided twice, nor left times k
        assert row["gradient_norm"] == pytest.approx(norm, rel=1e-5)
        for name, gradient in gradients[number].items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)


def test_many_micro_batches_need_the_memory_of_one(lab: Any, tmp_path: Path) -> None:
    """Bytes saved for the backward pass, at their peak."""
    alive, peak = 0, 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal alive, peak
            self.tensor, self.bytes = tensor, tensor.nbytes
            alive += self.bytes
            peak = max(peak, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= self.bytes

    class Same(lab.Rows):  # type: ignore[misc, name-defined]
        """The longest row, once for each cut."""

        def next(self, model: Any) -> list[Batch]:
            return [self._batch(torch.tensor([3])) for _ in self.cuts]

    peaks = []
    for cuts in ((1,), (1,) * 5):
        peak = 0
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            lab.train(tmp_path / str(len(cuts)), Same(cuts), steps=2)
        peaks.append(peak)
    assert peaks[0] == peaks[1] > 0


def test_equivalent_cuts_give_equal_curves(lab: Any, tmp_path: Path) -> None:
    """Such bugs are small and one-sided, so the residuals must have mean zero, not only be small (trap 49)."""
    curves = []
    for number, cuts in enumerate(SPLITS):
        out = tmp_path / str(number)
        lab.train(out, lab.Rows(cuts), steps=30, checkpoint_every=30)
        curves.append(torch.tensor([[row["loss"], row["gradient_norm"]] for row in rows_of(out)]).double())
    for other in curves[1:]:
        residual = (other - curves[0]) / curves[0]
        assert residual.abs().max() < 1e-4
        assert residual.mean(0).abs().max() < 1e-5


def test_bf16_autocast_keeps_float32_weights_and_a_close_curve(lab: Any, tmp_path: Path) -> None:
    curves = []
    for dtype in (None, torch.bfloat16):
        model, out = lab.model(), tmp_path / str(dtype)
        lab.train(out, model=model, session=Session(dtype=dtype), steps=20)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        curves.append(torch.tensor([row["loss"] for row in rows_of(out)]))
    assert not torch.equal(*curves)
    assert ((curves[1] - curves[0]) / curves[0]).abs().max() < 0.05
    assert ((curves[1] - curves[0]) / curves[0]).mean().abs() < 0.01


# ---------------------------------------------------------------- nothing to learn


def test_a_step_without_targets_is_counted_and_changes_nothing(lab: Any, tmp_path: Path) -> None:
    rows = lab.Rows((1,))
    figures = lab.train(tmp_path, rows, steps=14)
    assert figures["empty_steps"] == rows.log.count([0]) == 2
    empty = [row for row in rows_of(tmp_path) if "loss" not in row]
    assert [row["step"] for row in empty] == [step for step, taken in enumerate(rows.log, 1) if taken == [0]]
    assert all(math.isfinite(value) for row in rows_of(tmp_path) for value in row.values())


def test_nothing_to_learn_at_all_is_an_error(lab: Any, tmp_path: Path) -> None:
    model = lab.model()
    before = named(model)
    with pytest.raises(InputError, match="step 10: nothing to learn for 10 steps"):
        lab.train(tmp_path, lab.Rows(empty=True), model=model, steps=50)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    with pytest.raises(InputError, match="nothing to learn"):
        lab.train(tmp_path / "short", lab.Rows(empty=True), steps=3)


def test_a_loss_must_declare_its_normaliser(lab: Any, tmp_path: Path) -> None:
    class Undeclared(NextToken):
        def __call__(self, model: Any, batch: Batch) -> Terms:
            terms = super().__call__(model, batch)
            return Terms(terms.sums | {"extra": terms.sums["cross_entropy"]})

    with pytest.raises(ValueError, match=r"\['cross_entropy'\].*'extra'"):
        lab.train(tmp_path, objective=Undeclared())


# ---------------------------------------------------------------- NaN


class Poisoned(NextToken):
    """Finite until the model has seen `after` micro-batches; then a loss, or only a gradient, that is not."""

    def __init__(self, after: int, gradient_only: bool) -> None:
        super().__init__()
        self.left, self.gradient_only = after, gradient_only

    def __call__(self, model: Any, batch: Batch) -> Terms:
        terms = super().__call__(model, batch)
        self.left -= 1
        if self.left >= 0:
            return terms
        loss = terms.sums["cross_entropy"]
        poison = (model.embedding.weight[0, 0] * 0).sqrt() if self.gradient_only else loss * float("nan")
        return Terms({"cross_entropy": loss + poison}, terms.figures)


@pytest.mark.parametrize(
    ("gradient_only", "message"), [(False, "loss is nan in micro-batch 2 of 2"), (True, "gradient")]
)
def test_nan_stops_at_once_and_names_step_and_batch(
    lab: Any, tmp_path: Path, gradient_only: bool, message: str
) -> None:
    class Named(lab.Rows):  # type: ignore[misc, name-defined]
        def next(self, model: Any) -> list[Batch]:
            batches = super().next(model)
            for rows, batch in zip(torch.tensor(self.log[-1]).split(list(self.cuts)), batches, strict=True):
                object.__setattr__(batch, "where", f"rows {rows.tolist()}")
            return batches

    rows, model = Named((3, 3)), lab.model()
    with pytest.raises(InputError, match=f"step 4: .*{message}.*rows .*step 2 is whole") as caught:
        lab.train(tmp_path, rows, model=model, objective=Poisoned(7, gradient_only))
    assert str(rows.log[-1][3:]) in str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_nan_evaluation_cannot_be_the_best(lab: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="held_out is nan"):
        lab.train(tmp_path, probe=lambda model: {"held_out": math.nan}, best="held_out")


# ---------------------------------------------------------------- what is trained


def test_only_what_wants_a_gradient_is_trained_and_saved(lab: Any, tmp_path: Path) -> None:
    model = lab.model()
    model.requires_grad_(False)
    model.blocks[1].feedforward.requires_grad_(True)
    before = named(model)
    lab.train(tmp_path, model=model, optimizer={"kind": "muon"})
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"blocks.1.feedforward.{part}.weight" for part in ("gate", "up", "down")}
    saved = {name.removeprefix("weights/") for name in lab.weights(tmp_path) if name.startswith("weights/")}
    assert saved == changed


def test_the_gradient_is_clipped_as_a_whole(lab: Any, tmp_path: Path, gradients: list[dict[str, Tensor]]) -> None:
    lab.train(tmp_path, clip=0.01, steps=3)
    for gradient, row in zip(gradients, rows_of(tmp_path), strict=True):
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
        assert row["gradient_norm"] > 0.1  # reported as it was
        assert norm == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("optimizer", [AdamW(lr=0.3), Muon(lr=0.2, adamw_lr=0.1)], ids=["adamw", "muon"])
def test_the_schedule_moves_every_rate(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: AdamW | Muon
) -> None:
    used: list[set[float]] = []
    for kind in (torch.optim.AdamW, torch.optim.Muon):
        plain = kind.step

        def step(self: Any, plain: Any = plain) -> None:
            used[-1] |= {group["lr"] for group in self.param_groups}
            plain(self)

        monkeypatch.setattr(kind, "step", step)
    monkeypatch.setattr(
        Optimizer, "zero_grad", lambda self, plain=Optimizer.zero_grad: used.append(set()) or plain(self)
    )
    used.append(set())
    schedule = Cosine(warmup=0.3)
    lab.train(tmp_path, optimizer=optimizer, schedule=schedule)
    tops = {optimizer.lr} if isinstance(optimizer, AdamW) else {optimizer.lr, optimizer.adamw_lr}
    assert used[:9] == [{top * schedule.scale(index, 9) for top in tops} for index in range(9)]
    assert [row["learning_rate"] for row in rows_of(tmp_path)] == [
        optimizer.lr * schedule.scale(i, 9) for i in range(9)
    ]


def test_one_seed_one_result(lab: Any, tmp_path: Path) -> None:
    results = []
    for number in range(2):
        model = lab.model(dropout=0.3)
        torch.manual_seed(number)  # whoever used the global generator before
        lab.train(tmp_path / str(number), model=model)
        results.append(named(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_noise_is_new_each_step_and_known_from_seed_and_step(lab: Any, tmp_path: Path) -> None:
    class Noisy(NextToken):
        def __call__(self, model: Any, batch: Batch) -> Terms:
            draws.append(float(torch.rand(())))
            return super().__call__(model, batch)

    runs = []
    for number, seed in enumerate((0, 0, 1)):
        draws: list[float] = []
        lab.train(tmp_path / str(number), lab.Rows((3,)), objective=Noisy(), session=Session(seed=seed))
        runs.append(draws)
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) == 9


# ---------------------------------------------------------------- figures (traps 4, 46, 47)


def test_the_logged_loss_is_the_token_mean_of_its_steps(lab: Any, tmp_path: Path) -> None:
    """Rows 3 and 5 of 5 steps: the last, shorter window is reported too. A rate of nearly 0 keeps the model still."""
    still = {"kind": "adamw", "lr": 1e-12, "weight_decay": 0.0}
    lab.train(tmp_path, steps=5, log_every=3, optimizer=still)
    model, rows = lab.model(), lab.Rows()
    steps = [rows.next(model) for _ in range(5)]
    logged = {row["step"]: row for row in rows_of(tmp_path)}
    assert sorted(logged) == [3, 5]
    for step, window in ((3, steps[:3]), (5, steps[3:])):
        batches = [batch for micro in window for batch in micro]
        assert logged[step]["loss"] == pytest.approx(token_mean(model, batches).item(), rel=1e-5)
        assert logged[step]["learnt_tokens"] == sum(batch.learnt for batch in batches)


def test_rate_times_time_is_tokens(lab: Any, tmp_path: Path) -> None:
    figures = lab.train(tmp_path, steps=7, log_every=2)
    rows = rows_of(tmp_path)
    for row in rows:
        for name in ("tokens", "learnt_tokens"):
            assert row[f"{name}_per_second"] * row["seconds"] == pytest.approx(row[name])
    for name in ("tokens", "learnt_tokens"):
        assert sum(row[name] for row in rows) == figures[name]
    assert figures["tokens"] == 7 * 3 * 8 > figures["learnt_tokens"]


# ---------------------------------------------------------------- probes and the best


def test_the_probe_is_called_when_due_and_disturbs_nothing(lab: Any, tmp_path: Path) -> None:
    calls = []

    def probe(model: nn.Module) -> Mapping[str, float]:
        calls.append((model.training, torch.is_grad_enabled(), float(torch.rand(1))))
        return {"held_out": 1.0}

    results = []
    for name, given in (("with", probe), ("without", None)):
        model = lab.model(dropout=0.3)
        lab.train(tmp_path / name, model=model, probe=given)
        results.append(named(model))
    assert [call[:2] for call in calls] == [(False, False)] * 4  # before, at 4 and 8, after the last
    assert [row["step"] for row in rows_of(tmp_path / "with") if "held_out" in row] == [0, 4, 8, 9]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("sign", ["", "-"])
def test_the_best_weights_are_what_the_model_ends_with(lab: Any, tmp_path: Path, sign: str) -> None:
    values = iter([5.0, 2.0, 3.0, 2.0] if sign == "" else [-5.0, -2.0, -3.0, -2.0])
    seen: list[dict[str, Tensor]] = []

    def probe(model: nn.Module) -> Mapping[str, float]:
        seen.append(named(model))
        return {"score": next(values)}

    model = lab.model()
    figures = lab.train(tmp_path, model=model, probe=probe, best=f"{sign}score")
    assert figures["kept_step"] == 4  # the first of equals
    assert abs(figures["held_out"]["score"]) == 2.0
    assert all(torch.equal(p, seen[1][name]) for name, p in model.named_parameters())
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["step-000004"]


def test_training_that_only_harms_ends_with_the_weights_it_began_with(lab: Any, tmp_path: Path) -> None:
    values, model = iter([1.0, 2.0, 3.0, 4.0]), lab.model()
    before = named(model)
    figures = lab.train(tmp_path, model=model, probe=lambda _: {"score": next(values)}, best="score")
    assert figures["kept_step"] == 0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


# ---------------------------------------------------------------- stopping, and a full disk


def test_a_stop_is_saved_and_says_how_to_go_on(lab: Any, tmp_path: Path) -> None:
    session = Session()

    class Asking(lab.Rows):  # type: ignore[misc, name-defined]
        def next(self, model: Any) -> list[Batch]:
            session.stop.requested = len(self.log) == 2
            return super().next(model)  # type: ignore[no-any-return]

    with pytest.raises(Stopped, match="step 3 of 9; its state is saved") as caught:
        lab.train(tmp_path, Asking(), session=session)
    assert caught.value.exit_code == 130
    assert (tmp_path / "checkpoints" / "step-000003" / "state.json").is_file()


def test_a_full_disk_is_one_line_and_harms_nothing(lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.fsync

    def fsync(descriptor: int) -> None:
        if (tmp_path / "checkpoints" / "step-000004").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=r"no space left.*step 4 is whole.*--resume") as caught:
        lab.train(tmp_path)
    assert caught.value.exit_code == 2
    monkeypatch.undo()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000002", "step-000004"]  # nothing half-written left
    assert lab.train(tmp_path)["resumed_from_step"] == 4


def test_other_failures_stay_defects(lab: Any, tmp_path: Path) -> None:
    def probe(model: nn.Module) -> Mapping[str, float]:
        raise OSError(errno.EACCES, "not yours")

    with pytest.raises(OSError, match="not yours"):
        lab.train(tmp_path, probe=probe)


def test_weights_that_are_not_finite_push_out_no_checkpoint(lab: Any, tmp_path: Path) -> None:
    class Spoils(lab.Rows):  # type: ignore[misc, name-defined]
        """The fourth step's batch comes with a weight that nothing reads any more, and that is not finite."""

        def next(self, model: Any) -> list[Batch]:
            if len(self.log) == 3:
                with torch.no_grad():
                    model.spare.fill_(math.inf)
            return super().next(model)  # type: ignore[no-any-return]

    model = lab.model()
    model.spare = torch.nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(InputError, match=r"step 4: after it spare .*not finite .*step 2 is whole"):
        lab.train(tmp_path, Spoils(), model=model)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]


def test_a_checkpoint_written_to_stop_goes_with_the_next(tmp_path: Path) -> None:
    def saved(step: int) -> Saved:
        return Saved(step, {"w": torch.ones(1)}, {}, State(), {"best": None})

    checkpoints = Checkpoints(tmp_path, keep=2, every=5)
    for step, left in ((5, [5]), (10, [5, 10]), (12, [10, 12]), (15, [10, 15]), (17, [15, 17])):
        checkpoints.save(saved(step))
        assert checkpoints.steps() == left
