"""The one loop. Pretraining, fine-tuning, reward modelling, DPO and PPO differ in objective and batches only.

A step takes its micro-batches, makes their gradients (`step.py`) and updates. Checkpoints hold everything that the next
step depends on, so a resumed run is bit for bit the unbroken one.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from llmlab.data.state import State
from llmlab.errors import Diverged, InputError, Stopped
from llmlab.model.fused import fused
from llmlab.objectives.objective import Objective
from llmlab.recipe import Section
from llmlab.stages import Figures, Session
from llmlab.training.adamw import AdamW
from llmlab.training.checkpointing import Checkpointing, checkpointed
from llmlab.training.ema import EMA, Average
from llmlab.training.in_backward import InBackward, refuse_ranks
from llmlab.training.narrow import Fp32, Weights
from llmlab.training.optimizer import trained
from llmlab.training.optimizers import OptimizerKind
from llmlab.training.parallel.choice import ranks_of
from llmlab.training.schedules import Schedule, WarmupStableDecay
from llmlab.training.spikes import SpikeGuard, Watch
from llmlab.training.state import Checkpoints, Saved, clear_when_full
from llmlab.training.step import Gradients, Made, NotFinite, added, weight_of

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
    activation_checkpointing: Checkpointing = Field(
        "none", description="what blocks compute again instead of keeping: none, full: all, selective: not the products"
    )
    in_backward: bool = Field(
        False, description="whether each parameter is updated as soon as its gradient is there; needs clip null"
    )
    ema: EMA | None = Field(None, description="the average of the weights over the steps is what is looked at and kept")
    spikes: SpikeGuard | None = Field(None, description="what becomes of a step far above those before; null: nothing")

    weights: Weights = Field(Fp32(), description="what weights are held in while they are trained")

    @model_validator(mode="after")
    def _clips(self) -> "Training":
        if self.in_backward and self.clip is not None:
            raise ValueError(
                f"in_backward cannot clip to a norm of {self.clip}: it never has the whole gradient (set clip to null)"
            )
        if self.in_backward and self.spikes is not None:
            raise ValueError(
                "in_backward cannot leave out a spike: by then the weights are updated (set spikes to null)"
            )
        return self

    @model_validator(mode="after")
    def _can_go_back(self) -> "Training":
        if self.spikes is not None and self.spikes.kind == "roll_back" and self.keep < 2:
            raise ValueError("spikes: roll_back needs keep of 2 at least, or a stop pushes out what it goes back to")
        return self


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

    With `ema` the probe sees the average of the weights, and the model ends with it. With `spikes` the figures say
    `skipped_steps`, `roll_backs`, `passed_over_steps` and their `events`; `tokens` are those of the steps that count.

    Raises `Stopped` after saving when the session asks to stop, or to pause after step `session.until`, which is
    evaluated like a last one; `Diverged` at the first loss or gradient that is not finite (the last checkpoint stays),
    with `spikes` at one too many; `InputError` when nothing is there to learn, and when the disk is full.
    """
    with clear_when_full(out), _dressed(model, settings, session) as plain:
        figures = _Loop(model, objective, batches, settings, out, session, probe, best).run()
    return figures | {"kernels": "fused" if plain is None else f"plain: {plain}"}


@contextmanager
def stepping(
    model: nn.Module, objective: Objective[B], batches: Batches[B], settings: Training, session: Session
) -> Iterator["_Loop[B]"]:
    """The loop of `train` before its first step, for who watches what a step does (the planner). Nothing is written."""
    with _dressed(model, settings, session):
        yield _Loop(model, objective, batches, settings, Path("nowhere"), session, None, None)


