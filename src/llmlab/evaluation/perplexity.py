"""How well a model foretells text: negative log-likelihood of tokens, and bits per byte, which compares tokenizers.

bits per byte = sum of -log2 p(token) / UTF-8 bytes of the text that those tokens stand for. Float32 throughout: the
callers put no autocast around this. Text longer than the context is read in windows (Hugging Face's "perplexity of
fixed-length models"; Press et al. 2020, arXiv 2012.15832, on what their stride costs and gives).

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmlab.data.batch import IGNORE, Batch, Ids
from llmlab.data.shards import TokenShards
from llmlab.errors import InputError
from llmlab.evaluation import statistics
from llmlab.evaluation.statistics import Estimate
from llmlab.inference.engine import Decoder, without_dropout
from llmlab.model.places import Places
from llmlab.objectives.kind import byte_lengths
from llmlab.objectives.language import token_logprobs
from llmlab.tokenization.tokenizer import Tokenizer

Floats = npt.NDArray[np.float64]

TOKENS = 8192  # of all rows of a batch, padding included
LOGITS = 1 << 26  # 256 MB of them at once


class Span(NamedTuple):
    """A text as ids, of which those from `first` on are foretold from all before them. `first` is at least 1."""

    ids: Ids
    first: int


class Window(NamedTuple):
    """A piece of a span that fits into the context: which span, and the bounds of what it holds and what it scores."""

    span: int
    start: int
    first: int
    end: int


@dataclass(frozen=True)
class Scores:
    """One row a text: its negative log-likelihood in nats, and how many tokens and bytes that covers."""

    nats: Floats
    tokens: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]

    @property
    def bits_per_byte(self) -> float:
        return float(self.nats.sum() / math.log(2) / self.bytes.sum())

    @property
    def perplexity(self) -> float:
        """Per token: says little across tokenizers."""
        return math.exp(min(700.0, float(self.nats.sum() / self.tokens.sum())))

    def estimate(self, seed: int) -> Estimate:
        """Bits per byte with an interval over the texts."""
        return statistics.ratio(self.nats / math.log(2), self.bytes, seed)


def score_texts(model: Decoder, tokenizer: Tokenizer, texts: Sequence[str], stride: int | None = None) -> Scores:
    """Score each text on its own, behind the token that begins a document."""
    return score_documents(model, tokenizer, tokenizer.encode_batch(texts), stride)


def score_documents(
    model: Decoder, tokenizer: Tokenizer, documents: Sequence[Ids], stride: int | None = None
) -> Scores:
    """The same from ids. An end of document among them is foretold too: it costs bits and stands for no bytes.

    Where the tokenizer has no token that begins a document, the first token of each is not foretold and its bytes do
    not count. A space that only spells the start of a text counts for no byte. Errors: InputError where nothing is left
    to foretell, and for a tokenizer whose ids do not keep the text.
    """
    tokenizer.require_lossless("bits per byte")
    lengths = byte_lengths(tokenizer)
    begin = begin_id(tokenizer)
    rows = [np.asarray(ids, np.int64) for ids in documents]
    spans = [Span(ids if begin is None else np.concatenate([[begin], ids]), 1) for ids in rows]
    if not any(len(span.ids) > 1 for span in spans):
        raise InputError("held-out text", "holds nothing to foretell", "give at least two tokens of text")
    covered = [span.ids[span.first :] for span in spans]
    unwritten = np.array([0 if begin is None else spelt(tokenizer, ids) for ids in rows])
    return Scores(
        span_nats(model, spans, stride),
        np.array([len(ids) for ids in covered]),
        np.array([int(lengths[ids].sum()) for ids in covered]) - unwritten,
    )


def spelt(tokenizer: Tokenizer, ids: Ids) -> int:
    """Bytes at the start of a text that are its spelling's alone: 1 or 0."""
    return int(tokenizer.spells_space and len(ids) > 0 and tokenizer.token_bytes(int(ids[0])).startswith(b" "))


