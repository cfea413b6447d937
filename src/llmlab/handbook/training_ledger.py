"""The memory of training as a ledger: one row a method, each a diff of one recipe; what it saves and what it costs.

Bytes are foretold from shapes (`training/memory.py`) and counted while the real loop trains (`LiveBytes`). What it does
to learning is the held-out loss after so many steps. Rows are bytes of novels; V is 256.

Two groups share the table. `scratch` rows train a new model. `adapt` rows go on from one that was trained on another
text, all weights or an adapter: from nothing a frozen base has nothing to adapt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llmlab.adapters.part import AdapterPart, add_adapter
from llmlab.adapters.roles import Actor
from llmlab.data.batch import Batch
from llmlab.data.state import State
from llmlab.interpret.live_bytes import LiveBytes
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.objectives.language import NextToken
from llmlab.recipe import override, parse
from llmlab.run import Run, read_recipe
from llmlab.runtime import generator
from llmlab.stages import Session
from llmlab.training.loop import Training, train
from llmlab.training.memory import Load, StepBytes, foretell, on_paper

V = 256
ADAPTER = "sft"
ROWS, WIDTH = 8, 64  # of a step
HELD = 64  # rows that the loss is measured on
FIRST, SECOND = "moby_dick.txt", "sanguo_yanyi.txt"

RECIPE: dict[str, Any] = {
    "model": {"layers": 4, "dim": 64, "context": WIDTH, "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2}},
    "pretrain": {
        "batch_size": ROWS,
        "micro_batch": ROWS,
        "training": {"steps": 200, "optimizer": {"kind": "adamw", "lr": 3e-3}},
    },
    "sft": {
        "batch_size": ROWS,
        "micro_batch": ROWS,
        "training": {"steps": 200, "optimizer": {"kind": "adamw", "lr": 3e-3, "weight_decay": 0.0}},
    },
}


@dataclass(frozen=True)
class Row:
    """A method: its name and what it changes in the recipe. `against` is the row that it is held against."""

    name: str
    diff: tuple[str, ...] = ()
    group: Literal["scratch", "adapt"] = "scratch"

    @property
    def against(self) -> str:
        return "adamw" if self.group == "scratch" else "all weights"


# Learning rates are the best of two or three tries (50 steps, seed 99, which no ledger uses), some at the edge tried.


def _optimizer(text: str) -> tuple[str, ...]:
    return (f"pretrain.training.optimizer={{{text}}}",)


LEDGER = (
    Row("adamw"),
    Row("bf16 moments", ("pretrain.training.optimizer.moments=bf16",)),
    Row("adamw8bit", _optimizer("kind: adamw8bit, lr: 3.0e-3")),
    Row("muon", _optimizer("kind: muon, lr: 0.05, adamw_lr: 3.0e-3")),
    Row("lion", _optimizer("kind: lion, lr: 2.0e-3, weight_decay: 0.3")),
    Row("adafactor", _optimizer("kind: adafactor, lr: 0.15")),
    Row("galore", _optimizer("kind: galore, rank: 16, refresh: 50, lr: 3.0e-2")),
    Row("sgd with momentum", _optimizer("kind: sgd, momentum: 0.9, lr: 0.1")),
    Row("sgd", _optimizer("kind: sgd, lr: 0.5")),
    Row("in backward", ("pretrain.training.clip=null", "pretrain.training.in_backward=true")),
    Row("checkpointing, full", ("pretrain.training.activation_checkpointing=full",)),
    Row("checkpointing, selective", ("pretrain.training.activation_checkpointing=selective",)),
    Row("accumulation of 4", (f"pretrain.micro_batch={ROWS // 4}",)),
    Row("not clipped", ("pretrain.training.clip=null",)),
    Row("untied head", ("model.tied=false",)),
    Row("shared layers", ("model.shared=true",)),
    Row("all weights", (), "adapt"),
    Row("lora", ("sft.adapter={rank: 4, alpha: 8}", "sft.training.optimizer.lr=0.01"), "adapt"),
)


@dataclass(frozen=True)
class Setup:
    """What a row's recipe comes to."""

    architecture: Architecture
    training: Training
    load: Load
    adapter: AdapterPart | None


