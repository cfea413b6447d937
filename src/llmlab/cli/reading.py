"""Long files: go on with one."""

from pathlib import Path
from typing import Annotated, Any

import typer

from llmlab.cli.arguments import AsJson, Device, Weights, answer, load_model, notice
from llmlab.cli.sampling import sampling_options
from llmlab.quick import uncollected

File = Annotated[Path, typer.Argument(help="A file of UTF-8 text.")]


@sampling_options()
def continue_(
    file: File,
    model: Annotated[
        str, typer.Option("--model", help="A pulled name, a run or model folder, hf:owner/name, or a .gguf file.")
    ] = "smollm2",
    window: Annotated[
        int | None,
        typer.Option("--window", help="Keep so many of the newest tokens; by default what fits the model's context."),
    ] = None,
    sinks: Annotated[int, typer.Option("--sinks", help="First tokens that are kept beside the window.")] = 4,
    whole: Annotated[
        bool, typer.Option("--whole", help="Read all of the file through the window, not only its end.")
    ] = False,
    weights: Weights = "auto",
    device: Device = "cpu",
    sampling: Any = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a text file, past the model's context if asked to.

    Its end is read as far as it fits, the continuation printed as it comes; the file is not changed.
    """
    with uncollected():
        from llmlab.longtext.continuing import ending, go_on
    ending(file, 1 << 12)  # what is wrong with it is known before the model is opened, which takes longer
    lm = load_model(model, weights, device)
    write = (lambda piece: None) if as_json else (lambda piece: print(piece, end="", flush=True))
    notice(lm.why)
    done = go_on(lm, file, sampling, window, sinks, whole, on_text=write)
    if not as_json:
        part = "all" if not done["read_from_byte"] else f"from byte {done['read_from_byte']:,} on"
        notice(f"\nread {part}: {done['read_tokens']:,} tokens; {done['tokens']:,} more")
    answer(as_json, done, "")
