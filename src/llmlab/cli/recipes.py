"""Recipes and runs: live one, race several, print one to edit."""

import gc
import json
from pathlib import Path
from typing import Annotated

import typer

from llmlab.cli.arguments import AsJson, answer
from llmlab.world import World


def run(
    recipe: Annotated[str, typer.Argument(help="A preset (see: llmlab recipe --list) or a YAML file.")],
    override: Annotated[list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="Fields to set.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder; runs/NAME by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an existing folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")] = False,
    planned: Annotated[
        bool,
        typer.Option(
            "--plan/--no-plan",
            envvar="LLMLAB_PLAN",
            help="Plan first, and refuse what this machine's memory cannot hold.",
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Live a recipe, from raw text to the report."""
    from llmlab.run import read_recipe
    from llmlab.run import run as live

    world = World.of_environment()
    whole = read_recipe(recipe, override or [])
    gc.freeze()  # what was imported stays; looking through it again between stages takes a fifth of a second each
    done = live(whole, out or Path("runs") / whole.name, resume, quiet, world, planned)
    if not world.first:
        return
    lines = [
        f"{stage['name']:<10} {stage['seconds']:8.1f} s {stage['peak_bytes'] / 2**20:7.0f} MiB"
        for stage in done["stages"]
    ]
    goes_on = whole.pretrain is None or whole.pretrain.objective.next_token
    verb = "talk to it: llmlab chat" if goes_on else "measure it: llmlab evaluate"
    answer(as_json, done, "\n".join([*lines, f"report: {done['report']}", f"{verb} {done['out']}"]))


def plan(
    recipe: Annotated[str, typer.Argument(help="A preset (see: llmlab recipe --list) or a YAML file.")],
    override: Annotated[list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="Fields to set.")] = None,
    fit: Annotated[
        str | None, typer.Option("--fit", metavar="SIZE", help="Find what fits into so much memory, as 4GB.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a recipe will take: memory by cause, time and arithmetic of each stage, before anything is run."""
    from llmlab.planner.fit import fit as fitted
    from llmlab.planner.fit import read_size
    from llmlab.planner.page import page
    from llmlab.planner.plan import plan as planned
    from llmlab.run import changes, read_recipe

    whole = read_recipe(recipe, override or [])
    budget = None if fit is None else read_size(fit)
    found = planned(whole)
    changed = None if budget is None else fitted(changes(whole), budget, before=found)
    told = found.json() | ({} if changed is None else {"fit": changed.json()})
    answer(as_json, told, page(found, changed))


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
    answer(as_json, done, table(done))


def search(
    recipe: Annotated[str, typer.Argument(help="A preset or a YAML file.")],
    override: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="Fields to set in all trials.")
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over",
            metavar="PATH=LAW",
            help="A field and what to draw: log(1e-4,1e-2), uniform(0,0.5), int(2,8), or values a,b,c.",
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", help="So many draws; every combination of listed values by default.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Fresh seeds that the best trial is trained again with.")] = 3,
    measure: Annotated[str, typer.Option("--measure", help="What a trial is judged by; one of compare's.")] = "",
    halving: Annotated[
        int | None, typer.Option("--halving", metavar="ETA", help="Of each rung one in ETA trials goes on, ETA as far.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where trials are kept; searches/NAME by default.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find good values for some fields of a recipe: random search, or successive halving."""
    from llmlab.race.axes import read_over
    from llmlab.race.search import search as find
    from llmlab.race.search_table import table
    from llmlab.run import read_recipe

    whole, laws = read_recipe(recipe, override or []), read_over(over or [])
    folder = out or Path("searches") / whole.name
    done = find(whole, laws, folder, count=trials, seeds=seeds, measure=measure, eta=halving, quiet=quiet)
    answer(as_json, done, table(done))


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
        answer(as_json, {"presets": presets()}, "\n".join(presets()))
    elif schema:
        print(json.dumps(Run.model_json_schema(), indent=None if as_json else 1))
    elif explain:
        rows = list(explained(Run))
        text = "\n".join(
            f"{path}{f' = {default}' if default else ''}\n    {meaning}" for path, default, meaning in rows
        )
        answer(as_json, {"fields": [dict(zip(("path", "default", "meaning"), row, strict=True)) for row in rows]}, text)
    else:
        text = preset_text(name)
        answer(
            as_json, {"name": name, "yaml": text, "recipe": read_recipe(name).model_dump(mode="json")}, text.rstrip()
        )
