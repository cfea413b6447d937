"""A row's history against brute force, its draws alone and in company, and what happens when nothing can be drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import NoRepeatNGramLogitsProcessor

from llmlab.errors import InputError, LlmlabError
from llmlab.inference.batching import Batching, Request
from llmlab.inference.constrain import Constrainer, Regex
from llmlab.inference.engine import Completion, generate
from llmlab.inference.row import History, Row, draw, rows_of
from llmlab.inference.sampling import Sampling
from llmlab.inference.stepper import Piece
from llmlab.inference.text import text_of
from llmlab.model.transformer import Architecture, Transformer
from llmlab.tokenization.train import BPE, train_tokenizer

VOCABULARY, CONTEXT = 13, 64
CPU = torch.device("cpu")
ids_ = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30)


def row_of(prompt: Sequence[int], sampling: Sampling, seed: int = 0, stops: Sequence[int] = ()) -> Row:
    (row,) = rows_of([prompt], sampling, [seed], stops, 10_000, VOCABULARY)
    return row


# ---------------------------------------------------------------- history


@settings(max_examples=100, deadline=None)
@given(prompt=ids_, answer=ids_, size=st.integers(1, 6))
def test_n_grams_are_those_of_transformers(prompt: list[int], answer: list[int], size: int) -> None:
    history = History(Sampling(no_repeat_ngram_size=size), prompt, VOCABULARY, CPU)
    for said, id in enumerate([*answer, 0]):
        ids = torch.tensor([[*prompt, *answer[:said]]])
        banned = NoRepeatNGramLogitsProcessor(size)(ids, torch.zeros(1, VOCABULARY))[0].isinf()
        assert sorted(set(history.repeats())) == banned.nonzero()[:, 0].tolist()
        history.take(id)


@settings(max_examples=50, deadline=None)
@given(prompt=ids_, answer=ids_, cut=st.integers(0, 30))
def test_a_history_counts_and_its_copy_goes_a_way_of_its_own(prompt: list[int], answer: list[int], cut: int) -> None:
    sampling = Sampling(repetition_penalty=1.2, presence_penalty=0.5, no_repeat_ngram_size=2)
    history, kept = History(sampling, prompt, VOCABULARY, CPU), None
    for said, id in enumerate(answer):
        if said == cut:
            kept = history.copy()
        history.take(id)
    for one, text in ((history, answer), (kept, answer[:cut])):
        if one is None:
            continue
        assert one.seen_V is not None
        assert one.counts_V is not None
        assert one.seen_V.nonzero()[:, 0].tolist() == sorted({*prompt, *text})
        assert one.counts_V.tolist() == [text.count(id) for id in range(VOCABULARY)]
        whole = [*prompt, *text]
        again = {b for a, b in pairwise(whole) if a == whole[-1]}
        assert set(one.repeats()) == again


def test_penalties_count_the_answer_alone_and_repetition_the_prompt_too() -> None:
    logits = torch.zeros(1, VOCABULARY)
    counting = row_of([3, 3, 3], Sampling(temperature=0, presence_penalty=2, frequency_penalty=2))
    assert counting.draw(logits).id == 0  # 3 is no worse than others, and 0 is the lowest
    assert [counting.draw(logits).id for _ in range(4)] == [1, 2, 3, 4]
    first = logits.clone()
    first[0, 3] = 1.0
    assert row_of([3], Sampling(temperature=0, presence_penalty=2)).draw(first).id == 3
    above = logits + torch.tensor([0.9] * 3 + [1.0] + [0.9] * (VOCABULARY - 4))
    assert row_of([3], Sampling(temperature=0, repetition_penalty=2.0)).draw(above).id == 0


# ---------------------------------------------------------------- drawing


MATTERS: dict[str, Any] = {
    "temperature": 3.0,
    "top_k": 1,
    "top_p": 0.2,
    "min_p": 0.9,
    "typical_p": 0.2,
    "repetition_penalty": 3.0,
    "presence_penalty": 2.0,
    "frequency_penalty": 2.0,
    "no_repeat_ngram_size": 1,
    "logit_bias": {5: 100},
    "max_new_tokens": 3,
    "min_new_tokens": 20,
}
ELSEWHERE = {"stop", "seed", "constraint"}  # texts and seeds are the caller's; constraints have tests of their own


class Slow:
    """A stepper that says its logits by a whole forward pass of each text; NaN after some ids."""

    def __init__(self, model: Transformer, sick: int | None = None) -> None:
        self.model, self.sick, self.pages, self.vocab_size = model, sick, 40, model.vocab_size
        self.architecture = model.architecture
        self._texts: dict[int, list[int]] = {}

    def step(self, pieces: Sequence[Piece], ask: Sequence[int]) -> Tensor:
        found = []
        for piece in pieces:
            before = self._texts.get(piece.pages[0], [])[: piece.start]
            ids = self._texts[piece.pages[0]] = [*before, *piece.ids]
            logits_TV = self.model(torch.tensor([ids]))[0, piece.start :]
            found.append(torch.full_like(logits_TV, math.nan) if self.sick in ids else logits_TV)
        return torch.cat(found)[list(ask)]

    def clear(self, page: int) -> None:
        """Nothing is kept on pages."""

    def copy(self, source: int, target: int) -> None:
        """Nor here."""


def tiny(vocabulary: int = VOCABULARY) -> Transformer:
    sizes = {"layers": 2, "dim": 32, "context": CONTEXT, "initial_std": 0.3}
    return Architecture.model_validate(sizes).build(vocabulary, seed=1).eval()


def test_each_setting_has_a_test() -> None:
    assert set(MATTERS) | ELSEWHERE == set(Sampling.model_fields)


@pytest.mark.parametrize("name", MATTERS)
def test_each_setting_changes_the_answer_alike_in_engine_and_batching(name: str) -> None:
    model, prompt, stops = tiny(), [1, 2, 3, 4], [7]
    answers: list[list[Completion]] = [[], []]
    for seed in range(4):
        for section, found in ((Sampling(max_new_tokens=20), answers[0]), (None, answers[1])):
            section = section or Sampling(**{"max_new_tokens": 20} | {name: MATTERS[name]})
            try:
                (here,) = generate(model, [prompt], section, stops, [seed])
            except LlmlabError as error:  # 13 tokens, of which none may come twice, do not last for 20
                assert "no_repeat_ngram_size" in str(error)
                continue
            (there,) = Batching(Slow(model)).generate([Request(prompt, section, stops, seed)])
            assert here.ids == there.ids
            assert here.logprobs == pytest.approx(there.logprobs, abs=1e-4)
            found.append(here)
    assert [one.ids for one in answers[0]] != [one.ids for one in answers[1]]


EVERYTHING = Sampling(
    max_new_tokens=30,
    temperature=1.3,
    top_k=9,
    top_p=0.95,
    min_p=0.01,
    typical_p=0.95,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    frequency_penalty=0.2,
    no_repeat_ngram_size=3,
    logit_bias={2: 1.0},
    min_new_tokens=4,
)


@settings(max_examples=20, deadline=None)
@given(prompts=st.lists(ids_, min_size=2, max_size=5), seed=st.integers(0, 999))
def test_rows_draw_in_company_what_each_draws_alone(prompts: list[list[int]], seed: int) -> None:
    seeds = list(range(len(prompts)))
    together = rows_of(prompts, EVERYTHING, seeds, [0, 3], 10_000, VOCABULARY)
    alone = [row_of(prompt, EVERYTHING, own, [0, 3]) for prompt, own in zip(prompts, seeds, strict=True)]
    noise = torch.Generator().manual_seed(seed)
    for _ in range(8):
        logits = 2 * torch.randn(len(prompts), VOCABULARY, generator=noise)
        drawn = draw(together, logits)
        assert drawn == [row.draw(logits[slot : slot + 1]) for slot, row in enumerate(alone)]


def test_many_rows_of_the_engine_and_batching_are_held_to_a_form_alike() -> None:
    tokenizer = train_tokenizer(BPE(vocab_size=260), iter(["a"]))
    assert tokenizer.eos_id is not None
    model, constrainer, stops = tiny(300), Constrainer(tokenizer), [tokenizer.eos_id]  # 300: 40 ids that are no tokens
    form = Regex(pattern=r"[a-z]{2,5}(, [a-z]{2,5}){0,3}\.")
    sampling, seeds = Sampling(max_new_tokens=50, constraint=form), [1, 2, 3]
    prompts = [tokenizer.encode(text) for text in ("a", "hello there", "no")]
    here = generate(model, prompts, sampling, stops, seeds, guides=[constrainer.guide(form, stops) for _ in prompts])
    asked = zip(prompts, seeds, strict=True)
    there = Batching(Slow(model)).generate(
        [Request(prompt, sampling, stops, seed, guide=constrainer.guide(form, stops)) for prompt, seed in asked]
    )
    for ours, theirs in zip(here, there, strict=True):
        assert ours.ids == theirs.ids
        assert ours.finish_reason == "stop"
        assert re.fullmatch(form.pattern, text_of(tokenizer, ours.ids))
    assert len({tuple(one.ids) for one in here}) == 3


def test_a_copied_row_goes_a_way_of_its_own() -> None:
    row = row_of([1, 2], EVERYTHING, stops=[0])
    noise = torch.Generator().manual_seed(3)
    steps = [torch.randn(1, VOCABULARY, generator=noise) for _ in range(12)]
    for logits in steps[:4]:
        row.draw(logits)
    other, third = row.copy(), row.copy()
    other.key = 12345
    went = [other.draw(logits) for logits in steps[4:]]
    stayed = [row.draw(logits) for logits in steps[4:]]
    assert went != stayed
    assert [third.draw(logits) for logits in steps[4:]] == stayed


# ---------------------------------------------------------------- when nothing can be drawn


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_request_whose_logits_are_no_numbers_fails_alone(temperature: float) -> None:
    model, sampling = tiny(), Sampling(max_new_tokens=6, temperature=temperature, logit_bias={12: -100})
    batching = Batching(Slow(model, sick=12))
    well, sick = batching.submit(Request([1, 2], sampling)), batching.submit(Request([1, 12], sampling))
    tokens = []
    while batching.busy:
        tokens += batching.step()
    (last,) = [token for token in tokens if token.row == sick]
    assert (last.id, last.finish_reason) == (-1, "error")
    assert math.isnan(last.logprob)
    assert "not a number" in last.error
    (alone,) = Batching(Slow(model)).generate([Request([1, 2], sampling)])
    assert [token.id for token in tokens if token.row == well] == alone.ids
    assert batching.pages.free == 40
    with pytest.raises(LlmlabError, match="not a number"):
        batching.generate([Request([1, 2], sampling), Request([1, 12], sampling)])
    assert not batching.busy
    with pytest.raises(LlmlabError, match="not a number"):
        list(batching.stream(Request([1, 12], sampling)))
    assert not batching.busy


def test_a_row_that_no_token_is_left_to_says_which_setting_took_them() -> None:
    sampling = Sampling(max_new_tokens=40, no_repeat_ngram_size=1, min_new_tokens=30)
    with pytest.raises(LlmlabError, match="no_repeat_ngram_size and min_new_tokens: no token is left"):
        generate(tiny(), [[1, 2]], sampling, [0], [0])


@pytest.mark.parametrize("wrong", [-1, VOCABULARY])
def test_a_bias_outside_the_vocabulary_is_refused_when_the_request_starts(wrong: int) -> None:
    sampling = Sampling(logit_bias={1: 1.0, wrong: 1.0})
    with pytest.raises(InputError, match=f"logit_bias: {wrong} is outside the vocabulary of {VOCABULARY}"):
        generate(tiny(), [[1]], sampling, [], [0])
    with pytest.raises(InputError, match=f"logit_bias: {wrong} is outside"):
        Batching(Slow(tiny())).submit(Request([1], sampling))


def test_a_constraint_without_a_guide_is_refused() -> None:
    sampling = Sampling.model_validate({"constraint": {"kind": "regex", "pattern": "a"}})
    with pytest.raises(InputError, match="constraint: needs a guide"):
        generate(tiny(), [[1]], sampling, [], [0])
    with pytest.raises(InputError, match="constraint: needs a guide"):
        Batching(Slow(tiny())).submit(Request([1], sampling))
