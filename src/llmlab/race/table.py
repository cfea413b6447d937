"""The race as text: a block a measure, first the arms, then each pair with its verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Result = Mapping[str, Any]


def table(result: Result) -> str:
    """What `llmlab compare` prints."""
    blocks = [_block(result, name) for name in result["settings"]["measures"]]
    return "\n\n".join([*blocks, _foot(result)])


def _block(result: Result, name: str) -> str:
    of = {arm["name"]: next(m for m in arm["measures"] if m["measure"] == name) for arm in result["arms"]}
    pairs = [pair for pair in result["pairs"] if pair["measure"] == name]
    rows = [(arm, value(m), m.get("reason", "")) for arm, m in of.items()]
    rows += [(f"{pair['a']} - {pair['b']}", value(pair, "difference", "+"), verdict(pair)) for pair in pairs]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    head = next(iter(of.values()))
    lines = [f"{name} ({head['unit']}, {head['better']} is better)"]
    lines += [f"  {who:<{first}}  {figure:<{second}}  {says}".rstrip() for who, figure, says in rows]
    return "\n".join(lines)


def value(row: Result, name: str = "mean", sign: str = "") -> str:
    """`2.413 [2.391, 2.435]`: the interval has as many places as tell its two ends apart."""
    if row[name] is None:
        return "-"
    low, high = row["interval"]
    return f"{number(row[name], sign)} [{number(low, sign)}, {number(high, sign)}]"


def number(value: float | None, sign: str = "") -> str:
    """Four places below ten, none from ten thousand on."""
    if value is None:
        return "-"
    size = abs(value)
    places = 0 if size >= 1e4 else 1 if size >= 1e3 else 2 if size >= 10 else 4
    return f"{value:{sign},.{places}f}"


def verdict(pair: Result) -> str:
    """`worse *`: a star where the verdict survives Holm's correction; who fails where one has no value."""
    if pair["verdict"] == "fails":
        return f"{' and '.join(pair['fails'])} {'fails' if len(pair['fails']) == 1 else 'fail'}"
    return f"{pair['verdict']}{' *' if pair.get('survives') and pair['verdict'] != 'not told apart' else ''}"


def _foot(result: Result) -> str:
    settings = result["settings"]
    tested = sum("p" in pair for pair in result["pairs"])
    lines = [
        f"{len(result['arms'])} arms, {len(settings['seeds'])} seeds, equal {settings['equal']}. Paired over seeds, "
        f"95 % intervals of Student's t, each of its own comparison.",
        f"Comparisons: {tested}; {0.05 * tested:.1f} verdicts would come by chance if all arms were equal. "
        "* survives Holm's correction within its measure.",
    ]
    for arm in result["arms"]:
        for change in arm["changed"]:
            before = "default" if change["from"] is None else change["from"]
            lines.append(f"{arm['name']}: {change['path']} {before} -> {change['to']} for equal {settings['equal']}")
    return "\n".join([*lines, f"figure: {result['figure']}"])
