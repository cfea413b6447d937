"""Options that verbs of the command line share: one list of them, and one way to a `Sampling`.

Imported by `--help`: nothing heavy on top.
"""

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from llmlab.errors import InputError
from llmlab.quick import uncollected


def _settings(
    max_new_tokens: Annotated[int, typer.Option(help="Stop after so many tokens.")] = 128,
    min_new_tokens: Annotated[int, typer.Option(help="No stop token before so many tokens.")] = 0,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens that hold this much probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep so many of the likeliest tokens; 0 keeps all.")] = 0,
    min_p: Annotated[
        float, typer.Option(help="Keep what is this many times as likely as the likeliest; 0 keeps all.")
    ] = 0.0,
    typical_p: Annotated[float, typer.Option(help="Keep the most typical tokens that hold this much.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 makes what was said less likely.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="Taken off each token that the answer has said.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="Taken off as often as the answer has said it.")] = 0.0,
    no_repeat_ngram_size: Annotated[int, typer.Option(help="So many tokens in a row come only once; 0: any.")] = 0,
    logit_bias: Annotated[
        list[str] | None, typer.Option(metavar="ID=VALUE", help="Added to a token's logit; may be given again.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given again.")] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal text.")] = 0,
    json_schema: Annotated[
        str | None, typer.Option(metavar="FILE_OR_JSON", help="Answer in JSON of this schema; true: any object.")
    ] = None,
    regex: Annotated[str | None, typer.Option(help="Answer with a text that this matches as a whole.")] = None,
    grammar: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Answer with a text of this Lark grammar.")
    ] = None,
) -> dict[str, Any]:
    """The fields of a `Sampling`."""
    return {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k or None,
        "min_p": min_p,
        "typical_p": typical_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "logit_bias": dict(map(_bias, logit_bias or ())),
        "stop": tuple(stop or ()),
        "seed": seed,
        "constraint": _constraint(json_schema, regex, grammar),
    }


def sampling_options(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A verb with a parameter `sampling` gets the options above in its place, some with defaults of its own."""

    def give(verb: Callable[..., None]) -> Callable[..., None]:
        own, shared = inspect.signature(verb).parameters, inspect.signature(_settings).parameters
        offered = [option.replace(default=defaults.get(name, option.default)) for name, option in shared.items()]
        merged = [
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in own.items()
            for one in (offered if name == "sampling" else [parameter])
        ]

        @functools.wraps(verb)
        def run(**values: Any) -> None:
            given = _settings(**{name: values.pop(name) for name in shared})
            verb(sampling=_sampling(verb.__name__.rstrip("_"), given), **values)

        run.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in merged}
        return run

    return give


def _sampling(place: str, values: Mapping[str, Any]) -> Any:
    with uncollected():
        from llmlab.inference.sampling import Sampling
        from llmlab.recipe import parse

    return parse(Sampling, values, place)


def _bias(text: str) -> tuple[int, float]:
    id, _, value = text.partition("=")
    try:
        return int(id), float(value)
    except ValueError:
        raise InputError("--logit-bias", f"{text!r} is no ID=VALUE", "as in 42=-100") from None


def _constraint(schema: str | None, regex: str | None, grammar: Path | None) -> dict[str, Any] | None:
    given = [
        *([] if schema is None else [{"kind": "json_schema", "schema": _schema(schema)}]),
        *([] if regex is None else [{"kind": "regex", "pattern": regex}]),
        *([] if grammar is None else [{"kind": "grammar", "lark": _text(grammar)}]),
    ]
    if len(given) > 1:
        raise InputError("--json-schema, --regex, --grammar", "an answer has one form", "give one of them")
    return given[0] if given else None


def _schema(text: str) -> Any:
    """JSON as it stands, or the JSON of a file."""
    inline = text.lstrip().startswith("{") or text.strip() == "true"
    try:
        return json.loads(text if inline else _text(Path(text)))
    except (ValueError, RecursionError) as error:
        raise InputError("--json-schema", f"{'this' if inline else text} is no JSON: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(str(path), "is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
