"""Ways to read a document that is longer than one would like, for the race of needles: each answers the questions of
its facts, and says what that took.

N chunks or sentences, Q questions, T tokens.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llmlab.checkpoints.where import open_model
from llmlab.handbook.needle_readers import ANSWER, READER, Reader, Work, ends, vectors
from llmlab.handbook.needles import Document, document, recalled
from llmlab.inference.rolling_cache import RollingCache
from llmlab.longtext.chunk import spans
from llmlab.model.places import Places
from llmlab.model.transformer import Transformer
from llmlab.tokenization.chat import Renderer
from llmlab.tokenization.tokenizer import Tokenizer

TRAINED = 8192  # SmolLM2's context
CHUNK, OVERLAP = 512, 64  # tokens; a fact is shorter than the overlap
KEPT = 2048  # of a truncated document, and of a window
SINKS, BLOCK = 4, 512
PASSAGE, SHARED, TAKEN = 128, 32, 3  # tokens of a passage that is retrieved, shared by two; how many are read
SECTION = 512  # tokens of sentences from which the hierarchy keeps one a question
SUMMARY, TOLD = 64, 32  # tokens written about a chunk, and in answer to a message

Found = tuple[list[str], Work]


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    """An arm of the race. `tokens` of the document, `way` to read it, `edges`: facts lie on the edges of chunks."""
    tokenizer = open_model(READER).tokenizer
    assert tokenizer is not None
    read = document(tokenizer, settings["tokens"], seed, CHUNK if settings["edges"] else None)
    answers, work = WAYS[settings["way"]](read, [fact.stem for fact in read.facts])
    return {**recalled(read, answers), **work.told()}


def _read(contexts: Sequence[Sequence[int]], stems: Sequence[str], reader: Reader) -> Found:
    """The likeliest answer that any of the contexts gives to each question."""
    rows = reader.ask(contexts, stems)
    best = [max((row[at] for row in rows), key=lambda one: one.score) for at in range(len(stems))]
    return [one.text for one in best], reader.work


# ---------------------------------------------------------------- at once


def whole(read: Document, stems: Sequence[str]) -> Found:
    """All of it, whether the model was trained for so much or not."""
    return _read([read.ids], stems, Reader(2 * TRAINED))


def stretched(read: Document, stems: Sequence[str]) -> Found:
    """All of it, with NTK's base for twice the trained length."""
    return _read([read.ids], stems, Reader(2 * TRAINED, stretch=2.0))


def truncated(read: Document, stems: Sequence[str]) -> Found:
    """Its beginning."""
    return _read([read.ids[:KEPT]], stems, Reader(TRAINED))


def asked(read: Document, stems: Sequence[str]) -> Found:
    """All of it in a user's message that asks for the end of the sentence, as the model's chat template has it."""
    reader = Reader(TRAINED)
    renderer, text = Renderer(reader.tokenizer), reader.tokenizer.decode(read.ids)
    asks = [f"Here is a text.\n\n{text}\n\nAnswer from the text above. Complete the sentence: {stem}" for stem in stems]
    prompts = [renderer.render([{"role": "user", "content": one}], reply=True).ids for one in asks]
    return reader.write(prompts, TOLD, renderer.stop_ids), reader.work


# ---------------------------------------------------------------- in parts


def chunks(read: Document, stems: Sequence[str], overlap: int = 0) -> Found:
    """Every chunk for itself."""
    cuts = spans(len(read.ids), CHUNK, overlap).tolist()
    return _read([read.ids[first:last] for first, last in cuts], stems, Reader(TRAINED))


def overlapping(read: Document, stems: Sequence[str]) -> Found:
    """The same with a little of the chunk before."""
    return chunks(read, stems, OVERLAP)


def summaries(read: Document, stems: Sequence[str]) -> Found:
    """A hierarchy that does not know the questions: the model sums up every chunk, then reads what it wrote."""
    reader = Reader(TRAINED)
    tokenizer = reader.tokenizer
    after = tokenizer.encode("\n\nIn short, the facts to remember from this passage are:")
    cuts = spans(len(read.ids), CHUNK).tolist()
    prompts = [[*read.ids[first:last], *after] for first, last in cuts]
    written = reader.write(prompts, SUMMARY, list(tokenizer.special_ids))
    return _read([tokenizer.encode("\n\n".join(written))], stems, reader)


