"""Weights: fetch them, write them in another format, see which families there are."""

from pathlib import Path
from typing import Annotated

import typer

from llmlab.cli.arguments import AsJson, answer


def pull(
    name: Annotated[str, typer.Argument(help="smollm2, minilm, or hf:owner/name.")], as_json: AsJson = False
) -> None:
    """Fetch weights into the cache."""
    from llmlab.checkpoints.pull import pull as fetch

    path = fetch(name)
    answer(as_json, {"name": name, "path": str(path)}, str(path))


def convert(
    source: Annotated[str, typer.Argument(help="What to convert: any model that chat opens.")],
    destination: Annotated[Path, typer.Argument(help="A folder, or a .gguf file, that does not exist yet.")],
    to: Annotated[
        str | None, typer.Option("--to", help="hf, gguf or llmlab; by default gguf for a .gguf file, else hf.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--type", help="Of a gguf's matrices: f32, f16 (default), q8_0, q4_0 or q4_1.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model in another format, logits checked."""
    from llmlab.adapters.opening import open_policy
    from llmlab.checkpoints.convert import check
    from llmlab.checkpoints.convert import convert as write

    to = to or ("gguf" if destination.suffix == ".gguf" else "hf")
    check(destination, to, kind)  # before a long read
    done = write(open_policy(source), destination, to, kind)
    kept = "".join(f"\nkept as f16, rows are no whole blocks: {name}" for name in done.get("kept_f16", ()))
    answer(as_json, done, f"{done['path']} ({done['format']}; largest logit difference {done['parity']:.2g}){kept}")


def families(as_json: AsJson = False) -> None:
    """List the model families, how exactly each is reproduced, and which files go which way."""
    from llmlab.checkpoints.directions import families as rows

    found = rows()
    lines = [
        f"{row['name']:<14} {row['parity']:8.1e}  reads {', '.join(row['reads']):<9}  writes {', '.join(row['writes'])}"
        for row in found
    ]
    answer(as_json, {"families": found}, "\n".join(lines))
