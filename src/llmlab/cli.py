"""The command line: each verb calls one function. torch is imported when a verb needs it, so `--help` is quick.

Exit codes: 0; 2 for bad input, with one line on standard error; 1 for a failure on the way; 130 after Ctrl-C.
"""

import errno
import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llmlab.errors import InputError, LlmlabError
from llmlab.options import sampling_options
from llmlab.quick import uncollected


class _InOrder(TyperGroup):
    """Verbs are listed in the order of a model's life."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)


# What the disk or its owner refuses. Any other error of the operating system is a defect and keeps its traceback.
OF_THE_MACHINE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR,
    errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip

app = typer.Typer(
    name="llmlab",
    help="A language model's whole life on one recipe: pretrain, fine-tune, align, compress, evaluate, talk.",
    cls=_InOrder,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Speculate = Annotated[
    str | None,
    typer.Option("--speculate", help="Guess to save steps: lookup, or '{kind: draft, model: smollm2, weights: int4}'."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Model = Annotated[str, typer.Argument(help="A pulled name, a run or model folder, hf:owner/name, or a .gguf file.")]
Weights = Annotated[str, typer.Option("--weights", help="auto (fast), fp32 (exact), bf16, int8 or int4.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, mps or auto.")]


def _answer(as_json: bool, value: dict[str, Any], text: str) -> None:
    print(json.dumps(value, ensure_ascii=False) if as_json else text, flush=True)


# ---------------------------------------------------------------- recipes and runs


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A preset (see: llmlab recipe --list) or a YAML file.")],
    override: Annotated[list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="Fields to set.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder; runs/NAME by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an existing folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")] = False,
    as_json: AsJson = False,
) -> None:
    """Live a recipe, from raw text to the report."""
    from llmlab.run import read_recipe
    from llmlab.run import run as live

    whole = read_recipe(recipe, override or [])
    done = live(whole, out or Path("runs") / whole.name, resume, quiet)
    lines = [
        f"{stage['name']:<10} {stage['seconds']:8.1f} s {stage['peak_bytes'] / 2**20:7.0f} MiB"
        for stage in done["stages"]
    ]
    goes_on = whole.pretrain is None or whole.pretrain.objective.next_token
    verb = "talk to it: llmlab chat" if goes_on else "measure it: llmlab evaluate"
    _answer(as_json, done, "\n".join([*lines, f"report: {done['report']}", f"{verb} {done['out']}"]))


@app.command()
def compare(
    recipe: Annotated[str, typer.Argument(help="A preset or a YAML file.")],
    override: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="Fields to set in all arms.")
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="PATH=A,B", help="A field and its values; given again: every combination."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="So many seeds an arm; 2 at least, 5 to order arms.")] = 5,
    measure: Annotated[
        list[str] | None, typer.Option("--measure", help="What to compare; may be given again, or with commas.")
    ] = None,
    equal: Annotated[
        str, typer.Option("--equal", help="What every arm may spend: tokens, flops, parameters, or none.")
    ] = "tokens",
    adjust: Annotated[
        str, typer.Option("--adjust", help="The width that --equal parameters sets.")
    ] = "model.feedforward.width",
    out: Annotated[Path | None, typer.Option("--out", help="Where arms are kept; races/NAME by default.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")] = False,
    as_json: AsJson = False,
) -> None:
    """Race recipes that differ in a few fields: which is better, and is the difference real?"""
    from llmlab.race.arms import read_vary
    from llmlab.race.compare import compare as race
    from llmlab.race.table import table
    from llmlab.run import read_recipe

    whole = read_recipe(recipe, override or [])
    names = [name.strip() for text in measure or [] for name in text.split(",")]
    folder = out or Path("races") / whole.name
    done = race(whole, read_vary(vary or []), seeds, folder, measures=names, equal=equal, adjust=adjust, quiet=quiet)
    _answer(as_json, done, table(done))


@app.command()
def recipe(
    name: Annotated[str, typer.Argument(help="The preset to print.")] = "demo",
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of recipes.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Print every field with its default and meaning.")] = False,
    every: Annotated[bool, typer.Option("--list", help="Print the names of the presets.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a preset to edit, or every field explained."""
    from llmlab.recipe import explain as explained
    from llmlab.run import Run, preset_text, presets, read_recipe

    if every:
        _answer(as_json, {"presets": presets()}, "\n".join(presets()))
    elif schema:
        print(json.dumps(Run.model_json_schema(), indent=None if as_json else 1))
    elif explain:
        rows = list(explained(Run))
        text = "\n".join(
            f"{path}{f' = {default}' if default else ''}\n    {meaning}" for path, default, meaning in rows
        )
        _answer(
            as_json, {"fields": [dict(zip(("path", "default", "meaning"), row, strict=True)) for row in rows]}, text
        )
    else:
        text = preset_text(name)
        _answer(
            as_json, {"name": name, "yaml": text, "recipe": read_recipe(name).model_dump(mode="json")}, text.rstrip()
        )


