"""Plots as inline SVG: lines over steps, bars with intervals. Colours are the page's CSS classes, so both themes work.

Every text that comes from outside is escaped here; what these functions answer is safe to put into a page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from markupsafe import Markup, escape

WIDTH, HEIGHT = 340, 196
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 36
_POINTS = 320  # of a line; more than the pixels it has say nothing


@dataclass(frozen=True)
class Series:
    """One line. `emphasis` draws it thick with its points marked, otherwise thin."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    emphasis: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar, with the bounds of its interval where it has one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    emphasis: bool = False
    text: str = ""


def line_plot(title: str, unit: str, series: Sequence[Series], levels: Sequence[tuple[str, float]] = ()) -> Markup:
    """Lines over the optimizer step; `levels` are named horizontal lines to compare with. Empty without a point."""
    shown = [thin(line) for line in series]
    shown = [line for line in shown if line.xs]
    if not shown:
        return Markup("")
    xs = [x for line in shown for x in line.xs]
    ys = [y for line in shown for y in line.ys]
    # A level far outside the lines would flatten them; it is left to the bars.
    reach = max(max(ys) - min(ys), 0.05 * max(abs(min(ys)), abs(max(ys))), 1e-12)
    near = [(name, y) for name, y in levels if min(ys) - 2 * reach <= y <= max(ys) + reach]
    y_ticks = ticks(min([*ys, *(y for _, y in near)]), max([*ys, *(y for _, y in near)]), 4)
    frame = _Frame((min(0.0, *xs), max(xs)), y_ticks)
    parts = [frame.axes(unit)]
    written = math.inf
    for name, y in sorted(near, key=lambda level: level[1]):
        at = frame.y(y)
        parts.append(f'<line class="level" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        if written - at > 11:  # names that would stand on each other are left to the bars
            text = f'<text class="note" x="{WIDTH - _RIGHT}" y="{at - 4:.1f}" text-anchor="end">{escape(name)}</text>'
            parts.append(text)
            written = at
    for number, line in enumerate(shown):
        parts.append(_line(frame, line, number))
    return _svg("lines", WIDTH, HEIGHT, title, unit, parts)


def _line(frame: _Frame, line: Series, number: int) -> str:
    points = [(frame.x(x), frame.y(y)) for x, y in zip(line.xs, line.ys, strict=True)]
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    kind = "thick" if line.emphasis else "thin"
    drawn = f'<path class="line {kind} s{number % 4}" d="{path}"/>' if len(points) > 1 else ""
    if len(points) == 1 or (line.emphasis and len(points) <= 16):
        for (x, y), step, value in zip(points, line.xs, line.ys, strict=True):
            told = escape(f"{line.name}, step {step:g}: {short(value)}")
            drawn += f'<circle class="dot s{number % 4}" cx="{x:.1f}" cy="{y:.1f}" r="2.6">'
            drawn += f"<title>{told}</title></circle>"
    return drawn


class _Frame:
    """Where values lie on the drawing."""

    def __init__(self, xs: tuple[float, float], y_ticks: Sequence[float]) -> None:
        self.xs = xs if xs[0] < xs[1] else (xs[0] - 1, xs[0] + 1)
        self.y_ticks = y_ticks

    def x(self, value: float) -> float:
        low, high = self.xs
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    def axes(self, unit: str) -> str:
        floor = HEIGHT - _BOTTOM
        parts = []
        for value in self.y_ticks:
            at = self.y(value)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
            text = tick(value, self.y_ticks)
            parts.append(f'<text x="{_LEFT - 7}" y="{at + 3.5:.1f}" text-anchor="end">{text}</text>')
        x_ticks = ticks(*self.xs, 4)
        for value in x_ticks:
            if not self.xs[0] <= value <= self.xs[1] or value != round(value):
                continue
            text = tick(value, x_ticks)
            parts.append(f'<text x="{self.x(value):.1f}" y="{floor + 15}" text-anchor="middle">{text}</text>')
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>')
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        parts.append(f'<text class="name" x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">optimizer step</text>')
        if unit:
            centre = (_TOP + floor) / 2
            parts.append(
                f'<text class="name" x="9" y="{centre}" text-anchor="middle" transform="rotate(-90 9 {centre})">'
                f"{escape(unit)}</text>"
            )
        return "".join(parts)


def bar_plot(title: str, unit: str, bars: Sequence[Bar], width: int = 640, top: float | None = None) -> Markup:
    """Horizontal bars from zero, each with its value, and a whisker where there is an interval."""
    bars = [bar for bar in bars if math.isfinite(bar.value)]
    if not bars:
        return Markup("")
    left, right, pitch, thick = min(190, 14 + 7 * max(len(bar.label) for bar in bars)), 62, 27, 15
    ends = [max(bar.value, bar.high) if _finite(bar.high) else bar.value for bar in bars]
    scale = (width - left - right) / max(top or 0.0, *ends, 1e-12)
    parts = []
    for row, bar in enumerate(bars):
        y = row * pitch + 6
        end = left + max(1.5, max(0.0, bar.value) * scale)
        kind, weight = ("bar strong", "value strong") if bar.emphasis else ("bar", "value")
        parts.append(f'<text class="label" x="{left - 10}" y="{y + 12}" text-anchor="end">{escape(bar.label)}</text>')
        parts.append(f'<rect class="{kind}" x="{left}" y="{y}" width="{end - left:.1f}" height="{thick}" rx="2"/>')
        if _finite(bar.low) and _finite(bar.high):
            low, high = left + max(0.0, bar.low) * scale, left + max(0.0, bar.high) * scale
            middle = y + thick / 2
            drawn = f"M{low:.1f},{middle}H{high:.1f}M{low:.1f},{middle - 4}v8M{high:.1f},{middle - 4}v8"
            parts.append(f'<path class="whisker" d="{drawn}"/>')
            end = max(end, high)
        text = escape(bar.text or short(bar.value))
        parts.append(f'<text class="{weight}" x="{end + 8:.1f}" y="{y + 12}">{text}</text>')
    return _svg("bars", width, len(bars) * pitch + 6, title, unit, parts)


def _svg(kind: str, width: int, height: int, title: str, unit: str, parts: Sequence[str]) -> Markup:
    label = escape(f"{title}, {unit}" if unit else title)
    begin = f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
    return Markup(begin + "".join(parts) + "</svg>")


# ---------------------------------------------------------------- numbers


def thin(line: Series) -> Series:
    """Without what is not finite, and with at most so many points as can be told apart (the last one stays)."""
    points = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if _finite(x) and _finite(y)]
    if len(points) > _POINTS:
        points = [points[round(i * (len(points) - 1) / (_POINTS - 1))] for i in range(_POINTS)]
    return Series(line.name, [x for x, _ in points], [y for _, y in points], line.emphasis)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover [low, high], two at least."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value: put it in the middle of something
        half = abs(low) * 0.05
        low, high = (low - half, high + half) if half else (0.0, 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]


def tick(value: float, among: Sequence[float]) -> str:
    """A tick's label, with as many places as tell it from its neighbours."""
    step = abs(among[1] - among[0])
    largest = max(abs(among[0]), abs(among[-1]))
    if largest >= 1e4:
        unit, sign = (1e6, "M") if largest >= 1e6 else (1e3, "k")
        return f"{value / unit:.{_places(step / unit)}f}{sign}" if value else "0"
    if largest < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-") if value else "0"
    return f"{value:.{_places(step)}f}"


def _places(step: float) -> int:
    return max(0, min(6, -math.floor(math.log10(step) + 1e-9)))


def short(value: float) -> str:
    """Three or four telling digits."""
    if not math.isfinite(value):
        return "–"
    if value < 0:
        return "\N{MINUS SIGN}" + short(-value)
    size = abs(value)
    if size >= 1e4 or (0 < size < 1e-3):
        return f"{value:.3g}"
    return f"{value:.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3}f}"


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
