"""Pictures of a race: dots with intervals, best first, and a line an arm over the length. Inline SVG for both themes.

Colours are classes of the page, `a0` to `a7`; from the ninth arm on lines are dashed. Every text is escaped here.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from llmlab.evaluation.plots import tick, ticks
from llmlab.handbook.question import Language, Text
from llmlab.handbook.race_rows import Block, Cell, number

WIDTH, _PITCH, _FOOT = 760, 22, 40
_COLOURS = 8
_LEFT, _RIGHT, _TOP, _HEIGHT = 62, 190, 14, 330  # of the panel of lines; names stand to its right
_APART = 15  # between two of those names

LENGTHS = Text("context, in trained lengths", "上下文长度（以训练长度计）")
SIDES = {
    "lower": Text("lower is better", "越低越好"),
    "higher": Text("higher is better", "越高越好"),
}
INTERVALS = Text("dots: seeds; bars: mean and 95 % interval", "圆点为各种子，横线为均值与 95% 区间")
BANDS = Text("bands: 95 % interval of the mean", "色带为均值的 95% 区间")
RANKED, RISING = Text("best first", "由优到劣"), Text("smallest first", "由小到大")
STOPS = Text("up to", "止于")
UNITS = {"bits per byte": "每字节比特", "nats per token": "每词元奈特", "seconds of training": "训练秒数"}


def dots(block: Block, column: int, title: str, lang: Language, ident: str) -> Markup:
    """One measure: a row an arm with every seed, the mean and its interval; a dashed line at the baseline's mean."""
    shown = block.ranked(column)
    left = min(250, 24 + 7 * max(len(arm) for arm, _ in shown))
    right, floor = WIDTH - 90, len(shown) * _PITCH + 8
    scale = _Scale([v for _, cell in shown for v in (*cell.ends, *cell.by_seed)], left, right)
    parts = []
    for value in scale.ticks:
        at = scale(value)
        parts.append(f'<path class="grid" d="M{at:.1f},4V{floor}"/>')
        parts.append(f'<text x="{at:.1f}" y="{floor + 15}" text-anchor="middle">{_tick(value, scale.ticks)}</text>')
    if base := next((cell for arm, cell in shown if arm == block.baseline), None):
        parts.append(f'<path class="level" d="M{scale(base.mean):.1f},4V{floor}"/>')
    for row, (arm, cell) in enumerate(shown):
        y, (low, high) = row * _PITCH + 17, cell.ends
        kind = cell.kind if cell.kind != "fixed" else "base"
        parts.append(f'<text class="label" x="{left - 14}" y="{y + 4}" text-anchor="end">{escape(arm)}</text>')
        parts += [f'<circle class="seed" cx="{scale(v):.1f}" cy="{y}" r="2.8"/>' for v in cell.by_seed]
        parts.append(f'<path class="mark {kind}" d="M{scale(low):.1f},{y}H{scale(high):.1f}"/>')
        parts.append(f'<path class="mark {kind}" d="M{scale(cell.mean):.1f},{y - 6}v12"/>')
        parts.append(f'<text class="value" x="{right + 14}" y="{y + 4}">{escape(number(cell.mean))}</text>')
    name = _axis(block, column, lang)
    parts.append(f'<text class="name" x="{(left + right) / 2}" y="{floor + 33}" text-anchor="middle">{name}</text>')
    told = [f"{arm} {number(cell.mean)}" for arm, cell in shown]
    return _svg(
        "dots", floor + _FOOT, title, _told(told, block, column, lang) + INTERVALS.in_language(lang), parts, ident
    )


