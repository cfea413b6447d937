"""Questions 2 and 4: the specification's numbers, the tasks of their trials, and trials whatever their outcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llmlab.handbook import (
    fitting,
    instruction_task,
    little_model,
    misspelling_task,
    q04_architecture,
    stored_pairs_task,
)
from llmlab.handbook.question import Figures, Verdict, load
from llmlab.handbook.raced import Told, race
from llmlab.handbook.runner import shipped
from llmlab.model.block import Block

SMALL = {"steps": 2, "easy": 1, "rows": 2, "rate": 2e-2, "adamw_rate": 1e-2}
TUNED = {"tune_steps": 6, "tune_rows": 8, "tune_rate": 1e-2, "tune_adamw_rate": 5e-3}
seeds = st.integers(0, 2**32)


def recorded(number: int) -> Figures:
    found = shipped(number)
    assert found is not None
    figures: Figures = found["figures"]
    return figures


def source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- the specification's numbers


def test_smollm2_is_counted_to_the_last_parameter() -> None:
    f = recorded(4)
    assert f["smollm2_parameters"] == 134_515_008
    assert f["smollm2_embedding"] == 49_152 * 576
    assert f["smollm2_attention"] == 30 * (2 * 576 * 576 + 2 * 576 * 192)
    assert f["smollm2_feedforward"] == 30 * 3 * 576 * 1536
    assert f["smollm2_norms"] == 61 * 576
    assert f["heads_extra_cost"] < 0.02


def test_smollm2s_sizes_are_those_of_its_file(smollm2: Any) -> None:
    from llmlab.checkpoints.where import open_model

    bundle = open_model(str(smollm2))
    ours = q04_architecture.llama.read_config(q04_architecture.SMOLLM2)[0]
    for field in ("layers", "dim", "context", "norm", "feedforward", "tied"):
        assert getattr(bundle.architecture, field) == getattr(ours, field)
    assert (bundle.architecture.keyed.heads, bundle.architecture.keyed.key_heads) == (9, 3)


def test_a_conversation_is_read_again_by_a_prefix_alone() -> None:
    """Six turns of sixteen tokens: 6 x 16, or 16 + 32 + ... + 96."""
    f = recorded(2)
    assert (f["encoded_causal"], f["encoded_prefix"]) == (96, 336)
    assert f["supervised_prefix"] == pytest.approx(0.5, abs=0.03)
    assert f["supervised_instruction"] == pytest.approx(1 / 7)


# ---------------------------------------------------------------- tasks


@settings(deadline=None, max_examples=20)
@given(seed=seeds, hops=st.lists(st.sampled_from(instruction_task.HOPS), min_size=1, max_size=5))
def test_arrows_are_followed(seed: int, hops: list[int]) -> None:
    asked = instruction_task.rows(torch.tensor(hops), source(seed))
    arrows = instruction_task.ARROWS
    for ids, starts, answer, count in zip(
        asked.ids_NL.tolist(), asked.starts_NL.tolist(), asked.answers_N.tolist(), hops, strict=True
    ):
        arrow = dict(zip(starts[:arrows], ids[:arrows], strict=True))
        assert set(arrow) == set(arrow.values()) == set(range(arrows))
        assert ids[arrows] == arrows + count - 1
        here = starts[arrows]
        for _ in range(count):
            here = arrow[here]
        assert here == answer


@settings(deadline=None, max_examples=20)
@given(seed=seeds, pairs=st.sampled_from(stored_pairs_task.PAIRS), distance=st.integers(0, 20))
def test_pairs_are_asked_as_they_were_told(seed: int, pairs: int, distance: int) -> None:
    asked = stored_pairs_task.rows(3, pairs, distance, source(seed))
    questions = min(pairs, stored_pairs_task.QUESTIONS)
    assert asked.ids_NL.shape == asked.values_NL.shape == (3, pairs + distance + questions)
    for ids, values, answers in zip(*(part.tolist() for part in asked), strict=True):
        told = dict(zip(ids[:pairs], values[:pairs], strict=True))
        assert len(told) == pairs
        assert [told[key] - 1 for key in ids[-questions:]] == answers
        assert not any(values[pairs:])
        assert all(key >= stored_pairs_task.KEYS for key in ids[pairs : pairs + distance])


@settings(deadline=None, max_examples=10)
@given(seed=seeds)
def test_spoilt_passages_are_the_books_with_letters_exchanged(seed: int) -> None:
    text = little_model.book()[1]
    rows, spoilt = misspelling_task.examples(text, 4, source(seed))
    whole = bytes(text.tolist())
    for row, label in zip(rows.tolist(), spoilt.tolist(), strict=True):
        assert (bytes(row) in whole) != bool(label)
    clean = little_model.passages(text, 4, little_model.LENGTH, source(seed))
    assert torch.equal(rows.sort(1).values, clean.sort(1).values)  # of the same bytes


def test_attention_and_lstm_have_as_many_parameters() -> None:
    sizes = [
        sum(p.numel() for p in stored_pairs_task.built(mixer, 0).parameters())
        for mixer in ({"kind": "mha", "heads": 2}, {"kind": "lstm"})
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_nothing_is_trained_on_the_end_of_the_book() -> None:
    text, held = little_model.book()
    assert len(held) > 100_000
    assert bytes(held[:200].tolist()) not in bytes(text.tolist())


def test_fitting_lowers_a_loss() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    x = torch.randn(32, 4, generator=source(1))

    def loss(step: int = 0) -> Tensor:
        return (model(x) - x).square().mean()

    before = float(loss().detach())
    fitting.fit(model, loss, 60, 2e-2, 2e-2)
    assert float(loss().detach()) < 0.2 * before


# ---------------------------------------------------------------- ablations


@pytest.fixture(scope="module")
def model() -> little_model.Transformer:
    found = little_model.architecture(initial_std=0.2).build(little_model.VOCABULARY, 0).eval()
    for parameter in found.position.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    return found


@pytest.mark.parametrize("part", little_model.PARTS)
def test_an_ablation_changes_what_is_said_and_leaves_the_model(part: str, model: little_model.Transformer) -> None:
    ids = torch.arange(20)[None] * 7 % 256
    before = model(ids)
    assert not torch.allclose(little_model.without(model, part)(ids), before, atol=1e-2)
    assert torch.equal(model(ids), before)


def test_each_part_is_gone(model: little_model.Transformer) -> None:
    ids = torch.arange(20)[None] * 7 % 256
    swapped = ids.clone()
    swapped[0, [3, 4]] = ids[0, [4, 3]]
    later = ids.clone()
    later[0, -1] += 1
    last = {part: little_model.without(model, part) for part in little_model.PARTS}
    assert torch.allclose(last["mask"](ids)[:, :-1], model(ids)[:, :-1]) is False
    assert not torch.allclose(last["mask"](later)[0, 0], last["mask"](ids)[0, 0])  # it looks ahead
    assert torch.allclose(model(later)[0, 0], model(ids)[0, 0])
    assert not any(parameter.numel() for parameter in last["position"].position.parameters())
    block = last["residual"].blocks[-1]
    assert isinstance(block, Block)
    nn.init.zeros_(block.get_parameter("feedforward.down.weight"))
    assert not last["residual"](ids).any()  # nothing passes by
    assert last["heads"].architecture.attention.heads == 1
    assert isinstance(last["norm"].blocks[0].attention_norm, nn.Identity)


# ---------------------------------------------------------------- trials


@pytest.mark.parametrize(
    ("name", "common"),
    [("instruction_last", SMALL), ("stored_pairs", SMALL), ("parts", SMALL), ("labels", {**SMALL, **TUNED})],
)
def test_trials_measure_what_they_say_and_hang_on_the_seed_alone(
    name: str, common: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in (instruction_task, stored_pairs_task, little_model, misspelling_task):
        monkeypatch.setattr(task, "TESTED", 32)
    monkeypatch.setattr(misspelling_task, "LABELS", (4, 6, 8))
    which: Any = race(name)
    arm = {**which.common, **next(iter(which.arms.values())), **common}
    found = which.run(arm, 3)
    assert set(found) == set(which.measures)
    torch.manual_seed(99)
    assert which.run(arm, 3) == found
    assert which.run(arm, 4) != found


def test_one_layer_minds_no_prefix() -> None:
    """Trained alike, it answers alike: what is read at the end sees the same either way."""
    arm = {**SMALL, "layers": 1, "steps": 5, "rows": 8}
    both = [instruction_task.run({**arm, "mask": mask}, 0) for mask in ("causal", "prefix")]
    assert both[0] == both[1]


def told(name: str, good: Mapping[str, float], arms: Mapping[str, float]) -> Told:
    """A made-up record: each arm's figure is its own times the measure's, a little off at each seed."""
    rows = {
        measure: {arm: [value * by * (1 + 0.001 * (seed % 3)) for seed in range(5)] for arm, by in arms.items()}
        for measure, value in good.items()
    }
    return Told({"name": name, "seeds": list(range(5)), "arms": list(arms), "rows": rows})


def instruction(two: float, four: float) -> Mapping[str, Told]:
    arms = {"causal, 1": 0.5, "prefix, 1": 0.5, "causal, 2": 0.5, "prefix, 2": two, "causal, 4": 0.5, "prefix, 4": four}
    return {"instruction_last": told("instruction_last", {"accuracy, 3 arrows": 1.0}, arms)}


@pytest.mark.parametrize(
    ("two", "four", "verdict"),
    [
        (0.7, 0.5, Verdict.CORRECTED),
        (0.7, 0.9, Verdict.CORRECTED),  # four layers gain as well: told, not judged
        (0.4, 0.9, Verdict.NOT_REPRODUCED),  # two layers gain nothing
    ],
)
def test_question_2_whatever_the_trial_says(two: float, four: float, verdict: Verdict) -> None:
    question = load(2)
    assert question.raced is not None
    raced = question.raced(instruction(two, four))
    figures = {name: value for name, value in recorded(2).items() if name not in raced}
    assert question.verdict(figures) is Verdict.CORRECTED
    assert "instruction last" not in {claim.name for claim in question.decided(figures)}
    figures |= raced
    judged = {claim.name: claim.judged(figures) for claim in question.decided(figures)}
    assert judged["instruction last"] is verdict
    assert question.verdict(figures) is Verdict.CORRECTED
    assert all(f"{two:.0%}" in said and f"{four:.0%}" in said for said in question.evidence(figures))


def architecture_trials(norm: float, lstm: float, scratch: float) -> Mapping[str, Told]:
    parts = {f"without {part}": 4.0 for part in little_model.PARTS} | {"whole": 2.0, "without norm": norm}
    cells = dict.fromkeys(stored_pairs_task.MEASURES, 1.0)
    pairs = told("stored_pairs", cells, {"attention": 0.99, "lstm": 0.5})
    pairs.record["rows"]["accuracy, 64 pairs, distance 16"]["lstm"] = [lstm + 0.001 * seed for seed in range(5)]
    labels = dict.fromkeys(misspelling_task.MEASURES, 1.0)
    return {
        "parts": told("parts", parts, {"trained": 1.0}),
        "stored_pairs": pairs,
        "labels": told("labels", labels, {"pretrained": 0.8, "scratch": scratch}),
    }


@pytest.mark.parametrize(
    ("norm", "lstm", "scratch", "verdict"),
    [
        (3.0, 0.1, 0.5, Verdict.CORRECTED),
        (1.9, 0.1, 0.5, Verdict.NOT_REPRODUCED),  # a part that could be spared
        (3.0, 0.6, 0.5, Verdict.REFUTED),  # an LSTM that loses nothing
        (3.0, 0.1, 0.9, Verdict.REFUTED),  # pretraining that is worth nothing
    ],
)
def test_question_4_whatever_the_trials_say(norm: float, lstm: float, scratch: float, verdict: Verdict) -> None:
    question = load(4)
    assert question.raced is not None
    figures = recorded(4) | question.raced(architecture_trials(norm, lstm, scratch))
    assert question.verdict(figures) is verdict
    assert all(f"{norm - 2:+.2f}"[:3] in said for said in question.evidence(figures))
