"""Quality rules against their definitions written out plainly, text by text, and what they mean for Chinese."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.data.clean import Clean
from llmlab.data.rules.c4 import CurlyBrackets, LineWords, LoremIpsum, PolicyLines, Sentences, TerminalLines
from llmlab.data.rules.fineweb import EndedLines, RepeatedCharacters, ShortLines
from llmlab.data.rules.gopher import (
    AlphabeticWords,
    BulletLines,
    EllipsisLines,
    StopWords,
    SymbolWords,
    WordCount,
    WordLength,
)
from llmlab.data.rules.repetition import DuplicateLines, repeated_grams, top_gram
from llmlab.data.rules.rule import Edit
from llmlab.data.rules.view import View, strings
from llmlab.data.words import Words
from llmlab.recipe import parse

PARTS = [
    "the whale",
    "and",
    "sea.",
    "#",
    "...",
    "- ",
    "\n",
    "\n\n",
    "A",
    "12",
    "“so”",
    "天下大势",
    "。",
    "日本のこと",
    "\u3000",
    "é",
]
TEXTS = st.lists(st.lists(st.sampled_from(PARTS), max_size=25).map(" ".join), min_size=1, max_size=6)


HAN = re.compile("[\u3040-\u30ff\u3400-\u9fff]")


def words(text: str) -> list[str]:
    """Runs between spaces; each Han character begins a word, with the punctuation of its own script behind it."""
    wide = "\u3040-\u30ff\u3400-\u9fff"
    found = list[str]()
    for run in text.split():
        found += re.findall(f"[{wide}][\u3001-\u303f\uff00-\uffef]*|[\u3001-\u303f]+|[^{wide}\u3001-\u303f]+", run)
    return found


def bare(text: str) -> list[str]:
    return re.findall("[\u3040-\u30ff\u3400-\u9fff]|[a-z0-9é]+", text.lower())


def lines(text: str, mark: str = "\n") -> list[str]:
    return [line.strip() for line in text.split(mark) if line.strip()]


def grams(text: str, n: int) -> list[tuple[str, ...]]:
    found = words(text)
    return [tuple(found[at : at + n]) for at in range(len(found) - n + 1)]


@given(TEXTS)
def test_words_are_what_they_say(texts: list[str]) -> None:
    for found, plain in ((Words.of(strings(texts)), words), (Words.of(strings(texts), bare=True), bare)):
        expected = [(number, word) for number, text in enumerate(texts) for word in plain(text)]
        assert found.text.tolist() == [number for number, _ in expected]
        assert found.length.tolist() == [len(word) for _, word in expected]
        assert found.alphabetic.tolist() == [any(letter.isalpha() for letter in word) for _, word in expected]
        keys = dict[int, str]()
        for key, (_, word) in zip(found.key.tolist(), expected, strict=True):
            assert keys.setdefault(key, word) == word
        assert len(keys) == len({word for _, word in expected})


def test_keys_do_not_depend_on_the_batch_and_stay_what_they_are() -> None:
    alone = Words.of(strings(["whale"])).key[0]
    among = Words.of(strings(["x" * 1000, "the 鲸 whale"])).key[-1]
    assert alone == among
    assert int(alone) == 0x41251899631D6B8


@settings(max_examples=60)
@given(TEXTS, st.integers(1, 6))
def test_repetition_against_its_definition(texts: list[str], n: int) -> None:
    view = View(strings(texts))
    for text, top, again in zip(texts, top_gram(view, n), repeated_grams(view, n), strict=True):
        found, total = grams(text, n), sum(map(len, words(text)))
        counts = Counter(found)
        most = max((count * sum(map(len, gram)) for gram, count in counts.items() if count > 1), default=0)
        assert top == pytest.approx(most / max(total, 1))
        covered = {at + step for at, gram in enumerate(found) if gram in found[:at] for step in range(n)}
        assert again == pytest.approx(sum(len(words(text)[at]) for at in covered) / max(total, 1))


def share(values: list[Any]) -> float:
    return sum(values) / len(values) if values else 0.0


def ended(line: str) -> bool:
    return re.search('[.!?。！？…"”」』][)）\\]’”」』]*$', line) is not None


PLAIN = [
    (WordCount(least=4, most=12), lambda text: 4 <= len(words(text)) <= 12),
    (SymbolWords(), lambda text: max(text.count("#"), text.count("...")) <= 0.1 * len(words(text))),
    (BulletLines(most=0.4), lambda text: share([line[0] in "•‣●·*-" for line in lines(text)]) <= 0.4),
    (EllipsisLines(), lambda text: share([line.endswith("...") for line in lines(text)]) <= 0.3),
    (
        AlphabeticWords(),
        lambda text: sum(any(map(str.isalpha, word)) for word in words(text)) >= 0.8 * len(words(text)),
    ),
    (EndedLines(least=0.5), lambda text: share([ended(line) for line in lines(text)]) >= 0.5),
    (
        ShortLines(length=10, most=0.5),
        lambda text: (
            share([len(line) + 2 * len(re.findall("[\u3040-\u30ff\u3400-\u9fff]", line)) < 10 for line in lines(text)])
            <= 0.5
        ),
    ),
    (
        RepeatedCharacters(most=0.2),
        lambda text: (
            1 - sum(map(len, dict.fromkeys(lines(text)))) / max(1, sum(map(len, lines(text)))) <= 0.2 or not lines(text)
        ),
    ),
    (
        DuplicateLines(characters=1.0),
        lambda text: not lines(text) or 1 - len(set(lines(text))) / len(lines(text)) <= 0.3,
    ),
    (Sentences(least=2), lambda text: len(re.findall("[.!?]+[\"'”’)\\]]*(?:\\s|$)|[。！？…]+", text)) >= 2),
]


@settings(max_examples=60)
@given(TEXTS)
def test_each_rule_against_its_definition(texts: list[str]) -> None:
    view = View(strings(texts))
    for rule, plain in PLAIN:
        assert rule(view).tolist() == [plain(text) for text in texts], rule.kind


def edited(rule: Edit, text: str) -> str:
    return str(rule.edit(strings([text]))[0])


def test_lines_of_c4() -> None:
    text = "A menu\n\nThis line ends well.\n\nSo does “this one.”\nThis one trails off...\n他说：“好。”"
    assert edited(TerminalLines(), text) == "This line ends well.\n\nSo does “this one.”\n他说：“好。”"
    assert edited(LineWords(), "four words are few.\n五个字以上。\n五字。") == "五个字以上。"
    assert edited(PolicyLines(), "Read our Privacy Policy.\nAnd this.") == "And this."
    assert edited(TerminalLines(), "no\n\nyes.") == "yes."
    assert edited(TerminalLines(), "none") == ""


def test_texts_of_c4() -> None:
    view = View(strings(["a {", "Lorem  ipsum", "LOREM IPSUM dolor", "plain"]))
    assert CurlyBrackets()(view).tolist() == [False, True, True, True]
    assert LoremIpsum()(view).tolist() == [True, True, False, True]


CHINESE = "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。"
CHINESE += "及秦灭之后，楚、汉分争，又并入于汉。汉朝自高祖斩白蛇而起义，一统天下。"


def test_rules_of_words_do_not_judge_chinese_where_they_would_be_wrong() -> None:
    view = View(strings([CHINESE, "He of the sea and of ships, to be.", "xx yy zz ww"]))
    assert view.unspaced.tolist() == [True, False, False]
    assert StopWords()(view).tolist() == [True, True, False]
    assert WordLength()(view).tolist() == [True, False, False]
    assert StopWords().keep(view).tolist() == [False, True, False]  # what it would say of Chinese


def test_chinese_prose_passes_all_sets_and_rubbish_does_not() -> None:
    clean = parse(Clean, {"rules": ["c4", "gopher", "fineweb"]}).build()
    assert clean(CHINESE) == CHINESE
    assert clean("点击这里\n更多内容\n" * 30) is None
    assert clean("天下大势分久必合。" * 30) is None


def test_english_prose_passes_all_sets_and_rubbish_does_not(shared: Any) -> None:
    clean = parse(Clean, {"rules": ["gopher"]}).build()  # fineweb's would drop the book for its hard line ends
    book = (shared / "moby_dick.txt").read_text(encoding="utf-8")
    pieces = [book[at : at + 4000] for at in range(100_000, 300_000, 4000)]
    assert np.mean([clean(piece) is not None for piece in pieces]) > 0.9
    assert clean("Buy now! Click here. " * 40) is None
    assert clean("- item\n" * 60) is None
