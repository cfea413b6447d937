"""`report.html`: one page that shows a run, made of nothing but the files in the run's folder.

It needs no network, no script and no second file; every text in it is escaped, for sample answers may hold anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from llmlab import runtime
from llmlab.evaluation import findings
from llmlab.evaluation.plots import Bar, Series, bar_plot, line_plot, short
from llmlab.evaluation.record import RunRecord, StageRecord, interval, measured, number, read_run, scalars
from llmlab.runtime import atomic_text

NAME = "report.html"
LONGEST_ANSWER = 900  # characters of a sample that are shown

SHORT = {"sft": "SFT", "dpo": "DPO", "quantize": "Weights"}
TITLES = {
    "text": "Text",
    "tokenizer": "Tokenizer",
    "rope": "Rotary angles rescaled",
    "pretrain": "Pretraining",
    "sft": "Supervised fine-tuning",
    "reward": "Reward model",
    "dpo": "Direct preference optimisation",
    "ppo": "PPO",
    "quantize": "Quantised weights",
    "evaluate": "Evaluation",
}
# Curves worth a look at once: figure -> (title, unit, figures of held-out data on the same axes). The rest is folded.
CURVES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "proxy_reward": ("Proxy reward", "reward model's score", ()),
    "gold_reward": ("Gold reward", "program's score", ("held_out_gold_reward",)),
    "kl": ("KL to the reference", "nats per answer", ()),
    "repetition": ("Repetition", "share of 4-grams", ("held_out_repetition",)),
    "response_length": ("Answer length", "tokens", ()),
    "answer_tokens": ("Answer length", "tokens", ()),
    "loss": ("Loss", "nats", ("held_out_loss",)),
    "held_out_bits_per_byte": ("Held-out text", "bits per byte", ()),
    "held_out_suffix_bits_per_byte": ("Held-out suffixes", "bits per byte of the suffixes", ()),
    "held_out_masked_accuracy": ("Held-out masked tokens", "share found", ()),
    "held_out_masked_cross_entropy": ("Held-out masked tokens", "nats per masked token", ()),
    "held_out_next_sentence_accuracy": ("Held-out pairs", "share right", ()),
    "held_out_spans_bits_per_hidden_byte": ("Held-out spans", "bits per hidden byte", ()),
    "held_out_blanks_bits_per_hidden_byte": ("Held-out blanks", "bits per hidden byte", ()),
    "accuracy": ("Accuracy", "share", ("held_out_accuracy",)),
    "margin": ("Margin", "score", ("held_out_margin",)),
    "held_out_exact_match": ("Exact match", "share of exercises", ()),
}
UNITS = {
    "learning_rate": "per step", "gradient_norm": "norm", "tokens_per_second": "tokens/s", "seconds": "s",
    "learnt_tokens_per_second": "tokens/s", "tokens": "tokens", "learnt_tokens": "tokens", "clip_fraction": "share",
}  # fmt: skip
METRICS = {
    "bits_per_byte": "Bits per byte",
    "suffix_bits_per_byte": "Bits per byte of suffixes",
    "masked_accuracy": "Masked tokens found",
    "masked_cross_entropy": "Nats per masked token",
    "next_sentence_accuracy": "Next sentence told",
    "spans_bits_per_hidden_byte": "Bits per hidden byte, spans",
    "blanks_bits_per_hidden_byte": "Bits per hidden byte, blanks",
    "exact_match": "Exact match",
    "gold_reward": "Gold reward",
    "courteous": "Courteous answers",
    "repetition": "Repetition of samples",
    "accuracy": "Accuracy",
    "accuracy_per_byte": "Accuracy, per byte",
    "accuracy_per_token": "Accuracy, per token",
}
SHARES = {
    *("exact_match", "courteous", "accuracy", "accuracy_per_byte", "accuracy_per_token"),
    *("masked_accuracy", "next_sentence_accuracy"),
}
LOWER_IS_BETTER = {
    *("bits_per_byte", "repetition", "suffix_bits_per_byte", "masked_cross_entropy"),
    *("spans_bits_per_hidden_byte", "blanks_bits_per_hidden_byte"),
}


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into the run's folder. InputError where the folder holds no run."""
    page = render(read_run(run_folder))
    atomic_text(run_folder / NAME, page)
    return run_folder / NAME


