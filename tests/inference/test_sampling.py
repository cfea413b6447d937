"""Processors against transformers, frequencies against softmax, and settings that refuse what makes no sense."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from llmlab.errors import InputError
from llmlab.inference import processors as bend
from llmlab.inference import sampling as s
from llmlab.inference.sampling import Sampling
from llmlab.recipe import parse

seeds = st.integers(0, 2**31)


def random_logits(seed: int, rows: int = 3, vocabulary: int = 300, spread: float = 4.0) -> torch.Tensor:
    return spread * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(seed=seeds, temperature=st.floats(0.05, 20))
def test_temperature_is_that_of_transformers(seed: int, temperature: float) -> None:
    logits = random_logits(seed)
    theirs = TemperatureLogitsWarper(temperature)(None, logits).log_softmax(-1)
    torch.testing.assert_close(bend.temper(logits, temperature).log_softmax(-1), theirs, rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, k=st.integers(1, 400))
def test_top_k_is_that_of_transformers(seed: int, k: int) -> None:
    logits = random_logits(seed)
    torch.testing.assert_close(bend.keep_top_k(logits, k), TopKLogitsWarper(k)(None, logits), rtol=0, atol=0)


@settings(max_examples=30, deadline=None)
@given(
    seed=seeds,
    p=st.floats(0.01, 0.999),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
    vocabulary=st.sampled_from([50, 5000]),
)
def test_top_p_is_that_of_transformers(seed: int, p: float, spread: float, vocabulary: int) -> None:
    logits = random_logits(seed, vocabulary=vocabulary, spread=spread)
    ours, theirs = bend.keep_top_p(logits, p), TopPLogitsWarper(p)(None, logits)
    differ = ours != theirs  # sums run from the other end there: the token at the very edge may fall on either side
    assert differ.sum(-1).max() <= 1
    assert (logits.softmax(-1)[differ] < 0.2).all()


@settings(max_examples=30, deadline=None)
@given(seed=seeds, p=st.floats(0.01, 0.999))
def test_top_p_keeps_a_token_while_the_likelier_ones_hold_less(seed: int, p: float) -> None:
    logits = random_logits(seed, vocabulary=50)
    before = (logits.softmax(-1).double()[:, None, :] * (logits[:, None, :] > logits[:, :, None])).sum(-1)
    edge = (before - p).abs() < 1e-5
    assert ((bend.keep_top_p(logits, p) > -torch.inf) == (before < p))[~edge].all()


@settings(max_examples=30, deadline=None)
@given(seed=seeds, penalty=st.floats(0.5, 2.0))
def test_repetition_penalty_is_that_of_transformers(seed: int, penalty: float) -> None:
    logits = random_logits(seed)
    ids = torch.randint(300, (3, 40), generator=torch.Generator().manual_seed(seed + 1))
    seen = torch.zeros(3, 300, dtype=torch.bool).scatter_(1, ids, True)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    torch.testing.assert_close(bend.penalise_repetition(logits, seen, penalty), theirs, rtol=1e-6, atol=0)


def test_repetition_penalty_lowers_both_signs() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    lowered = bend.penalise_repetition(logits, torch.tensor([[True, True, False]]), 2.0)
    assert lowered.tolist() == [[1.0, -4.0, 1.0]]


@settings(max_examples=30, deadline=None)
@given(seed=seeds, p=st.floats(0.001, 1))
def test_min_p_is_that_of_transformers(seed: int, p: float) -> None:
    logits = random_logits(seed)
    ours, theirs = bend.keep_min_p(logits, p), MinPLogitsWarper(p)(None, logits)
    probs = logits.softmax(-1)
    edge = (probs / probs.amax(-1, keepdim=True) - p).abs() < 1e-6
    assert torch.equal(ours[~edge], theirs[~edge])
    assert (ours.amax(-1) == logits.amax(-1)).all()


@settings(max_examples=30, deadline=None)
@given(
    seed=seeds,
    p=st.floats(0.01, 0.99),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
    vocabulary=st.sampled_from([50, 5000]),
)
def test_typical_is_that_of_transformers(seed: int, p: float, spread: float, vocabulary: int) -> None:
    logits = random_logits(seed, vocabulary=vocabulary, spread=spread)
    logits[0, : vocabulary // 2] = -torch.inf  # what another processor left out
    ours, theirs = bend.keep_typical(logits, p), TypicalLogitsWarper(p)(None, logits)
    assert (ours != theirs).sum(-1).max() <= 1  # at the edge sums are rounded another way
    assert (ours.softmax(-1)[ours > -torch.inf]).all()


@settings(max_examples=30, deadline=None)
@given(seed=seeds, p=st.floats(0.01, 0.99))
def test_typical_keeps_what_is_nearer_to_the_entropy_than_all_it_leaves_out(seed: int, p: float) -> None:
    logits = random_logits(seed, vocabulary=50).double()
    logprobs = logits.log_softmax(-1)
    far = (-logprobs - -(logprobs.exp() * logprobs).sum(-1, keepdim=True)).abs()
    kept = bend.keep_typical(logits, p) > -torch.inf
    assert (far.masked_fill(~kept, 0).amax(-1) < far.masked_fill(kept, torch.inf).amin(-1)).all()
    held = logprobs.exp().masked_fill(~kept, 0)
    assert (held.sum(-1) >= p - 1e-9).all()  # and no fewer would do:
    last = held.gather(-1, far.masked_fill(~kept, -1).argmax(-1, keepdim=True))[:, 0]
    assert (held.sum(-1) - last < p).all()


@settings(max_examples=30, deadline=None)
@given(seed=seeds, by_id=st.dictionaries(st.integers(0, 299), st.floats(-100, 100), min_size=1, max_size=9))
def test_a_bias_is_the_sequence_bias_of_transformers(seed: int, by_id: dict[int, float]) -> None:
    logits = random_logits(seed)
    theirs = SequenceBiasLogitsProcessor({(id,): value for id, value in by_id.items()})
    ids = torch.zeros(3, 4, dtype=torch.int64)
    torch.testing.assert_close(bend.bias(logits, by_id), theirs(ids, logits.clone()), rtol=1e-6, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, presence=st.floats(-2, 2), frequency=st.floats(-2, 2))
def test_presence_and_frequency_are_the_formula_of_the_openai_api(seed: int, presence: float, frequency: float) -> None:
    """mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence"""
    logits = random_logits(seed, rows=1, vocabulary=20)
    counts = torch.randint(4, (1, 20), generator=torch.Generator().manual_seed(seed)).float()
    ours = bend.penalise_counts(logits, counts, presence, frequency)[0].tolist()
    for mu, c, got in zip(logits[0].tolist(), counts[0].tolist(), ours, strict=True):
        assert got == pytest.approx(mu - c * frequency - float(c > 0) * presence, abs=1e-4)


def test_all_processors_come_in_the_order_that_transformers_builds() -> None:
    """Its own list, made from a generation config; each of ours must matter for the answer."""
    fields: dict[str, Any] = {"temperature": 0.7, "top_k": 30, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.9}
    fields |= {"repetition_penalty": 1.5}
    biases = {7: 5.0, 11: -4.0, 13: 6.0}
    theirs, matters = processors_of_transformers(fields, biases), set[str]()
    for seed in range(20):
        logits = random_logits(seed, spread=2.0)
        ids = torch.randint(300, (3, 40), generator=torch.Generator().manual_seed(seed))
        ids[:, :3] = torch.tensor([7, 11, 13])
        seen = torch.zeros(3, 300, dtype=torch.bool).scatter_(1, ids, True)
        expected = theirs(ids, logits.clone()).softmax(-1)
        ours = s.process(logits, Sampling(**fields, logit_bias=biases), seen).softmax(-1)
        assert ((ours > 0) != (expected > 0)).sum() <= 1
        if torch.equal(ours > 0, expected > 0):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
        for name in fields:
            less = Sampling(**{key: value for key, value in fields.items() if key != name}, logit_bias=biases)
            if not torch.allclose(s.process(logits, less, seen).softmax(-1), ours, atol=1e-4):
                matters.add(name)
    assert matters == set(fields)


def processors_of_transformers(fields: dict[str, Any], biases: dict[int, float]) -> LogitsProcessorList:
    config = GenerationConfig(do_sample=True, sequence_bias=[[[id], value] for id, value in biases.items()], **fields)
    any_model = GenerationMixin()
    any_model.config = SimpleNamespace(is_encoder_decoder=False)
    made: LogitsProcessorList = any_model._get_logits_processor(
        config, input_ids_seq_length=40, logits_processor=LogitsProcessorList()
    )
    assert len(made) == 7
    return made


def test_processors_come_in_the_order_of_transformers() -> None:
    logits = random_logits(5)
    ids = torch.randint(300, (3, 40), generator=torch.Generator().manual_seed(6))
    seen = torch.zeros(3, 300, dtype=torch.bool).scatter_(1, ids, True)
    settings_ = Sampling(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.3)
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(ids, logits.clone())
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(20), TopPLogitsWarper(0.8)):
        theirs = warper(ids, theirs)
    ours = s.process(logits, settings_, seen)
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), rtol=1e-4, atol=1e-6)


def draws(processed: torch.Tensor, count: int, seed: int = 7) -> list[int]:
    """`count` draws from one distribution [V], in batches, one position each."""
    rows = processed.expand(500, -1)
    ids: list[int] = []
    for start in range(0, count, 500):
        ids += s.choose(rows, False, [s.key_of(seed)] * 500, range(start, start + 500)).ids_B.tolist()
    return ids


@pytest.mark.parametrize("section", [Sampling(), Sampling(temperature=0.5), Sampling(top_k=5), Sampling(top_p=0.7)])
def test_frequencies_are_the_probabilities(section: Sampling) -> None:
    processed = s.process(random_logits(2, 1, 12, 1.0), section)
    expected = processed.softmax(-1)[0].double()
    count = 20_000
    seen = torch.bincount(torch.tensor(draws(processed, count)), minlength=12).double()
    assert seen[expected == 0].sum() == 0
    there = expected > 0
    chi_square = ((seen - count * expected)[there].square() / (count * expected[there])).sum()
    freedom = int(there.sum()) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5  # five standard deviations


def test_rare_tokens_come_as_often_as_they_should() -> None:
    logits = torch.zeros(1, 10_001)
    logits[0, 0] = 12.0  # the rest holds 10,000 / e^12: 6 %
    rest = 10_000 / (10_000 + torch.tensor(12.0).exp().item())
    share = sum(token != 0 for token in draws(logits, 3_000)) / 3_000
    assert abs(share - rest) < 5 * (rest * (1 - rest) / 3_000) ** 0.5


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(-(2**70), 2**70), position=st.integers(0, 10_000), rows=st.integers(2, 5), slot=st.integers(0, 4)
)
def test_a_draw_knows_only_its_own_row(seed: int, position: int, rows: int, slot: int) -> None:
    slot %= rows
    logits = random_logits(1, rows)
    keys, positions = [s.key_of(n) for n in range(rows)], list(range(rows))
    keys[slot], positions[slot] = s.key_of(seed), position
    among = s.choose(logits, False, keys, positions)
    alone = s.choose(logits[slot : slot + 1], False, [keys[slot]], [position])
    assert among.ids_B[slot] == alone.ids_B[0]
    assert among.logprobs_B[slot] == alone.logprobs_B[0]


def test_seed_and_position_both_matter() -> None:
    logits = torch.zeros(200, 1000)
    one = s.choose(logits, False, [s.key_of(1)] * 200, range(200)).ids_B.tolist()
    other = s.choose(logits, False, [s.key_of(2)] * 200, range(200)).ids_B.tolist()
    assert max(Counter(one).values()) < 10  # not the same token at every position
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 10


def test_log_probabilities_are_those_of_the_processed_distribution() -> None:
    section = Sampling(temperature=1.7, top_k=30, top_p=0.8)
    processed = s.process(random_logits(4), section)
    drawn = s.choose(processed, section.greedy, [1, 2, 3], [0, 0, 0])
    expected = processed.log_softmax(-1).gather(-1, drawn.ids_B[:, None])[:, 0]
    torch.testing.assert_close(drawn.logprobs_B, expected, rtol=0, atol=0)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_top_k_one_is_temperature_zero_is_argmax(seed: int) -> None:
    logits = random_logits(seed)
    logits[1, [7, 90, 200]] = logits.max() + 1  # equal: the lowest id
    for section in (Sampling(temperature=0), Sampling(top_k=1), Sampling(temperature=0, top_p=0.1, top_k=3)):
        drawn = s.choose(s.process(logits, section), section.greedy, [1, 2, 3], [0, 0, 0])
        assert drawn.ids_B.tolist() == logits.argmax(-1).tolist()
        assert drawn.ids_B[1] == 7
        assert drawn.logprobs_B.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-6])
def test_a_tiny_temperature_overflows_nowhere(temperature: float) -> None:
    logits = random_logits(1, spread=1000.0)
    drawn = s.choose(s.process(logits, Sampling(temperature=temperature)), False, [1, 2, 3], [0, 0, 0])
    assert drawn.ids_B.tolist() == logits.argmax(-1).tolist()
    assert torch.isfinite(drawn.logprobs_B).all()


EXTREMES = [
    {"temperature": 1e300, "logit_bias": {1: 100, 2: -100}},
    {"top_p": 1e-320},
    {"top_p": 1e-320, "temperature": 1e-300, "min_p": 1, "typical_p": 1e-320, "top_k": 1},
    {"repetition_penalty": 1e-300},
    {"repetition_penalty": 1e-40, "presence_penalty": -2, "frequency_penalty": 2},
    {"repetition_penalty": 1e300, "temperature": 1e-300},
]


@pytest.mark.parametrize("values", EXTREMES)
def test_what_a_float32_does_not_hold_draws_a_token_that_is_not_banned(values: dict[str, Any]) -> None:
    """All that is allowed can be followed: nobody is told that the model's output is not a number."""
    logits, banned = random_logits(1, spread=10.0), torch.zeros(random_logits(1).shape, dtype=torch.bool)
    banned[:, ::3] = True
    sampling = parse(Sampling, values, "sampling")
    bent = s.process(logits, sampling, ~banned, banned, torch.ones_like(logits))
    drawn = s.choose(bent, sampling.greedy, [1, 2, 3], [0, 0, 0])
    assert torch.isfinite(drawn.logprobs_B).all()
    assert not banned.gather(1, drawn.ids_B[:, None]).any()


