"""Plots: every point where it belongs, round ticks, nothing that is not finite."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.evaluation.plots import HEIGHT, WIDTH, Bar, Series, bar_plot, line_plot, short, thin, tick, ticks

FINITE = st.floats(-1e9, 1e9, allow_nan=False)


@given(FINITE, FINITE, st.integers(2, 8))
@settings(deadline=None, max_examples=300)
def test_ticks_are_round_even_and_cover(a, b, count):
    low, high = sorted((a, b))
    found = ticks(low, high, count)
    step = found[1] - found[0]
    slack = 1e-6 * max(abs(low), abs(high), step)
    assert 2 <= len(found) <= count + 3
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert all(second - first == pytest.approx(step, rel=1e-6) for first, second in pairwise(found))
    assert float(f"{step:.3e}"[:5]) in (1, 2, 5)


def test_ticks_labels_tell_each_tick_apart():
    for low, high in ((0, 1), (0, 400), (1.93, 1.95), (0, 25_000), (0, 3_000_000), (1e-5, 9e-5), (-0.4, 2.2)):
        found = ticks(low, high, 4)
        labels = [tick(value, found) for value in found]
        assert len(set(labels)) == len(labels), labels


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(width=32)), max_size=30))
@settings(deadline=None, max_examples=150)
def test_every_line_stays_on_its_drawing(points):
    xs, ys = [x for x, _ in points], [y for _, y in points]
    svg = line_plot("Loss <b>", "nats & bits", [Series("a", xs, ys, True)], [("level", 1.0)])
    if not thin(Series("a", xs, ys)).xs:
        assert svg == ""
        return
    root = ElementTree.fromstring(str(svg))
    assert root.attrib["aria-label"] == "Loss <b>, nats & bits"
    for path in root.iter("path"):
        for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", path.attrib["d"]):
            assert -1 <= float(x) <= WIDTH + 1
            assert -1 <= float(y) <= HEIGHT + 1


def test_a_falling_line_falls():
    svg = line_plot("Loss", "", [Series("a", [0, 10, 20], [3.0, 2.0, 1.0])])
    path = next(ElementTree.fromstring(str(svg)).iter("path")).attrib["d"]
    heights = [float(y) for _, y in re.findall(r"([\d.]+),([\d.]+)", path)]
    assert heights == sorted(heights)
    assert heights[0] < heights[-1]


def test_a_long_line_keeps_its_ends():
    line = thin(Series("a", list(range(5000)), [float(i) for i in range(5000)]))
    assert len(line.xs) < 500
    assert (line.xs[0], line.xs[-1]) == (0, 4999)


def test_bars_are_as_long_as_their_values():
    svg = bar_plot("t", "u", [Bar("a", 1.0), Bar("b", 2.0, 1.5, 2.5), Bar("c", float("nan")), Bar("d", -1.0)])
    root = ElementTree.fromstring(str(svg))
    a, b, d = (float(bar.attrib["width"]) for bar in root.iter("rect"))
    assert b == pytest.approx(2 * a, abs=0.2)
    assert d == 1.5
    assert len(list(root.iter("path"))) == 1
    assert bar_plot("t", "u", []) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.000"), (1.9403, "1.940"), (24.9, "24.90"), (412.3, "412.3"), (9100, "9100"), (1e-5, "1e-05")],
)
def test_short_numbers(value, text):
    assert short(value) == text
