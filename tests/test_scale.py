"""docs/scale.md keeps its promises: so many ranks can live its commands, and its table is what the arithmetic says."""

from __future__ import annotations

import math
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from llmlab.handbook.smollm2_shape import LLAMA_7B, LLAMA_VOCABULARY
from llmlab.model.transformer import Transformer
from llmlab.run import check_ranks, read_recipe
from llmlab.training.parallel.kinds import DDP, FSDP, TensorParallel, Zero1
from llmlab.training.parallel.memory import bytes_a_rank
from llmlab.training.parallel.replica import ELEMENTWISE
from llmlab.world import World

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^torchrun .+$", PAGE, re.MULTILINE)
WAYS: list[tuple[str, Any, int]] = [
    ("`ddp`", DDP(), 8),
    ("`zero1`", Zero1(), 8),
    ("`fsdp`", FSDP(), 8),
    ("`tensor`", TensorParallel(), 8),
    ("`zero1`", Zero1(), 16),
    ("`fsdp`", FSDP(), 16),
    ("`{kind: fsdp, tensor: 4}`", FSDP(tensor=4), 16),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_a_life_for_its_ranks(command: str) -> None:
    words = shlex.split(command)
    after = words[words.index("run") + 1 :]
    recipe = read_recipe(after[0], [word for word in after if "=" in word])
    given = dict(pairwise(words))
    size = int(given["--nproc-per-node"]) * int(given.get("--nnodes", "1"))
    check_ranks(recipe, World(size=size))
    if isinstance(recipe.parallel, FSDP | TensorParallel):
        for name in ("pretrain", "sft", "reward", "dpo", "ppo"):
            assert getattr(recipe, name) is None or getattr(recipe, name).training.optimizer.kind in ELEMENTWISE
    if isinstance(recipe.parallel, FSDP) and recipe.parallel.tensor > 1:
        assert recipe.model is not None
        with torch.device("meta"):
            bytes_a_rank(Transformer(recipe.model, 2048), recipe.parallel, size)  # it can be cut so


def test_the_table_is_the_arithmetic() -> None:
    architecture = LLAMA_7B.model_copy(update={"tied": False})  # as released
    with torch.device("meta"):
        model = Transformer(architecture, LLAMA_VOCABULARY)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 6_738_415_616
    rows = []
    for name, way, ranks in WAYS:
        held = bytes_a_rank(model, way, ranks)
        cells = [f"{part / 2**30:.1f}" for part in (*held.values(), sum(held.values()))]
        rows.append(f"| {name} | {ranks} | {' | '.join(cells)} |")
        formula = {DDP: 4 * count * 4, Zero1: 4 * count * (2 + 2 / ranks), FSDP: 4 * count * 4 / ranks}
        if not isinstance(way, TensorParallel) and not getattr(way, "tensor", 1) > 1:
            assert math.isclose(sum(held.values()), formula[type(way)], rel_tol=0.02)
    assert "\n".join(rows) in PAGE, "\n".join(rows)
