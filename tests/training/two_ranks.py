"""What each of several processes does for tests/training/test_parallel.py: many checks in one life, told as JSON.

Started with the environment that torchrun gives: `python two_ranks.py FOLDER JOB`. Each rank writes FOLDER/RANK.json.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llmlab.data.batch import IGNORE, Batch
from llmlab.data.order import ShuffledOrder
from llmlab.data.state import State
from llmlab.errors import InputError, Stopped
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture
from llmlab.objectives.objective import Objective, Terms
from llmlab.recipe import parse
from llmlab.runtime import make_deterministic
from llmlab.stages import Session
from llmlab.training.loop import Training, train
from llmlab.training.optimizer import trained
from llmlab.training.parallel.choice import ranks_of
from llmlab.training.parallel.kinds import DDP, FSDP, TensorParallel, Zero1
from llmlab.training.step import Gradients
from llmlab.world import World

V, ROWS, LENGTH = 13, 11, 8
WAYS: dict[str, Any] = {"ddp": DDP(), "zero1": Zero1(), "fsdp": FSDP(), "tensor": TensorParallel()}
# What needs four ranks to differ from the ways above.
PLANES: dict[str, Any] = {"fsdp of tensor": FSDP(tensor=2), "replicas of tensor": TensorParallel(size=2)}
# Habits and rules together, in a run whose guard goes back now and then.
MERGED: dict[str, Any] = {
    "ema": {"decay": 0.9},
    "spikes": {"kind": "roll_back", "window": 10, "deviations": 1.6, "most": 30},
    "activation_checkpointing": "full",
}
MERGED_STEPS = 24
RULES: dict[str, Any] = {"fsdp": "adamw", "zero1": {"kind": "adamw8bit", "smallest": 16}}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    # Norms of heads and a learnt activation are on every rank of `tensor`, their gradients in parts.
    "rich": {
        "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "norm": True, "bias": True},
        "feedforward": {"kind": "swiglu", "learnt": True, "bias": True},
        "norm": "layernorm",
        "tied": False,
        "dropout": 0.3,
    },
}


class Exact(Objective[Batch]):
    """Cross entropy in the model's own precision, where `NextToken` goes by float32."""

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"cross_entropy": float(batch.learnt)}

    def amounts(self, batch: Batch) -> dict[str, float]:
        return {"tokens": float(batch.tokens)}

    def __call__(self, model: Any, batch: Batch) -> Terms:
        logits = model.logits(model.hidden(batch.ids_BT, batch.at)).flatten(0, 1)
        sum_ = F.cross_entropy(logits, batch.targets_BT.flatten(), ignore_index=IGNORE, reduction="sum")
        return Terms({"cross_entropy": sum_}, {"loss_again": (sum_.detach(), float(batch.learnt))})


class Rows:
    """Three micro-batches a step, of unequal lengths, so that two ranks have unequal shares; a row without targets."""

    def __init__(self) -> None:
        noise = torch.Generator().manual_seed(7)
        self.ids = torch.randint(V, (ROWS, LENGTH), generator=noise)
        self.targets = (self.ids * 3 + 1) % V
        lengths = torch.tensor([0, 1, 3, 8, 5, 2, 7, 8, 8, 4, 6])
        self.targets[torch.arange(LENGTH) >= lengths[:, None]] = IGNORE
        self.order = ShuffledOrder(ROWS, 0, "rows")

    def next(self, model: Any) -> list[Batch]:
        rows = torch.tensor(self.order.take(4))
        parts = [rows[:2], rows[2:3], rows[3:]]
        return [Batch(self.ids[part], self.targets[part], Places.causal(len(part), LENGTH)) for part in parts]

    def state(self) -> State:
        return self.order.state()

    def load(self, state: State) -> None:
        self.order.load(state)


def model_of(kind: str, **more: Any) -> nn.Module:
    fields = {"layers": 2, "dim": 16, "context": LENGTH, "initial_std": 0.2} | MODELS[kind] | more
    return parse(Architecture, fields).build(V, 1)


