"""Every objective of pretraining through the whole stage: it learns, and a run that was cut is the unbroken one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmlab.checkpoints.native import load_model
from llmlab.data.shards import TokenShards, write_shards
from llmlab.errors import InputError, Stopped
from llmlab.model.transformer import Architecture
from llmlab.objectives.kind import Kind
from llmlab.objectives.pretraining import Causal, Masked, Prefix, Spans
from llmlab.recipe import parse
from llmlab.stages import Figures, Session
from llmlab.tokenization.special import CLASS, END, MASK, SEPARATOR, START, sentinels
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, train_tokenizer
from llmlab.training.pretrain import Pretrain, pretrain

TEXTS = [
    f"The {animal} sat on the {place}. Then the {animal} went home."
    for place in ("mat", "log", "bed", "sea")
    for animal in ("cat", "dog", "cow")
]
STEPS = 30
TIMES = ("seconds", "per_second", "tokens")


class Corpus:
    """One tokenizer that every objective can be learnt with, and both splits."""

    def __init__(self, folder: Path) -> None:
        trained = train_tokenizer(BPE(vocab_size=300), iter(TEXTS))
        self.tokenizer = trained.extended([MASK, CLASS, SEPARATOR, START, END, *sentinels(8)])
        self.train = write_shards(TEXTS[:9], self.tokenizer, folder / "train")
        self.held = write_shards(TEXTS[9:], self.tokenizer, folder / "held_out")

    def pretrain(
        self,
        objective: Kind,
        model: Architecture,
        out: Path,
        session: Session | None = None,
        train: TokenShards | None = None,
        tokenizer: Tokenizer | None = None,
        **fields: Any,
    ) -> Figures:
        rate = {"kind": "adamw", "lr": 0.01}
        training = {"steps": STEPS, "optimizer": rate, "evaluate_every": 10, "checkpoint_every": 8, "log_every": 5}
        given = {"objective": objective, "batch_size": 12, "micro_batch": 5, "training": training} | fields
        section, session = parse(Pretrain, given), session or Session(seed=3)
        return pretrain(section, model, tokenizer or self.tokenizer, train or self.train, self.held, out, session)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


class Cut(Session):
    """A session in which the lights go out, or that is asked to stop, right after a step."""

    def __init__(self, stop_at: int = 0, die_at: int = 0) -> None:
        super().__init__(seed=3)
        object.__setattr__(self, "_at", (stop_at, die_at))

    def meter(self, folder: Path, name: str, total: int) -> Any:
        meter, (stop_at, die_at) = super().meter(folder, name, total), self._at  # type: ignore[attr-defined]
        plain = meter.step

        def step(number: int, figures: Any) -> None:
            if die_at and number == die_at:
                raise RuntimeError("power cut")
            plain(number, figures)
            self.stop.requested = bool(stop_at) and number == stop_at

        meter.step = step  # type: ignore[method-assign]
        return meter


def curve(out: Path) -> list[dict[str, float]]:
    """Every row without what depends on time."""
    rows = [json.loads(line) for line in (out / "figures.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.endswith(TIMES)} for row in rows]


def test_learns_and_resumes_bit_for_bit(
    objective: Kind, suited: Callable[..., Architecture], corpus: Corpus, tmp_path: Path
) -> None:
    """30 steps with falling loss; killed in step 13, asked to stop after step 21, and still the same bytes."""
    model = suited(objective, dropout=0.1)
    expected = corpus.pretrain(objective, model, tmp_path / "whole")
    rows = curve(tmp_path / "whole")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] - 0.5
    best = f"held_out_{objective.best}"
    held = [row[best] for row in rows if best in row]
    assert len(held) == 4
    assert min(held) < held[0] - 0.1
    assert expected["held_out"][best] == min(held)

    out = tmp_path / "cut"
    with pytest.raises(RuntimeError, match="power cut"):
        corpus.pretrain(objective, model, out, Cut(die_at=13))
    with pytest.raises(Stopped, match="step 21 of 30"):
        corpus.pretrain(objective, model, out, Cut(stop_at=21))
    assert not (out / "model").exists()
    assert corpus.pretrain(objective, model, out) == expected | {"resumed_from_step": 21}
    assert curve(out) == rows
    whole, again = (load_model(folder / "model").model.state_dict() for folder in (tmp_path / "whole", out))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    for file in (tmp_path / "whole").rglob("*.safetensors"):
        assert file.read_bytes() == (out / file.relative_to(tmp_path / "whole")).read_bytes()


def test_the_micro_batch_changes_memory_only(
    objective: Kind, suited: Callable[..., Architecture], corpus: Corpus, tmp_path: Path
) -> None:
    """Loss and norm of the gradient, step by step (traps 1 to 8)."""
    curves = []
    for micro_batch in (12, 1):
        training = {"steps": 4, "log_every": 1, "optimizer": {"kind": "adamw", "lr": 0.01}}
        out = tmp_path / str(micro_batch)
        corpus.pretrain(objective, suited(objective), out, micro_batch=micro_batch, training=training)
        curves.append([(row["loss"], row["gradient_norm"]) for row in curve(out) if "loss" in row])
    assert len(curves[0]) == 4
    for one, other in zip(*curves, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_no_prefix_is_causal_training(suited: Callable[..., Architecture], corpus: Corpus, tmp_path: Path) -> None:
    """Equal weights to the last bit, after a whole training."""
    for objective in (Prefix(length=0), Causal()):
        corpus.pretrain(objective, suited(objective), tmp_path / objective.kind, training={"steps": 6})
    newest = [tmp_path / name / "checkpoints" / "step-000006" / "weights.safetensors" for name in ("prefix", "causal")]
    assert newest[0].read_bytes() == newest[1].read_bytes()


def test_another_objective_does_not_go_on(suited: Callable[..., Architecture], corpus: Corpus, tmp_path: Path) -> None:
    first = Masked()
    corpus.pretrain(first, suited(first), tmp_path, training={"steps": 3})
    with pytest.raises(InputError, match="read differently"):
        corpus.pretrain(Masked(rate=0.3), suited(first), tmp_path, training={"steps": 3})


def test_refused_before_any_work(suited: Callable[..., Architecture], corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"model\.mask: causal cannot go with the objective masked"):
        corpus.pretrain(Masked(), suited(Causal()), out)
    bare = train_tokenizer(BPE(vocab_size=300), iter(TEXTS))
    own = write_shards(TEXTS[:9], bare, tmp_path / "own")
    with pytest.raises(InputError, match="encoded by another tokenizer"):
        corpus.pretrain(Spans(), suited(Spans()), out, tokenizer=bare)
    assert not out.exists()
    poor = Corpus.__new__(Corpus)
    poor.tokenizer, poor.train, poor.held = bare, own, own
    with pytest.raises(InputError, match="tokenizer: has no token <extra_id_0>, which the objective spans needs"):
        poor.pretrain(Spans(), suited(Spans()), out)
    assert not out.exists()