def setup(row: Row, changed: Mapping[str, Any] | None = None) -> Setup:
    """The recipe with the row's diff. `changed` replaces fields of the recipe's model, for another size of the same."""
    values = read_recipe("smoke").model_dump(mode="json")
    values |= dict.fromkeys(("reward", "dpo", "ppo", "quantize", "evaluate", "compare"))
    values |= RECIPE | {"model": RECIPE["model"] | dict(changed or {})}
    run = parse(Run, override(Run, values, row.diff))
    assert run.model is not None
    section = run.pretrain if row.group == "scratch" else run.sft
    assert section is not None
    rows, context = section.micro_batch, run.model.context
    load = Load(rows, context, rows * context, section.batch_size // rows)
    adapter = None if run.sft is None or row.group == "scratch" else run.sft.adapter
    return Setup(run.model, section.training, load, adapter)


def adapted(model: Transformer, made: Setup, seed: int) -> tuple[Transformer, str | None]:
    """The model with the row's adapter on it, and the role that computes with it."""
    if made.adapter is None:
        return model, None
    add_adapter(model, ADAPTER, made.adapter, seed)
    return model, ADAPTER


# ---------------------------------------------------------------- bytes


def predicted(made: Setup) -> StepBytes:
    """From shapes."""
    model, role = adapted(on_paper(made.architecture, V), made, 0)
    return foretell(model, made.training, made.load, role)


def counted(made: Setup, steps: int = 2) -> int:
    """The most bytes of tensors that were alive while the real loop took these steps, weights included."""
    model = learner(made.architecture.build(V, 0), made, 0)
    known = [*model.parameters(), *model.buffers()]
    with LiveBytes(known) as live:
        take_steps(model, made, steps, 0)
    weights = sum(int(tensor.nbytes) for tensor in known)
    return weights + int(live.peak)


# ---------------------------------------------------------------- learning


def loss_of(row: Row, seed: int, steps: int) -> float:
    """A row's held-out cross entropy, in nats a byte, after so many steps from this seed. An `adapt` row goes on, on
    another text, from as many steps of the first row."""
    made = setup(row)
    model, text = made.architecture.build(V, seed), FIRST
    if row.group == "adapt":
        take_steps(model, setup(LEDGER[0]), steps, seed)
        text = SECOND
    actor = learner(model, made, seed)
    take_steps(actor, made, steps, seed, text)
    (held,) = TextRows(text, Load(HELD, WIDTH, HELD * WIDTH), -1).next(actor)
    with torch.no_grad():
        return float(NextToken()(actor, held).sums["cross_entropy"]) / held.learnt


def learner(model: Transformer, made: Setup, seed: int) -> nn.Module:
    """The model as the row trains it: with its adapter, where it has one."""
    model, role = adapted(model, made, seed)
    return model if role is None else Actor(model, role)


def take_steps(learner: nn.Module, made: Setup, steps: int, seed: int, text: str = FIRST) -> None:
    """The real loop, for so many steps, looking at nothing on the way."""
    quiet = {"steps": steps, "checkpoint_every": steps, "log_every": steps, "evaluate_every": steps}
    settings = made.training.model_copy(update=quiet)
    with tempfile.TemporaryDirectory() as folder:
        train(learner, NextToken(), TextRows(text, made.load, seed), settings, Path(folder), Session(seed=seed))


class TextRows:
    """Rows of a novel's bytes from places that (seed, step, row) say, so that every cut of a step has the same rows.
    The last tenth of the text is for seed -1 alone."""

    def __init__(self, name: str, load: Load, seed: int) -> None:
        data = (resources.files("llmlab.data") / "bundled" / name).read_bytes()[: 1 << 19]
        border = len(data) * 9 // 10
        part = data[border:] if seed < 0 else data[:border]
        self._bytes = torch.frombuffer(bytearray(part), dtype=torch.uint8)
        self._load, self._seed, self._step = load, seed, 0

    def next(self, model: Any) -> list[Batch]:
        load = self._load
        rows, noise = load.rows * load.micro_batches, generator(self._seed, "ledger", self._step)
        self._step += 1
        starts = torch.randint(len(self._bytes) - load.length, (rows,), generator=noise)
        text = self._bytes[starts[:, None] + torch.arange(load.length + 1)].long()
        return [self._batch(part) for part in torch.split(text, load.rows)]

    def _batch(self, text: Tensor) -> Batch:
        return Batch(text[:, :-1], text[:, 1:], Places.causal(len(text), self._load.length))

    def state(self) -> State:
        return State({}, {"step": self._step})

    def load(self, state: State) -> None:
        assert isinstance(state.values["step"], int)
        self._step = state.values["step"]
