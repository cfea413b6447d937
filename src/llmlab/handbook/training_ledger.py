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
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmlab.adapters.base import BaseWeights, hold
from llmlab.adapters.part import AdapterPart, add_adapter
from llmlab.adapters.roles import Actor
from llmlab.alignment.sft import SFT
from llmlab.checkpoints.bundle import Bundle
from llmlab.data.batch import Batch
from llmlab.data.state import State
from llmlab.handbook.training_rows import LEDGER, RECIPE, WIDTH, Row
from llmlab.interpret.live_bytes import LiveBytes
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.objectives.language import NextToken
from llmlab.objectives.objective import Objective
from llmlab.recipe import override, parse
from llmlab.run import Run, read_recipe
from llmlab.runtime import generator
from llmlab.stages import Session
from llmlab.training.loop import Training, train
from llmlab.training.memory import Load, StepBytes, foretell, on_paper
from llmlab.training.pretrain import Pretrain

V = 256
ADAPTER = "sft"
HELD = 64  # rows that the loss is measured on
FIRST, SECOND = "moby_dick.txt", "sanguo_yanyi.txt"


@dataclass(frozen=True)
class Setup:
    """What a row's recipe comes to."""

    architecture: Architecture
    training: Training
    load: Load
    adapter: AdapterPart | None
    base_weights: BaseWeights
    fuse: bool


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
    autocast = torch.bfloat16 if run.dtype == "bf16" else None
    at_once = section.logits_at_once if isinstance(section, Pretrain) else None
    load = Load(rows, context, rows * context, section.batch_size // rows, autocast, at_once)
    adapter = section.adapter if isinstance(section, SFT) else None
    base_weights = section.base_weights if isinstance(section, SFT) else "fp32"
    return Setup(run.model, section.training, load, adapter, base_weights, run.kernels == "auto")


def adapted(model: Transformer, made: Setup, seed: int) -> tuple[Transformer, str | None]:
    """The model with its frozen base in few bits and the row's adapter on it, and the role that computes with it."""
    if made.adapter is None:
        return model, None
    model = hold(Bundle(model, None, made.architecture, "ledger"), made.base_weights).model
    add_adapter(model, ADAPTER, made.adapter, seed)
    return model, ADAPTER if made.adapter.apart else None


# ---------------------------------------------------------------- bytes


def predicted(made: Setup) -> StepBytes:
    """From shapes. Codes are made of numbers, so a base in few bits is there; what is done with it is not."""
    few = made.base_weights != "fp32"
    base = made.architecture.build(V, 0) if few else on_paper(made.architecture, V)
    model, role = adapted(base, made, 0)
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
        model.load_state_dict(begun(made.architecture, steps, seed))
        text = SECOND
    actor = learner(model, made, seed)
    take_steps(actor, made, steps, seed, text)
    return held_out_loss(actor, text)


@cache
def begun(architecture: Architecture, steps: int, seed: int) -> Mapping[str, Tensor]:
    """Weights after so many steps of the first row: what every `adapt` row goes on from."""
    model = architecture.build(V, seed)
    take_steps(model, setup(LEDGER[0]), steps, seed)
    return model.state_dict()


def learner(model: Transformer, made: Setup, seed: int) -> nn.Module:
    """The model as the row trains it: with its adapter, where it has one."""
    model, role = adapted(model, made, seed)
    return model if role is None else Actor(model, role)


def take_steps(
    learner: nn.Module,
    made: Setup,
    steps: int,
    seed: int,
    text: str = FIRST,
    objective: Objective[Batch] | None = None,
) -> None:
    """The real loop, for so many steps, looking at nothing on the way; of the next token unless told otherwise."""
    quiet = {"steps": steps, "checkpoint_every": steps, "log_every": steps, "evaluate_every": steps}
    settings = made.training.model_copy(update=quiet)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(seed=seed, dtype=made.load.autocast, fuse=made.fuse)
        asked = objective or NextToken(at_once=made.load.logits_at_once)
        train(learner, asked, TextRows(text, made.load, seed), settings, Path(folder), session)


def held_out_loss(model: nn.Module, text: str = FIRST, rows: int = HELD) -> float:
    """Cross entropy in nats a byte on rows of the text's last tenth, the same for every model."""
    (held,) = TextRows(text, Load(rows, WIDTH, rows * WIDTH), -1).next(model)
    with torch.no_grad():
        return float(NextToken()(model, held).sums["cross_entropy"]) / held.learnt


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
