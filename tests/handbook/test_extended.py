"""The parts of the race of extended models: what is hidden, what is scored, and that a copy of the base is tuned."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from llmlab.handbook import extended
from llmlab.handbook.extended import CODES, MARKS, MULTIPLES, TRAINED, VALUES, VOCABULARY
from llmlab.handbook.raced import race
from llmlab.model.transformer import Transformer
from llmlab.runtime import generator


def untrained(position: str = "rope") -> Transformer:
    return extended.architecture(position).build(VOCABULARY, 2).eval()


def test_codes_stand_once_in_the_text_and_again_behind_their_marks() -> None:
    row_NL = torch.full((20, 60), ord("x"))
    made = extended.with_codes(row_NL, generator(0, "test"))
    assert made.shape == row_NL.shape
    end = 2 * CODES
    for row in made.tolist():
        text, asked = row[:-end], row[-end:]
        assert asked[::2] == list(range(MARKS, VOCABULARY))
        codes = [byte for byte in text if byte != ord("x")]
        assert sorted(codes) == asked[1::2], "each of its own range, once"
        assert [(code - 256) // VALUES for code in sorted(codes)] == list(range(CODES))
    assert len({tuple(row) for row in made.tolist()}) == 20


def test_the_scored_bytes_are_the_same_at_every_length_and_lie_side_by_side_otherwise() -> None:
    model = untrained("none")
    found = extended.exams(model, 0) | extended.protocols(model, 0)
    row_NL = extended._held_out(0)
    with torch.no_grad():
        logits = model(row_NL[:, :-1])
        nats = F.cross_entropy(logits.transpose(1, 2), row_NL[:, 1:], reduction="none")
    far = MULTIPLES[-1]
    assert found[f"bits@{far}x"] == pytest.approx(float(nats[:, -TRAINED:].mean()) / math.log(2), rel=1e-4)
    whole = float(nats[: extended.FEW].mean()) / math.log(2)
    assert found[f"beside@{far}x"] == pytest.approx(whole, rel=1e-4), "one window that is the whole text"


def test_entropy_is_that_of_even_attention_where_queries_are_nothing() -> None:
    model = untrained("none")
    for block in model.blocks:
        torch.nn.init.zeros_(block.get_parameter("attention.query.weight"))
    rows = extended._held_out(0)[:2, -2 * TRAINED :]
    even = sum(math.log(seen) for seen in range(TRAINED + 1, 2 * TRAINED + 1)) / TRAINED
    with torch.no_grad():
        found = extended._entropy(model, rows)
    assert found == pytest.approx(even, rel=1e-4)


@pytest.mark.parametrize("way", [None, "yarn"])
def test_tuning_changes_a_copy(way: str | None) -> None:
    base = untrained()
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    other = extended.read_by(base, way)
    settings = {"tuning_rows": 2, "tuning_steps": 1, "tuning_rate": 0.01, "tuning_adamw_rate": 0.01}
    extended.tuned(other, settings, 0)
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())
    assert any(not torch.equal(weight, before[name]) for name, weight in other.state_dict().items())


def test_the_arms_differ_in_one_thing_and_name_what_they_measure() -> None:
    found = race("extended")
    found.check()
    assert set(found.measures) == set(extended.MEASURES)
