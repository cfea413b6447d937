"""What a step is foretold to take, against what is alive while the real loop takes it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llmlab.data.batch import Batch
from llmlab.data.state import State
from llmlab.interpret.live_bytes import LiveBytes
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture
from llmlab.objectives.language import NextToken
from llmlab.runtime import generator
from llmlab.stages import Session
from llmlab.training.loop import Training, train
from llmlab.training.memory import Load, foretell, on_paper

STEPS = 2


class Rows:
    """Full rows of noise."""

    def __init__(self, load: Load, vocabulary: int) -> None:
        self._load, self._vocabulary = load, vocabulary

    def next(self, model: Any) -> list[Batch]:
        rows, length = self._load.rows, self._load.length
        ids = torch.zeros(rows, length, dtype=torch.int64)
        return [Batch(ids, ids + 1, Places.causal(rows, length)) for _ in range(self._load.micro_batches)]

    def state(self) -> State:
        return State({}, {})

    def load(self, state: State) -> None: ...


def counted(a: Architecture, vocabulary: int, settings: Training, load: Load, out: Path) -> int:
    model = a.build(vocabulary, 0)
    with LiveBytes(model.parameters()) as live:
        train(model, NextToken(), Rows(load, vocabulary), settings, out, Session(dtype=load.autocast))
    return sum(p.nbytes for p in model.parameters()) + live.peak


def random_model(seed: int) -> tuple[Architecture, int, Load]:
    """Widths, depths, parts and loads of no special size."""
    noise = generator(seed, "memory test")

    def pick(*choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=noise))]

    heads, width = pick(2, 4, 6), pick(8, 12, 20)
    a = Architecture.model_validate(
        {
            "layers": pick(1, 2, 3, 5),
            "dim": heads * width,
            "context": 96,
            "attention": {"kind": "gqa", "heads": heads, "kv_heads": pick(1, 2)},
            "feedforward": pick("swiglu", "gelu", {"kind": "geglu", "width": 77}),
            "norm": pick("rmsnorm", "layernorm"),
            "position": pick("rope", "alibi", "t5", "learned"),
            "wiring": pick("pre", "post", "sandwich", "parallel"),
            "tied": pick(True, False),
            "shared": pick(True, False),
        }
    )
    rows, length = pick(1, 3, 7), pick(9, 33, 96)
    return a, pick(65, 300, 1000), Load(rows, length, rows * length, pick(1, 1, 3), pick(None, torch.bfloat16))


SAVERS: list[dict[str, Any]] = [
    {},
    {"optimizer": {"kind": "adamw", "moments": "bf16"}},
    {"optimizer": {"kind": "adamw8bit", "smallest": 500}},
    {"optimizer": "muon"},
    {"optimizer": "lion"},
    {"optimizer": "adafactor"},
    {"optimizer": {"kind": "galore", "rank": 8}},
    {"optimizer": "sgd"},
    {"activation_checkpointing": "full"},
    {"activation_checkpointing": "selective"},
    {"clip": None, "in_backward": True},
    {"clip": None, "in_backward": True, "optimizer": "sgd", "activation_checkpointing": "full"},
]


@pytest.mark.parametrize("seed", range(len(SAVERS)))
def test_random_models_are_foretold_within_a_tenth(tmp_path: Path, seed: int) -> None:
    a, vocabulary, load = random_model(seed)
    saver = SAVERS[seed]
    if saver.get("in_backward"):
        load = Load(load.rows, load.length, load.learnt, 1, load.autocast)
    settings = Training.model_validate({"steps": STEPS, "checkpoint_every": STEPS, "optimizer": "adamw"} | saver)
    foretold = foretell(on_paper(a, vocabulary), settings, load)
    assert foretold.peak == pytest.approx(counted(a, vocabulary, settings, load, tmp_path), rel=0.1)


def test_a_model_with_weights_is_as_one_on_paper_and_is_left_as_it_was() -> None:
    a, vocabulary, load = random_model(3)
    settings, model = Training(steps=1), a.build(vocabulary, 0)
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    assert foretell(model, settings, load) == foretell(on_paper(a, vocabulary), settings, load)
    for name, p in model.named_parameters():
        assert id(p) == before[name][0]
        assert torch.equal(p, before[name][1])
        assert p.grad is None
    assert model.training


def test_only_what_is_trained_has_gradients_and_moments() -> None:
    a, vocabulary, load = random_model(1)
    whole, part = on_paper(a, vocabulary), on_paper(a, vocabulary)
    part.requires_grad_(False)
    part.final_norm.requires_grad_(True)
    settings = Training(steps=1)
    all_of_it, little = foretell(whole, settings, load), foretell(part, settings, load)
    size = sum(p.nbytes for p in part.final_norm.parameters())
    assert little.weights == all_of_it.weights
    assert little.gradients == size
    assert little.optimizer == 2 * size + 4 * len(list(part.final_norm.parameters()))
    assert little.activations < all_of_it.activations / 2
