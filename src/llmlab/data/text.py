"""The `text` stage: sources to cleaned, deduplicated documents, some of them held out from every later stage.

It writes `train.jsonl` and `held_out.jsonl` ({"text", "source"} a line, in the order read), `card.md` for people and,
last, `funnel.json`: what each step left over. An attempt without it counts for nothing and is redone. Documents pass
through in batches; what stays in memory is a few numbers for each.
"""

import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from llmlab.data.batches import BYTES, ROWS, batched
from llmlab.data.card import card
from llmlab.data.clean import EXAMPLES, Clean, Funnel, Step, cleaned
from llmlab.data.decontaminate import Decontaminate
from llmlab.data.dedup import Paragraphs, Seen, key
from llmlab.data.mix import AsRead, Mix, times
from llmlab.data.near import Near, earlier, signatures
from llmlab.data.sources import Bundled, Document, Reading, Source, read
from llmlab.data.split import held_out
from llmlab.data.spool import lines_of, whole, write_lines
from llmlab.data.words import Int, Key
from llmlab.data.workers import mapped
from llmlab.errors import InputError, Stopped
from llmlab.recipe import Section
from llmlab.runtime import atomic_json, remove_leftovers
from llmlab.stages import Figures, Session


class Text(Section):
    """Text to train on: where it comes from and what is done to it, in the order of the fields."""

    sources: tuple[Source, ...] = Field((Bundled(),), min_length=1, description="Bundled books, your files, or both.")
    clean: Clean = Field(Clean(), description="Normalisation and quality rules.")
    decontaminate: Decontaminate | None = Field(None, description="Evaluation files whose text must not be trained on.")
    dedup: bool = Field(True, description="Drop documents that are equal to an earlier one up to white space.")
    paragraphs: int | None = Field(
        None, ge=1, description="Drop paragraphs of so many characters that stood before, in any document; null: none."
    )
    near: Near | None = Field(None, description="Drop documents that are almost the same as an earlier one.")
    held_out: float = Field(0.05, gt=0, le=0.5, description="Share of the text that no stage trains on.")
    mix: Mix = Field(AsRead(), description="How often each source is read; held-out text is there once.")
    workers: int = Field(1, ge=1, le=256, description="Processes that clean; they change the time only.")

    @model_validator(mode="after")
    def _mixes_its_sources(self) -> "Text":
        for name in ("epochs", "weights"):
            values = getattr(self.mix, name, ())
            if isinstance(values, tuple) and values and len(values) != len(self.sources):
                raise ValueError(f"mix.{name} has {len(values)} values for {len(self.sources)} sources")
        return self


def input_files(section: Text) -> list[Path]:
    """The files the stage reads. Raises `InputError` where one is missing."""
    found = [path for source in section.sources for path in source.files()]
    return [*found, *(section.decontaminate.files() if section.decontaminate else [])]


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
    spool, sketches, reading = out / ".documents.jsonl.tmp", out / ".signatures.tmp", Reading()
    before = _stamps(section)
    try:
        documents = _gather(section, spool, reading, session)
        if section.near is not None:
            documents.like = _near(section.near, section.workers, spool, sketches, session)
        if changed := [path for path, stamp in _stamps(section).items() if before.get(path) != stamp]:
            raise InputError(str(changed[0]), "changed while text read it", "--resume reads it again, from its start")
        split = _split(section, spool, documents, out)
    finally:
        spool.unlink(missing_ok=True)
        sketches.unlink(missing_ok=True)
    seen = {"files": reading.files, "rows": reading.rows, "skipped_rows": reading.skipped, "examples": reading.examples}
    funnel = {"section": chosen, "reading": seen, **split}
    with whole(out / "card.md") as file:
        file.write(card(funnel))
    atomic_json(done, funnel)
    return _figures(funnel)


