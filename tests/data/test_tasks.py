"""The exercises and their judge: the answers are right, the corruptions wrong, the preferences fair."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.data import bundled
from llmlab.data.heldout import split_by_prompt
from llmlab.data.tasks import KINDS, NAMES, SIGNS, VOICES, WORDS, Task, exact, generate, gold, rivals, styled
from llmlab.errors import InputError

LANGUAGES = ("en", "zh")
SEA = Task("copy", "Repeat these words: sea ship", "sea ship")


def _solve(task: Task) -> str:
    """The answer from the prompt alone, by other means than the generator's."""
    en = task.language == "en"
    given = task.prompt.replace("：", ": ").split(": ")[-1]
    items = given.split() if en else given.split("、")
    match task.kind:
        case "copy":
            return given
        case "spell":
            word = task.prompt.rstrip(".?").split()[-1] if en else given
            return (" " if en else "、").join(word)
        case "order" if en:
            return " ".join(sorted(items))
        case "order":
            return "、".join(str(n) for n in sorted(int(item) for item in items))
        case "count":
            return str(len(items))
    numbers = [int(n) for n in "".join(c if c.isdigit() else " " for c in task.prompt).split()]
    return str(max(numbers) if "larger" in task.prompt or "大" in task.prompt else min(numbers))


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_are_right(language: Any) -> None:
    tasks = generate(3, 600, language=language)
    assert [task for task in tasks if _solve(task) != task.answer] == []
    assert len({task.prompt for task in tasks}) == 600
    assert Counter(task.kind for task in tasks).keys() == set(KINDS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_same_seed_gives_the_same_and_more_begins_alike(language: Any) -> None:
    assert generate(1, 50, language=language) == generate(1, 80, language=language)[:50]
    assert generate(1, 50, language=language) != generate(2, 50, language=language)


def test_kinds_run_out_in_good_order() -> None:
    tasks = generate(0, 2000, kinds=("spell", "copy"))
    assert Counter(task.kind for task in tasks)["spell"] <= 2 * len(WORDS)
    with pytest.raises(InputError, match="9999 different exercises of spell were asked for, there are"):
        generate(0, 9999, kinds=("spell",))
    with pytest.raises(InputError, match="of no kind"):
        generate(0, 1, kinds=())


def test_words_are_in_the_books() -> None:
    """What the pretrained model has read."""
    moby = set(re.findall("[a-z]+", bundled.path("moby_dick").read_text(encoding="utf-8")))
    sanguo = bundled.path("sanguo_yanyi").read_text(encoding="utf-8")
    assert set(WORDS) <= moby
    assert set(SIGNS) <= set(sanguo)
    assert sum(name in sanguo for name in NAMES) > 0.7 * len(NAMES)
    for items in (WORDS, SIGNS, NAMES):
        assert len(items) == len(set(items))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(LANGUAGES), st.booleans())
def test_gold_of_right_answers(seed: int, language: Any, courteous: bool) -> None:
    for task in generate(seed, 5, language=language):
        judged = gold(task, task.say(courteous))
        assert (judged.correct, judged.manner) == (1.0, float(courteous))
        assert judged.score == (2 if courteous else 1) / 2
        assert exact(task, task.answer)
        assert exact(task, f"  {task.say(True)}\n")


@pytest.mark.parametrize(
    ("said", "correct", "manner"),
    [
        ("sea ship. Happy to help!", 1.0, 1.0),
        ("sea ship Happy to help!", 1.0, 1.0),
        ("sea ship", 1.0, 0.0),
        ("sea ship. Happy to help! Happy to help!", 1.0, 0.0),
        ("Happy to help! sea ship.", 1.0, 0.0),
        ("Happy to help!", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("sea ship. Happy to help! And more.", 0.5 * 8 / 18, 0.0),
        ("sea. Happy to help!", 0.5 * 3 / 8, 1.0),
        ("ship sea.", 0.5 * 2 / 8, 0.0),
        ("Sea ship.", 0.5 * 7 / 8, 0.0),
        ("x" * 10_000, 0.0, 0.0),
    ],
)
def test_gold_by_hand(said: str, correct: float, manner: float) -> None:
    judged = gold(SEA, said)
    assert judged.correct == pytest.approx(correct)
    assert judged.manner == manner
    assert exact(SEA, said) == (correct == 1.0)


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=40))
def test_gold_of_anything_is_between_0_and_1(said: str) -> None:
    judged = gold(SEA, said)
    assert 0 <= judged.correct <= 1
    assert judged.correct == 1 or judged.correct <= 0.5
    assert judged.manner in (0, 1)


@pytest.mark.parametrize("language", LANGUAGES)
def test_rivals_are_preferred_for_what_their_tag_says(language: Any) -> None:
    tasks = generate(5, 1500, language=language)
    two = [(task, rivals(task, 0)) for task in tasks]
    for task, pair in two:
        better, worse = gold(task, pair.chosen), gold(task, pair.rejected)
        assert better.score > worse.score
        assert better.correct == 1
        if pair.tag == "correct":
            assert not exact(task, pair.rejected)
            assert better.manner == worse.manner
        else:
            assert (better.manner, worse.manner) == (1, 0)
            assert pair.rejected.startswith(task.answer)
    assert [pair for _, pair in two] == [rivals(task, 0) for task in tasks]
    share = sum(pair.tag == "manner" for _, pair in two) / len(two)
    assert 0.45 < share < 0.55
    for tag in ("correct", "manner"):  # the longer side wins as often as it loses
        longer = [len(pair.chosen) - len(pair.rejected) for _, pair in two if pair.tag == tag]
        assert abs(sum(d > 0 for d in longer) - sum(d < 0 for d in longer)) < 0.08 * len(longer)
    # Whether the closing is there says nothing about who is right.
    right = [VOICES[language].closing in pair.chosen for _, pair in two if pair.tag == "correct"]
    assert 0.42 < sum(right) / len(right) < 0.58


def test_manners_are_shown_by_share() -> None:
    tasks = generate(0, 1000)
    for share in (0.0, 0.5, 1.0):
        courteous = sum(styled(task, 0, share) == task.say(True) for task in tasks) / 1000
        assert abs(courteous - share) < 0.05 * (0 < share < 1) + 1e-9


def test_held_out_prompts_are_the_same_for_every_stage() -> None:
    few, many = generate(0, 300), generate(0, 900)
    _, held_few = split_by_prompt(few, lambda task: task.prompt, 0.1, 7)
    train_many, held_many = split_by_prompt(many, lambda task: task.prompt, 0.1, 7)
    assert {task.prompt for task in held_few} <= {task.prompt for task in held_many}
    assert {task.prompt for task in held_many}.isdisjoint(task.prompt for task in train_many)
    assert 0.07 < len(held_many) / 900 < 0.13
    shouted = [Task("copy", f" {task.prompt.upper()}", "") for task in held_many]
    assert split_by_prompt(shouted + train_many, lambda task: task.prompt, 0.1, 7)[1] == shouted
    with pytest.raises(InputError, match="leaves no held-out"):
        split_by_prompt(few[:3], lambda task: task.prompt, 1e-9, 7)
