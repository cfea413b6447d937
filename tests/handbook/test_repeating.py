"""Question 6's instruments: text that repeats itself to a dose, and what a little model does with it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from llmlab.evaluation.repetition import repetition
from llmlab.handbook import repeating_model as little
from llmlab.handbook import self_reinforcement
from llmlab.handbook.question import Verdict, load
from llmlab.handbook.raced import race
from llmlab.handbook.races import against_repetition, repeated_data
from llmlab.handbook.repeated_text import LONGEST, PERIODS, SHORTEST, drilled, met_again, said_again
from llmlab.handbook.repeating_figures import slope
from llmlab.runtime import generator
from llmlab.stages import Session

PLACES = torch.arange(129).repeat(50, 1)


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_runs_are_said_again_at_once(share: float) -> None:
    """The same draws, spliced row by row."""
    said_NT = said_again(PLACES, share, generator(0, "said"))
    source, rows, (count, length) = generator(0, "said"), PLACES.tolist(), PLACES.shape
    mean = (SHORTEST + LONGEST) / 2
    times = (share * length / mean + torch.rand(count, generator=source)).floor().long().tolist()
    for turn in range(max(times)):
        run = torch.randint(SHORTEST, LONGEST + 1, (count, 1), generator=source)[:, 0].tolist()
        at = torch.randint(LONGEST, length - LONGEST + 1, (count, 1), generator=source)[:, 0].tolist()
        for n in range(count):
            if times[n] > turn:
                rows[n] = (rows[n][: at[n]] + rows[n][at[n] - run[n] : at[n]] + rows[n][at[n] :])[:length]
    assert said_NT.tolist() == rows
    again = sum(1 - len(set(row)) / len(row) for row in rows) / count
    assert share / 2 < again < share * 1.3


def test_no_share_leaves_the_text_and_the_generator_decides() -> None:
    assert torch.equal(said_again(PLACES, 0.0, generator(0, "said")), PLACES)
    one, same, other = (said_again(PLACES, 0.3, generator(seed, "said")) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_passages_are_met_again_and_no_more_repetitive() -> None:
    pool_PT = 1000 + torch.arange(4 * 129).view(4, 129)
    met_NT = met_again(PLACES.repeat(20, 1), pool_PT, 0.3, generator(0, "met"))
    replaced_N = met_NT[:, 0] >= 1000
    assert 0.25 < replaced_N.float().mean() < 0.35
    assert {tuple(row) for row in met_NT[replaced_N].tolist()} == {tuple(row) for row in pool_PT.tolist()}
    assert torch.equal(met_NT[~replaced_N], PLACES[:1].expand(int((~replaced_N).sum()), -1))
    assert all(repetition(row, 4) == 0 for row in met_NT.tolist())


def test_drilled_rows_say_random_tokens_over_and_over() -> None:
    drilled_NT = drilled(PLACES.repeat(20, 1), range(200, 300), 0.5, generator(0, "drill"))
    replaced_N = drilled_NT[:, 0] >= 200
    assert 0.4 < replaced_N.float().mean() < 0.6
    assert torch.equal(drilled_NT[~replaced_N], PLACES[:1].expand(int((~replaced_N).sum()), -1))
    for row in drilled_NT[replaced_N].tolist():
        assert set(row) <= set(range(200, 300))
        periods = [period for period in range(1, 65) if row[period:] == row[:-period]]
        assert periods
        assert PERIODS[0] <= periods[0] <= PERIODS[1]


def test_copies_are_read_off_where_they_stand() -> None:
    """A text whose tokens are told apart; logits that say the next one but in the third copy."""
    lead, sentence, copies = [9, 8, 7], [1, 2, 3, 4], self_reinforcement.COPIES
    ids = torch.tensor(lead + copies * sentence)
    logits = torch.zeros(len(ids), 10)
    logits[torch.arange(len(ids) - 1), ids[1:]] = 5.0
    third = len(lead) + 2 * len(sentence)
    logits[third - 1 : third + 3] = 0.0
    logits[third - 1 : third + 3, 0] = 5.0
    probability_CL, likeliest_CL = self_reinforcement.copies(logits, len(lead), sentence)
    high, low = math.exp(5) / (math.exp(5) + 9), 1 / (math.exp(5) + 9)
    expected = torch.full((copies, len(sentence)), high)
    expected[2] = low
    torch.testing.assert_close(probability_CL, expected)
    assert likeliest_CL.all(1).tolist() == [copy != 2 for copy in range(copies)]


def test_slope_of_a_line() -> None:
    assert slope([0.0, 1.0, 3.0], [1.0, 3.0, 7.0]) == pytest.approx(2.0)


SMALL = repeated_data.PLAIN | {"dim": 16, "rows": 4, "steps": 2, **repeated_data.FITTED}


@pytest.mark.parametrize(
    "settings",
    [
        {"within": 0.3, "across": 0.3, "unique": 1 / 32},
        {"against": {"kind": "unlikelihood"}},
        {"against": {"kind": "ditto"}},
        {"feedforward": "llmlab.handbook.literal.absent:Absent", "layers": 1, "drilled": 0.75},
    ],
    ids=["data", "unlikelihood", "ditto", "attention alone"],
)
def test_each_arm_trains_and_depends_on_its_settings(settings: dict[str, Any]) -> None:
    plain, changed, same = (little.trained(SMALL | other, 3).state_dict() for other in ({}, settings, settings))
    assert all(torch.equal(value, same[name]) for name, value in changed.items())
    assert any(not torch.equal(value, plain[name]) for name, value in changed.items() if name in plain)


def test_the_races_say_the_measures_of_the_model() -> None:
    assert (*repeated_data.MEASURES, "nats a token") == against_repetition.MEASURES == little.MEASURES
    assert race("self_reinforcement").measures == self_reinforcement.MEASURES


def test_a_model_that_only_echoes_is_caught() -> None:
    """Marks of texts known by hand: one that loops, one that does not."""
    found = little.marks("greedy", [[1, 2] * 30, list(range(10, 70))])
    assert found["rep-4, greedy"] == pytest.approx((1 - 2 / 57) / 2)
    assert found["loops, greedy"] == 0.5
    assert found["distinct-2, greedy"] == pytest.approx((2 + 59) / 118)


def test_a_likelihood_that_minded_the_context_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The instruments of the formula part can fail."""
    question = load(6)
    claims = {claim.name: claim for claim in question.claims}
    figures = question.figures(Session())
    assert claims["likes the input"].judged(figures) is Verdict.CORRECTED
    monkeypatch.setattr(
        "llmlab.handbook.q06_why_repetition.candidates",
        lambda ids, targets, at: torch.zeros(*ids.shape, ids.shape[1], dtype=torch.bool),
    )
    blind = question.figures(Session())
    assert blind["unlikelihood_moves"] == 0
    assert claims["likes the input"].judged(blind) is Verdict.NOT_REPRODUCED
    monkeypatch.setattr("llmlab.handbook.q06_why_repetition.said_again", lambda text, share, source: text)
    assert question.figures(Session())["dose_gap"] == pytest.approx(0.3)
