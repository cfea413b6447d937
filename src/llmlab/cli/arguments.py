"""Arguments that verbs share, what they open, and how they answer."""

import json
import sys
from typing import Annotated, Any

import typer

from llmlab.errors import InputError
from llmlab.quick import uncollected

Speculate = Annotated[
    str | None,
    typer.Option("--speculate", help="Guess to save steps: lookup, or '{kind: draft, model: smollm2, weights: int4}'."),
]
OnLoop = Annotated[
    str | None,
    typer.Option("--on-loop", help="Where it repeats itself: stop, resample, warn, or '{kind: stop, repeats: 4}'."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Model = Annotated[str, typer.Argument(help="A pulled name, a run or model folder, hf:owner/name, or a .gguf file.")]
Weights = Annotated[str, typer.Option("--weights", help="auto (fast), fp32 (exact), bf16, int8 or int4.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, mps or auto.")]
Rope = Annotated[
    str | None,
    typer.Option("--rope", help="Read longer texts, rotary angles rescaled: yarn, or '{kind: yarn, factor: 4}'."),
]


def answer(as_json: bool, value: dict[str, Any], text: str) -> None:
    print(json.dumps(value, ensure_ascii=False) if as_json else text, flush=True)


def load_model(model: str, weights: str, device: str, speculate: str | None = None, rope: str | None = None) -> Any:
    with uncollected():
        from llmlab.language_model import Speculating, load
        from llmlab.recipe import Section, override, parse

        guessing = None
        if speculate is not None:  # read before the model, which takes longer
            guessing = parse(Speculating, override(Speculating, {}, [f"speculate={speculate}"]), "generate").speculate
        lm = load(
            model, weights, device, rope=None if rope is None else override(Section, {}, [f"rope={rope}"])["rope"]
        )
        if guessing is not None:
            lm.speculate(guessing)
        return lm


def ways_of(**chosen: str | None) -> Any:
    """How an answer comes about, by what was given on the command line."""
    from llmlab.recipe import override, parse

    with uncollected():
        from llmlab.language_model import Ways
    given = [f"{name}={value}" for name, value in chosen.items() if value is not None]
    return parse(Ways, override(Ways, {}, given), "generate")


def notice(text: str) -> None:
    """A line for whoever sits at the terminal, and for nobody else."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(text, file=sys.stderr)


def standard_input() -> str:
    if sys.stdin.isatty():
        print("Type the text; Ctrl-D ends it.", file=sys.stderr)
    return _utf8(sys.stdin.buffer.read())


def _utf8(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError("standard input", f"byte {error.start} is not UTF-8") from None
