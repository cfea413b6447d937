"""What is held against repetition: each formula against loops over tokens, and what is done to rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmlab.data.batch import IGNORE, Batch
from llmlab.data.corruption import Rows
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.objectives import repeats
from llmlab.objectives.against import AgainstCopies, AgainstSeen, CopiesBatch, Ditto, Smoothed
from llmlab.objectives.kind import Setting
from llmlab.objectives.language import NextToken
from llmlab.objectives.pretraining import Causal
from llmlab.recipe import parse
from llmlab.tokenization.tokenizer import Tokenizer

V = 7  # few, so that tokens come again


def model() -> Transformer:
    return Architecture(layers=2, dim=16, context=12, initial_std=0.3).build(V, seed=1)


def packed(sizes: list[list[int]], seed: int = 0, learnt: float = 0.7) -> Batch:
    """Rows of documents of random tokens, padded; some of them not learnt."""
    source = np.random.default_rng(seed)
    shape = len(sizes), max(map(sum, sizes))
    document, position = np.full(shape, -1), np.zeros(shape, int)
    for row, lengths in enumerate(sizes):
        document[row, : sum(lengths)] = np.repeat(np.arange(len(lengths)), lengths)
        position[row, : sum(lengths)] = np.concatenate([np.arange(length) for length in lengths])
    targets = np.where((document >= 0) & (source.random(shape) < learnt), source.integers(V, size=shape), IGNORE)
    ids, places, owner = (torch.from_numpy(part) for part in (source.integers(V, size=shape), position, document))
    return Batch(ids, torch.from_numpy(targets), Places(places, places, owner))


def probabilities(net: Transformer, batch: Batch) -> Tensor:
    return net.logits(net.hidden(batch.ids_BT, batch.at)).softmax(-1).detach()


SIZES = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=2), min_size=1, max_size=3)


@settings(deadline=None, max_examples=25)
@given(SIZES, st.integers(0, 1000))
def test_unlikelihood_by_its_definition(sizes: list[list[int]], seed: int) -> None:
    net, batch = model(), packed(sizes, seed)
    chance, expected = probabilities(net, batch), 0.0
    for row, column in (batch.targets_BT != IGNORE).nonzero().tolist():
        before = {
            int(batch.ids_BT[row, other])
            for other in range(column + 1)
            if batch.at.document[row, other] == batch.at.document[row, column]
        }
        for token in before - {int(batch.targets_BT[row, column])}:
            expected -= math.log(1 - float(chance[row, column, token]))
    terms = AgainstSeen(alpha=0.5)(net, batch)
    assert float(terms.sums["unlikelihood"].detach()) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert terms.sums["cross_entropy"].equal(NextToken()(net, batch).sums["cross_entropy"])
    assert AgainstSeen(alpha=0.5).weights == {"cross_entropy": 1.0, "unlikelihood": 0.5}


def test_unlikelihood_is_finite_where_a_candidate_is_certain() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = repeats.unlikelihood(logits, torch.tensor([[0]]), torch.tensor([[True]])).sum()
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-5), rel=1e-2)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_label_smoothing_is_that_of_torch(share: float) -> None:
    net, batch = model(), packed([[5, 3], [8]])
    predictor = Smoothed(share)
    sums = predictor(net, batch).sums
    ours = sum(predictor.weights[name] * value for name, value in sums.items())
    logits = net.logits(net.hidden(batch.ids_BT, batch.at)).flatten(0, 1)
    theirs = torch.nn.functional.cross_entropy(
        logits, batch.targets_BT.flatten(), ignore_index=IGNORE, label_smoothing=share, reduction="sum"
    )
    torch.testing.assert_close(ours, theirs)


# ---------------------------------------------------------------- copies


def rows_of(tokens: list[list[int]], document: list[list[int]]) -> Rows:
    tokens_BT, document_BT = np.array(tokens), np.array(document)
    position_BT = np.zeros_like(tokens_BT)
    for row, owner in enumerate(document_BT):
        for number in set(owner.tolist()) - {-1}:
            (inside,) = np.nonzero(owner == number)
            position_BT[row, inside] = np.arange(len(inside))
    before_BT = np.where(position_BT > 0, np.roll(tokens_BT, 1, 1), 1)
    return Rows(before_BT, tokens_BT, position_BT, document_BT, document_BT >= 0)


def test_a_sentence_goes_on_to_the_end_of_its_row(tokenizer: Tokenizer) -> None:
    """The second sentence of the first document, told by hand; the row behind it has no room for a second copy."""
    (full_stop,) = tokenizer.encode(".")
    words = [20, 21, full_stop, 22, 23, full_stop, 24, 25, 26, 27]
    rows = rows_of([words, [20, 21, 22, 23, 24, 25, 26, 27, full_stop, 28]], [[0] * 8 + [1] * 2, [0] * 10])
    noise = np.zeros((2, 2, 10))
    noise[1, 0, 3] = 0.9
    batch = Ditto(rate=0.5).corruption(Setting(Architecture(), tokenizer, 10)).learn(rows, noise)
    assert isinstance(batch, CopiesBatch)
    sentence = [22, 23, full_stop]
    assert batch.said_BT[0].tolist() == words[:3] + (sentence * 3)[:7]
    assert batch.ids_BT[0].tolist() == [1, *words[:3], *(sentence * 3)[:6]]
    assert batch.at.document[0].tolist() == [0] * 10
    assert batch.at.position[0].tolist() == list(range(10))
    assert (batch.targets_BT[0] == IGNORE).all()
    assert (batch.period_B.tolist(), batch.first_B.tolist(), batch.copies) == ([3, 0], [6, 0], 4)
    assert batch.ids_BT[1].tolist() == rows.before_BT[1].tolist()
    assert batch.targets_BT[1].tolist() == rows.tokens_BT[1].tolist()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1 << 30), st.integers(4, 30))
def test_rows_of_copies_by_property(seed: int, length: int) -> None:
    """Behind the first copy every token is the one a period before; before it nothing changed; all in one document."""
    source = np.random.default_rng(seed)
    document = np.sort(source.integers(0, 3, (4, length)), 1)
    document[3, length // 2 :] = -1
    ends, noise = source.random((4, length)) < 0.2, source.random((4, length))
    chosen = source.random(4) < 0.7
    made = repeats.copied(document, ends, noise, chosen)
    for row in range(4):
        period, first, column = int(made.period_B[row]), int(made.first_B[row]), made.source_BT[row]
        if not period:
            assert column.tolist() == list(range(length))
            continue
        assert chosen[row]
        start = first - period
        assert period > 1
        assert first + period <= length
        assert start == 0 or ends[row, start - 1] or document[row, start - 1] != document[row, start]
        assert set(document[row, start:first].tolist()) == {int(document[row, start])} != {-1}
        assert not ends[row, start : first - 1].any()
        assert column[:first].tolist() == list(range(first))
        assert all(column[place] == column[place - period] for place in range(first, length))


def test_copies_by_their_definition(tokenizer: Tokenizer) -> None:
    source, factor = np.random.default_rng(3), 0.3
    said = torch.from_numpy(source.integers(V, size=(3, 12)))
    period, first = torch.tensor([3, 0, 4]), torch.tensor([5, 0, 4])
    for row, place in ((0, 5), (2, 4)):
        copied = torch.arange(place, 12)
        said[row, place:] = said[row, place - period[row] + (copied - place) % period[row]]
    batch = CopiesBatch(
        said.roll(1, 1),
        torch.where(period[:, None] > 0, IGNORE, said),
        Places.causal(3, 12),
        said_BT=said,
        period_B=period,
        first_B=first,
    )
    net, predictor = model(), AgainstCopies(factor, weight=2.0)
    chance, expected, count = probabilities(net, batch), 0.0, 0
    for row in (0, 2):
        for place in range(int(first[row]), 12):
            token, back = int(said[row, place]), place - int(period[row])
            wanted = factor * float(chance[row, back, token])
            expected -= math.log(1 - abs(float(chance[row, place, token]) - wanted))
            count += 1
    terms = predictor(net, batch)
    assert float(terms.sums["ditto"].detach()) == pytest.approx(expected, rel=1e-4)
    assert predictor.counts(batch) == {"cross_entropy": 12.0, "ditto": count}
    assert float(predictor(net, batch.part(slice(1, 2))).sums["ditto"]) == 0.0
    assert predictor.counts(packed([[4]], learnt=2.0)) == {"cross_entropy": 4.0, "ditto": 0.0}


def test_the_earlier_copy_is_a_constant() -> None:
    """No gradient raises what the later copy is measured by."""
    logprob = torch.log(torch.tensor([[0.5, 0.5, 0.9, 0.9]])).requires_grad_()
    repeats.less_likely(logprob, torch.tensor([2]), torch.tensor([2]), 0.5).sum().backward()
    assert logprob.grad is not None
    assert (logprob.grad[0, :2] == 0).all()
    assert (logprob.grad[0, 2:] > 0).all()


def test_nothing_against_it_is_the_objective_as_it_was() -> None:
    assert parse(Causal, {}) == parse(Causal, {"against": "none"})
    assert type(Causal().predictor()) is NextToken
    assert Causal(against=Ditto()).standard == Causal()
