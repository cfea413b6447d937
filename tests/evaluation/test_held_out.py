"""The task that asks a model what it was pretrained for: same figures as the stage, intervals, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmlab.checkpoints.bundle import Bundle
from llmlab.data.pack import Isolated
from llmlab.data.shards import TokenShards, write_shards
from llmlab.errors import InputError
from llmlab.evaluation import tasks
from llmlab.evaluation.harness import Evaluate, evaluate, evaluate_model
from llmlab.evaluation.measures import MEASURES, Finished, take
from llmlab.evaluation.perplexity import held_out_documents
from llmlab.evaluation.report import LOWER_IS_BETTER, METRICS
from llmlab.evaluation.tasks.base import Subject
from llmlab.model.transformer import Architecture
from llmlab.objectives.kind import Kind, Seen, Setting
from llmlab.objectives.pretraining import Causal, Masked, Permutation, Prefix, Spans
from llmlab.recipe import parse
from llmlab.stages import Session
from llmlab.tokenization.special import CLASS, END, MASK, SEPARATOR, START, sentinels
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, Unigram, WordPiece, train_tokenizer
from llmlab.training.probe import held_out

TEXTS = [
    f"The {animal} sat on the {place}. It went home." for animal in ("cat", "dog", "cow") for place in ("mat", "log")
]
SPECIAL = [MASK, CLASS, SEPARATOR, START, END, *sentinels(8)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(BPE(vocab_size=290), iter(TEXTS)).extended(SPECIAL)


@pytest.fixture(scope="module")
def shards(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    return write_shards(TEXTS, tokenizer, tmp_path_factory.mktemp("run") / "tokenizer" / "held_out")


def bundle(model: Architecture, tokenizer: Tokenizer) -> Bundle:
    made = model.model_copy(update={"initial_std": 0.3}).build(tokenizer.vocab_size, 1).eval().requires_grad_(False)
    return Bundle(made, tokenizer, model, "memory")


def measured(objective: Kind, some: Bundle, shards: TokenShards, **settings: Any) -> dict[str, Any]:
    task = tasks.read({"kind": "held_out", "objective": objective.model_dump(mode="json")} | settings)
    return {result.metric: result for result in task.run(Subject(some, 0, held_out_documents(shards)))}


def test_the_task_says_what_the_stage_says(
    objective: Kind, suited: Callable[..., Architecture], tokenizer: Tokenizer, shards: TokenShards
) -> None:
    """Every figure of the probe, with an interval around it, and known to the report by its direction."""
    some = bundle(suited(objective), tokenizer)
    probe = held_out(objective, shards, Setting(some.architecture, tokenizer, 32), 5)
    with torch.no_grad():
        expected = probe(some.model)
    found = measured(objective, some, shards)
    assert {f"held_out_{name}" for name in found} == expected.keys()
    for name, result in found.items():
        assert result.value.value == pytest.approx(expected[f"held_out_{name}"], rel=1e-5)
        assert result.value.low <= result.value.value <= result.value.high > result.value.low
        assert result.better == ("lower" if name in LOWER_IS_BETTER else "higher") == MEASURES[name].better
        assert name in METRICS
        assert len(result.items) == len(result.weights) == result.value.n


def test_without_being_told_it_is_the_architectures_own(
    suited: Callable[..., Architecture], tokenizer: Tokenizer, shards: TokenShards
) -> None:
    for kind in (Permutation(), Spans(), Masked(next_sentence=True), Causal()):
        results = tasks.read("held_out").run(Subject(bundle(suited(kind), tokenizer), 0, held_out_documents(shards)))
        assert {result.metric for result in results} == set(kind.ratios(Seen()))


def test_a_race_gives_the_same_figures_and_no_others(
    objective: Kind, suited: Callable[..., Architecture], tokenizer: Tokenizer, shards: TokenShards
) -> None:
    """What an objective has no likelihood for is a reason and no number."""
    some = bundle(suited(objective), tokenizer)
    values = take("held_out", Finished(some, shards, 32, Isolated(), [], objective))
    assert values.keys() == {name for name, measure in MEASURES.items() if measure.family == "held_out"}
    own = measured(objective, some, shards)
    for name, value in values.items():
        if name in own:
            assert value == pytest.approx(own[name].value.value, rel=1e-5)
        elif objective.next_token or (objective.whole_text and name == "loss"):
            assert isinstance(value, float) == (name in ("bits_per_byte", "loss"))
        else:
            assert value == f"the objective {objective.kind} gives no such figure"
    if not objective.next_token:
        lengths = take("length", Finished(some, shards, 32, Isolated(), [], objective))
        assert set(lengths.values()) == {f"the objective {objective.kind} gives no such figure"}


def test_left_to_right_is_causal_for_a_prefix_model(
    suited: Callable[..., Architecture], tokenizer: Tokenizer, shards: TokenShards
) -> None:
    prefix, causal = (bundle(suited(kind), tokenizer) for kind in (Prefix(), Causal()))
    both = [take("held_out", Finished(some, shards, 32, Isolated(), [], kind))["bits_per_byte"] for some, kind in (
        (prefix, Prefix()), (causal, Causal())
    )]  # fmt: skip
    assert both[0] == both[1]


def test_bytes_are_the_texts_whatever_spells_them(suited: Callable[..., Architecture], tmp_path: Path) -> None:
    """A unigram tokenizer begins each text with a space that is not there."""
    tokenizer = train_tokenizer(Unigram(vocab_size=320), iter(TEXTS))
    shards = write_shards(TEXTS, tokenizer, tmp_path)
    some = bundle(suited(Causal()), tokenizer)
    with torch.no_grad():
        probe = held_out(Causal(), shards, Setting(some.architecture, tokenizer, 32), 4)(some.model)
    found = measured(Causal(), some, shards)["bits_per_byte"]
    assert sum(found.weights) == pytest.approx(shards.text_bytes) == sum(len(text.encode()) for text in TEXTS)
    assert found.value.value == pytest.approx(probe["held_out_bits_per_byte"], rel=1e-5)


def test_text_of_ones_own(suited: Callable[..., Architecture], tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("The cat sat. " * 40)
    some = bundle(suited(Masked()), tokenizer)
    (accuracy, entropy) = evaluate_model(some, ["held_out"], data=path)["tasks"]
    assert (accuracy["name"], accuracy["metric"], entropy["metric"]) == (
        "own.txt",
        "masked_accuracy",
        "masked_cross_entropy",
    )
    assert evaluate_model(some, data=path)["tasks"] == [accuracy, entropy]  # all that this model can be asked
    json.dumps(accuracy)
    assert math.isfinite(entropy["value"])


def test_refusals(
    suited: Callable[..., Architecture], tokenizer: Tokenizer, shards: TokenShards, tmp_path: Path
) -> None:
    masked = bundle(suited(Masked()), tokenizer)
    for name in ("bits_per_byte", "samples", "exercises"):
        with pytest.raises(InputError, match=f"task {name}: asks for the next token, .* bidirectional does not give"):
            evaluate_model(masked, [name])
    section = parse(Evaluate, {"tasks": ["samples"]})
    with pytest.raises(InputError, match="task samples: asks for the next token"):
        evaluate(section, {"pretrain": masked}, shards, tmp_path, Session())
    with pytest.raises(InputError, match=r"model\.mask: bidirectional cannot go with the objective causal"):
        measured(Causal(), masked, shards)
    with pytest.raises(InputError, match="held_out: there is no held-out text to read"):
        tasks.read("held_out").run(Subject(masked))
    with pytest.raises(InputError, match=r"unknown kind 'mask'.*did you mean 'masked'"):
        tasks.read({"kind": "held_out", "objective": "mask"})
    lossy = train_tokenizer(WordPiece(vocab_size=80), iter(TEXTS)).extended(SPECIAL)
    theirs = write_shards(TEXTS, lossy, tmp_path / "lossy")
    with pytest.raises(InputError, match=r"its ids do not keep the text .* no figures by bytes"):
        measured(Spans(), bundle(suited(Spans()), lossy), theirs)
    assert measured(Masked(), bundle(suited(Masked()), lossy), theirs).keys() == {
        "masked_accuracy",
        "masked_cross_entropy",
    }
