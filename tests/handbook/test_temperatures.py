"""Question 16's measures: beams against all texts, drawn sums, marks of a story, all with answers known by hand."""

import math

import pytest
import torch

from llmlab.handbook import addition, temperatures
from llmlab.handbook import decoding_desk as desk
from llmlab.handbook.question import Verdict, load
from llmlab.handbook.toy_beam import beam, beam_to_stop, exhaustive, exhaustive_to_stop, scores
from llmlab.inference import beam as search
from llmlab.inference.sampling import Sampling
from llmlab.model.attention import MultiHead
from llmlab.model.transformer import Architecture


@pytest.fixture(scope="module")
def toy():
    architecture = Architecture(layers=1, dim=16, context=12, initial_std=0.5, attention=MultiHead(heads=2))
    return architecture.build(4).requires_grad_(False)


def test_more_beams_never_find_less_and_all_find_the_best(toy):
    prompt, length = [1, 2, 0], 3
    best, value = exhaustive(toy, prompt, length)
    found = [beam(toy, prompt, length, width) for width in (1, 4**length)]
    assert found[1][0] == best
    assert found[1][1] == pytest.approx(value, abs=1e-5)
    for text, told in found:
        assert told == pytest.approx(float(scores(toy, prompt, torch.tensor([text]))), abs=1e-5)
        assert told <= value + 1e-5


def test_the_best_of_all_texts_that_end_is_found_and_never_grows_shorter(toy):
    prompt, length, stop, penalties = [1, 2, 0], 3, 3, (-1.0, 0.0, 1.0, 3.0)
    best = exhaustive_to_stop(toy, prompt, length, stop, penalties)
    for penalty, (ids, value) in zip(penalties, best, strict=True):
        assert ids[-1] == stop or len(ids) == length
        assert stop not in ids[:-1]
        told = float(scores(toy, prompt, torch.tensor([ids]))) / len(ids) ** penalty
        assert told == pytest.approx(value, abs=1e-5)
        found, score = beam_to_stop(toy, prompt, length, 4**length, stop, penalty)
        assert (found, score) == (ids, pytest.approx(value, abs=1e-5))
    sizes = [len(ids) for ids, _ in best]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


@torch.no_grad()
def test_a_search_that_is_broken_would_be_seen(monkeypatch):
    """Long texts punished where they should be favoured; groups that do not hear one another."""
    question = load(16)
    (claim,) = (claim for claim in question.claims if claim.name == "searches")
    end, nexts = search._Group._end, search._Group._nexts

    def punished(self, one, reason):
        end(self, one._replace(score=one.score * self.length ** (2 * self.search.length_penalty)), reason)

    monkeypatch.setattr(search._Group, "_end", punished)
    penalised = desk._penalised(0)
    assert penalised["penalised_differs"] > 0
    assert penalised["length_falls"] > 0
    monkeypatch.setattr(search._Group, "_end", end)
    monkeypatch.setattr(search._Group, "_nexts", lambda self, before, best, said: nexts(self, before, best, {}))
    assert desk._searches(desk.Desk(0))["apart_most_penalised"] < 1
    broken = desk._penalised(0) | desk._searches(desk.Desk(0))
    assert claim.judged(broken) is Verdict.NOT_REPRODUCED


def test_scores_of_all_texts_sum_to_one(toy):
    texts = torch.cartesian_prod(*[torch.arange(4)] * 3)
    assert float(scores(toy, [3], texts).exp().sum()) == pytest.approx(1, abs=1e-5)


def test_greedy_sums_are_those_that_addition_writes():
    model = addition.untrained({"dim": 16}, 0)
    addition.train(model, 0, 3)
    numbers = addition.exam(0, 20)
    cold = temperatures.drawn(model.eval(), numbers, Sampling(temperature=0), 0)
    assert torch.equal(cold, addition.generated(model, numbers))
    warm = [temperatures.drawn(model, numbers, Sampling(), seed) for seed in (0, 0, 1)]
    assert torch.equal(warm[0], warm[1])
    assert not torch.equal(warm[0], warm[2])


def test_divergence_of_two_distributions():
    same, other = {b"a": 0.5, b"b": 0.5}, {b"c": 1.0}
    assert temperatures.divergence(same, same) == 0
    assert temperatures.divergence(same, other) == pytest.approx(1)
    # H((3/4, 1/4)) - H((1/2, 1/2)) / 2, written out
    mixed = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)) - 0.5
    assert temperatures.divergence(same, {b"a": 1.0}) == pytest.approx(mixed)


def test_marks_of_what_was_written():
    human = [b"the whale swims in the sea and the whale dives"] * 2
    marked = temperatures.marks([b"xx the whale qzqzq the sea yy"], human)
    assert marked["words"] == pytest.approx(4 / 5)
    assert marked["distinct"] == 1
    assert temperatures.marks([b"a" * 40], human)["distinct"] == pytest.approx(1 / 33)
    assert temperatures.marks(human, human)["divergence"] == 0
