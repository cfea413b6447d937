"""Question 1: what seventeen models can do, what their objectives do to a text, what its race would have to say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from llmlab.handbook import q01_model_families as q01
from llmlab.handbook.abilities import abilities
from llmlab.handbook.published import TABLE, published
from llmlab.handbook.question import Figures, Verdict, load
from llmlab.handbook.raced import Told, race
from llmlab.handbook.runner import shipped
from llmlab.model.places import Places
from llmlab.model.transformer import Transformer
from llmlab.objectives import corrupt

SEEDS = range(5)


def recorded() -> Figures:
    record = shipped(1)
    assert record is not None
    return dict(record["figures"])


def told(value: Any) -> Told:
    which = race("objectives")
    rows: dict[str, dict[str, list[Any]]] = {
        measure: {
            arm: [
                mean if isinstance(mean := value(arm, measure), str) else mean + 1e-3 * math.sin(seed + len(arm))
                for seed in SEEDS
            ]
            for arm in which.arms
        }
        for measure in which.measures
    }
    return Told({"name": "objectives", "seeds": list(SEEDS), "arms": {arm: {} for arm in which.arms}, "rows": rows})


def as_expected(arm: str, measure: str) -> Any:
    if measure == "onward_bits_per_byte":
        return {"blind": 3.2, "masked": 3.0, "permutation": 2.8}.get(arm, 2.6)
    if measure == "bits_per_byte":
        return {"causal": 2.6, "permutation": 2.8, "prefix": 2.7, "blind": 3.2}.get(arm, "gives no such figure")
    if measure == "masked_accuracy":
        return 0.15 if arm == "masked" else "gives no such figure"
    return 2.5


def test_a_race_as_expected_decides_all_claims() -> None:
    question = load(1)
    assert question.raced is not None
    figures = recorded() | question.raced({"objectives": told(as_expected)})
    assert set(question.decided(figures)) == set(question.claims)
    assert [check.figure for _, check in question.checks if not check.passed(figures)] == []
    assert question.verdict(figures) is Verdict.CORRECTED
    for spoken in question.evidence(figures):
        assert "nan" not in spoken


@pytest.mark.parametrize(
    ("worse", "claim", "verdict"),
    [
        ({"masked": 2.6}, "an encoder as a writer", Verdict.NOT_REPRODUCED),
        ({"spans": 3.3}, "all of them learn", Verdict.REFUTED),
    ],
)
def test_a_race_that_says_otherwise_is_heard(worse: dict[str, float], claim: str, verdict: Verdict) -> None:
    def value(arm: str, measure: str) -> Any:
        return worse[arm] if measure == "onward_bits_per_byte" and arm in worse else as_expected(arm, measure)

    question = load(1)
    assert question.raced is not None
    figures = recorded() | question.raced({"objectives": told(value)})
    judged = {one.name: one.judged(figures) for one in question.claims}
    assert judged[claim] is verdict
    assert question.verdict(figures) is verdict


def test_a_permutation_that_ties_is_no_refutation() -> None:
    question = load(1)
    assert question.raced is not None
    figures = recorded() | question.raced({"objectives": told(lambda arm, measure: 2.6)})
    claim = next(one for one in question.claims if one.name == "XLNet, trained")
    assert claim.judged(figures) is Verdict.NOT_REPRODUCED
    assert question.verdict(figures) is not Verdict.CORRECTED


# ---------------------------------------------------------------- figures


def test_numbers_of_the_specification() -> None:
    figures = recorded()
    assert (figures["masks_dynamic_short"], figures["masks_one_short"]) == (10, 1)
    assert (figures["masks_dynamic_long"], figures["masks_ten_long"]) == (40, 10)
    assert figures["query_own"] == 0 < figures["query_later_least"]
    assert figures["recorded_parity"] < 1e-4


def test_joining_restores_the_example_of_the_paper() -> None:
    """Raffel et al. 2019, figure 2, words for ids: 90 and 91 are sentinels."""
    source, target = [1, 2, 90, 5, 6, 91, 9], [90, 3, 4, 91, 7, 8]
    assert q01._joined(source, target, {90, 91}) == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_every_system_has_models() -> None:
    assert {q01.SYSTEM.get(row.name, q01.DECODER) for row in TABLE} == {q01.ENCODER, q01.DECODER, q01.PREFIX, q01.BOTH}
    assert set(q01.SYSTEM) <= {row.name for row in TABLE}
    assert set(q01.NAMED) <= {row.name for row in TABLE}


@torch.no_grad()
def test_an_encoder_says_which_part_keeps_it_from_going_on() -> None:
    cells, named = abilities(published(next(row for row in TABLE if row.name == "BERT"), 0))
    assert cells == q01.ENCODER
    assert named == ["model.mask", "model.encoder_layers"]


# ---------------------------------------------------------------- experiments that can fail


def seeing_itself(self: Transformer, ids_BT: Any, at: Places, cache: Any = None) -> Any:
    return self.hidden(ids_BT, at)


def always_masked(ids_BT: Any, spans: Any, first: Any, second: Any, shares: Any, mask_id: int, words: Any) -> Any:
    found = ids_BT.copy()
    found[spans.hidden_BT] = mask_id
    return found


def test_streams_that_see_themselves_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transformer, "queries", seeing_itself)
    assert load(1).verdict(recorded() | q01._streams(0)) is Verdict.NOT_REPRODUCED


def test_masks_without_chance_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(q01.Dynamic, "drawn", 1)
    assert load(1).verdict(recorded() | q01._masks(0)) is Verdict.NOT_REPRODUCED


def test_an_objective_that_always_masks_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrupt, "masked", always_masked)
    assert load(1).verdict(recorded() | q01._bert(0)) is Verdict.NOT_REPRODUCED


def test_an_engine_that_lets_encoders_go_on_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmlab.inference import engine

    monkeypatch.setattr(engine, "require_continuing", lambda architecture: None)
    assert load(1).verdict(recorded() | q01._matrix(0)) is Verdict.NOT_REPRODUCED