# ---------------------------------------------------------------- weights


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="smollm2, minilm, or hf:owner/name.")], as_json: AsJson = False
) -> None:
    """Fetch weights into the cache."""
    from llmlab.checkpoints.pull import pull as fetch

    path = fetch(name)
    _answer(as_json, {"name": name, "path": str(path)}, str(path))


@app.command()
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
    _answer(as_json, done, f"{done['path']} ({done['format']}; largest logit difference {done['parity']:.2g}){kept}")


@app.command()
def families(as_json: AsJson = False) -> None:
    """List the model families, how exactly each is reproduced, and which files go which way."""
    from llmlab.checkpoints.directions import families as rows

    found = rows()
    lines = [
        f"{row['name']:<14} {row['parity']:8.1e}  reads {', '.join(row['reads']):<9}  writes {', '.join(row['writes'])}"
        for row in found
    ]
    _answer(as_json, {"families": found}, "\n".join(lines))


# ---------------------------------------------------------------- talking


@app.command()
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
    speculate: Speculate = None,
    as_json: AsJson = False,
) -> None:
    """Continue a text, streaming; what is searched for comes at the end."""
    from llmlab.recipe import override, parse

    with uncollected():
        from llmlab.language_model import Ways
    chosen = [f"{name}={value}" for name, value in (("search", search), ("cache", cache)) if value is not None]
    ways = parse(Ways, override(Ways, {}, chosen), "generate")
    text = prompt if prompt is not None else _standard_input()
    lm = _load(model, weights, device, speculate)
    write = (lambda piece: None) if as_json else (lambda piece: print(piece, end="", flush=True))
    _notice(lm.why)
    done = lm.report(text, sampling, chat=chat, system=system, on_text=write, ways=ways)
    _answer(as_json, done, "")


@app.command()
@sampling_options(max_new_tokens=512, temperature=0.7, top_p=0.95)
def chat(
    model: Model,
    system: Annotated[str | None, typer.Option("--system", help="The system prompt.")] = None,
    weights: Weights = "auto",
    device: Device = "cpu",
    sampling: Any = None,
    speculate: Speculate = None,
    as_json: AsJson = False,
) -> None:
    """Talk to a model.

    /reset forgets, /help says what else there is. Standard input may be a pipe: one message a line.
    """
    from llmlab.talk import talk

    lm = _load(model, weights, device, speculate)
    _notice(lm.why)
    turns = talk(lm, sampling, system, quiet=as_json)
    if as_json:
        _answer(True, {"turns": turns}, "")


@app.command()
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
    why: Annotated[bool, typer.Option("--why", help="Say how this model would be run, and why, and leave.")] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a model over HTTP, as OpenAI's clients expect it.

    With --json: one object once it listens, {host, port, url, model, weights}.
    """
    serving = None if why else _serving()
    if serving is None:
        lm = _load(model, weights, device)
        _answer(as_json, {"model": model, "why": lm.why, "explained": lm.explain()}, "\n".join(lm.explain()))
        return
    key = serving.key_of(host, api_key, no_api_key)
    keys = None if key is None else serving.Keys([key])
    bound, address = serving.bind(host, port)
    lm, name = _load(model, weights, device, speculate), serving.name_of(model)
    if key is not None and api_key is None:
        print(f"API key: {key}", file=sys.stderr, flush=True)
    told = {"host": host, "port": address.port, "url": address.url, "model": name, "weights": lm.why}
    line = f"{name} ({lm.why}) at {address.url}/v1; Ctrl-C ends it"
    hosts = serving.hosts_of(host, allow_host or [])
    serving.serve(lm, name, keys, bound, hosts, lambda: _answer(as_json, told, line))


def _serving() -> Any:
    """The module that serves, whose packages not everybody has."""
    try:
        from llmlab.serving import serve as serving
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "starlette", "uvicorn", "prometheus_client", "h11"):
            raise
        raise InputError("serve", f"needs {error.name}", "pip install 'llmlab[serving]'") from None
    return serving


def _load(model: str, weights: str, device: str, speculate: str | None = None) -> Any:
    with uncollected():
        from llmlab.language_model import Speculating, load
        from llmlab.recipe import override, parse

        guessing = None
        if speculate is not None:  # read before the model, which takes longer
            guessing = parse(Speculating, override(Speculating, {}, [f"speculate={speculate}"]), "generate").speculate
        lm = load(model, weights, device)
        if guessing is not None:
            lm.speculate(guessing)
        return lm


def _notice(text: str) -> None:
    """A line for whoever sits at the terminal, and for nobody else."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(text, file=sys.stderr)


