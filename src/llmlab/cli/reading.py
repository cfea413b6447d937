"""Texts longer than a context: ask them, sum them up, go on with them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from llmlab.cli.arguments import AsJson, Device, Weights, answer, load_model, notice
from llmlab.cli.sampling import sampling_options
from llmlab.quick import uncollected

File = Annotated[Path, typer.Argument(help="A text of any size: txt, md, any plain text, also gzipped (.gz).")]
Encoding = Annotated[str, typer.Option("--encoding", help="Of a file that has no byte order mark.")]
Reads = Annotated[str | None, typer.Option("--model", help="The model that writes; by default sentences are quoted.")]


def read(
    file: File,
    ask: Annotated[str, typer.Option("--ask", help="The question.")],
    model: Reads = None,
    retriever: Annotated[
        str | None,
        typer.Option(
            "--retriever",
            help="bm25, minilm, fused, reranked, or '{kind: fused, candidates: 64}'; the best by default.",
        ),
    ] = None,
    size: Annotated[int | None, typer.Option("--size", help="Characters of a passage; 1200 (Chinese: 400).")] = None,
    overlap: Annotated[int | None, typer.Option("--overlap", help="Characters two share; a quarter.")] = None,
    encoding: Encoding = "utf-8",
    weights: Weights = "auto",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Answer a question from a file of any length, with the passages that say so.

    Places are characters of the text as Python reads it. Without --model the answer is a quoted sentence.
    """
    with uncollected():
        from llmlab.longtext.read import Reading
        from llmlab.longtext.read import read as find
        from llmlab.recipe import override, parse

    how = None
    if retriever is not None:
        how = parse(Reading, override(Reading, {}, [f"retriever={retriever}"]), "read").retriever
    found = find(file, ask, model, how, encoding, size, overlap, weights, device)
    if found.notice:
        notice(found.notice)
    answer(as_json, found.as_json(), found.told())


def summarize(
    file: File,
    model: Reads = None,
    method: Annotated[
        str | None, typer.Option("--method", help="extract (no model), map_reduce (with one) or refine.")
    ] = None,
    words: Annotated[int, typer.Option("--words", help="About so many.")] = 120,
    limit: Annotated[
        int, typer.Option("--limit", help="Characters the model reads; a longer text is thinned by extraction first.")
    ] = 100_000,
    encoding: Encoding = "utf-8",
    weights: Weights = "auto",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Sum up a file of any length, section by section."""
    with uncollected():
        from llmlab.longtext.summarize import summarize as sum_up

    done = sum_up(file, model, method, words, encoding, limit, weights, device)
    if done.thinned:
        notice(f"the file is longer than {limit} characters: the model read its best sentences (--limit)")
    answer(as_json, done.as_json(), done.summary)


@sampling_options()
def continue_(
    file: Annotated[Path, typer.Argument(help="A file of UTF-8 text.")],
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
