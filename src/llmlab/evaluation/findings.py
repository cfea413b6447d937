"""The few figures that matter, taken out of a run's record, and the sentences that say them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from llmlab.evaluation.plots import short
from llmlab.evaluation.record import Measured, RunRecord, interval, measured, number

POLICIES = ("base", "rope", "pretrain", "sft", "dpo", "ppo")
BASELINES = {
    "byte_6gram": "byte 6-gram",
    "xz_after_training_text": "xz after training text",
    "xz": "xz",
    "gzip": "gzip",
}


class Tile(NamedTuple):
    """One headline: what, how much, and what to hold it against."""

    label: str
    value: str
    note: str


# ---------------------------------------------------------------- taking out


def policies(run: RunRecord) -> dict[str, list[Mapping[str, Any]]]:
    """The results of each policy, as the evaluation stage wrote them, in the order of the life."""
    found = run.figures("evaluate").get("policies")
    if not isinstance(found, dict):
        return {}
    names = sorted(found, key=lambda name: POLICIES.index(name) if name in POLICIES else len(POLICIES))
    return {
        name: [row for row in found[name] if isinstance(row, dict)] for name in names if isinstance(found[name], list)
    }


def starts(run: RunRecord) -> dict[str, str]:
    """The policy that each policy started from: dpo and ppo both from the last one before them."""
    there = list(policies(run))
    roots = [name for name in there if name not in ("dpo", "ppo")]
    pairs = {after: before for before, after in pairwise(roots)}
    return pairs | {name: roots[-1] for name in there if name in ("dpo", "ppo") and roots}


def result(rows: Sequence[Mapping[str, Any]], metric: str, name: str | None = None) -> Measured | None:
    """The result of a metric (of the task `name`, if given)."""
    for row in rows:
        value = number(row.get("value"))
        if row.get("metric") == metric and name in (None, row.get("name")) and value is not None:
            count = number(row.get("n"))
            return Measured(value, *interval(row.get("interval")), None if count is None else int(count))
    return None


def by_policy(run: RunRecord, metric: str) -> dict[str, Measured]:
    """One metric over the policies that have it."""
    found = {name: result(rows, metric) for name, rows in policies(run).items()}
    return {name: value for name, value in found.items() if value is not None}


def exact_match(run: RunRecord) -> dict[str, Measured]:
    """Exact match on held-out exercises over the policies; without an evaluation, what fine-tuning itself saw."""
    found = by_policy(run, "exact_match")
    own = measured(run.figures("sft"), "held_out_exact_match")
    return found if found or own is None else {"sft": own}


def difference(run: RunRecord, a: str, b: str, metric: str) -> tuple[Measured, str] | None:
    """What changed in a metric from policy a to policy b, item by item, with its verdict."""
    for row in _list(run.figures("evaluate").get("comparisons")):
        value = number(row.get("difference"))
        if (row.get("a"), row.get("b"), row.get("metric")) == (a, b, metric) and value is not None:
            return Measured(value, *interval(row.get("interval"))), str(row.get("verdict", ""))
    return None


def held_out(run: RunRecord) -> Measured | None:
    """Bits per byte of the pretrained model on held-out text."""
    evaluated = by_policy(run, "bits_per_byte")
    first = evaluated.get("pretrain") or evaluated.get("base")
    return first or measured(run.figures("pretrain"), "held_out_bits_per_byte", "bits_per_byte")


def baselines(run: RunRecord) -> dict[str, float]:
    """Bits per byte of what is no neural network, on the same text."""
    for stage in ("evaluate", "pretrain", "text", "tokenizer"):
        found = run.figures(stage).get("baselines")
        if isinstance(found, dict):
            named = {name: number(found.get(name)) for name in [*BASELINES, *sorted(set(found) - set(BASELINES))]}
            return {name: value for name, value in named.items() if value is not None}
    return {}


def reward_accuracy(run: RunRecord) -> Measured | None:
    """How often the reward model is right on held-out pairs."""
    figures = run.figures("reward")
    return measured(figures, "held_out_accuracy", "pair_accuracy", "held_out_pair_accuracy", "accuracy")


def weights(run: RunRecord) -> list[Mapping[str, Any]]:
    """The rows of the quantise stage, float32 first."""
    return _list(run.figures("quantize").get("weights"))


def _list(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


# ---------------------------------------------------------------- telling


def tiles(run: RunRecord) -> list[Tile]:
    """What is to be seen in ten seconds."""
    return list(_tiles(run))


def _tiles(run: RunRecord) -> Iterator[Tile]:
    bits, others = held_out(run), baselines(run)
    if bits is not None:
        note = f"byte 6-gram {others['byte_6gram']:.2f}" if "byte_6gram" in others else "on held-out text"
        yield Tile("bits per byte", f"{bits.value:.2f}", note)
    exact = exact_match(run)
    if "sft" in exact:
        before = next((exact[name] for name in ("pretrain", "base") if name in exact), None)
        note = f"{percent(before.value)} before" if before else spread(exact["sft"], percent)
        yield Tile("exact match by SFT", percent(exact["sft"].value), note)
    accuracy = reward_accuracy(run)
    if accuracy is not None:
        yield Tile("reward model right", percent(accuracy.value), spread(accuracy, percent) or "on held-out pairs")
    moved = gold_change(run)
    if moved is not None:
        change, verdict = moved
        yield Tile("gold reward by PPO", signed(change.value), spread(change, signed) or verdict)
    small = _smallest(run)
    if small is not None:
        kind, factor, lost = small
        yield Tile(
            f"{kind} weights, smaller", f"{factor:.1f}×", "" if lost is None else f"{signed(lost)} bits per byte"
        )
    yield Tile("whole run", duration(seconds(run)), f"peak {size(peak(run))}" if peak(run) else "")


def gold_change(run: RunRecord) -> tuple[Measured, str] | None:
    """How PPO moved the gold reward of held-out prompts: as the stage itself measured it, else the evaluation."""
    change = measured(run.figures("ppo"), "gold_reward_change")
    if change is not None and change.low is not None and change.high is not None:
        return change, "better" if change.low > 0 else "worse" if change.high < 0 else "not told apart"
    for start in ("sft", "base", "pretrain"):
        found = difference(run, start, "ppo", "gold_reward")
        if found is not None:
            return found
    return None


def changes(figures: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a stage measured before and after itself, on the same prompts."""
    rows = []
    for key in figures:
        name = key.removesuffix("_change")
        change = measured(figures, key) if key.endswith("_change") else None
        before, after = measured(figures, f"{name}_before"), measured(figures, f"{name}_after")
        if change is not None and before is not None and after is not None:
            row = {"name": name.replace("_", " "), "before": short(before.value), "after": short(after.value)}
            rows.append(row | {"change": signed(change.value), "interval": spread(change, signed)})
    return rows


