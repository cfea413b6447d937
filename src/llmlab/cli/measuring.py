"""Measuring: a model on tasks, and what it is made of."""

from pathlib import Path
from typing import Annotated, Any

import typer

from llmlab.cli.arguments import AsJson, Device, Model, Rope, Weights, answer, load_model, notice
from llmlab.errors import InputError


def evaluate(
    model: Model,
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="[TASK]...", help="All that need no file by default.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="A text or jsonl file for the tasks that take one.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many items a task.")] = None,
    weights: Weights = "fp32",
    device: Device = "cpu",
    rope: Rope = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model, each figure with its interval."""
    from llmlab.evaluation.harness import evaluate_model

    done = evaluate_model(load_model(model, weights, device, rope=rope).bundle, tasks or [], data=data, limit=limit)
    rows = [f"{t['name']:<24} {t['metric']:<22} {t['value']:8.4f}  {t['interval']}  n={t['n']}" for t in done["tasks"]]
    tables = [line for task in done["tasks"] if "table" in task for line in ("", *task["table"])]
    answer(as_json, done, "\n".join([*rows, *tables]))


def runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER]...", help="Runs, or folders that hold some; runs/ by default."),
    ] = None,
    sort: Annotated[
        str, typer.Option("--sort", help="name, date, seconds, bytes, state, recipe, or a figure.")
    ] = "date",
    match: Annotated[str, typer.Option("--match", help="Only folders and recipes whose name has this in it.")] = "",
    page: Annotated[
        Path | None, typer.Option("--page", help="Write the comparison, with its curves, to this .html file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List runs; name two or more of them to see where they differ. Nothing is written into them."""
    from llmlab.evaluation.runs import differences, figures_beside, find_runs, in_order, is_run, read_row
    from llmlab.evaluation.runs_page import page as drawn
    from llmlab.evaluation.runs_table import comparison, listing
    from llmlab.runtime import atomic_text

    given = folders or [Path("runs")]
    rows = [row for row in map(read_row, find_runs(given)) if match in str(row.folder) or match in row.record.name]
    beside = len(rows) > 1 and all(is_run(folder) for folder in given)
    if not beside:
        rows = in_order(rows, sort)
    done: dict[str, Any] = {"runs": [row.json() for row in rows]}
    if beside:
        done |= {"differences": differences(rows), "figures": figures_beside(rows)}
    if page is not None:
        if not rows:
            raise InputError("--page", "there is no run to draw")
        atomic_text(page, drawn(rows))
        done |= {"page": str(page)}
    answer(as_json, done, (comparison if beside else listing)(rows) + (f"\npage: {page}" if page else ""))


def xray(model: Model, as_json: AsJson = False) -> None:
    """What a model is made of, found by probing it, not by reading its config."""
    from llmlab.adapters.opening import open_policy
    from llmlab.interpret.xray import as_json as plain
    from llmlab.interpret.xray import table
    from llmlab.interpret.xray import xray as probe

    found = probe(open_policy(model).model)
    answer(as_json, {"model": model, "findings": plain(found)}, table(found))


def diagnose(
    model: Model,
    data: Annotated[
        Path | None, typer.Option("--data", help="The text it was trained on, or some; a run's own by default.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Sizes, such as texts=32 new_tokens=200.")
    ] = None,
    weights: Weights = "auto",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Why a model repeats itself, and what helps: causes and remedies tried on it, with figures."""
    from llmlab.degeneration.diagnosis import Diagnosing
    from llmlab.degeneration.diagnosis import diagnose as find
    from llmlab.degeneration.table import table
    from llmlab.recipe import override, parse

    sizes = parse(Diagnosing, override(Diagnosing, {}, settings or []), "diagnose")
    found = find(load_model(model, weights, device), data, sizes, notice)
    answer(as_json, found, table(found))


def tokenizers(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="Texts; the bundled books by default.")
    ] = None,
    kinds: Annotated[str, typer.Option("--kinds", help="With commas: bpe, unigram, wordpiece.")] = "bpe,unigram",
    sizes: Annotated[str, typer.Option("--sizes", help="Sizes of the vocabulary, with commas.")] = "1024,4096",
    as_json: AsJson = False,
) -> None:
    """How many bytes of held-out text a token holds, by kind of tokenizer and size of vocabulary."""
    from llmlab.errors import InputError
    from llmlab.evaluation.tokenizers import compare_tokenizers, read_texts, table

    wanted = [size.strip() for size in sizes.split(",")]
    if not all(size.isdecimal() and len(size) < 8 for size in wanted):
        raise InputError("--sizes", f"{sizes!r} are no whole numbers", "as in 1024,4096")
    rows = compare_tokenizers(read_texts(files or []), [kind.strip() for kind in kinds.split(",")], [*map(int, wanted)])
    answer(as_json, {"tokenizers": rows}, table(rows))