def render(run: RunRecord) -> str:
    """The page as text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"duration": findings.duration, "size": findings.size, "short": short}
    source = (resources.files("llmlab.evaluation") / "report.html").read_text(encoding="utf-8")
    text = funnel(run)
    told = {"text", "quantize", "evaluate"} | ({"tokenizer"} if text else set())
    shown = [record for name, record in run.stages.items() if name not in told]
    return environment.from_string(source).render(
        style=style(),
        name=run.name,
        seed=run.recipe.get("seed", "unknown"),
        summary=findings.summary(run),
        tiles=findings.tiles(run),
        funnel=text,
        stages=[stage_section(run, record) for record in shown],
        weights=weight_rows(run),
        metrics=list(metric_rows(run)),
        policies=list(findings.policies(run)),
        comparisons=comparisons(run),
        samples=samples(run),
        costs=costs(run),
        recipe=run.recipe_text,
        versions=versions(run),
    )


def style() -> Markup:
    """The style sheet of llmlab's pages, for light and dark screens and for paper."""
    return Markup((resources.files("llmlab.evaluation") / "style.html").read_text(encoding="utf-8"))


# ---------------------------------------------------------------- text


def funnel(run: RunRecord) -> dict[str, Any] | None:
    """What each rule of the text stage changed, dropped and left over; rules that found nothing are only counted."""
    source = run.funnel or run.figures("text")
    steps = [step for step in source.get("rules") or [] if isinstance(step, dict)]
    rows = []
    first = next((number(step.get("bytes_in")) for step in steps), None) or 1.0
    for step in steps:
        before, left, changed, bytes_ = (
            number(step.get(key)) or 0.0 for key in ("documents_in", "documents_out", "changed", "bytes_out")
        )
        row = {"name": str(step.get("name", "")).replace("_", " "), "documents": left, "bytes": bytes_}
        if before > left or changed or step is steps[-1]:
            rows.append(row | {"dropped": before - left, "changed": changed, "share": min(1.0, bytes_ / first)})
    sides = {}
    for side in ("train", "held_out"):
        found = source.get(side)
        if isinstance(found, dict):
            sides[side.replace("_", "-")] = {part: number(found.get(part)) or 0.0 for part in ("documents", "bytes")}
    if not rows and not sides:
        return None
    reading = source.get("reading")
    skipped = number(reading.get("skipped_rows")) if isinstance(reading, dict) else None
    tokenizer = run.stages.get("tokenizer")
    told = lead(run, tokenizer) if tokenizer else ""
    idle = len(steps) - len(rows)
    return {"rows": rows, "sides": sides, "skipped": int(skipped or 0), "idle": idle, "tokenizer": told}


# ---------------------------------------------------------------- curves


def stage_section(run: RunRecord, record: StageRecord) -> dict[str, Any]:
    """A stage's curves, the telling ones first, its own extra picture, and all its plain figures."""
    levels = {}
    if record.name == "pretrain":
        levels = {findings.BASELINES.get(name, name): value for name, value in findings.baselines(run).items()}
    beside = {name for _, _, names in CURVES.values() for name in names}
    main = [curve(record, name, levels) for name in CURVES if name in record.names()]
    # Held-out figures whose training twin is not there stand on their own.
    alone = [name for name in record.names() if name in beside and not _drawn_with(record, name)]
    rest = [name for name in record.names() if name not in CURVES and name not in beside]
    return {
        "name": record.name,
        "title": TITLES.get(record.name, record.name),
        "short": SHORT.get(record.name, TITLES.get(record.name, record.name)),
        "finished": record.finished,
        "lead": lead(run, record),
        "bars": reference_bars(run) if record.name == "pretrain" else Markup(""),
        "curves": [one for one in [*main, *(curve(record, name, {}) for name in alone)] if one["svg"]],
        "more": [one for one in (curve(record, name, {}) for name in rest) if one["svg"]],
        "changes": findings.changes(record.figures),
        "figures": list(scalars(record.figures)),
    }


