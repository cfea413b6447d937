"""The race as one picture, an SVG file of its own: the arms, and beside them their paired differences.

Each measure is a row of two panels: every seed as a dot with the arm's mean and interval, and each pair's difference
with its interval about zero (a star: the verdict survives Holm's correction). Where a measure was taken at several
lengths, one panel of lines comes first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import escape

from llmlab.evaluation.plots import tick, ticks
from llmlab.race.table import number as written
from llmlab.race.table import verdict

Result = Mapping[str, Any]

_WIDTH, _PANEL, _LEFT, _RIGHT, _PITCH, _HEAD, _FOOT = 1000, 490, 150, 100, 22, 40, 34
_LINES = 250  # height of the panel of lines

_STYLE = """
svg { background: #fff; font: 12px system-ui, -apple-system, "Segoe UI", "Noto Sans", "Noto Sans CJK SC", sans-serif; }
text { fill: #1b2126; font-variant-numeric: tabular-nums; }
.soft { fill: #5c6770; font-size: 11px; } .title { font-weight: 600; font-size: 13px; }
.grid { stroke: #eceeef; } .zero { stroke: #5c6770; stroke-dasharray: 3 3; }
.mark { stroke-width: 2; fill: none; } .seed { opacity: .45; }
.better { stroke: #1c7a46; fill: #1c7a46; } .worse { stroke: #b3372b; fill: #b3372b; }
.not { stroke: #7d8890; fill: #7d8890; }
text.better, text.worse, text.not { stroke: none; font-size: 11px; }
"""
COLOURS = ("#0f6e84", "#c4591b", "#7a4fa3", "#1c7a46", "#b3372b", "#6c7a86", "#a8841a", "#2b56b0")


def draw(result: Result) -> str:
    """The SVG file's text. It depends on nothing but the result."""
    names = list(result["settings"]["measures"])
    parts, y = [], 8.0
    if len(lengths := _lengths(names)) > 1:
        parts.append(f'<g transform="translate(0 {y:g})">{_lines(result, lengths)}</g>')
        y += _LINES
    for name in names:
        left, right = _dots(result, name), _differences(result, name)
        parts.append(f'<g transform="translate(0 {y:g})">{left[0]}</g>')
        parts.append(f'<g transform="translate({_WIDTH - _PANEL} {y:g})">{right[0]}</g>')
        y += max(left[1], right[1])
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y:g}" width="{_WIDTH}" height="{y:g}">'
    seeds = len(result["settings"]["seeds"])
    label = escape(f"{result['settings'].get('recipe', 'race')}: {len(result['arms'])} arms, {seeds} seeds")
    return f"{head}<title>{label}</title><style>{_STYLE}</style>{''.join(parts)}</svg>\n"


def _lengths(names: Sequence[str]) -> dict[int, str]:
    """The measures taken at several lengths, by how many times the trained one."""
    found = {name: re.fullmatch(r"bits_per_byte@(\d+)x", name) for name in names}
    return dict(sorted((int(match[1]), name) for name, match in found.items() if match))


def _of(arm: Result, measure: str) -> Result:
    found: Result = next(row for row in arm["measures"] if row["measure"] == measure)
    return found


class _Scale:
    """Values across a panel, with round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.ticks = ticks(min(values), max(values), 4)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self._start + (value - low) / (high - low) * (self._end - self._start)


# ---------------------------------------------------------------- lines over the length


def _lines(result: Result, lengths: Mapping[int, str]) -> str:
    rows = {arm["name"]: [_of(arm, name) for name in lengths.values()] for arm in result["arms"]}
    bounds = [v for found in rows.values() for row in found if row["mean"] is not None for v in _bounds(row)]
    if not bounds:
        return ""
    bottom = _LINES - _FOOT
    scale = _Scale(bounds, bottom - 8, _HEAD)
    step = (_PANEL - 70 - 30) / (len(lengths) - 1)
    xs = [70 + 15 + step * number for number in range(len(lengths))]
    parts = [f'<text class="title" x="12" y="20">{escape("Bits per byte of the same tokens, by context")}</text>']
    for value in scale.ticks:
        at = scale(value)
        parts.append(f'<line class="grid" x1="70" x2="{_PANEL}" y1="{at:.1f}" y2="{at:.1f}"/>')
        text = tick(value, scale.ticks)
        parts.append(f'<text class="soft" x="62" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    for x, multiple in zip(xs, lengths, strict=True):
        parts.append(f'<text class="soft" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{multiple}x</text>')
    middle = (70 + _PANEL) / 2
    name = "context, in trained lengths"
    parts.append(f'<text class="soft" x="{middle}" y="{bottom + 29}" text-anchor="middle">{name}</text>')
    legend = _HEAD + 4
    for number, (arm, found) in enumerate(rows.items()):
        colour, nudge = COLOURS[number % len(COLOURS)], 3 * (number - (len(rows) - 1) / 2)
        told = [(x + nudge, row) for x, row in zip(xs, found, strict=True) if row["mean"] is not None]
        path = "L".join(f"{x:.1f},{scale(row['mean']):.1f}" for x, row in told)
        parts.append(f'<path class="mark" stroke="{colour}" d="M{path}"/>')
        for x, row in told:
            low, high = _bounds(row)
            parts.append(f'<path class="mark" stroke="{colour}" d="M{x:.1f},{scale(low):.1f}V{scale(high):.1f}"/>')
            parts.append(f'<circle fill="{colour}" cx="{x:.1f}" cy="{scale(row["mean"]):.1f}" r="3"/>')
        reason = next((str(row["reason"]) for row in found if row["mean"] is None), "")
        says = f"{arm}: stops at {_last(found, lengths)}; {reason}" if reason else arm
        parts.append(f'<path class="mark" stroke="{colour}" d="M{_PANEL + 20},{legend - 4}h16"/>')
        parts.append(f'<text x="{_PANEL + 42}" y="{legend}">{escape(says)}</text>')
        legend += 20
    return "".join(parts)


def _last(found: Sequence[Result], lengths: Mapping[int, str]) -> str:
    told = [multiple for multiple, row in zip(lengths, found, strict=True) if row["mean"] is not None]
    return f"{told[-1]}x" if told else "the start"


def _bounds(row: Result) -> tuple[float, float]:
    low, high = row["interval"]
    return (row["mean"] if low is None else low, row["mean"] if high is None else high)


# ---------------------------------------------------------------- one measure


def _dots(result: Result, name: str) -> tuple[str, float]:
    """Every seed, the mean and its interval, a row an arm."""
    arms = [(arm["name"], _of(arm, name)) for arm in result["arms"]]
    told = [row for _, row in arms if row["mean"] is not None]
    height = len(arms) * _PITCH
    title = f"{name}: {arms[0][1]['unit']}, {arms[0][1]['better']} is better"
    if not told:
        return _panel(title, None, height, [_row(n, arm, "fails", "not") for n, (arm, _) in enumerate(arms)])
    scale = _Scale([v for row in told for v in (*_bounds(row), *row["by_seed"])], _LEFT, _PANEL - _RIGHT)
    parts = []
    for number, (arm, row) in enumerate(arms):
        y, colour = _HEAD + number * _PITCH + 11, COLOURS[number % len(COLOURS)]
        if row["mean"] is None:
            parts.append(_row(number, arm, "fails", "not"))
            continue
        low, high = _bounds(row)
        parts += [f'<circle class="seed" fill="{colour}" cx="{scale(v):.1f}" cy="{y}" r="3"/>' for v in row["by_seed"]]
        parts.append(f'<path class="mark" stroke="{colour}" d="M{scale(low):.1f},{y}H{scale(high):.1f}"/>')
        parts.append(f'<path class="mark" stroke="{colour}" d="M{scale(row["mean"]):.1f},{y - 6}v12"/>')
        parts.append(_row(number, arm, written(row["mean"]), "soft"))
    return _panel(title, scale, height, parts)


def _differences(result: Result, name: str) -> tuple[str, float]:
    """Each pair's difference with its interval, coloured by the verdict."""
    pairs = [pair for pair in result["pairs"] if pair["measure"] == name]
    told = [pair for pair in pairs if pair["difference"] is not None]
    height, title = len(pairs) * _PITCH, "paired difference, 95 % interval; the verdict is on the first"
    if not told:
        return _panel(
            title, None, height, [_row(n, _names(pair), verdict(pair), "not") for n, pair in enumerate(pairs)]
        )
    ends = [v for pair in told for v in (pair["difference"], *pair["interval"]) if v is not None]
    scale = _Scale([0.0, *ends], _LEFT, _PANEL - _RIGHT)
    parts = [f'<path class="zero" d="M{scale(0):.1f},{_HEAD - 4}v{height + 4}"/>']
    for number, pair in enumerate(pairs):
        kind = {"better": "better", "worse": "worse"}.get(pair["verdict"], "not")
        if pair["difference"] is not None:
            y = _HEAD + number * _PITCH + 11
            low, high = (pair["difference"] if v is None else v for v in pair["interval"])
            parts.append(f'<path class="mark {kind}" d="M{scale(low):.1f},{y}H{scale(high):.1f}"/>')
            parts.append(f'<circle class="{kind}" cx="{scale(pair["difference"]):.1f}" cy="{y}" r="3.2"/>')
        parts.append(_row(number, _names(pair), verdict(pair), kind))
    return _panel(title, scale, height, parts)


def _names(pair: Result) -> str:
    return f"{pair['a']} \N{MINUS SIGN} {pair['b']}"


def _row(number: int, label: str, says: str, kind: str) -> str:
    y = _HEAD + number * _PITCH + 15
    return (
        f'<text x="{_LEFT - 12}" y="{y}" text-anchor="end">{escape(_cut(label))}</text>'
        f'<text class="{kind}" x="{_PANEL - _RIGHT + 10}" y="{y}">{escape(_cut(says, 18))}</text>'
    )


def _cut(text: str, most: int = 21) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _panel(title: str, scale: _Scale | None, height: float, parts: Sequence[str]) -> tuple[str, float]:
    """A title, a grid with its ticks below, and what stands on it; the height it takes."""
    drawn = [f'<text class="title" x="12" y="20">{escape(title)}</text>']
    for value in scale.ticks if scale is not None else ():
        assert scale is not None
        at = scale(value)
        drawn.append(f'<path class="grid" d="M{at:.1f},{_HEAD - 4}v{height + 4:g}"/>')
        text = tick(value, scale.ticks).replace("-", "\N{MINUS SIGN}")
        drawn.append(f'<text class="soft" x="{at:.1f}" y="{_HEAD + height + 15:g}" text-anchor="middle">{text}</text>')
    return "".join([*drawn, *parts]), _HEAD + height + _FOOT