def settings(steps: int, **more: Any) -> Training:
    given = {"steps": steps, "log_every": 1, "evaluate_every": 2, "checkpoint_every": 2, "optimizer": "adamw"} | more
    return parse(Training, given)


def probe(model: nn.Module) -> Mapping[str, float]:
    """Looks at every weight through the model, so that fsdp has something to put together."""
    rows = Rows()
    batch = Batch(rows.ids, rows.targets, Places.causal(ROWS, LENGTH))
    return {"score": float(Exact()(model, batch).sums["cross_entropy"])}


class Life:
    """One process, alone or among others."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world

    def session(self, way: str) -> Session:
        return Session(world=self.world, parallel=None if self.world.alone else (WAYS | PLANES)[way])

    def gradients(self, *ways: str) -> dict[str, dict[str, list[float]]]:
        """This rank's parts of the first step's gradients in float64, put where they lie in the whole ones."""
        told = {}
        for way in ["alone"] if self.world.alone else ways or WAYS:
            for kind in MODELS:
                ranks = ranks_of(self.session(way), model_of(kind).double(), "adamw")
                made = Gradients(ranks, Exact(), 0.5, Session()).of(Rows().next(None), 0)
                assert made.norm is not None
                told[f"{way} {kind}"] = {
                    "norm": [made.norm],
                    "loss": [made.terms["cross_entropy"][0]],
                    **{name: spread_out(ranks, name) for name in trained(ranks.owned)},
                }
        return told

    def looks(self) -> dict[str, float]:
        """The norm of a first step after an answer was drawn, in inference mode, by each way."""
        told = {}
        for way in ["alone"] if self.world.alone else WAYS:
            ranks = ranks_of(self.session(way), model_of("plain"), "adamw")
            with torch.inference_mode():
                probe(ranks.model)
            told[way] = Gradients(ranks, Exact(), None, Session()).of(Rows().next(None), 0).norm or 0.0
        return told

    def curves(self, *ways: str) -> dict[str, Any]:
        """Trainings to the end, and on the way bytes of each kind."""
        told = {}
        for way in ["alone"] if self.world.alone else ways or WAYS:
            for kind in MODELS:
                out = self.folder / f"{way}-{kind}"
                model = model_of(kind)
                figures = train(model, Exact(), Rows(), settings(6), out, self.session(way), probe=probe, best="score")
                told[f"{way} {kind}"] = {"figures": figures, "weights": weights_of(model)}
        return told

    def muon(self) -> dict[str, Any]:
        """An optimizer that looks at whole matrices, with zero1; refused where matrices are cut."""
        told: dict[str, Any] = {}
        for way in ["alone"] if self.world.alone else WAYS:
            model = model_of("plain")
            out = self.folder / f"muon-{way}"
            try:
                train(model, Exact(), Rows(), settings(3, optimizer="muon"), out, self.session(way))
                told[way] = weights_of(model)
            except InputError as error:
                told[way] = str(error)
        return told

    def bytes(self) -> dict[str, dict[str, int]]:
        """What a rank holds after a step: parameters, gradients, optimizer's state."""
        told = {}
        for way in ["alone"] if self.world.alone else WAYS:
            ranks = ranks_of(self.session(way), model_of("plain", dim=32, tied=False), "adamw")
            optimizer = settings(1).optimizer.build(ranks.owned)
            Gradients(ranks, Exact(), None, Session()).of(Rows().next(None), 0)
            gradients = [p.grad for p in ranks.model.parameters() if p.grad is not None]
            ranks.update(optimizer)
            told[way] = {
                "parameters": held(ranks.model.parameters()),
                "gradients": held(gradients),
                "optimizer": held(optimizer.state().values()),
            }
        return told

    def merged(self, way: str, rule: str, out: str, after: int) -> dict[str, Any] | None:
        """As `stopped`, with the average of the weights, a guard that goes back, and the rule of that name."""
        return self.stopped(way, out, after, MERGED_STEPS, MERGED | {"optimizer": RULES[rule]})

    def stopped(
        self, way: str, out: str, after: int, steps: int = 6, more: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """Train until a stop after so many steps, or to the end."""
        session, life = self.session(way), self

        class Asking(Rows):
            calls = 0

            def next(self, model: Any) -> list[Batch]:
                self.calls += 1
                session.stop.requested = self.calls == after and life.world.rank == life.world.size - 1
                return super().next(model)

        model = model_of("rich")
        try:
            given = settings(steps, **(more or {}))
            figures = train(model, Exact(), Asking(), given, self.folder / out, session, probe=probe, best="score")
        except Stopped:
            return None
        if self.world.first:
            (self.folder / f"{out}.json").write_text(json.dumps(weights_of(model)))
        return figures

    def dies(self, way: str, out: str) -> None:
        """The last rank is killed when it has written a piece of the checkpoint after that of step 2."""
        plain = os.fsync

        def dying(descriptor: int) -> None:
            if list((self.folder / out / "checkpoints").glob("step-000002")):
                os.kill(os.getpid(), signal.SIGKILL)
            plain(descriptor)

        if self.world.rank == self.world.size - 1:
            os.fsync = dying
        self.stopped(way, out, 0)

    def full(self, way: str, out: str) -> str:
        """The last rank's disk is full when it saves step 4."""
        plain = os.fsync

        def full(descriptor: int) -> None:
            if list((self.folder / out / "checkpoints").glob("step-000002")):
                raise OSError(28, "No space left on device")
            plain(descriptor)

        if self.world.rank == self.world.size - 1:
            os.fsync = full
        try:
            self.stopped(way, out, 0)
        except InputError as error:
            return str(error)
        finally:
            os.fsync = plain
        return "no error"

    def errors(self) -> dict[str, str]:
        """What one rank raises, all raise; and a batch that is too small for the ranks."""

        def fail() -> None:
            if self.world.rank == self.world.size - 1:
                raise InputError("here", "is wrong", "make it right")

        told = {}
        actions = {"all": lambda: self.world.all(fail), "small": lambda: ranks.share([True] * (self.world.size - 1))}
        ranks = ranks_of(self.session("ddp"), model_of("plain"), "adamw")
        for name, action in actions.items():
            try:
                action()
            except InputError as error:
                told[name] = str(error)
        broken = model_of("plain")
        rows = Rows().next(None)
        with torch.no_grad():
            broken.embedding.weight[rows[1].ids_BT[0, 0]] = float("nan")  # type: ignore[union-attr, index]
        for way in WAYS:
            try:
                train(broken, Exact(), Rows(), settings(2), self.folder / f"nan-{way}", self.session(way))
            except InputError as error:
                told[f"nan {way}"] = str(error)
            broken = model_of("plain")
            with torch.no_grad():
                broken.embedding.weight[rows[1].ids_BT[0, 0]] = float("nan")  # type: ignore[union-attr, index]
        return told


def spread_out(ranks: Any, name: str) -> list[float]:
    """A part in a whole of zeros, of one rank of those that have the same part."""
    part = ranks.owned.get_parameter(name)
    whole = torch.zeros(ranks.shapes[name], dtype=torch.float64)
    gradient = part.grad
    if (ranks.in_pieces and not ranks.keeps(name)) or (not ranks.in_pieces and not ranks.world.first):
        return whole.flatten().tolist()  # type: ignore[no-any-return]
    ranks.piece(name).of(whole, part.shape).copy_(gradient)
    return whole.flatten().tolist()  # type: ignore[no-any-return]


def held(tensors: Any) -> int:
    from torch.distributed.tensor import DTensor

    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(tensor.nbytes for tensor in local if tensor.ndim)


def weights_of(model: nn.Module) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in model.state_dict().items()}


def main() -> None:
    folder, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    make_deterministic()
    world = World.of_environment()
    with world.joined():
        life = Life(folder, world)
        told = {str(job): getattr(life, job[0])(*job[1:]) for job in jobs}
        (folder / f"{world.rank}-of-{world.size}.json").write_text(json.dumps(told))
    if not world.alone:
        world.leave(0)


if __name__ == "__main__":
    main()
