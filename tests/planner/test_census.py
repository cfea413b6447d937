"""A census of fake tensors against one of real tensors, and against what is known on paper."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from llmlab.data.batch import IGNORE, Batch
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture
from llmlab.objectives.language import NextToken
from llmlab.planner.census import Watch, watched
from llmlab.planner.observe import Fixed, Stepped, made
from llmlab.stages import Session
from llmlab.training.adamw import AdamW
from llmlab.training.loop import Training, stepping
from llmlab.training.muon import Muon
from llmlab.training.optimizers import OptimizerKind

ROWS, LENGTH, VOCABULARY = 3, 24, 101


def random_architecture(seed: int) -> Architecture:
    draw = random.Random(seed)
    heads = draw.choice([2, 4])
    fields: dict[str, Any] = {
        "layers": draw.randint(1, 3),
        "dim": heads * draw.choice([6, 10, 14, 22]),
        "context": LENGTH,
        "position": draw.choice(["rope", "learned", "alibi", "t5"]),
        "norm": draw.choice(["rmsnorm", "layernorm"]),
        "feedforward": draw.choice(["swiglu", "gelu", "geglu"]),
        "wiring": draw.choice(["pre", "post", "sandwich", "parallel"]),
        "attention": draw.choice([{"kind": "mha", "heads": heads}, {"kind": "gqa", "heads": heads, "kv_heads": 1}]),
        "tied": draw.random() < 0.5,
    }
    return Architecture.model_validate(fields)


def batch() -> Batch:
    """A third of its targets are learnt."""
    ids = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % VOCABULARY
    return Batch(ids, torch.where(ids % 3 == 0, ids, IGNORE), Places.causal(ROWS, LENGTH))


def census(architecture: Architecture, optimizer: OptimizerKind, dtype: torch.dtype | None, fake: bool) -> Watch:
    training = Training(steps=2, optimizer=optimizer)
    rows = batch()

    def build() -> Any:
        from llmlab.model.transformer import Transformer

        return Transformer(architecture, VOCABULARY), NextToken()

    stage = Stepped(build, rows, rows, 2, training, VOCABULARY)
    with watched(fake) as watch:
        model, objective = made(stage, watch)
        if not fake:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(0.01)
        watch.census.events = [event for event in watch.census.events if event[1].cause == "weights"]
        with stepping(model, objective, Fixed([rows, rows]), training, Session(dtype=dtype)) as loop:
            for parameter in loop.optimizer.parameters.values():
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    lambda p: watch.know([p.grad], "gradients")
                )
            for _ in range(2):
                loop.update()
                watch.know(loop.optimizer.state().values(), "optimizer")
    return watch


@pytest.mark.parametrize("seed", range(5))
def test_fake_tensors_come_and_go_as_real_ones_do(seed: int) -> None:
    optimizer: OptimizerKind = Muon() if seed % 2 else AdamW()
    dtype = torch.bfloat16 if seed in (1, 2) else None
    architecture = random_architecture(seed)
    fake, real = (census(architecture, optimizer, dtype, kind).census for kind in (True, False))
    peaks = fake.peak(), real.peak()
    # A scalar of the real step is a number of Python where the fake one is a tensor, and the other way round.
    assert peaks[0][0] == pytest.approx(peaks[1][0], abs=2048)
    for cause in ("weights", "gradients", "optimizer", "logits"):
        assert peaks[0][1].get(cause, 0) == pytest.approx(peaks[1][1].get(cause, 0), abs=512), cause
    assert fake.flops == real.flops > 0


def test_of_adamw_there_are_twelve_bytes_a_weight_beside_the_activations() -> None:
    architecture = random_architecture(3)
    watch = census(architecture, AdamW(), None, True)
    numbers = sum(p.numel() for p in architecture.build(VOCABULARY).parameters())
    _, by_cause = watch.census.peak()
    assert by_cause["weights"] >= 4 * numbers  # buffers beside
    assert by_cause["weights"] <= 4 * numbers + 4096
    assert 8 * numbers <= by_cause["optimizer"] <= 8 * numbers + 4096  # counters beside


def test_products_count_six_operations_a_weight_and_token() -> None:
    """2 forward, 4 backward (Kaplan et al. 2020), for what is a product with weights: no attention here to speak of."""
    architecture = Architecture.model_validate({"layers": 2, "dim": 64, "context": LENGTH, "tied": False})
    rows = batch()
    with watched() as watch:
        stage = Stepped(lambda: (_model(architecture), NextToken()), rows, rows, 1, Training(steps=1), VOCABULARY)
        model, objective = made(stage, watch)
        terms = objective(model, rows)
        terms.sums["cross_entropy"].backward()  # type: ignore[no-untyped-call]
    matrices = sum(p.numel() for p in model.get_submodule("blocks").parameters() if p.ndim == 2)
    learnt = rows.learnt
    expected = 6 * matrices * ROWS * LENGTH + 6 * 64 * VOCABULARY * learnt
    products = sum(work.flops for work in watch.census.works if work.name.startswith("mm"))
    assert products == expected


def _model(architecture: Architecture) -> Any:
    from llmlab.model.transformer import Transformer

    return Transformer(architecture, VOCABULARY)
