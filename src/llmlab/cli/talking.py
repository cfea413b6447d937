"""Talking: continue a text, chat, serve."""

import sys
from typing import Annotated, Any

import typer

from llmlab.cli.arguments import (
    AsJson,
    Device,
    Model,
    OnLoop,
    Rope,
    Speculate,
    Weights,
    answer,
    load_model,
    notice,
    standard_input,
    ways_of,
)
from llmlab.cli.sampling import sampling_options
from llmlab.errors import InputError


@sampling_options()
def generate(
    model: Model,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The text to continue; standard input by default.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a message, put through the chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option("--system", help="With --chat: the system prompt.")] = None,
    weights: Weights = "auto",
    device: Device = "cpu",
    sampling: Any = None,
    search: Annotated[
        str | None, typer.Option("--search", help="beam, contrastive, best_of, or '{kind: beam, beams: 4}'.")
    ] = None,
    cache: Annotated[
        str | None, typer.Option("--cache", help="dense, int8, rolling, or '{kind: rolling, window: 1024}'.")
    ] = None,
    on_loop: OnLoop = None,
    speculate: Speculate = None,
    rope: Rope = None,
    as_json: AsJson = False,
) -> None:
    """Continue a text, streaming; what is searched for comes at the end."""
    ways = ways_of(search=search, cache=cache, on_loop=on_loop)
    text = prompt if prompt is not None else standard_input()
    lm = load_model(model, weights, device, speculate, rope)
    write = (lambda piece: None) if as_json else (lambda piece: print(piece, end="", flush=True))
    notice(lm.why)
    done = lm.report(text, sampling, chat=chat, system=system, on_text=write, ways=ways)
    answer(as_json, done, "")
    for loop in done.get("loops", []):
        said = f"token {loop['start']} on, {loop['period']} tokens that repeat: {loop['text']!r}"
        print(f"llmlab: loop at {said}", file=sys.stderr)


@sampling_options(max_new_tokens=512, temperature=0.7, top_p=0.95)
def chat(
    model: Model,
    system: Annotated[str | None, typer.Option("--system", help="The system prompt.")] = None,
    weights: Weights = "auto",
    device: Device = "cpu",
    sampling: Any = None,
    on_loop: OnLoop = None,
    speculate: Speculate = None,
    rope: Rope = None,
    as_json: AsJson = False,
) -> None:
    """Talk to a model.

    /reset forgets, /help says what else there is. Standard input may be a pipe: one message a line.
    """
    from llmlab.talk import talk

    ways = ways_of(on_loop=on_loop)
    lm = load_model(model, weights, device, speculate, rope)
    notice(lm.why)
    turns = talk(lm, sampling, system, quiet=as_json, ways=ways)
    if as_json:
        answer(True, {"turns": turns}, "")


def serve(
    model: Model,
    host: Annotated[str, typer.Option("--host", help="The address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="LLMLAB_API_KEY", help="Asked for on every route; by default a new one."),
    ] = None,
    no_api_key: Annotated[bool, typer.Option("--no-api-key", help="Ask for none; on loopback only.")] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="A name to answer to beside localhost; may be given again."),
    ] = None,
    weights: Weights = "auto",
    device: Device = "cpu",
    speculate: Speculate = None,
    rope: Rope = None,
    why: Annotated[bool, typer.Option("--why", help="Say how this model would be run, and why, and leave.")] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a model over HTTP, as OpenAI's clients expect it.

    With --json: one object once it listens, {host, port, url, model, weights}.
    """
    serving = None if why else _server()
    if serving is None:
        lm = load_model(model, weights, device, rope=rope)
        answer(as_json, {"model": model, "why": lm.why, "explained": lm.explain()}, "\n".join(lm.explain()))
        return
    key = serving.key_of(host, api_key, no_api_key)
    keys = None if key is None else serving.Keys([key])
    bound, address = serving.bind(host, port)
    lm, name = load_model(model, weights, device, speculate, rope), serving.name_of(model)
    if key is not None and api_key is None:
        print(f"API key: {key}", file=sys.stderr, flush=True)
    told = {"host": host, "port": address.port, "url": address.url, "model": name, "weights": lm.why}
    line = f"{name} ({lm.why}) at {address.url}/v1; Ctrl-C ends it"
    hosts = serving.hosts_of(host, allow_host or [])
    serving.serve(lm, name, keys, bound, hosts, lambda: answer(as_json, told, line))


def _server() -> Any:
    """The module that serves, whose packages not everybody has."""
    try:
        from llmlab.serving import serve as serving
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "starlette", "uvicorn", "prometheus_client", "h11"):
            raise
        raise InputError("serve", f"needs {error.name}", "pip install 'llmlab[serving]'") from None
    return serving
