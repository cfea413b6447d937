"""What each of two processes holds after a step of training, by how the training lies on them. Question 17.

The processes are real and speak by gloo; a step has two micro-batches, one a rank. Bytes depend on shapes alone.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from llmlab.handbook.training_ledger import FIRST, TextRows, V
from llmlab.model.transformer import Architecture
from llmlab.objectives.language import NextToken
from llmlab.recipe import parse
from llmlab.stages import Session
from llmlab.training.adamw import AdamW
from llmlab.training.memory import Load, on_paper
from llmlab.training.parallel.choice import ranks_of
from llmlab.training.parallel.kinds import DDP, FSDP, TensorParallel, Zero1
from llmlab.training.parallel.memory import bytes_a_rank
from llmlab.training.step import Gradients
from llmlab.world import World

RANKS = 2
MEASURES = ("parameters", "gradients", "optimizer")
SHAPE = {"layers": 2, "dim": 64, "context": 16, "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2}}
WAYS: dict[str, DDP | Zero1 | FSDP | TensorParallel] = {
    "ddp": DDP(),
    "zero1": Zero1(),
    "fsdp": FSDP(),
    "tensor": TensorParallel(),
}


def foretold(way: str, ranks: int) -> dict[str, int]:
    """From shapes: what the rank that holds most holds. One rank is one process alone."""
    return bytes_a_rank(on_paper(parse(Architecture, SHAPE), V), WAYS[way], ranks)


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Bytes of each kind on the rank that holds most, counted in the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llmlab.handbook.rank_bytes", settings["way"]]
    ranks: int = settings["ranks"]
    told = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(command, env=os.environ | told | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=-1)
        for rank in range(ranks)
    ]
    answers = [process.communicate()[0] for process in processes]
    for process in processes:
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
    held = [json.loads(answer) for answer in answers]
    return {name: float(max(rank[name] for rank in held)) for name in MEASURES}


def _rank(way: str, world: World) -> dict[str, int]:
    """What this process holds of each kind once gradients are there, and after the update."""
    model = parse(Architecture, SHAPE).build(V, 0)
    session = Session(world=world, parallel=WAYS[way])
    ranks = ranks_of(session, model, "adamw")
    optimizer = AdamW().build(ranks.owned)
    batches = TextRows(FIRST, Load(1, 16, 16, RANKS), 0).next(model)
    Gradients(ranks, NextToken(), None, session).of(batches, 0)
    gradients = _held(p.grad for p in ranks.model.parameters() if p.grad is not None)
    ranks.update(optimizer)
    return {
        "parameters": _held(ranks.model.parameters()),
        "gradients": gradients,
        "optimizer": _held(optimizer.state().values()),
    }


def _held(tensors: Iterable[Tensor]) -> int:
    """Bytes here: of a tensor that is cut across ranks, this rank's part. Counters of steps are left out."""
    local = [getattr(tensor, "to_local", lambda tensor=tensor: tensor)() for tensor in tensors]
    return sum(tensor.nbytes for tensor in local if tensor.ndim)


def main() -> None:
    torch.set_num_threads(1)
    world = World.of_environment()
    with world.joined():
        answer = _rank(sys.argv[1], world)
        print(json.dumps(answer), flush=True)
    if not world.alone:
        world.leave(0)


if __name__ == "__main__":
    main()
