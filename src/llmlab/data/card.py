"""The data card: what a corpus is made of, in words for people, made from the funnel and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SHOWN = 200  # characters of a dropped document


def card(funnel: Mapping[str, Any], tokens: Mapping[str, Any] | None = None) -> str:
    """Markdown. `tokens` are the figures of the tokenizer stage, once there are some."""
    return "\n".join(_parts(funnel, tokens or {})).rstrip() + "\n"


def _parts(funnel: Mapping[str, Any], tokens: Mapping[str, Any]) -> Iterator[str]:
    train, held, reading = funnel["train"], funnel["held_out"], funnel["reading"]
    yield "# Data card"
    yield ""
    for name, side in (("training", train), ("held-out", held)):
        count = tokens.get("train_tokens" if name == "training" else "held_out_tokens")
        told = f", {count:,} tokens" if count is not None else ""
        yield f"- {name}: {side['documents']:,} documents, {side['bytes']:,} bytes of UTF-8{told}"
    skipped = f"{reading['skipped_rows']:,} of them unreadable"
    yield f"- read: {reading['rows']:,} rows or pieces of {reading['files']:,} files, {skipped}"
    yield ""
    yield "## Sources"
    yield ""
    yield "| source | licence | documents left | bytes left | epochs | bytes for training |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    for source in funnel["sources"]:
        cells = (f"`{source['name']}`", source["licence"] or "not given", f"{source['documents']:,}")
        yield _row(*cells, f"{source['bytes']:,}", f"{source['epochs']:g}", f"{source['train_bytes']:,}")
    yield ""
    if funnel["languages"]:
        yield "## Languages"
        yield ""
        yield "Documents told apart before those of other languages were dropped (py3langid, by their beginnings)."
        yield ""
        total = sum(funnel["languages"].values())
        for name, count in funnel["languages"].items():
            yield f"- {name}: {count:,} ({count / total:.1%})"
        yield ""
    yield "## What each step did"
    yield ""
    yield "| step | documents in | changed | removed | bytes removed |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for step in funnel["rules"]:
        removed = step["documents_in"] - step["documents_out"]
        bytes_ = step["bytes_in"] - step["bytes_out"]
        cells = (step["name"].replace("_", " "), f"{step['documents_in']:,}", f"{step['changed']:,}")
        yield _row(*cells, f"{removed:,}", f"{bytes_:,}")
    yield ""
    if funnel["dropped"]:
        yield "## Examples of what was removed"
        yield ""
        for name, examples in funnel["dropped"].items():
            yield f"### {name.replace('_', ' ')}"
            yield ""
            for example in examples:
                yield f"- `{example['source']}`: {_quoted(example['text'])}"
            yield ""


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _quoted(text: str) -> str:
    """The beginning on one line, so that nothing in it can end the list or be read as markup."""
    short = " ".join(text.split())
    cut = short if len(short) <= SHOWN else short[:SHOWN] + " ..."
    return f"``{cut.replace('`', chr(39))} ``"
