"""Questions 5 and 7: what is planted, the openings, the exact checks, and the bench's own marks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llmlab.evaluation.repetition import repetition
from llmlab.handbook import decoder_bench as bench
from llmlab.handbook import exact_repeats, openings, planted
from llmlab.handbook.loop_figures import HEADS, NAMES, OMITTED, TEMPERATURES
from llmlab.handbook.q07_repeater_remedies import FAMILIES
from llmlab.handbook.races.loops_by_decoder import MEASURES, RACE
from llmlab.inference.loops import Loop, loop_in
from llmlab.runtime import generator


def test_seeds_share_no_passage() -> None:
    count = bench.BOOK + bench.OTHERS
    slices = [openings.slice_of(seed, count) for seed in RACE.numbers()]
    assert len({paragraph for one in slices for paragraph in one}) == count * len(slices)
    daily = [one.prompt for seed in RACE.numbers() for one in openings.everyday(seed, bench.DAILY)]
    assert len(set(daily)) == len(daily)


def test_a_cut_paragraph_is_whole_again() -> None:
    paragraph = openings.paragraphs()[0]
    opening = openings.cut(paragraph)
    assert opening.prompt + opening.onward == paragraph
    again = openings.begun_again(paragraph)
    assert again.prompt.split()[: openings.COPIED] == paragraph.split()[: openings.COPIED]
    # who copies has the rest of the passage to copy, and no run of it twice
    assert (again.prompt + again.onward).split()[openings.COPIED :] == paragraph.split()[: openings.COPIED]
    assert openings.said_often(paragraph).prompt.split() == openings.said_often(paragraph).prompt.split()[:12] * 4


def test_a_planted_loop_is_one_and_its_numbered_sister_is_none() -> None:
    source = generator(0, "test")
    for words in planted.passages(5, 20):
        one = planted.looped(words, source)
        known: dict[str, int] = {}
        ids = planted.ids_of(one.words, known)
        assert loop_in(ids) == Loop(one.start, one.period)
        near = planted.ids_of(planted.nearly(one), known)
        assert loop_in(near) is None
        assert ids[: one.start] == near[: one.start]


def test_the_queue_is_loops_and_what_repeats_much() -> None:
    assert planted.queued([1, 2, 3, 4, 5, 6] * 6)
    assert not planted.queued(list(range(100)))
    counted = [token for number in range(8) for token in (100 + number, *range(8))]
    assert loop_in(counted) is None
    assert repetition(counted) > planted.QUEUED
    assert planted.queued(counted)


def test_the_printed_penalty_rewards_negative_logits() -> None:
    logits, seen = torch.tensor([[2.0, -2.0, 2.0, -2.0]]), torch.tensor([[True, True, False, False]])
    assert exact_repeats.printed(logits, seen, 2.0).tolist() == [[1.0, -1.0, 2.0, -2.0]]


def test_marks_by_hand() -> None:
    loop, plain = list(range(10)) * 4, list(range(50, 90))
    said = [bench.Said(loop, [2.0] * 8 + [1.0] * 32), bench.Said(plain, [3.0] * 40)]
    told = bench.marks([[0, 1, 2, 3], [7]], said)
    assert told["looping"] == 0.5
    assert (told["before_loop"], told["period"]) == ((0 + 40) / 2, 10)
    assert told["rep_4"] == pytest.approx((1 - 10 / 37) / 2)
    assert told["copied"] == pytest.approx(16 / 40 / 2)
    assert told["nats"] == pytest.approx((1.2 + 3) / 2)
    assert (told["nats_first"], told["nats_last"]) == (pytest.approx((1.25 + 3) / 2), pytest.approx(2))
    assert set(told) <= set(MEASURES)
    empty = bench.marks([[1]], [bench.Said([], [])])
    assert (empty["tokens"], empty["nats"], empty["before_loop"], empty["period"]) == (0, 0, 0, 0)


def test_every_arm_has_its_place_in_the_tables() -> None:
    shown = {"greedy, may end", "begun again", "said often", *TEMPERATURES, *FAMILIES}
    assert shown == set(RACE.arms)
    assert set(NAMES) <= set(RACE.arms)
    assert set(OMITTED) <= set(RACE.arms)
    assert set(HEADS) <= set(MEASURES)


def test_the_bench_says_what_the_model_says(smollm2: Path, minilm: Path) -> None:
    """A short arm: greedy as `generate` has it, scored like the plain path, ended where it may."""
    lm = bench.model()
    settings = {**RACE.common, **RACE.arms["greedy"], "tokens": 12}
    json.dumps(settings)
    prompts = [lm.prompt(openings.cut(one).prompt) for one in openings.slice_of(0, 2)]
    said = bench.drawn(lm, prompts, settings, 0)
    again = bench.scored(lm, prompts, [one.ids for one in said])
    for prompt, one, other in zip(prompts, said, again, strict=True):
        assert len(one.ids) == 12
        assert not lm.tokenizer.special_ids.intersection(one.ids)
        assert one.ids == other.ids
        assert one.nats == pytest.approx(other.nats, abs=1e-4)
        assert lm.tokenizer.decode(one.ids) == lm.generate(
            lm.tokenizer.decode(prompt), temperature=0, max_new_tokens=12, logit_bias=dict.fromkeys(lm.stop_ids, -100)
        )
    (best,), *_ = bench.searched(lm, prompts[:1], {**settings, "search": {"kind": "beam", "beams": 1}})
    assert best == said[0].ids