@pytest.mark.parametrize("greedy", [True, False])
def test_logits_that_are_no_numbers_show_in_the_log_probability(greedy: bool) -> None:
    logits = torch.zeros(1, 5)
    logits[0, 3] = torch.nan
    assert s.choose(logits, greedy, [1], [0]).logprobs_B.isnan().all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"temperature": -1}, "temperature: got -1"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"top_k": 0}, "top_k: got 0"),
        ({"top_p": 0}, "top_p: got 0"),
        ({"top_p": 1.5}, "top_p: got 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty: got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens 9 is more than max_new_tokens 8"),
        ({"stop": ["a", ""]}, "an empty stop text"),
        ({"stop": ["\ud83d"]}, "half of a surrogate pair"),
        ({"stop": ["a" * 70_000]}, "70000 letters, more than 65536"),
        ({"top_p": 2}, "top_p: got 2"),
        ({"min_p": -0.1}, "min_p: got -0.1"),
        ({"min_p": 1.1}, "min_p: got 1.1"),
        ({"typical_p": 0}, "typical_p: got 0"),
        ({"typical_p": 2}, "typical_p: got 2"),
        ({"presence_penalty": 2.1}, "presence_penalty: got 2.1"),
        ({"frequency_penalty": -2.1}, "frequency_penalty: got -2.1"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size: got -1"),
        ({"no_repeat_ngram_size": True}, "no_repeat_ngram_size is True, where a number belongs"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a"),
        ({"logit_bias": {1: 101}}, "logit_bias.1: got 101"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias.1: got nan"),
        ({"logit_bias": dict.fromkeys(range(1025), 0)}, "at most 1024"),
        ({"constraint": {"kind": "regexp", "pattern": "a"}}, "did you mean 'regex'"),
        ({"constraint": {"kind": "json_schema", "schema": False}}, "constraint.schema"),
        ({"temprature": 1}, "did you mean 'temperature'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(Sampling, values, "sampling")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


NUMBERS = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_finite_number_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"sampling\.{name}: got"):
        parse(Sampling, {name: value}, "sampling")


def test_one_stop_text_may_come_bare() -> None:
    assert Sampling.model_validate({"stop": "\n\n"}).stop == ("\n\n",)
