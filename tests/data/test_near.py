"""Near duplicates: signatures estimate Jaccard, buckets find planted copies, what is dropped has an earlier twin."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.data.near import Near, earlier, shingles, signatures
from llmlab.data.rules.view import strings

VOCABULARY = [f"word{number}" for number in range(5000)]


def jaccard(section: Near, texts: list[str]) -> np.ndarray:
    """[texts, texts], by the sets themselves."""
    text, key = shingles(section, strings(texts))
    sets = [set(key[text == number].tolist()) for number in range(len(texts))]
    return np.array([[len(a & b) / max(1, len(a | b)) for b in sets] for a in sets])


def edited(text: str, edits: int, rng: random.Random) -> str:
    """The text with so many of its words replaced."""
    words = text.split()
    for at in rng.sample(range(len(words)), edits):
        words[at] = rng.choice(VOCABULARY)
    return " ".join(words)


def planted(seed: int, originals: int = 100, length: tuple[int, int] = (60, 400)) -> list[str]:
    """Originals, each with a copy of 0 to 12 % replaced words, shuffled."""
    rng = random.Random(seed)
    texts = list[str]()
    for _ in range(originals):
        text = " ".join(rng.choices(VOCABULARY, k=rng.randint(*length)))
        texts += [text, edited(text, int(len(text.split()) * rng.uniform(0, 0.12)), rng)]
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize("length", [(5, 30), (60, 400)], ids=["short", "long"])
def test_the_share_of_equal_numbers_is_jaccard(length: tuple[int, int]) -> None:
    """Unbiased within its standard error, for documents with fewer word runs than numbers too."""
    section, texts = Near(hashes=256, words=3), planted(1, 60, length)
    true, made = jaccard(section, texts), signatures(section, texts)
    pairs = [(a, b) for a, b in itertools.combinations(range(len(texts)), 2) if 0.05 < true[a, b] < 1]
    errors = np.array([(made[a] == made[b]).mean() - true[a, b] for a, b in pairs])
    expected = np.array([np.sqrt(true[a, b] * (1 - true[a, b]) / 256) for a, b in pairs])
    assert len(pairs) > 20
    assert abs(errors.mean()) < 3 * expected.mean() / np.sqrt(len(pairs))
    assert np.sqrt((errors**2).mean()) < 1.3 * expected.mean()


@pytest.mark.parametrize("length", [(20, 60), (60, 400)], ids=["short", "long"])
def test_recall_and_precision_on_planted_copies(length: tuple[int, int]) -> None:
    """Against the sets themselves. A pair within two standard errors of the line may fall on either side."""
    section, hits, wanted, wrong, dropped = Near(), 0, 0, 0, 0
    slack = 2 * np.sqrt(0.8 * 0.2 / section.hashes)
    for seed in range(2):
        texts = planted(seed, 70, length)
        true, found = jaccard(section, texts), earlier(section, signatures(section, texts))
        for number, other in enumerate(found):
            best = true[number, :number].max(initial=0)
            wanted += best >= section.similarity + slack
            hits += best >= section.similarity + slack and other >= 0
            dropped += other >= 0
            wrong += other >= 0 and true[number, other] < section.similarity - slack
    assert wanted > 20
    assert hits / wanted > 0.97
    assert wrong / dropped < 0.03


FEW = ["a b c d e f", "a b c d e g", "", "a", "大海的鲸鱼游", "大海的鲸鱼跑", "x y z"]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(FEW), max_size=12))
def test_what_goes_has_an_earlier_twin_and_copies_always_go(texts: list[str]) -> None:
    section = Near(words=2, hashes=64)
    found = earlier(section, signatures(section, texts))
    for number, other in enumerate(found):
        assert other < number
        assert (texts[number] in texts[:number] and texts[number] != "") <= (other >= 0)
    alone = [signatures(section, [text]) for text in texts] or [signatures(section, [])]
    assert found.tolist() == earlier(section, np.concatenate(alone)).tolist()


def test_of_a_chain_the_first_stays() -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(VOCABULARY, k=300))]
    for _ in range(6):
        texts.append(edited(texts[-1], 4, rng))
    found = earlier(Near(), signatures(Near(), texts))
    assert found[0] == -1
    assert (found[1:] >= 0).all()
    assert jaccard(Near(), texts)[0, -1] < 0.8  # the last one is not near the one that stays


def test_chinese_copies_are_found() -> None:
    text = "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。及秦灭之后，楚、汉分争，又并入于汉。" * 2
    other = "滚滚长江东逝水，浪花淘尽英雄。是非成败转头空。青山依旧在，几度夕阳红。白发渔樵江渚上，惯看秋月春风。"
    found = earlier(Near(), signatures(Near(), [text, other, text.replace("。", "！"), text[1:]]))
    assert found.tolist()[:3] == [-1, -1, 0]
    assert found[3] >= 0


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9])
def test_bands_find_what_is_above_the_line(similarity: float) -> None:
    section = Near(similarity=similarity)
    bands, rows = section.bands()
    assert bands * rows <= section.hashes
    assert 1 - (1 - min(1, similarity + 0.05) ** rows) ** bands > 0.95
    assert 1 - (1 - (similarity / 3) ** rows) ** bands < 0.1


def test_signatures_stay_what_they_are() -> None:
    assert signatures(Near(), ["Call me Ishmael. Some years ago, never mind how long."])[0, :2].tolist() == SIGNATURE


SIGNATURE = [590536712, 3489111720]