def _drawn_with(record: StageRecord, name: str) -> bool:
    return any(name in names and owner in record.names() for owner, (_, _, names) in CURVES.items())


def curve(record: StageRecord, name: str, levels: Mapping[str, float]) -> dict[str, Any]:
    """One plot: a figure over the steps, and its held-out twins on the same axes."""
    words = name.replace("_", " ")
    title, unit, twins = CURVES.get(name, (words[:1].upper() + words[1:], UNITS.get(name, ""), ()))
    there = [twin for twin in twins if record.curve(twin)[0]]
    held = name.startswith("held_out")
    series = [Series("held-out" if held else "train", *record.curve(name), emphasis=held or not there)]
    series += [Series("held-out", *record.curve(twin), emphasis=True) for twin in there]
    near = list(levels.items()) if name == "held_out_bits_per_byte" else []
    last = [(line.name, line.ys[-1]) for line in series if line.ys]
    return {"title": title, "svg": line_plot(title, unit, series, near), "last": last, "legend": bool(there)}


def reference_bars(run: RunRecord) -> Markup:
    """The model beside compressors and the n-gram, in bits per byte."""
    found, others = findings.held_out(run), findings.baselines(run)
    if found is None or not others:
        return Markup("")
    bars = [Bar("this model", found.value, found.low, found.high, True)]
    bars += [Bar(findings.BASELINES.get(name, name), value) for name, value in others.items()]
    return bar_plot("Held-out bits per byte", "bits per byte", sorted(bars, key=lambda bar: bar.value), 560)


def lead(run: RunRecord, record: StageRecord) -> str:
    """The line below a stage's title."""
    parts = []
    if steps := record.number("steps"):
        parts.append(f"{steps:,.0f} optimizer steps")
    tokens = measured(record.figures, "tokens")
    if tokens is not None and record.name in ("pretrain", "sft"):
        parts.append(f"{tokens.value:,.0f} tokens")
    if record.name == "reward" and (accuracy := findings.reward_accuracy(run)):
        parts.append(f"right on {findings.percent(accuracy.value)} of held-out pairs")
        if text := findings.spread(accuracy, findings.percent):
            parts.append(f"95 % interval {text}")
    if record.name == "tokenizer" and (vocabulary := measured(record.figures, "vocab_size")):
        parts.append(f"a vocabulary of {vocabulary.value:,.0f} tokens")
        if each := measured(record.figures, "held_out_bytes_per_token"):
            parts.append(f"{each.value:.2f} bytes of held-out text per token")
    if resumed := record.number("resumed_from_step"):
        parts.append(f"resumed from step {resumed:,.0f}")
    return " · ".join(parts)


# ---------------------------------------------------------------- tables


def weight_rows(run: RunRecord) -> list[dict[str, str]]:
    """Size, speed and loss of each kind of weights."""
    rows = []
    first = next((number(row.get("bytes")) for row in findings.weights(run)), None)
    for row in findings.weights(run):
        bytes_, speed = number(row.get("bytes")), number(row.get("tokens_per_second"))
        bits, lost, error = (number(row.get(key)) for key in ("held_out_bits_per_byte", "difference", "largest_error"))
        low, high = interval(row.get("difference_interval"))
        inside = f" [{findings.signed(low)}, {findings.signed(high)}]" if low is not None and high is not None else ""
        rows.append(
            {
                "kind": str(row.get("kind", "")),
                "size": findings.size(bytes_) if bytes_ else "–",
                "smaller": f"{first / bytes_:.2f}×" if bytes_ and first else "–",
                "speed": f"{speed:,.0f}" if speed else "–",
                "bits": f"{bits:.4f}" if bits is not None else "–",
                "lost": findings.signed(lost) + inside if lost is not None else "–",
                "error": short(error) if error is not None else "–",
            }
        )
    return rows


