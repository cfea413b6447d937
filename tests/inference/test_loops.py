"""The watch over loops against brute force."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.inference.loops import Loop, Looping, LoopWatch, alarms, loop_in


def brute(ids: list[int], of: Looping) -> Loop | None:
    """The loop that the text is in at its end, by the definition."""
    for period in range(1, of.longest + 1):
        run = 0
        while run + period < len(ids) and ids[-1 - run] == ids[-1 - run - period]:
            run += 1
        if run + period >= max(of.repeats * period, of.tokens) and run:
            return Loop(len(ids) - run - period, period)
    return None


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(2, 4), st.integers(2, 9), st.integers(1, 6))
@settings(deadline=None, max_examples=300)
def test_each_token_is_judged_as_by_the_definition(ids, repeats, tokens, longest):
    of = Looping(repeats=repeats, tokens=tokens, longest=longest)
    watch = LoopWatch(of)
    assert [watch.push(id) for id in ids] == [brute(ids[: end + 1], of) for end in range(len(ids))]


@pytest.mark.parametrize(("period", "start"), [(1, 0), (1, 5), (7, 3), (60, 10), (200, 1)])
def test_a_loop_is_named_by_its_start_and_period(period, start):
    ids = [*range(1000, 1000 + start), *(list(range(period)) * 30)]
    assert loop_in(ids) == (start, period)


def test_what_does_not_repeat_is_no_loop():
    assert loop_in(range(5000)) is None
    assert loop_in([1, 2, 3] * 7) is None  # 21 tokens: too short to be sure
    assert loop_in([1, 2, 3] * 8) == (0, 3)
    assert loop_in(list(range(200)) * 2) is None  # twice is no loop


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(2, 4), st.integers(2, 9), st.integers(1, 6))
@settings(deadline=None, max_examples=200)
def test_a_whole_text_at_once_alarms_where_the_watch_does(ids, repeats, tokens, longest):
    of = Looping(repeats=repeats, tokens=tokens, longest=longest)
    watch = LoopWatch(of)
    inside = [False, *(watch.push(id) is not None for id in ids)]
    assert alarms(ids, of) == [at for at, (before, now) in enumerate(itertools.pairwise(inside)) if now and not before]