def lines(block: Block, title: str, lang: Language, ident: str) -> Markup:
    """One measure over the length: a line an arm with the band of its interval, its name at the end of it."""
    shown = {arm: [(column, cell) for column, cell in enumerate(cells) if cell] for arm, cells in block.rows.items()}
    ends = [v for found in shown.values() for _, cell in found for v in cell.ends]
    floor, right = _HEIGHT - _FOOT - 6, WIDTH - _RIGHT
    scale = _Scale(ends, floor, _TOP)
    step = (right - _LEFT - 24) / (len(block.columns) - 1)
    xs = [_LEFT + 12 + step * place for place in range(len(block.columns))]
    parts = []
    for value in scale.ticks:
        at = scale(value)
        parts.append(f'<path class="grid" d="M{_LEFT},{at:.1f}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{_tick(value, scale.ticks)}</text>')
    for x, column in zip(xs, block.columns, strict=True):
        parts.append(f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{escape(column.head)}</text>')
    # From the last arm to the first, so that the best line lies on top.
    colours = {
        arm: f"a{place % _COLOURS}{' late' if place >= _COLOURS else ''}" for place, arm in enumerate(block.arms)
    }
    for arm in reversed(shown):
        parts.append(_line([(xs[column], cell) for column, cell in shown[arm]], scale, colours[arm], arm))
    parts += _names(block, shown, scale, xs[-1], colours, lang)
    middle = (_LEFT + right) / 2
    says = LENGTHS.in_language(lang)
    parts.append(f'<text class="name" x="{middle}" y="{floor + 35}" text-anchor="middle">{says}</text>')
    last = len(block.columns) - 1
    told = [f"{arm} {number(cell.mean)}" for arm, cell in block.ranked(last)]
    desc = f"{block.columns[last].head}: {_told(told, block, last, lang)}{BANDS.in_language(lang)}"
    return _svg("lines", _HEIGHT, title, desc, parts, ident)


def _line(points: Sequence[tuple[float, Cell]], scale: _Scale, colour: str, arm: str) -> str:
    top = [f"{x:.1f},{scale(cell.ends[1]):.1f}" for x, cell in points]
    bottom = [f"{x:.1f},{scale(cell.ends[0]):.1f}" for x, cell in reversed(points)]
    path = "L".join(f"{x:.1f},{scale(cell.mean):.1f}" for x, cell in points)
    drawn = f'<path class="band {colour}" d="M{"L".join([*top, *bottom])}Z"/>' if len(points) > 1 else ""
    drawn += f'<path class="line thick {colour}" d="M{path}"/>' if len(points) > 1 else ""
    for x, cell in points:
        low, high = cell.ends
        if len(points) == 1:
            drawn += f'<path class="line thick {colour}" d="M{x:.1f},{scale(low):.1f}V{scale(high):.1f}"/>'
        says = escape(f"{arm}: {number(cell.mean)}")
        drawn += f'<circle class="dot {colour}" cx="{x:.1f}" cy="{scale(cell.mean):.1f}" r="3">'
        drawn += f"<title>{says}</title></circle>"
    return drawn


def _names(
    block: Block,
    shown: dict[str, list[tuple[int, Cell]]],
    scale: _Scale,
    end: float,
    colours: dict[str, str],
    lang: Language,
) -> list[str]:
    """The arms' names to the right, at their line's end as far as they do not touch; those that stop earlier below."""
    last = len(block.columns) - 1
    through = sorted((arm for arm in shown if shown[arm][-1][0] == last), key=lambda arm: scale(shown[arm][-1][1].mean))
    early = [arm for arm in shown if arm not in through]
    wanted = [scale(shown[arm][-1][1].mean) for arm in through] + [_HEIGHT - 10.0] * len(early)
    room = _HEIGHT - 8 - _APART * len(wanted)
    places: list[float] = []
    for number_, want in enumerate(wanted):
        places.append(max(min(want, room + _APART * (number_ + 1)), places[-1] + _APART if places else 8.0))
    parts = []
    for arm, y in zip([*through, *early], places, strict=True):
        column, cell = shown[arm][-1]
        x = WIDTH - _RIGHT + 22
        text = arm if arm in through else f"{arm} ({STOPS.in_language(lang)} {block.columns[column].head})"
        if arm in through:
            parts.append(f'<path class="lead" d="M{end + 5:.1f},{scale(cell.mean):.1f}L{x - 4},{y:.1f}"/>')
        parts.append(f'<path class="line thick {colours[arm]}" d="M{x},{y:.1f}h14"/>')
        parts.append(f'<text class="label" x="{x + 20}" y="{y + 4:.1f}">{escape(text)}</text>')
    return parts


class _Scale:
    """Values onto pixels, with round ticks at both ends."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.ticks = ticks(min(values), max(values), 5)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self._start + (value - low) / (high - low) * (self._end - self._start)


def _tick(value: float, among: Sequence[float]) -> str:
    return tick(value, among).replace("-", "\N{MINUS SIGN}")


def _axis(block: Block, column: int, lang: Language) -> Markup:
    measure = block.columns[column]
    side = [SIDES[measure.better].in_language(lang)] if measure.better else []
    unit = [UNITS.get(measure.unit, measure.unit) if lang == "zh" else measure.unit] if measure.unit else []
    return escape(("，" if lang == "zh" else ", ").join([*unit, *side]) or measure.measure)


def _told(told: Sequence[str], block: Block, column: int, lang: Language) -> str:
    """All arms in words, from one end to the other: the picture for who does not see it."""
    order = (RANKED if block.columns[column].better else RISING).in_language(lang)
    return f"{order}：{'、'.join(told)}。" if lang == "zh" else f"{order}: {', '.join(told)}. "


def _svg(kind: str, height: float, title: str, desc: str, parts: Sequence[str], ident: str) -> Markup:
    begin = (
        f'<svg class="race {kind}" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-labelledby="{escape(ident)}-title {escape(ident)}-desc">'
        f'<title id="{escape(ident)}-title">{escape(title)}</title>'
        f'<desc id="{escape(ident)}-desc">{escape(desc)}</desc>'
    )
    return Markup(begin + "".join(parts) + "</svg>")