def _smallest(run: RunRecord) -> tuple[str, float, float | None] | None:
    """Of the quantised weights with the fewest bytes: kind, how many times smaller, what it costs in bits per byte."""
    rows = [(row, bytes_) for row in weights(run) if (bytes_ := number(row.get("bytes")))]
    if len(rows) < 2:
        return None
    row, bytes_ = min(rows[1:], key=lambda pair: pair[1])
    first, last = number(rows[0][0].get("held_out_bits_per_byte")), number(row.get("held_out_bits_per_byte"))
    lost = None if first is None or last is None else last - first
    return str(row.get("kind", "quantised")), rows[0][1] / bytes_, lost


def summary(run: RunRecord) -> str:
    """One paragraph, computed from the figures; what was not measured is not said."""
    return " ".join(_sentences(run))


def _sentences(run: RunRecord) -> Iterator[str]:
    memory = f", with {size(peak(run))} of memory at most" if peak(run) else ""
    stages = "One stage" if len(run.stages) == 1 else f"{len(run.stages)} stages"
    yield f"{stages} in {duration(seconds(run))}{memory}."
    bits, others = held_out(run), baselines(run)
    if bits is not None:
        told = ""
        if "byte_6gram" in others:
            gap = bits.value - others["byte_6gram"]
            told = f", {abs(gap):.2f} {'below' if gap < 0 else 'above'} a byte 6-gram of the same training text"
        whose = "pretrained model" if "pretrain" in run.stages else "model"
        yield f"The {whose} reads held-out text at {bits.value:.2f} bits per byte{told}."
    yield from _tuning(run)
    small = _smallest(run)
    if small is not None:
        kind, factor, lost = small
        cost = "" if lost is None else f" at {signed(lost)} bits per byte"
        yield f"The {kind} weights are {factor:.1f} times smaller{cost}."


def _tuning(run: RunRecord) -> Iterator[str]:
    """What fine-tuning, the reward model and PPO came to."""
    exact = exact_match(run)
    if "sft" in exact:
        before = next((name for name in ("pretrain", "base") if name in exact), None)
        start = f"from {percent(exact[before].value)} " if before else ""
        told = difference(run, before, "sft", "exact_match") if before else None
        tail = " (not told apart)" if told and told[1] == "not told apart" else ""
        yield f"Fine-tuning takes exact match on held-out exercises {start}to {percent(exact['sft'].value)}{tail}."
    accuracy = reward_accuracy(run)
    if accuracy is not None:
        right = f"{percent(accuracy.value)} of held-out pairs{_between(accuracy)}"
        yield f"The reward model prefers the better answer in {right}."
    moved = gold_change(run)
    if moved is not None:
        change, verdict = moved
        tail = ": not told apart from no change" if verdict == "not told apart" else ""
        far = measured(run.figures("ppo"), "kl_after")
        cost = f" at a KL of {short(far.value)} nats from where it started" if far else ""
        moves = f"by {signed(change.value)}{_between(change, signed)}{cost}{tail}"
        yield f"PPO moves the gold reward, a program it never learns from, {moves}."


def _between(found: Measured, form: Any = None) -> str:
    text = spread(found, form or percent)
    return f" ({text})" if text else ""


# ---------------------------------------------------------------- writing numbers


def seconds(run: RunRecord) -> float:
    return sum(record.number("seconds") or 0.0 for record in run.stages.values())


def peak(run: RunRecord) -> float:
    return max((record.number("peak_bytes") or 0.0 for record in run.stages.values()), default=0.0)


def spread(found: Measured, form: Any) -> str:
    """The interval as text, nothing where there is none."""
    return "" if found.low is None or found.high is None else f"{form(found.low)} to {form(found.high)}"


def percent(value: float) -> str:
    places = 0 if value in (0, 1) or 0.1 <= value < 0.995 else 1
    return f"{100 * value:.{places}f} %"


def signed(value: float) -> str:
    if value == 0:
        return "0"
    size_ = abs(value)
    text = f"{value:+.{4 if size_ < 0.01 else 3 if size_ < 0.1 else 2 if size_ < 10 else 1}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def duration(value: float) -> str:
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(value: float) -> str:
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}" if unit != "B" else f"{value:.0f} B"
        value /= 1000
    return f"{value:.3g} GB"


def plain(found: Measured) -> str:
    """A value with its interval."""
    text = spread(found, short)
    return f"{short(found.value)}  [{text.replace(' to ', ', ')}]" if text else short(found.value)
