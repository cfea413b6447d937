"""The executable handbook."""

from pathlib import Path
from typing import Annotated

import typer

from llmlab.cli.arguments import AsJson, answer


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
        answer(as_json, {"page": str(path)}, str(path))
    elif number is None:
        answer(as_json, {"questions": page.list_questions(lang)}, page.listing(lang))
    else:
        told = page.show(number, lang, record, races=races)
        answer(as_json, {"questions": [page.json_row(number, record, lang)]}, told)
