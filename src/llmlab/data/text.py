"""The `text` stage: sources to cleaned, deduplicated documents, some of them held out from every later stage.

It writes `train.jsonl` and `held_out.jsonl` ({"text", "source"} a line, in the order read) and, last, `funnel.json`:
what each step left over. An attempt without it counts for nothing and is redone.
"""

import contextlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from llmlab.data.batches import batched
from llmlab.data.clean import Clean, Funnel, Step, cleaned
from llmlab.data.dedup import Seen, key
from llmlab.data.sources import Bundled, Document, Reading, Source, read
from llmlab.data.split import held_out
from llmlab.data.workers import mapped
from llmlab.errors import InputError, Stopped
from llmlab.recipe import Section
from llmlab.runtime import atomic_json, remove_leftovers
from llmlab.stages import Figures, Session


class Text(Section):
    """Text to train on: where it comes from and what is done to it."""

    sources: tuple[Source, ...] = Field((Bundled(),), min_length=1, description="Bundled books, your files, or both.")
    clean: Clean = Field(Clean(), description="Normalisation and quality rules.")
    dedup: bool = Field(True, description="Drop documents that are equal to an earlier one up to white space.")
    workers: int = Field(1, ge=1, description="Processes that clean; they change the time only.")
    held_out: float = Field(0.05, gt=0, le=0.5, description="Share of the text that no stage trains on.")


def input_files(section: Text) -> list[Path]:
    """The files the stage reads. Raises `InputError` where one is missing."""
    return [path for source in section.sources for path in source.files()]


def read_texts(path: Path) -> Iterator[str]:
    """The texts of `train.jsonl` or `held_out.jsonl`, one at a time."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def joined(texts: Iterable[str]) -> bytes:
    """Documents as one run of UTF-8, an empty line between them: what compressors and n-grams are measured on."""
    return "\n\n".join(texts).encode()


def prepare_text(section: Text, out: Path, session: Session) -> Figures:
    """Write both splits and the funnel below `out`; its figures are the funnel. Raises `InputError` at bad input."""
    done = out / "funnel.json"
    chosen = section.model_dump(mode="json")
    if done.is_file() and (funnel := json.loads(done.read_text(encoding="utf-8")))["section"] == chosen:
        return _figures(funnel)
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    done.unlink(missing_ok=True)
    spool, reading = out / ".documents.jsonl.tmp", Reading()
    try:
        steps, keys, sizes = _gather(section, spool, reading, session)
        sides = _split(spool, held_out(keys, sizes, section.held_out), out)
    finally:
        spool.unlink(missing_ok=True)
    seen = {"files": reading.files, "rows": reading.rows, "skipped_rows": reading.skipped, "examples": reading.examples}
    funnel = {"section": chosen, "reading": seen, "rules": [asdict(step) for step in steps], **sides}
    atomic_json(done, funnel)
    return _figures(funnel)


def _figures(funnel: dict[str, Any]) -> Figures:
    return {name: value for name, value in funnel.items() if name != "section"}


def _gather(
    section: Text, spool: Path, reading: Reading, session: Session
) -> tuple[list[Step], "array[int]", "array[int]"]:
    """Every document that stays goes to `spool` as a line. Returns the funnel's steps, each line's key and bytes."""
    seen, duplicates, funnel = Seen(), Step("exact duplicates"), Funnel()
    keys, sizes = array("Q"), array("Q")
    section.clean.build()  # what it lacks is said before anything is read
    documents = batched(_until_stopped(read(section.sources, reading), session))
    with spool.open("w", encoding="utf-8") as file:
        for batch, part in mapped(partial(cleaned, section.clean), documents, section.workers):
            funnel.add(part)
            for text, source in zip(batch["text"].to_pylist(), batch["source"].to_pylist(), strict=True):
                of, size = key(text), len(text.encode())
                kept = not section.dedup or seen.new(of)
                duplicates.count(size, size if kept else None)
                if kept:
                    keys.append(of)
                    sizes.append(size)
                    file.write(json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n")
                else:
                    funnel.drop(duplicates.name, source, text)
    steps = [*funnel.steps, *([duplicates] if section.dedup else [])]
    if not keys:
        raise _empty(section, steps)
    return steps, keys, sizes


def _until_stopped(documents: Iterator[Document], session: Session) -> Iterator[Document]:
    for document in documents:
        if session.stop.requested:
            raise Stopped("text: stopped; the same command with --resume reads the sources again")
        yield document


def _empty(section: Text, steps: list[Step]) -> InputError:
    names = ", ".join(path.name for path in input_files(section))
    if not steps or not steps[0].documents_in:
        return InputError("text.sources", f"no text in {names}")
    worst = max(steps, key=lambda step: step.documents_in - step.documents_out)
    lost = worst.documents_in - worst.documents_out
    return InputError("text.clean", f"no document is left: {worst.name} dropped {lost} of {steps[0].documents_in}")


def _split(spool: Path, out_of_training: Iterable[bool], out: Path) -> dict[str, Any]:
    """The spooled lines to their side; how many documents and bytes of text each got."""
    sides = {name: {"documents": 0, "bytes": 0} for name in ("train", "held_out")}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(_whole(out / f"{name}.jsonl")) for name in sides}
        lines = stack.enter_context(spool.open(encoding="utf-8"))
        for line, held in zip(lines, out_of_training, strict=True):
            name = "held_out" if held else "train"
            files[name].write(line)
            sides[name]["documents"] += 1
            sides[name]["bytes"] += len(json.loads(line)["text"].encode())
    return sides


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[str]]:
    """A file to write that takes its name when it is whole."""
    work = path.with_name(f".{path.name}.tmp")
    with work.open("w", encoding="utf-8") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(work, path)