def _standard_input() -> str:
    if sys.stdin.isatty():
        print("Type the text; Ctrl-D ends it.", file=sys.stderr)
    return _utf8(sys.stdin.buffer.read())


def _utf8(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError("standard input", f"byte {error.start} is not UTF-8") from None


# ---------------------------------------------------------------- measuring and learning


@app.command()
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
    as_json: AsJson = False,
) -> None:
    """Measure a model, each figure with its interval."""
    from llmlab.evaluation.harness import evaluate_model
    from llmlab.language_model import load

    done = evaluate_model(load(model, weights, device).bundle, tasks or [], data=data, limit=limit)
    rows = [f"{t['name']:<24} {t['metric']:<22} {t['value']:8.4f}  {t['interval']}  n={t['n']}" for t in done["tasks"]]
    _answer(as_json, done, "\n".join(rows))


@app.command()
def xray(model: Model, as_json: AsJson = False) -> None:
    """What a model is made of, found by probing it, not by reading its config."""
    from llmlab.adapters.opening import open_policy
    from llmlab.interpret.xray import as_json as plain
    from llmlab.interpret.xray import table
    from llmlab.interpret.xray import xray as probe

    found = probe(open_policy(model).model)
    _answer(as_json, {"model": model, "findings": plain(found)}, table(found))


@app.command()
def handbook(
    number: Annotated[int | None, typer.Argument(help="One question, 1 to 54; all of them by default.")] = None,
    lang: Annotated[str, typer.Option("--lang", help="en or zh.")] = "en",
    run_it: Annotated[bool, typer.Option("--run", help="Run the experiment here and now.")] = False,
    train: Annotated[
        bool, typer.Option("--train", help="With --run: train the arms too, minutes to hours; resumable.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page to this file instead, with every race drawn.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """54 questions about language models, answered by running."""
    from llmlab.handbook import page
    from llmlab.handbook.raced import SHIPPED

    record, races = None, SHIPPED
    if number is not None and run_it:
        from llmlab.handbook.runner import run_question, user_folder
        from llmlab.stages import Session

        record = run_question(number, Session(), train=train)
        races = user_folder() if train else races
    if html is not None:
        from llmlab.handbook.html import write_page

        path = write_page(html, number, lang, record, races)
        _answer(as_json, {"page": str(path)}, str(path))
    elif number is None:
        _answer(as_json, {"questions": page.list_questions(lang)}, page.listing(lang))
    else:
        told = page.show(number, lang, record, races=races)
        _answer(as_json, {"questions": [page.json_row(number, record, lang)]}, told)


def main() -> None:
    """Run the command line; errors meant for a person are one line on standard error."""
    code = 0
    _open_streams()
    # An idle OpenMP thread spins for a moment and then sleeps. Left to spin, it made training ten times slower beside
    # one other busy process; never spinning costs a fifth on an idle machine (LOG.md, 2026-11-23). libgomp reads this
    # when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        left = app(_arguments() or ["--help"], standalone_mode=False)
        sys.stdout.flush()
        if left == 130:  # how typer answers where Ctrl-C was pressed
            code = _fail("stopped", 130)
    except LlmlabError as error:
        code = _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("stopped", 130)
    except typer.Exit as leave:
        code = leave.exit_code
    except (BrokenPipeError, SystemExit):  # typer leaves by SystemExit where the pipe broke below it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us has left
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        code = _fail(
            f"{error.filename or 'writing'}: {os.strerror(error.errno)}; what was written before is unharmed", 2
        )
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise  # a defect: its traceback is for us
        code = _fail(error.format_message(), 2)
    sys.exit(code)


def _arguments() -> list[str]:
    """What was given on the command line. It must be UTF-8: safetensors opens no file of another name."""
    for argument in sys.argv[1:]:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(repr(argument), "this argument is not UTF-8", "rename the file") from None
    return sys.argv[1:]


def _open_streams() -> None:
    """Standard streams that take whatever is written: a closed one is empty, a letter that a terminal does not have,
    or that is no Unicode (of a file's name), is written as its escape."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(line: str, code: int) -> int:
    print(f"llmlab: {' '.join(line.split())}", file=sys.stderr)
    return code