def held_out_documents(shards: TokenShards, limit: int | None = None) -> list[Ids]:
    """The documents of a corpus, each with the eos that ends it."""
    return [shards.document(number) for number in range(shards.documents)[:limit]]


def span_nats(model: Decoder, spans: Sequence[Span], stride: int | None = None) -> Floats:
    """Negative log-likelihood in nats of each span's tokens from `first` on; 0 for a span that scores nothing."""
    total = np.zeros(len(spans))
    for window, nats in _scored(model, spans, stride):
        total[window.span] += float(nats.sum())
    return total


def token_nats(model: Decoder, ids: Ids, stride: int | None = None) -> Tensor:
    """Negative log-likelihood in nats of ids[1:], float64 [len - 1]."""
    out = torch.zeros(max(0, len(ids) - 1), dtype=torch.float64)
    for window, nats in _scored(model, [Span(ids, 1)], stride):
        out[window.first - 1 : window.end - 1] = nats
    return out


def begin_id(tokenizer: Tokenizer) -> int | None:
    """The token that stands before a document's first: bos, else the eos of the document before."""
    return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id


# ---------------------------------------------------------------- windows


def windows(span: int, length: int, first: int, context: int, stride: int) -> Iterator[Window]:
    """Cut a span into windows of at most `context` + 1 ids (the last is only foretold) that score each token once.

    Each window foretells `stride` tokens further than the one before it and sees what of the context is left.
    """
    begin, end = first, min(length, context + 1)
    if end <= first:  # the start alone overflows the context: what is scored comes first, and sees what fits
        end = min(length, first + stride)
    while begin < length:
        yield Window(span, max(0, end - context - 1), begin, end)
        begin, end = end, min(length, end + stride)


def _scored(model: Decoder, spans: Sequence[Span], stride: int | None) -> Iterator[tuple[Window, Tensor]]:
    """Each window with the float64 nats of the tokens it scores."""
    context = model.architecture.context
    if stride is not None and not 1 <= stride <= context:
        raise InputError("stride", f"{stride} is not between 1 and the context of {context}")
    cut = [
        window
        for number, span in enumerate(spans)
        for window in windows(number, len(span.ids), span.first, context, stride or context)
    ]
    cut.sort(key=lambda window: window.end - window.start)  # rows of a batch are then of nearly one length
    device = next(model.parameters()).device
    vocabulary = _vocabulary(model)
    with torch.inference_mode(), without_dropout(model):
        for group in _batches(cut, min(TOKENS, max(1, LOGITS // vocabulary))):
            batch = _batch(spans, group)
            logprobs_BT = token_logprobs(model, batch.to(device)).double().cpu()
            for row, window in enumerate(group):
                yield window, -logprobs_BT[row, window.first - window.start - 1 : window.end - window.start - 1]


def _batches(cut: Sequence[Window], tokens: int) -> Iterator[list[Window]]:
    group: list[Window] = []
    for window in cut:
        if group and (len(group) + 1) * (window.end - window.start) > tokens:
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def _batch(spans: Sequence[Span], group: Sequence[Window]) -> Batch:
    """One row a window. The last id of a window is foretold, never seen."""
    sizes = [window.end - window.start - 1 for window in group]
    ids_BT = np.zeros((len(group), max(sizes)), np.int64)
    targets_BT = np.full(ids_BT.shape, IGNORE, np.int64)
    for row, (window, size) in enumerate(zip(group, sizes, strict=True)):
        ids = np.asarray(spans[window.span].ids[window.start : window.end], np.int64)
        ids_BT[row, :size] = ids[:-1]
        targets_BT[row, window.first - window.start - 1 : size] = ids[window.first - window.start :]
    return Batch(torch.from_numpy(ids_BT), torch.from_numpy(targets_BT), Places.of_lengths(sizes, max(sizes)))


def _vocabulary(model: Decoder) -> int:
    size = getattr(model, "vocab_size", None)
    return int(size) if isinstance(size, int) else 1 << 16