def hierarchy(read: Document, stems: Sequence[str]) -> Found:
    """A hierarchy that knows them: of the sentences of every section the one nearest to the question, by MiniLM; those
    are read together."""
    reader = Reader(TRAINED)
    said = sentences(reader.tokenizer.decode(read.ids))
    sizes_N = torch.tensor([len(ids) for ids in reader.tokenizer.encode_batch(said)])
    section_N = (sizes_N.cumsum(0) - 1) // SECTION
    sections = sorted(set(section_N.tolist()))
    near_QN = _nearness(said, stems, reader.work)
    answers = []
    for near_N, stem in zip(near_QN, stems, strict=True):
        best = [int(near_N.masked_fill(section_N != section, -2.0).argmax()) for section in sections]
        kept = "\n\n".join(said[at] for at in best)
        answers += _read([reader.tokenizer.encode(kept)], [stem], reader)[0]
    return answers, reader.work


def retrieved(read: Document, stems: Sequence[str]) -> Found:
    """The passages nearest to the question, by MiniLM, in the order of the text."""
    reader = Reader(TRAINED)
    cuts = spans(len(read.ids), PASSAGE, SHARED).tolist()
    passages = [reader.tokenizer.decode(read.ids[first:last]) for first, last in cuts]
    answers = []
    for near_N, stem in zip(_nearness(passages, stems, reader.work), stems, strict=True):
        best = sorted(near_N.topk(min(TAKEN, len(passages))).indices.tolist())
        kept = "\n\n".join(passages[at] for at in best)
        answers += _read([reader.tokenizer.encode(kept)], [stem], reader)[0]
    return answers, reader.work


def sentences(text: str) -> list[str]:
    """Cut after marks that end a sentence, and where a paragraph ends."""
    return [one for piece in re.split(r"(?<=[.!?;])\s+|\n\n+", text) if (one := piece.strip())]


def _nearness(texts: Sequence[str], stems: Sequence[str], work: Work) -> Tensor:
    """[Q, N]: cosines."""
    return vectors(stems, work) @ vectors(texts, work).T


# ---------------------------------------------------------------- by a window


@torch.inference_mode()
def streamed(read: Document, stems: Sequence[str]) -> Found:
    """Block by block, over what came last and the first few tokens (bf16)."""
    bundle, work = open_model(READER), Work(passes=1)
    a, model, tokenizer = bundle.architecture, bundle.model.bfloat16().eval(), bundle.tokenizer
    assert tokenizer is not None
    cache = RollingCache(KEPT, SINKS, BLOCK)
    for start in range(0, len(read.ids), BLOCK):
        _pass(model, read.ids[start : start + BLOCK], start, cache)
    answers = [_continued(model, tokenizer, stem, len(read.ids), copy.deepcopy(cache)) for stem in stems]
    work.read(a, 0, len(read.ids), KEPT + SINKS)
    for ids in answers:
        work.read(a, len(read.ids), len(read.ids) + len(ids), KEPT + SINKS)
    work.held = cache.capacity + BLOCK  # a block lies beside the cache while it is read
    return [tokenizer.decode(ids) for ids in answers], work


def _pass(model: Transformer, ids: Sequence[int], start: int, cache: RollingCache) -> Tensor:
    """[1, D]: the last token's state."""
    return model.hidden(torch.tensor([list(ids)]), Places.causal(1, len(ids), start=start), cache)[:, -1]


def _continued(model: Transformer, tokenizer: Tokenizer, stem: str, start: int, cache: RollingCache) -> list[int]:
    """The question's tokens and the likeliest answer's."""
    stops = frozenset(ends(tokenizer))
    text = tokenizer.encode(f"\n\n{stem}")
    asked = len(text)
    new = text
    while len(text) < asked + ANSWER and text[-1] not in stops:
        state_BD = _pass(model, new, start + len(text) - len(new), cache)
        new = [int(model.logits(state_BD).argmax())]
        text = text + new
    return text


WAYS: Mapping[str, Callable[[Document, Sequence[str]], Found]] = {
    "whole": whole,
    "asked": asked,
    "stretched": stretched,
    "truncated": truncated,
    "chunks": chunks,
    "overlapping": overlapping,
    "summaries": summaries,
    "hierarchy": hierarchy,
    "retrieved": retrieved,
    "streamed": streamed,
}
