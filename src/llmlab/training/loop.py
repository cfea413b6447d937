"""The one loop. Pretraining, fine-tuning, reward modelling, DPO and PPO differ in objective and batches only.

A step takes its micro-batches, makes their gradients (`step.py`) and updates. Checkpoints hold everything that the next
step depends on, so a resumed run is bit for bit the unbroken one.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from llmlab.data.state import State
from llmlab.errors import Diverged, InputError, Stopped
from llmlab.objectives.objective import Objective
from llmlab.recipe import Section
from llmlab.stages import Figures, Session
from llmlab.training.optimizers import AdamW, OptimizerKind
from llmlab.training.schedules import Schedule, WarmupStableDecay
from llmlab.training.state import Checkpoints, Saved, clear_when_full
from llmlab.training.step import Gradients, NotFinite, added, weight_of

B = TypeVar("B")
Probe = Callable[[Any], Mapping[str, float]]

EMPTY_STEPS = 10  # so many steps in a row without anything to learn are no accident


class Training(Section):
    """How long, how fast, and how often to look, of any training."""

    steps: int = Field(gt=0, description="optimizer steps")
    optimizer: OptimizerKind = Field(default_factory=AdamW, description="the update rule and its learning rates")
    schedule: Schedule = Field(default_factory=WarmupStableDecay, description="how the learning rate moves")
    clip: float | None = Field(1.0, gt=0.0, description="largest norm of the whole gradient; null: not clipped")
    log_every: int = Field(10, gt=0, description="steps a row of figures is the mean of")
    evaluate_every: int = Field(
        100, gt=0, description="steps between evaluations on held-out data; the last step is one"
    )
    checkpoint_every: int = Field(100, gt=0, description="steps between checkpoints; the last step is one")
    keep: int = Field(2, gt=0, description="newest checkpoints that stay on disk; the best weights stay besides")


class Batches(Protocol[B]):
    """Where micro-batches come from. It owns its cursor, buffers and generators, and can write them down."""

    def next(self, model: Any) -> list[B]:
        """The micro-batches of one optimizer step. May sample from `model` (PPO)."""

    def state(self) -> State:
        """What `next` has consumed, so that `load` on a fresh object goes on after it."""

    def load(self, state: State) -> None: ...


def train(
    model: nn.Module,
    objective: Objective[B],
    batches: Batches[B],
    settings: Training,
    out: Path,
    session: Session,
    *,
    probe: Probe | None = None,
    best: str | None = None,
) -> Figures:
    """Train the parameters of `model` that want gradients, in place; go on from `out/checkpoints` where there is one.

    `probe(model) -> {figure: value}` runs without gradient in evaluation mode, before the first step, every
    `evaluate_every` steps and after the last. `best` names its figure to minimise (`-figure`: to maximise): the model
    then ends with the weights of the best evaluation, the untrained ones included.

    Returns `steps, resumed_from_step, tokens, learnt_tokens, empty_steps, training` (figures of the last logged rows)
    and, with a probe, `held_out` (its figures of the weights that the model ends with) and `kept_step`.

    Raises `Stopped` after saving when the session asks to stop; `Diverged` at the first loss or gradient that is not
    finite (the last checkpoint stays); `InputError` when nothing is there to learn, and when the disk is full.
    """
    with clear_when_full(out):
        return _Loop(model, objective, batches, settings, out, session, probe, best).run()


def stepping(
    model: nn.Module, objective: Objective[B], batches: Batches[B], settings: Training, session: Session
) -> "_Loop[B]":
    """The loop of `train` before its first step, for who watches what a step does (the planner). Nothing is written."""
    return _Loop(model, objective, batches, settings, Path("nowhere"), session, None, None)


class _Loop(Generic[B]):
    def __init__(
        self,
        model: nn.Module,
        objective: Objective[B],
        batches: Batches[B],
        settings: Training,
        out: Path,
        session: Session,
        probe: Probe | None,
        best: str | None,
    ) -> None:
        self.model, self.objective, self.batches, self.settings = model, objective, batches, settings
        self.out, self.session, self.probe = out, session, probe
        self.best_name, self.best_sign = (
            (best.removeprefix("-"), -1.0 if best.startswith("-") else 1.0) if best else ("", 1.0)
        )
        if best and probe is None:
            raise ValueError("best names a figure of the probe, and there is no probe")
        self.optimizer = settings.optimizer.build(model)
        if not self.optimizer.parameters:
            raise ValueError("no parameter of the model wants a gradient")
        self.gradients = Gradients(model, objective, self.optimizer.parameters, settings.clip, session)
        self.checkpoints = Checkpoints(out, settings.keep, settings.checkpoint_every)
        self.step = 0
        # All that a resumed run needs beside weights, optimizer and batches. JSON, no times.
        self.values: dict[str, Any] = {
            "settings": _binding(settings),
            "amounts": {},  # of the whole run
            "terms": {},  # term -> [sum, count] since the last row
            "window": {},  # the same of figures
            "empty_steps": 0,
            "empty_in_a_row": 0,
            "training": {},
            "held_out": {},
            "best": None,
        }
        self.clock = _Clock()

    def run(self) -> Figures:
        resumed = self._resume()
        meter = self.session.meter(self.out, self.out.name, self.settings.steps)
        try:
            meter.rewind(self.step if resumed else -1)
            self.model.train()
            if not resumed:
                meter.step(0, self._evaluate())
            while self.step < self.settings.steps:
                self._stop_if_asked()
                self.update()
                meter.step(self.step, self._look())
                if self._due(self.settings.checkpoint_every):
                    self._save()
        finally:
            meter.close()
        return self._finish(resumed)

    # ---------------------------------------------------------------- one step

    def update(self) -> None:
        """One optimizer step, or none where nothing is there to learn."""
        begin = time.perf_counter()
        batches = self.batches.next(self.model)
        try:
            made = self.gradients.of(batches, self.step)
        except NotFinite as error:
            raise self._not_finite(error.problem, *error.batches) from None
        for kind, sums in (("terms", made.terms), ("window", made.figures)):
            for name, (value, weight) in sums.items():
                self._note(kind, name, value, weight)
        if made.norm is not None:
            self.optimizer.set_scale(self.settings.schedule.scale(self.step, self.settings.steps))
            self.optimizer.step()
            self.optimizer.zero_grad()
            self._note("window", "gradient_norm", made.norm, 1.0)
        self._count_empty(made.norm is None)
        self.values["amounts"] = added([self.values["amounts"], made.amounts])
        self.clock.add(time.perf_counter() - begin, made.amounts)
        self.step += 1

    def _weight(self, term: str) -> float:
        return weight_of(self.objective, term)

    def _count_empty(self, empty: bool) -> None:
        self.values["empty_steps"] += empty
        self.values["empty_in_a_row"] = self.values["empty_in_a_row"] + 1 if empty else 0
        if self.values["empty_in_a_row"] >= min(EMPTY_STEPS, self.settings.steps):
            raise InputError(
                f"step {self.step + 1}",
                f"nothing to learn for {self.values['empty_in_a_row']} steps in a row: every target is masked",
                "look at the mask of the data, and at what is cut to the length",
            )

    def _not_finite(self, problem: str, *batches: object, at: int | None = None) -> Diverged:
        where = [str(place) for batch in batches if (place := getattr(batch, "where", None))]
        steps = self.checkpoints.steps()
        kept = f"the checkpoint of step {steps[-1]} is whole" if steps else "there is no checkpoint yet"
        return Diverged(
            f"step {self.step + 1 if at is None else at}",
            problem + (f", from {'; '.join(where)}" if where else ""),
            f"{kept}; a lower learning rate, a smaller clip or a look at that batch may help",
        )

    # ---------------------------------------------------------------- figures

    def _note(self, kind: str, name: str, value: float, weight: float) -> None:
        total = self.values[kind].setdefault(name, [0.0, 0.0])
        total[0] += value
        total[1] += weight

    def _look(self) -> dict[str, float]:
        """The row of this step: means since the last row, rates, evaluation. Empty where none is due."""
        row: dict[str, float] = {}
        if self._due(self.settings.log_every):
            row |= self._means()
            self.values |= {"training": dict(row), "terms": {}, "window": {}}
            row |= self.clock.read()
        if self._due(self.settings.evaluate_every):
            row |= self._evaluate()
        return row

    def _means(self) -> dict[str, float]:
        terms, others = _ratios(self.values["terms"]), _ratios(self.values["window"])
        row = {"loss": sum(self._weight(name) * mean for name, mean in terms.items())} if terms else {}
        scale = self.settings.schedule.scale(self.step - 1, self.settings.steps)
        row |= terms if len(terms) > 1 else {}
        return row | others | {"learning_rate": scale * self.settings.optimizer.lr}

    def _evaluate(self) -> dict[str, float]:
        """The probe's figures of the weights as they are; the best weights so far are put aside."""
        if self.probe is None:
            return {}
        self.model.eval()
        with torch.no_grad():
            figures = {name: float(value) for name, value in self.probe(self.model).items()}
        self.model.train()
        self.values["held_out"] = figures
        if self.best_name:
            value = self.best_sign * figures[self.best_name]
            if not math.isfinite(value):
                raise self._not_finite(f"after it {self.best_name} is {figures[self.best_name]}", at=self.step)
            best = self.values["best"]
            if best is None or value < self.best_sign * best["figures"][self.best_name]:
                self.checkpoints.save_best(self.step, self._weights())
                self.values["best"] = {"step": self.step, "figures": figures}
        return figures

    # ---------------------------------------------------------------- state

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.settings.steps

    def _weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.optimizer.parameters.items()}

    def _take(self, weights: Mapping[str, Tensor]) -> None:
        mine = self.optimizer.parameters
        for name in sorted(mine.keys() | weights.keys()):
            if name not in mine or name not in weights:
                raise InputError(str(self.out), f"its checkpoint and this model differ in {name!r}", "take a new --out")
            if mine[name].shape != weights[name].shape:
                shapes = f"{list(weights[name].shape)} and {list(mine[name].shape)}"
                raise InputError(
                    str(self.out), f"its checkpoint and this model differ in the shape of {name!r}", shapes
                )
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(weights[name])

    def _save(self) -> None:
        """A checkpoint of weights that are numbers: others would push out the last that can be gone on from."""
        weights = self._weights()
        if broken := next((name for name, weight in weights.items() if not bool(weight.isfinite().all())), None):
            raise self._not_finite(f"after it {broken} holds values that are not finite", at=self.step)
        self.checkpoints.save(Saved(self.step, weights, self.optimizer.state(), self.batches.state(), self.values))

    def _resume(self) -> int:
        """Take the newest checkpoint; the step it is of, 0 where there is none."""
        saved = self.checkpoints.newest()
        if saved is None:
            return 0
        now = _binding(self.settings)
        for name, value in saved.values["settings"].items():
            if value != now[name]:
                raise InputError(
                    str(self.out), f"its checkpoint has {name} {value}, now it is {now[name]}", "take a new --out"
                )
        self._take(saved.weights)
        self.optimizer.load(saved.optimizer)
        self.batches.load(saved.batches)
        self.step, self.values = saved.step, saved.values
        return saved.step

    def _stop_if_asked(self) -> None:
        if self.session.stop.requested:
            if self.step and self.step not in self.checkpoints.steps():
                self._save()
            saved = f"; its state is saved in {self.out}" if self.step else ""
            raise Stopped(f"stopped after step {self.step} of {self.settings.steps}{saved}")

    def _finish(self, resumed: int) -> Figures:
        figures: Figures = {"steps": self.step, "resumed_from_step": resumed, **self.values["amounts"]}
        figures |= {name: self.values[name] for name in ("empty_steps", "training")}
        if self.probe is not None:
            figures |= {"held_out": self.values["held_out"], "kept_step": self.step}
        if self.values["best"] is not None:
            best = self.values["best"]
            self._take(self.checkpoints.load_best(best["step"]))
            figures |= {"held_out": best["figures"], "kept_step": best["step"]}
        self.model.eval()
        return figures


class _Clock:
    """Seconds spent in steps and what went through in them since the last reading; looking and saving do not count."""

    def __init__(self) -> None:
        self.seconds, self.amounts = 0.0, dict[str, float]()

    def add(self, seconds: float, amounts: Mapping[str, float]) -> None:
        self.seconds += seconds
        self.amounts = added([self.amounts, amounts])

    def read(self) -> dict[str, float]:
        """`seconds`, each amount, and each amount a second; then from zero."""
        row = {"seconds": self.seconds, **self.amounts}
        row |= {f"{name}_per_second": amount / self.seconds for name, amount in self.amounts.items() if self.seconds}
        self.seconds, self.amounts = 0.0, {}
        return row


def _binding(settings: Training) -> dict[str, Any]:
    """The settings that a half-done training cannot change: its horizon and its update rule."""
    return settings.model_dump(mode="json", include={"steps", "optimizer", "schedule", "clip"})


def _ratios(totals: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: total / count for name, (total, count) in totals.items() if count}