def _stamps(section: Text) -> dict[Path, tuple[int, int]]:
    """Size and time of every file: where they differ afterwards, nobody knows which text was read."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in input_files(section)}


def _figures(funnel: dict[str, Any]) -> Figures:
    return {name: value for name, value in funnel.items() if name not in ("section", "dropped")}


@dataclass
class _Documents:
    """What is remembered of each spooled line: the hash of its text, its bytes, its source; and the funnel so far."""

    funnel: Funnel = field(default_factory=Funnel)
    keys: "array[int]" = field(default_factory=lambda: array("Q"))
    sizes: "array[int]" = field(default_factory=lambda: array("Q"))
    origins: "array[int]" = field(default_factory=lambda: array("H"))
    like: Int | None = None  # the number of an earlier line that is almost the same, -1 where there is none


def _gather(section: Text, spool: Path, reading: Reading, session: Session) -> _Documents:
    """Every document that stays goes to `spool` as a line; near duplicates are found among those."""
    section.clean.build()  # what it lacks is said before anything is read
    questions = section.decontaminate.build() if section.decontaminate else None
    seen, paragraphs = Seen(), Paragraphs(section.paragraphs or 1)
    equal, again, cleared = Step("exact duplicates"), Step("repeated paragraphs"), Funnel()
    made = _Documents()
    documents = batched(_until_stopped(read(section.sources, reading), session))
    with spool.open("w", encoding="utf-8") as file:
        for batch, part in mapped(partial(cleaned, section.clean), documents, section.workers):
            made.funnel.add(part)
            if questions is not None:
                batch, found = questions.clear(batch)
                cleared.add(found)
            for text, source, origin in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                of, size = key(text), len(text.encode())
                kept = not section.dedup or seen.new(of)
                equal.count(size, size if kept else None)
                if not kept:
                    made.funnel.drop(equal.name, source, text)
                    continue
                if section.paragraphs:
                    fresh = paragraphs.fresh(text)
                    before, of, size = size, key(fresh), len(fresh.encode())
                    again.count(before, size or None, fresh != text)
                    if not fresh:
                        made.funnel.drop(again.name, source, text)
                        continue
                    text = fresh
                made.keys.append(of)
                made.sizes.append(size)
                made.origins.append(origin)
                file.write(json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n")
    made.funnel.dropped |= cleared.dropped
    made.funnel.steps += [*cleared.steps, *([equal] if section.dedup else []), *([again] if section.paragraphs else [])]
    if not made.keys:
        raise _empty(section, made.funnel.steps)
    return made


def _near(near: Near, workers: int, spool: Path, sketches: Path, session: Session) -> Int:
    """Of each spooled line an earlier one that is near it, or -1. Signatures lie on the disk meanwhile."""
    with sketches.open("wb") as file:
        for part in mapped(partial(signatures, near), _texts_together(spool, session), workers):
            file.write(part.tobytes())
    return earlier(near, np.memmap(sketches, np.uint32, "r").reshape(-1, near.hashes))


def _texts_together(spool: Path, session: Session) -> Iterator[list[str]]:
    held, size = list[str](), 0
    for text in read_texts(spool):
        if session.stop.requested:
            raise Stopped("text: stopped; the same command with --resume reads the sources again")
        held.append(text)
        size += len(text)
        if len(held) >= ROWS or size >= BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


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


def _split(section: Text, spool: Path, documents: _Documents, out: Path) -> dict[str, Any]:
    """The spooled lines that stay to their side, as often as the mix has them: the funnel's second half."""
    keys: Key = np.asarray(documents.keys, np.uint64)
    sizes: Int = np.asarray(documents.sizes, np.int64)
    origins: Int = np.asarray(documents.origins, np.int64)
    funnel, kept = documents.funnel, np.ones(len(keys), bool)
    if documents.like is not None:
        kept = documents.like < 0
        step = Step("near duplicates")
        step.count_all(sizes, sizes[kept])
        funnel.steps.append(step)
    held = np.zeros(len(keys), bool)
    held[kept] = held_out(keys[kept], sizes[kept], section.held_out)
    train = kept & ~held
    often = np.zeros(len(keys), np.int64)
    often[train], epochs = times(section.mix, origins[train], sizes[train], keys[train], len(section.sources))
    if not often.any():
        raise InputError("text.mix", "leaves nothing to train on", "a source with text needs epochs or a weight")
    write_lines(spool, out / "held_out.jsonl", held.astype(np.int64))
    write_lines(spool, out / "train.jsonl", often)
    for number, line in lines_of(spool, np.flatnonzero(~kept)[:EXAMPLES]):
        like = next(
            found for _, found in lines_of(spool, documents.like[[number]] if documents.like is not None else [])
        )
        row = json.loads(line)
        funnel.drop("near duplicates", f"{row['source']}, like {json.loads(like)['source']}", row["text"])
    return {
        "rules": [asdict(step) for step in funnel.steps],
        "train": {"documents": int(often.sum()), "bytes": int((often * sizes).sum())},
        "held_out": {"documents": int(held.sum()), "bytes": int(sizes[held].sum())},
        "sources": [
            _source(source.told, origins == number, kept, often, sizes, epochs[number])
            for number, source in enumerate(section.sources)
        ],
        "languages": dict(funnel.languages.most_common()),
        "dropped": funnel.dropped,
    }


def _source(told: tuple[str, str], own: Any, kept: Any, often: Int, sizes: Int, epochs: float) -> dict[str, Any]:
    """One source's part: what is left of it, and what is written of it for training."""
    left = own & kept
    name, licence = told
    return {
        "name": name,
        "licence": licence,
        "documents": int(left.sum()),
        "bytes": int(sizes[left].sum()),
        "epochs": round(epochs, 6),
        "train_bytes": int((often * sizes)[own].sum()),
    }
