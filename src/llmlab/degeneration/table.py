"""A diagnosis for a person: three tables and a sentence."""

from __future__ import annotations

from typing import Any


def table(found: dict[str, Any]) -> str:
    lines = [f"{'measure':<12} {'model':>8} {'people':>8}   (greedy continuations beside human ones)"]
    lines += [f"{row['measure']:<12} {_figure(row['value'])} {_figure(row['human'])}" for row in found["measures"]]
    lines += ["", f"{'cause':<24} {'likely':<7} evidence"]
    for cause in found["causes"]:
        lines.append(f"{cause['cause']:<24} {'yes' if cause['likely'] else 'no':<7} {cause['evidence']}")
    lines += ["", f"{'remedy':<24} {'rep_4':>7} {'change, 95 %':>18} {'distinct_2':>11} {'nats':>6}  helps"]
    lines += [_remedy(row) for row in found["remedies"]]
    return "\n".join([*lines, "", sentence(found)])


def sentence(found: dict[str, Any]) -> str:
    """What it comes to."""
    likely, helps = found["likely"], found["helps"]
    why = f"Likely, strongest first: {', '.join(likely)}" if likely else "No cause of those above is likely"
    return f"{why}. {'No remedy helped for sure' if helps is None else f'What helped best: {helps}'}."


def _remedy(row: dict[str, Any]) -> str:
    low, high = ("-" if bound is None else f"{bound:+.3f}" for bound in row["interval"])
    change = f"[{low}, {high}]"
    helps = "yes" if row["helps"] else "no"
    return f"{row['remedy']:<24} {row['rep_4']:7.3f} {change:>18} {row['distinct_2']:11.3f} {row['nats']:6.2f}  {helps}"


def _figure(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.3f}':>8}"