def metric_rows(run: RunRecord) -> Iterator[dict[str, Any]]:
    """Each metric over the policies, with a picture where it has intervals."""
    found = findings.policies(run)
    keys = dict.fromkeys((str(row.get("name")), str(row.get("metric"))) for rows in found.values() for row in rows)
    for name, metric in keys:
        values = {policy: findings.result(rows, metric, name) for policy, rows in found.items()}
        there = {policy: value for policy, value in values.items() if value is not None}
        if not there:
            continue
        last = list(there)[-1]
        bars = [Bar(policy, v.value, v.low, v.high, policy == last) for policy, v in there.items()]
        own = name.replace("_", " ")
        title = METRICS.get(metric, metric.replace("_", " "))
        yield {
            "title": title
            if own in (metric.replace("_", " "), "held out", "exercises", "samples")
            else f"{title}: {own}",
            "better": "lower is better" if metric in LOWER_IS_BETTER else "higher is better",
            "svg": bar_plot(title, "", bars, 340, top=1.0 if metric in SHARES else None),
            "n": next((v.n for v in there.values() if v.n), None),
        }


def comparisons(run: RunRecord) -> list[dict[str, str]]:
    """What each policy changed beside the one it started from, paired by item."""
    rows = run.figures("evaluate").get("comparisons")
    starts = findings.starts(run)
    shown = []
    for row in rows if isinstance(rows, list) else []:
        value = number(row.get("difference")) if isinstance(row, dict) else None
        if value is None or row.get("a") != starts.get(row.get("b")):
            continue
        low, high = interval(row.get("interval"))
        metric = str(row.get("metric", ""))
        shown.append(
            {
                "pair": f"{row.get('a')} → {row.get('b')}",
                "metric": METRICS.get(metric, metric.replace("_", " ")),
                "difference": findings.signed(value),
                "interval": "" if low is None or high is None else f"{findings.signed(low)} to {findings.signed(high)}",
                "verdict": str(row.get("verdict", "")),
            }
        )
    return shown


def samples(run: RunRecord) -> list[dict[str, Any]]:
    """The same prompts, answered by each policy."""
    rows = run.figures("evaluate").get("samples")
    shown = []
    for row in rows if isinstance(rows, list) else []:
        answers = row.get("answers") if isinstance(row, dict) else None
        if isinstance(answers, dict):
            order = sorted(answers, key=lambda name: findings.POLICIES.index(name) if name in findings.POLICIES else 9)
            cut = {str(name): _cut(str(answers[name])) for name in order}
            shown.append({"prompt": str(row.get("prompt", "")), "answers": cut})
    return shown


def _cut(text: str) -> str:
    text = text.strip()
    return text if len(text) <= LONGEST_ANSWER else text[:LONGEST_ANSWER] + " …"


def costs(run: RunRecord) -> list[dict[str, Any]]:
    """Time and peak memory of each stage, and what was predicted of them."""
    longest = max((record.number("seconds") or 0.0 for record in run.stages.values()), default=0.0) or 1.0
    highest = findings.peak(run) or 1.0
    rows = []
    for record in run.stages.values():
        took, peak = record.number("seconds") or 0.0, record.number("peak_bytes") or 0.0
        row: dict[str, Any] = {"name": record.name, "seconds": took, "peak": peak}
        row |= {"steps": record.number("steps") or 0}
        row |= {f"planned_{name}": run.predicted(record.name, name) for name in ("seconds", "peak_bytes")}
        rows.append(row | {"time_share": took / longest, "memory_share": peak / highest, "finished": record.finished})
    return rows


def versions(run: RunRecord) -> dict[str, str]:
    """What the stages say they ran with; else what writes this page."""
    for record in reversed(list(run.stages.values())):
        noted = record.manifest.get("versions")
        if isinstance(noted, dict):
            return {str(name): str(version) for name, version in noted.items()}
    return runtime.versions()