@contextmanager
def _dressed(model: nn.Module, settings: Training, session: Session) -> Iterator[str | None]:
    """What is put on the model from outside for the time of a training. Yields why no block is fused, else None."""
    quick = fused(model) if session.kernels else nullcontext("float32, another device, or switched off")
    with quick as plain, checkpointed(model, settings.activation_checkpointing):
        yield plain


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
        self.objective, self.batches, self.settings = objective, batches, settings
        self.out, self.session, self.probe, self.world = out, session, probe, session.world
        self.best_name, self.best_sign = (
            (best.removeprefix("-"), -1.0 if best.startswith("-") else 1.0) if best else ("", 1.0)
        )
        if best and probe is None:
            raise ValueError("best names a figure of the probe, and there is no probe")
        if not trained(model):
            raise ValueError("no parameter of the model wants a gradient")
        if settings.in_backward and not self.world.alone:
            refuse_ranks()
        if settings.weights.kind != "fp32":
            _check_narrow(model, session)
        self.ranks = ranks_of(session, model, settings.optimizer.kind)
        self.model = self.ranks.model
        self.optimizer = settings.weights.held(settings.optimizer.build(self.ranks.owned), session.seed)
        self.average, self.watch = Average(settings.ema, self.optimizer.parameters), Watch(settings.spikes)
        inside = InBackward(self.optimizer) if settings.in_backward else None
        self.gradients = Gradients(self.ranks, objective, settings.clip, session, inside)
        self.checkpoints = Checkpoints(out, settings.keep, settings.checkpoint_every, self.ranks)
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
                if not self.update():
                    meter.rewind(self.step)
                    continue
                meter.step(self.step, self._look())
                if self._due(self.settings.checkpoint_every):
                    self._save()
        finally:
            meter.close()
        return self._finish(resumed)

    # ---------------------------------------------------------------- one step

    def update(self) -> bool:
        """One optimizer step, or none where nothing is there to learn or it would be a spike; False where a spike led
        back to an earlier step."""
        begin = time.perf_counter()
        batches = self.batches.next(self.model)
        self.optimizer.set_scale(self.settings.schedule.scale(self.step, self.settings.steps))
        made, spike = self._made(batches)
        if spike and self._went_back(spike):
            return False
        if spike:
            self.watch.skipped(self.step + 1, spike)
        else:
            self._learn(made)
        self.values["amounts"] = added([self.values["amounts"], made.amounts])
        self.clock.add(time.perf_counter() - begin, made.amounts)
        self.step += 1
        return True

    def _made(self, batches: list[B]) -> tuple[Made, dict[str, float]]:
        """The gradients of a step, or none and what says that it is a spike."""
        try:
            made = self.gradients.of(batches, self.step)
        except NotFinite as error:
            if self.settings.spikes is None:
                raise self._not_finite(error.problem, *error.batches) from None
            made = Made(math.nan, amounts=added([self.objective.amounts(batch) for batch in batches]))
        if made.norm is None:
            return made, {}
        spike = self.watch.spike({"loss": self._loss(_ratios(made.terms)), "gradient_norm": made.norm})
        if spike:
            self.optimizer.zero_grad()
            self.model.zero_grad(set_to_none=True)  # of weights that other ranks update too
        return made, spike

    def _learn(self, made: Made) -> None:
        for kind, sums in (("terms", made.terms), ("window", made.figures)):
            for name, (value, weight) in sums.items():
                self._note(kind, name, value, weight)
        if made.norm is not None:
            if not self.settings.in_backward:
                self.ranks.update(self.optimizer)
            self.average.update()
            self._note("window", "gradient_norm", made.norm, 1.0)
        self._count_empty(made.norm is None)

    def _went_back(self, spike: dict[str, float]) -> bool:
        """Whether the guard goes back and there is a checkpoint to go back to: then all is as it was there, but for the
        batches, which go on after the spike."""
        saved = self.checkpoints.last_of_its_own() if self.watch.goes_back else None
        if saved is None:
            return False
        self.watch.rolled_back(self.step + 1, saved.step, spike, saved.values["spikes"])
        self.checkpoints.forget_after(saved.step)
        self._restore(saved)
        return True

    def _loss(self, means: Mapping[str, float]) -> float:
        return sum(weight_of(self.objective, name) * mean for name, mean in means.items())

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
        row = self.watch.row()
        if self._due(self.settings.log_every):
            row |= self._means()
            self.values |= {"training": dict(row), "terms": {}, "window": {}}
            row |= self.clock.read()
        if self._due(self.settings.evaluate_every) or self.step == self.session.until:
            row |= self._evaluate()
        return row

    def _means(self) -> dict[str, float]:
        terms, others = _ratios(self.values["terms"]), _ratios(self.values["window"])
        row = {"loss": self._loss(terms)} if terms else {}
        scale = self.settings.schedule.scale(self.step - 1, self.settings.steps)
        row |= terms if len(terms) > 1 else {}
        return row | others | {"learning_rate": scale * self.settings.optimizer.lr}

    def _evaluate(self) -> dict[str, float]:
        """The probe's figures of the weights as they are, or of their average; the best so far are put aside."""
        if self.probe is None:
            return {}
        with self.optimizer.exact(), self.average.shown(self.ranks.spread):
            return self._probed(self.probe)

    def _probed(self, probe: Probe) -> dict[str, float]:
        self.model.eval()
        with torch.no_grad():
            seen = {name: float(value) for name, value in probe(self.model).items()}
        self.model.train()
        figures = self.world.told(lambda: seen)  # of two machines' last bits, one decides what is best
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
        for name in sorted(self.ranks.shapes.keys() | weights.keys()):
            if name not in self.ranks.shapes or name not in weights:
                raise InputError(str(self.out), f"its checkpoint and this model differ in {name!r}", "take a new --out")
        with torch.no_grad():
            for name, parameter in self.optimizer.parameters.items():
                whole, shape = weights[name], self.ranks.shapes[name]
                if whole.shape != shape:
                    problem = f"its checkpoint and this model differ in the shape of {name!r}"
                    raise InputError(str(self.out), problem, f"{list(whole.shape)} and {list(shape)}")
                parameter.copy_(self.ranks.part(name, whole))
        self.ranks.spread()

    def _save(self) -> None:
        """A checkpoint of weights that are numbers: others would push out the last that can be gone on from."""
        weights = self._weights()
        here = next((name for name, weight in weights.items() if not bool(weight.isfinite().all())), None)
        if broken := next(filter(None, self.world.all(lambda: here)), None):
            raise self._not_finite(f"after it {broken} holds values that are not finite", at=self.step)
        moments = self.optimizer.state() | self.average.state()
        values = self.values | ({"spikes": self.watch.state} if self.settings.spikes is not None else {})
        self.checkpoints.save(Saved(self.step, weights, moments, self.batches.state(), values))

    def _resume(self) -> int:
        """Take the newest checkpoint; the step it is of, 0 where there is none."""
        saved = self.checkpoints.newest()
        if saved is None:
            return 0
        now, then = _binding(self.settings), saved.values["settings"]
        for name in then | now:
            if then.get(name) != now.get(name):
                told = f"its checkpoint has {name} {then.get(name)}, now it is {now.get(name)}"
                raise InputError(str(self.out), told, "take a new --out")
        self._restore(saved)
        self.batches.load(saved.batches)
        self.watch.state = saved.values.get("spikes", self.watch.state)
        return saved.step

    def _restore(self, saved: Saved) -> None:
        """Everything but batches and guard as it was."""
        self._take(saved.weights)
        self.optimizer.load(self.average.load(self.ranks.parts(saved.optimizer)))
        self.step, self.values = saved.step, {name: saved.values[name] for name in saved.values if name != "spikes"}

    def _stop_if_asked(self) -> None:
        paused = self.session.until is not None and self.step >= self.session.until
        if self.session.asked_to_stop() or paused:
            if self.step and self.step not in self.checkpoints.steps():
                self._save()
            saved = f"; its state is saved in {self.out}" if self.step else ""
            raise Stopped(f"stopped after step {self.step} of {self.settings.steps}{saved}")

    def _finish(self, resumed: int) -> Figures:
        figures: Figures = {"steps": self.step, "resumed_from_step": resumed, **self.values["amounts"]}
        figures |= {name: self.values[name] for name in ("empty_steps", "training")} | self.watch.figures()
        if self.probe is not None:
            figures |= {"held_out": self.values["held_out"], "kept_step": self.step}
        self.optimizer.finish()
        if self.values["best"] is not None:
            best = self.values["best"]
            self._take(self.checkpoints.load_best(best["step"]))
            figures |= {"held_out": best["figures"], "kept_step": best["step"]}
        elif self.average.taken:
            self.average.settle()
            self.ranks.spread()
        self.ranks.finish()
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
    habits = {name for name in ("ema", "spikes") if getattr(settings, name) is not None}
    habits |= {"weights"} if settings.weights.kind != "fp32" else set()
    return settings.model_dump(mode="json", include={"steps", "optimizer", "schedule", "clip"} | habits)


def _check_narrow(model: nn.Module, session: Session) -> None:
    """InputError where weights of bfloat16 would stand beside others."""
    if not all(parameter.requires_grad for parameter in model.parameters()):
        hint = "use fp32 with adapters and frozen layers; base_weights holds a frozen base in few bits"
        raise InputError("training.weights", "bf16 is for a model that is trained whole, and part of this is not", hint)
    if session.dtype != torch.bfloat16:
        raise InputError("training.weights", "bf16 needs products in bfloat16", "set dtype to bf16")
    if not session.apart or (getattr(session.parallel, "kind", "ddp") == "zero1" and not session.world.alone):
        raise InputError("training.weights", "bf16 goes with whole weights on each rank", "use parallel=ddp, or fp32")


def _ratios(totals: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: total / count for name, (total, count) in totals.items() if count}
