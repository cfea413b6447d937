"""The pretraining stage on a corpus of a few sentences."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from llmlab.checkpoints.native import load_model
from llmlab.data.pack import EvalBatches
from llmlab.data.shards import write_shards
from llmlab.errors import InputError, Stopped
from llmlab.model.transformer import Architecture
from llmlab.stages import Figures, Session
from llmlab.tokenization.train import BPE, train_tokenizer
from llmlab.training.pretrain import Pretrain, pretrain
from llmlab.training.probe import bits_per_byte

TEXTS = [
    f"The {animal} sat on the {place}. Then the {animal} went home." for animal in ("cat", "dog") for place in "abc"
]
ARCHITECTURE = Architecture(layers=2, dim=32, context=16)


class Corpus:
    def __init__(self, folder: Path) -> None:
        self.tokenizer = train_tokenizer(BPE(vocab_size=300), TEXTS)
        self.train = write_shards(TEXTS[:5], self.tokenizer, folder / "train")
        self.held = write_shards(TEXTS[5:], self.tokenizer, folder / "held_out")

    def pretrain(self, out: Path, session: Session | None = None, dropout: float = 0.1, **fields: Any) -> Figures:
        given = {"steps": 12, "optimizer": "muon", "evaluate_every": 6, "checkpoint_every": 4, "log_every": 3}
        section = Pretrain.model_validate(
            {"batch_size": 4, "micro_batch": 3, "training": given | fields.pop("training", {})} | fields
        )
        model, session = ARCHITECTURE.model_copy(update={"dropout": dropout}), session or Session(seed=3)
        return pretrain(section, model, self.tokenizer, self.train, self.held, out, session)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


def test_learns_and_leaves_its_best_model(corpus: Corpus, tmp_path: Path) -> None:
    figures = corpus.pretrain(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    curve = {row["step"]: row["held_out_bits_per_byte"] for row in rows if "held_out_bits_per_byte" in row}
    assert sorted(curve) == [0, 6, 12]
    assert curve[12] < curve[0] - 0.5
    bundle = load_model(tmp_path / "model")
    held = EvalBatches(corpus.held, 16, 8, overlap=8)
    with torch.no_grad():
        kept = bits_per_byte(bundle.model, held)
    assert kept == pytest.approx(min(curve.values()), rel=1e-5)
    assert figures["held_out"]["held_out_bits_per_byte"] == min(curve.values()) == curve[figures["kept_step"]]
    assert figures["tokens"] == pytest.approx(12 * 4 * 16, rel=0.2)  # the padded row of each epoch is not counted
    json.dumps(figures, allow_nan=False)


def test_bits_per_byte_of_a_uniform_model(corpus: Corpus) -> None:
    """log2(V) bits a token, whatever the batches are cut into."""
    model = ARCHITECTURE.build(corpus.tokenizer.vocab_size).requires_grad_(False).eval()
    model.embedding.weight.zero_()
    expected = corpus.held.tokens * math.log2(corpus.tokenizer.vocab_size) / corpus.held.text_bytes
    for rows, overlap in ((1, 0), (8, 0), (3, 8)):
        assert bits_per_byte(model, EvalBatches(corpus.held, 16, rows, overlap=overlap)) == pytest.approx(expected)


def test_stopped_and_resumed_leaves_the_same_bytes(corpus: Corpus, tmp_path: Path) -> None:
    expected = corpus.pretrain(tmp_path / "whole")

    class Impatient(Session):
        def meter(self, folder: Path, name: str, total: int) -> Any:
            meter = super().meter(folder, name, total)
            plain = meter.step

            def step(number: int, figures: Any) -> None:
                plain(number, figures)
                self.stop.requested = number == 5

            meter.step = step  # type: ignore[method-assign]
            return meter

    with pytest.raises(Stopped, match="step 5 of 12"):
        corpus.pretrain(tmp_path / "cut", Impatient(seed=3))
    assert not (tmp_path / "cut" / "model").exists()
    assert corpus.pretrain(tmp_path / "cut") == expected | {"resumed_from_step": 5}
    for file in (tmp_path / "whole").rglob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "cut" / file.relative_to(tmp_path / "whole")).read_bytes()


def test_the_micro_batch_changes_memory_only(corpus: Corpus, tmp_path: Path) -> None:
    curves = []
    for micro_batch in (4, 1):
        out = tmp_path / str(micro_batch)
        corpus.pretrain(out, micro_batch=micro_batch, dropout=0.0, training={"steps": 5, "log_every": 1})
        rows = [json.loads(line) for line in (out / "figures.jsonl").read_text().splitlines()]
        curves.append([(row["loss"], row["gradient_norm"]) for row in rows if "loss" in row])
    assert len(curves[0]) == 5
    for one, other in zip(*curves, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_bad_input_is_one_line(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pretrain.length: 17 is beyond the model's context of 16"):
        corpus.pretrain(tmp_path, length=17)
    other = train_tokenizer(BPE(vocab_size=280), TEXTS)
    foreign = write_shards(TEXTS[:2], other, tmp_path / "foreign")
    with pytest.raises(InputError, match="encoded by another tokenizer"):
        pretrain(Pretrain(), ARCHITECTURE, corpus.tokenizer, foreign, corpus.held, tmp_path / "out", Session())
    short = write_shards(["ab"], corpus.tokenizer, tmp_path / "short")
    with pytest.raises(InputError, match="less than one context"):
        pretrain(Pretrain(), ARCHITECTURE, corpus.tokenizer, short, corpus.held, tmp_path / "out", Session())
