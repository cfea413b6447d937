from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llmlab.longtext.hierarchy import headings, paragraphs, sections, sentences


def of(text: str, spans: object) -> list[str]:
    return [text[start:end] for start, end in spans.tolist()]  # type: ignore[attr-defined]


def test_sentences() -> None:
    text = "Mr. Starbuck came. “Ay!” said J. Stubb. It is 3.5 feet... and more? No\n\nheading\n\nEnd."
    assert of(text, sentences(text)) == [
        "Mr. Starbuck came.",
        "“Ay!” said J. Stubb.",
        "It is 3.5 feet... and more?",
        "No",
        "heading",
        "End.",
    ]
    text = "玄德曰：“善。”张飞大怒！次日，又来。"
    assert of(text, sentences(text)) == ["玄德曰：“善。”", "张飞大怒！", "次日，又来。"]


def test_paragraphs() -> None:
    text = "\none\ntwo\n\n \nthree\n\n\n"
    assert of(text, paragraphs(text)) == ["one\ntwo", "three"]
    assert of("a\nb\n", paragraphs("a\nb\n")) == ["a", "b"]


BOOK = (
    "Front.\n\n# One\ntext\n## Two\nmore\nCHAPTER 3. The Inn.\nCall me.\n第一回 桃园\n话说。\n#hashtag\nPart of it.\n"
)


@given(cuts=st.lists(st.integers(0, len(BOOK)), max_size=8))
def test_sections_are_the_same_however_the_text_comes(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(BOOK)]
    blocks = [BOOK[a:b] for a, b in itertools.pairwise(places)]
    found = sections(blocks)
    assert [part.title for part in found] == ["", "# One", "## Two", "CHAPTER 3. The Inn.", "第一回 桃园"]
    assert all(BOOK[part.start :].startswith(part.title) for part in found)
    assert [part.end for part in found] == [*(part.start for part in found[1:]), len(BOOK)]


def test_a_line_without_end_is_no_heading_and_not_remembered() -> None:
    text = "CHAPTER 1 " + "x" * 5000
    assert list(headings([text[i : i + 100] for i in range(0, len(text), 100)] + ["\n# Next\n"])) == [
        (len(text) + 1, "# Next")
    ]
