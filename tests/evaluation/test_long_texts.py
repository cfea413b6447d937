"""Tasks of long texts: facts hidden and found, and the loss by place, against plain reading."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmlab.checkpoints.bundle import Bundle
from llmlab.errors import InputError
from llmlab.evaluation import haystack, tasks
from llmlab.evaluation.haystack import Fact, Paged, Whole
from llmlab.evaluation.reading import PIECE, nats_by_token
from llmlab.evaluation.tasks.base import Subject
from llmlab.inference.plain_step import PlainModel
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(BPE(vocab_size=320), iter(["The code of the whale is 12345. What is it?"] * 8))


def model(tokenizer: Tokenizer, context: int = 400, **fields: Any) -> Transformer:
    a = parse(Architecture, {"layers": 2, "dim": 32, "context": context, "initial_std": 0.3} | fields)
    return a.build(tokenizer.vocab_size, 1).eval()


def subject(model: Transformer, tokenizer: Tokenizer) -> Subject:
    return Subject(Bundle(model, tokenizer, model.architecture, "memory"), 3)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("position", ["rope", "alibi", {"kind": "rope", "scaling": {"kind": "dynamic", "trained": 64}}])
def test_a_text_in_pieces_costs_what_it_costs_at_once(tokenizer: Tokenizer, position: Any) -> None:
    one, ids = model(tokenizer, position=position), torch.arange(PIECE + 70) * 7 % 250
    with torch.no_grad():
        whole = F.cross_entropy(one(ids[None, :-1])[0], ids[1:], reduction="none")
    assert (nats_by_token(one, ids.tolist()) - whole).abs().max() < 1e-3


# ---------------------------------------------------------------- haystacks


@given(
    room=st.integers(120, 400),
    depths=st.lists(st.sampled_from([0, 0.2, 0.5, 0.9, 1.0]), min_size=1, max_size=3, unique=True),
)
def test_a_haystack_is_the_text_with_its_facts_where_they_belong(room: int, depths: list[float]) -> None:
    tokenizer = train_tokenizer(BPE(vocab_size=260), iter(["a"]))
    text = tokenizer.encode("Some words. " * 100)
    facts = haystack.facts(sorted(depths), 7)
    said = "".join(fact.sentence() for fact in facts)
    if len(said) >= room:
        return
    hay = tokenizer.decode(haystack.haystack(text, facts, tokenizer, room))
    assert len(hay) == room, "one byte is one token here"
    left = hay
    for fact in facts:
        assert hay.count(fact.sentence()) == 1
        left = left.replace(fact.sentence(), "")
    assert left == ("Some words. " * 100)[: room - len(said)]
    places = [hay.index(fact.sentence()) for fact in facts]
    assert places == sorted(places)
    for fact, place in zip(facts, places, strict=True):
        before = len("".join(f.sentence() for f in facts if f.depth < fact.depth))
        assert abs(place - before - fact.depth * len(left)) <= 64


def test_facts_differ_and_wrong_codes_are_wrong() -> None:
    facts = haystack.facts((0, 0.5, 1), 3)
    assert len({fact.place for fact in facts}) == len({fact.code for fact in facts}) == 3
    wrong = haystack.wrong_codes(facts[0], facts, 4, 3)
    assert wrong[:2] == [facts[1].code, facts[2].code]
    assert len({*wrong, facts[0].code}) == 5
    assert haystack.facts((0, 0.5, 1), 3) == facts != haystack.facts((0, 0.5, 1), 4)


def test_pages_answer_what_a_whole_reading_answers(tokenizer: Tokenizer) -> None:
    one, text = model(tokenizer), list(range(4, 250)) * 2
    questions = [[9, 8, 7], list(range(30, 60)), [5]]
    paged = Paged(PlainModel(one, 60), text, 40)
    for question in questions + questions[:1]:
        assert (paged.after(question, 1) - Whole(one, text).after(question, 1)).abs().max() < 1e-3


class Knows:
    """A reader that says the code of one place, and something else of any other."""

    def __init__(self, tokenizer: Tokenizer, fact: Fact) -> None:
        self._tokenizer, self._fact = tokenizer, fact

    def after(self, ids: Any, last: int) -> Tensor:
        question = self._tokenizer.encode(self._fact.question())
        said = self._tokenizer.encode(f" {self._fact.code}" if list(ids[: len(question)]) == question else " 99999")
        logits = torch.zeros(last, self._tokenizer.vocab_size)
        for place, id in enumerate(said[:last]):
            logits[place, id] = 9.0
        return logits


def test_who_knows_one_fact_recalls_that_one(tokenizer: Tokenizer) -> None:
    facts = haystack.facts((0, 0.5, 1), 3)
    for fact in facts:
        asked = haystack.ask(Knows(tokenizer, facts[1]), fact, haystack.wrong_codes(fact, facts, 4, 3), tokenizer)
        assert asked.recalled == asked.chosen == (fact == facts[1])


# ---------------------------------------------------------------- the tasks


def test_needles_are_asked_at_every_length_and_depth(tokenizer: Tokenizer) -> None:
    task = tasks.read({"kind": "needle", "lengths": [300, 600], "depths": [0, 1, 0.5], "texts": 2})
    recalled, chosen = task.run(subject(model(tokenizer), tokenizer))
    cells = recalled.details["cells"]
    assert [(cell["length"], cell["depth"]) for cell in cells] == [(n, d) for n in (300, 600) for d in (0, 0.5, 1)]
    assert all(cell["n"] == 2 for cell in cells)
    assert len(recalled.items) == len(chosen.items) == 12
    assert len(recalled.details["table"]) == 3
    assert "depth 0.5" in recalled.details["table"][0]


@pytest.mark.parametrize("planted", [1, 3])
def test_a_text_holds_so_many_facts(tokenizer: Tokenizer, planted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held, real = [], haystack.haystack

    def watched(text: Any, facts: Any, *rest: Any) -> list[int]:
        made = real(text, facts, *rest)
        held.append((len(facts), len(made)))
        return made

    monkeypatch.setattr(haystack, "haystack", watched)
    settings = {"kind": "needle", "lengths": [390], "depths": [0, 0.5, 1], "texts": 1, "planted": planted}
    tasks.read(settings).run(subject(model(tokenizer), tokenizer))
    assert [count for count, _ in held] == [planted] * (3 // planted)
    assert all(330 < length < 390 for _, length in held)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lengths": [40, 300]}, "40 tokens are too few for a text with a fact in it and a question"),
        ({"lengths": [4_000_000]}, "4000000 tokens are more than the text has"),
        ({"depths": [1.5]}, "1.5 is no depth"),
        ({"texts": 0}, "texts"),
    ],
)
def test_needles_that_cannot_be_asked_are_named(tokenizer: Tokenizer, settings: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        tasks.read({"kind": "needle", **settings}).run(subject(model(tokenizer), tokenizer))


def test_a_table_of_positions_refuses_what_lies_past_it(tokenizer: Tokenizer) -> None:
    short = subject(model(tokenizer, context=256, position="learned"), tokenizer)
    for settings in ({"kind": "needle", "lengths": [400]}, {"kind": "loss_by_position", "length": 400}):
        with pytest.raises(InputError, match="256"):
            tasks.read(settings).run(short)


def test_loss_by_position_is_that_of_a_plain_reading_and_length_costs_nothing_behind_a_window(
    tokenizer: Tokenizer,
) -> None:
    attention = {"kind": "mha", "window": 8}
    one = model(tokenizer, context=64, position="none", attention=attention, layers=1)
    settings = {"kind": "loss_by_position", "length": 128, "bins": 4, "limit": 2, "near": 32}
    last, cost = tasks.read(settings).run(subject(one, tokenizer))
    curve = last.details["curve"]
    assert [(part["from"], part["to"]) for part in curve] == [(0, 32), (32, 64), (64, 96), (96, 128)]
    assert curve[-1]["nats"] == pytest.approx(last.value.value)
    assert all(abs(part["cost_of_length"]) < 1e-4 for part in curve), "no token sees past the window"
    assert abs(cost.value.value) < 1e-4
    far = model(tokenizer, context=64, position={"kind": "rope", "base": 3.0})
    assert any(
        abs(part["cost_of_length"]) > 1e-2
        for part in tasks.read(settings).run(subject(far, tokenizer))[0].details["curve"]
    )
    with pytest.raises(InputError, match="9 parts of 4 tokens"):
        tasks.read({"kind": "loss_by_position", "length": 4, "bins": 9}).run(subject(one, tokenizer))
