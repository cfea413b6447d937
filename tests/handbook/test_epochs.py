"""Question 30's instruments: corpora met to a count, what is read off a training, the form that is fitted."""

from __future__ import annotations

import itertools
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from llmlab.handbook import epochs
from llmlab.handbook.epochs_figures import COPIES, fitted, reached, worth
from llmlab.handbook.question import Verdict, load
from llmlab.handbook.races import epochs as race
from llmlab.stages import Session

TINY = {"layers": 1, "dim": 16, "rows": 2, "rate": 0.02, "adamw_rate": 0.01}


@pytest.mark.parametrize("groups", [arm["groups"] for arm in race.RACE.arms.values()], ids=list(race.RACE.arms))
def test_each_document_is_met_as_often_as_asked(groups: list[list[int]]) -> None:
    row_S = epochs.reading(groups, 3)
    met = Counter(Counter(row_S.tolist()).values())
    asked = Counter[int]()
    for count, times in groups:
        asked[times] += count
    assert met == asked
    fresh = len(groups) == 1 and groups[0][1] == 1
    assert len(row_S) == race.BUDGET or fresh
    for _, times in groups:
        told = {tuple(row) for row in epochs.met(groups, times, 3).tolist()}
        number = dict(zip(map(tuple, epochs.documents(epochs.book().train_T).tolist()), itertools.count()))
        assert {(row_S == number[row]).sum().item() for row in told} == {times}


def test_epochs_are_shuffled_anew_and_smaller_corpora_are_parts_of_larger() -> None:
    row_ES = epochs.reading([[48, 8]], 3).view(8, 48)
    assert all(set(epoch) == set(row_ES[0].tolist()) for epoch in row_ES.tolist())
    assert len({tuple(epoch) for epoch in row_ES.tolist()}) == 8
    assert set(row_ES[0].tolist()) < set(epochs.reading([[96, 1]], 3).tolist())
    assert set(row_ES[0].tolist()) != set(epochs.reading([[48, 8]], 4).tolist())


def test_copies_are_spread_over_the_whole_training() -> None:
    row_S = epochs.reading([[1, 4], [396, 1]], 3)
    often = Counter(row_S.tolist()).most_common(1)[0][0]
    assert [int(place) // 100 for place in (row_S == often).nonzero()] == [0, 1, 2, 3]


def test_what_is_copied_ends_where_the_text_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    row_NT = torch.arange(3 * 129).view(3, 129)
    wanted = row_NT[:, epochs.BEGUN : epochs.BEGUN + epochs.EXTRACTED].tolist()
    wanted[1][5] = wanted[2][0] = -1  # what follows is right again, and counts no more
    monkeypatch.setattr(epochs, "generate", lambda *_: [SimpleNamespace(ids=ids) for ids in wanted])
    assert epochs.copied(None, row_NT).tolist() == [epochs.EXTRACTED, 5, 0]  # type: ignore[arg-type]


def test_an_arm_tells_every_measure_and_its_seed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in (("TESTED", 8), ("WATCHED", 2), ("ASKED", 2)):
        monkeypatch.setattr(epochs, name, few)
    settings: dict[str, Any] = TINY | {"groups": [[16, 2]], "dropout": 0.3}
    found, same, other = (epochs.run(settings, seed) for seed in (3, 3, 4))
    assert set(found) == set(epochs.MEASURES) == set(race.MEASURES)
    assert found == same
    assert found["bits per byte"] != other["bits per byte"]
    plain = epochs.run(settings | {"dropout": 0.0}, 3)
    assert plain["bits per byte"] != found["bits per byte"]
    assert (plain["parameters"], plain["flops a step"]) == (found["parameters"], found["flops a step"])
    assert epochs.work(settings | {"dim": 32}, 3) > float(found["flops a step"]) > 0
    assert tuple(COPIES) == epochs.RUNGS


def test_the_form_is_found_again() -> None:
    """Losses made of it, on a curve that is straight over the logarithm of the tokens."""
    assert worth(1, 5.0) == 1.0
    assert worth(4, 1e6) == pytest.approx(1.0, rel=1e-4)
    assert worth(16, 5.0) < worth(4, 5.0) < 1
    times = [2, 4, 8]
    loss = [3.0 - np.log(worth(one, 5.0)) for one in times]
    share = [1, 1 / 2, 1 / 4, 1 / 8]
    found = fitted(times, loss, share, [3.0 - np.log(one) for one in share])
    assert found["r_star"] == pytest.approx(5.0, rel=0.02)
    assert found["fit_error"] < 0.01


def test_when_a_loss_is_reached() -> None:
    curve = [4.0, 3.0, 2.5, 2.5]
    assert reached(curve, 5.0) == 0.25
    assert reached(curve, 3.0) == 0.5
    assert reached(curve, 2.75) == pytest.approx(0.625)
    assert reached(curve, 1.0) == 1.0


def test_text_that_is_tested_and_trained_on_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    question = load(30)
    control = next(claim for claim in question.claims if claim.name == "corpora")
    module = "llmlab.handbook.q30_token_repetition"
    book = epochs.book()
    monkeypatch.setattr(f"{module}.book", lambda: book._replace(held_T=book.train_T[500:600]))
    assert question.figures(Session())["held_out_known"] == 100 - epochs.EXTRACTED + 1
    monkeypatch.setattr(f"{module}.reading", lambda groups, seed: epochs.reading(groups, seed).clamp(max=4000))
    assert control.judged(question.figures(Session())) is Verdict.NOT_REPRODUCED
