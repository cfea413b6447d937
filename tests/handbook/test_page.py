"""What the terminal shows of the handbook."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from llmlab.errors import InputError
from llmlab.handbook.page import WIDTH, coloured, json_row, list_questions, listing, show, wrapped
from llmlab.handbook.question import asked, built, load
from llmlab.handbook.runner import recorded, shipped


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_list_has_54_rows_with_the_fields_that_scripts_rely_on(lang: Any) -> None:
    rows = list_questions(lang)
    assert [row["n"] for row in rows] == list(range(1, 55))
    for row in rows:
        assert list(row) == ["n", "question", "verdict", "evidence", "tier", "seconds", "date"]
        if row["n"] in built():
            assert row["tier"] in ("F", "S", "M")
            assert isinstance(row["evidence"], str)
            assert row["seconds"] >= 0
        else:
            assert {row[name] for name in ("verdict", "evidence", "tier", "seconds", "date")} == {None}
    assert sum(row["verdict"] is not None for row in rows) == len(built()) >= 10


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_table_lines_up_in_cells(lang: Any) -> None:
    lines = listing(lang).splitlines()
    starts = set()
    for line, one in zip(lines, asked().values(), strict=True):
        question = one.text.in_language(lang)
        assert line.endswith(question)
        starts.add(cell_len(line.removesuffix(question)))
    assert len(starts) == 1


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("number", range(1, 55))
def test_every_page_fits_and_says_what_there_is(number: int, lang: Any) -> None:
    page = show(number, lang)
    assert max(map(cell_len, page.splitlines())) <= WIDTH
    assert page.startswith(f"{number}. {asked()[number].text.in_language(lang)}"[:30])
    if number not in built():
        assert ("not built yet" if lang == "en" else "尚未建成") in page
        return
    flat = re.sub(r"\s", "", page)
    question, record = load(number), shipped(number)
    assert record is not None
    for text in (question.claim, question.correction, question.run):
        assert re.sub(r"\s", "", text.in_language(lang)) in flat
    assert re.sub(r"\s", "", record["evidence"][lang]) in flat
    assert all(re.sub(r"\s", "", paper) in flat for paper in question.papers)
    assert f"llmlab/handbook/q{number}_" in page
    assert page.count("✓") == len(record["checks"])
    assert "✗" not in page


def test_a_fresh_run_is_shown_in_place_of_the_shipped_one() -> None:
    question, record = load(50), shipped(50)
    assert record is not None
    fresh = recorded(question, record["figures"] | {"printed_error": 0.001}, 7, 0.5)
    page = show(50, record=fresh)
    assert page.splitlines()[1] == "NOT-REPRODUCED"
    assert "✗ largest error of the printed form: 0.001 > 0.01" in page
    assert "seed 7" in page
    assert show(50, "zh", fresh).splitlines()[1] == "未能复现"
    assert json_row(50, fresh)["verdict"] == "NOT-REPRODUCED"


def test_a_question_without_a_record_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmlab.handbook.page.shipped", lambda number: None)
    page = show(50)
    assert page.splitlines()[1] == "no verdict yet"
    assert "--run" in page
    assert "largest error of the printed form: ? > 0.01" in page


@pytest.mark.parametrize("number", [0, 99])
def test_no_such_question(number: int) -> None:
    with pytest.raises(InputError, match=rf"no question {number} \(allowed: 1 to 54\)"):
        show(number)


def test_no_such_language() -> None:
    for ask in (list_questions, listing, lambda lang: show(50, lang)):
        with pytest.raises(InputError, match="en, zh"):
            ask("de")


def test_verdicts_and_headings_have_their_colours() -> None:
    page = coloured(show(43))
    styles = {page.plain[span.start : span.end]: str(span.style) for span in page.spans}
    assert styles["REFUTED"] == "red"
    assert styles["CONFIRMED"] == "green"
    assert styles["What is right"] == "bold"
    assert "推翻" in {listed.plain[s.start : s.end] for listed in [coloured(listing("zh"))] for s in listed.spans}


@settings(deadline=None)
@given(
    st.text(alphabet=st.sampled_from("ab cde， 。；（）“”《》中文字符x²·σ"), max_size=200),
    st.integers(20, 60),
    st.sampled_from(["", "  ", "    "]),
)
def test_wrapping_keeps_every_character(text: str, width: int, indent: str) -> None:
    lines = wrapped(text, width, indent, "  ")
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", text)
    assert all(line.startswith(indent) or not line.strip() for line in lines)


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(["中", "文", "字，", "符。", "（里", "面）", "“引", "用”", "word ", "x = 1 "]),
        min_size=1,
        max_size=80,
    )
)
def test_chinese_lines_begin_and_end_as_they_should(parts: list[str]) -> None:
    lines = wrapped("".join(parts), 24)
    assert all(cell_len(line) <= 24 for line in lines)
    assert not [line for line in lines if line[:1] in tuple("，。；：？！、）”》")]
    assert not [line for line in lines[:-1] if line[-1:] in tuple("（“《")]


def test_the_list_needs_no_torch() -> None:
    code = "import sys; from llmlab.handbook.page import listing; listing(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
