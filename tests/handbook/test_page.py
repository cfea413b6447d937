"""What the terminal shows of the handbook."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from llmlab.errors import InputError
from llmlab.evaluation import statistics
from llmlab.handbook import html
from llmlab.handbook.page import WIDTH, coloured, json_row, list_questions, listing, short, show, wrapped
from llmlab.handbook.question import Question, asked, built, load
from llmlab.handbook.race_rows import blocks, difference, title_of, value
from llmlab.handbook.raced import save
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
    assert f"llmlab/handbook/q{number:02d}_" in page
    passed = [row["passed"] for row in record["checks"]]
    assert (page.count("✓"), page.count("✗")) == (passed.count(True), passed.count(False))


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("number", [number for number in built() if load(number).tables is not Question.tables])
def test_tables_stand_below_the_evidence(number: int, lang: Any) -> None:
    record = shipped(number)
    assert record is not None
    question, page, written = load(number), show(number, lang), html.render(number, lang)
    for table in question.tables(record["figures"]):
        assert re.sub(r"\s", "", table.title.in_language(lang)) in re.sub(r"\s", "", page)
        for cells in table.in_language(lang):
            assert all(cell in page for cell in cells)
            assert all(f">{cell}</t" in written for cell in cells)


def test_a_race_with_tables_of_its_own_is_folded() -> None:
    page, written = show(12), html.render(12)
    assert "release: 2 arms" in page
    assert "--html writes" in page
    assert "minus 128 tokens" not in page + written
    assert written.count("<svg") == 0
    assert written.count("<details>") == written.count("<caption") - len(load(12).tables(shipped(12)["figures"])) == 1


def test_a_whole_number_is_told_in_full() -> None:
    assert [short(value) for value in (46_080.0, 0.0, 3.067, 1e-9, 0.02)] == ["46,080", "0", "3.067", "1e-09", "0.02"]


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


# ---------------------------------------------------------------- races

ARMS = ("none", "alibi", "learned", "<b>odd & long name of an arm</b>")
REASON = "position 255 lies past the learnt table of 128"


def record() -> dict[str, Any]:
    """A small made-up record of a race: plain measures, one over lengths, two more that only one arm has."""

    def row(start: float, apart: float) -> list[float]:
        return [start + 0.01 * seed + apart * ((seed * 7) % 5 - 2) for seed in range(5)]

    rows: dict[str, dict[str, Any]] = {
        "bits_per_byte": {arm: row(2.4 - 0.1 * place, 0.001 * place) for place, arm in enumerate(ARMS)},
        "parameters": {arm: [900_000.0 + 128 * place] * 5 for place, arm in enumerate(ARMS)},
        "accuracy of a trial": {arm: row(0.5 + 0.1 * place, 0.002 * place) for place, arm in enumerate(ARMS)},
    }
    for times in (1, 2, 8):
        rows[f"bits_per_byte@{times}x"] = {
            arm: row(2.4 + 0.1 * times - 0.1 * p, 0.02 * p) for p, arm in enumerate(ARMS)
        }
    for times in (2, 8):
        rows[f"bits_per_byte@{times}x"]["learned"] = [REASON] * 5
        rows[f"yarn@{times}x"] = {arm: ["no rotary angles"] * 5 for arm in ARMS} | {"alibi": row(2.3, 0.0)}
    return {
        "name": "positions",
        "seeds": list(range(5)),
        "arms": {arm: {} for arm in ARMS},
        "rows": rows,
        "seconds": 360.0,
        "date": "2026-11-24",
    }


def test_rows_are_paired_differences_best_first() -> None:
    plain, lengths, yarn = blocks(record())
    assert [column.head for column in plain.columns] == ["bits_per_byte", "parameters", "accuracy of a trial"]
    assert list(plain.rows) == [*reversed(ARMS)]
    assert plain.baseline == lengths.baseline == "none"
    told = record()["rows"]["bits_per_byte"]
    expected = statistics.mean([a - b for a, b in zip(told["alibi"], told["none"], strict=True)])
    cell = plain.rows["alibi"][0]
    assert cell is not None
    assert (cell.difference, cell.difference_half) == (expected.value, expected.high - expected.value)
    assert cell.kind == "better"
    weights, trial = plain.rows["alibi"][1:]
    assert weights is not None
    assert trial is not None
    assert (value(weights), difference(weights), weights.kind) == ("900,128", "+128", "fixed")
    assert trial.kind == "fixed"  # nobody says which side is better
    assert plain.varies(0)
    assert not plain.varies(1)
    assert [arm for arm, _ in plain.ranked(2)] == list(ARMS)
    assert (lengths.family, [column.head for column in lengths.columns]) == ("bits_per_byte", ["1x", "2x", "8x"])
    assert [cell is None for cell in lengths.rows["learned"]] == [False, True, True]
    assert lengths.reasons == {"learned": REASON}
    assert list(yarn.rows) == ["alibi"] == [yarn.baseline]


def test_one_seed_has_no_interval() -> None:
    short = record()
    short["seeds"] = [0]
    short["rows"] = {measure: {arm: row[:1] for arm, row in arms.items()} for measure, arms in short["rows"].items()}
    cell = blocks(short)[0].rows["alibi"][0]
    assert cell is not None
    assert (value(cell), difference(cell), cell.kind) == ("2.298", "\N{MINUS SIGN}0.102", "not")
    assert cell.ends == (cell.mean, cell.mean)


def test_a_race_that_is_no_longer_defined_is_shown_by_its_name() -> None:
    assert title_of({**record(), "name": "older"}) == ("older", "older")


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_terminal_shows_the_races_of_a_question(lang: Any, tmp_path: Path) -> None:
    assert ("Races\n" if lang == "en" else "对比实验\n") not in show(36, lang, races=tmp_path)
    save(record(), tmp_path)
    page = show(36, lang, races=tmp_path)
    assert max(map(cell_len, page.splitlines())) <= WIDTH
    lines = [line.split() for line in page.splitlines()]
    row = next(line for line in lines if line[:2] == ["alibi", "2.320"])
    assert row[1:5] == ["2.320", "±0.021", "\N{MINUS SIGN}0.100", "±0.002"]
    assert ["learned", "2.320"] in [line[:2] for line in lines]
    assert "yarn" in page  # told to be elsewhere
    assert "900,128" in page


def drawn(page: str) -> list[ElementTree.Element]:
    """The pictures, as XML: what is not well-formed or not escaped does not parse."""
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_draws_its_races(lang: Any, tmp_path: Path) -> None:
    save(record(), tmp_path)
    page = html.render(36, lang, races=tmp_path)
    pictures = drawn(page)
    dots, trial, lines, yarn = pictures
    for picture in pictures:
        ident = str(picture.get("aria-labelledby")).split()
        title, desc = picture[0], picture[1]
        assert [title.get("id"), desc.get("id")] == ident
        assert picture.get("role") == "img"
        assert bool(re.search("[一-鿿]", f"{title.text}{desc.text}")) == (lang == "zh")
    assert len({picture.get("aria-labelledby") for picture in pictures}) == 4
    assert "alibi 2.320" in str(dots[1].text)
    assert len(dots.findall(".//circle")) == len(trial.findall(".//circle")) == 5 * len(ARMS)
    assert len([path for path in lines.iter("path") if "band" in path.get("class", "")]) == len(ARMS) - 1
    colour = {str(path.get("class")).split()[-1] for path in yarn.iter("path") if "band" in path.get("class", "")}
    assert colour == {"a1"}  # the race's second arm, here as there
    assert page.count("&lt;b&gt;odd") >= 4
    assert "<b>odd" not in page
    assert REASON in page
    assert f'<html lang="{lang}">' in page
    assert not re.findall(r"<script|<link|src=|url\(|@import|https?://", page)
    assert all(page.count(f"<{tag}") == page.count(f"</{tag}>") for tag in ("section", "article", "details", "figure"))


def test_the_whole_page_holds_every_answered_question(tmp_path: Path) -> None:
    save(record(), tmp_path)
    path = html.write_page(tmp_path / "handbook.html", races=tmp_path)
    page = path.read_text(encoding="utf-8")
    assert re.findall(r'<article id="q(\d+)">', page) == [str(number) for number in built()]
    assert re.findall(r'<section id="race-(\w+)">', page) == ["positions"]  # once, however many questions read it
    assert page.count('href="#race-positions"') == sum("positions" in load(number).races for number in built())
    counted = {kind: int(n) for kind, n in re.findall(r'<div class="value ([A-Z-]+)">(\d+)</div>', page)}
    assert sum(counted.values()) == len(built())
    passed = [row["passed"] for number in built() for row in (shipped(number) or {})["checks"]]
    assert (page.count("✓"), page.count("✗")) == (passed.count(True), passed.count(False))
    html.write_page(path, 50)  # a page of ours may be written anew
    assert len(re.findall("<article", path.read_text(encoding="utf-8"))) == 1


def test_a_fresh_run_is_on_the_page() -> None:
    question, found = load(50), shipped(50)
    assert found is not None
    fresh = recorded(question, found["figures"] | {"printed_error": 0.001}, 7, 0.5)
    page = html.render(50, record=fresh)
    assert "NOT-REPRODUCED" in page
    assert "✗" in page
    assert "seed 7" in page


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llmlab", "handbook", "50", "--html", str(tmp_path / "page.html"), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {"page": str(tmp_path / "page.html")}
    assert "GELU" in (tmp_path / "page.html").read_text(encoding="utf-8")
    refused = subprocess.run([*command[:-2], str(tmp_path)], check=False, capture_output=True, text=True)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)


def test_a_page_goes_nowhere_it_should_not(tmp_path: Path) -> None:
    mine = tmp_path / "thesis.html"
    mine.write_text("mine", encoding="utf-8")
    for path, says in (
        (mine, "no page of the handbook"),
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "page.html", "there is no folder"),
    ):
        with pytest.raises(InputError, match=says):
            html.write_page(path, 50)
    assert mine.read_text(encoding="utf-8") == "mine"
    with pytest.raises(InputError, match="1 to 54"):
        html.write_page(tmp_path / "page.html", 99)
    with pytest.raises(InputError, match="en, zh"):
        html.write_page(tmp_path / "page.html", 50, "fr")
    assert not (tmp_path / "page.html").exists()
