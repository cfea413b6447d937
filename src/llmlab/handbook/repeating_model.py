"""A little language model of the bundled book and how much it repeats itself, by what it was trained on, by what, and
by how many layers of attention.

One token is a piece of a small vocabulary. Greedy texts go on from passages that no model was trained on; so do sampled
ones, and the book itself, for comparison.

N passages or texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.data import bundled
from llmlab.data.corruption import Rows
from llmlab.evaluation.repetition import distinct, repetition
from llmlab.handbook.fitting import fit
from llmlab.handbook.little_model import HELD_OUT, passages
from llmlab.handbook.repeated_text import drilled, met_again, said_again
from llmlab.inference.engine import generate
from llmlab.inference.loops import loop_in
from llmlab.inference.sampling import Sampling
from llmlab.model.transformer import Architecture, Transformer
from llmlab.objectives.kind import Setting
from llmlab.objectives.pretraining import Causal
from llmlab.recipe import parse
from llmlab.runtime import derive, generator
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, train_tokenizer

VOCABULARY = 512
WORDS = range(4, VOCABULARY)  # without special tokens
BEGUN, WRITTEN, TEXTS = 32, 96, 64  # tokens of a beginning, tokens written, texts
LENGTH = BEGUN + WRITTEN
GRAM = 4  # rep-4
TESTED = 64  # held-out passages whose loss is taken
RANDOM, HALF = 32, 48  # rows of random tokens, and of their tokens how many are said twice
POOL, EXTRACTED = 32, 32  # passages that are met again and again; tokens that must come back verbatim
GREEDY = Sampling(temperature=0.0, max_new_tokens=WRITTEN)
MEASURES = (
    *(f"{mark}, {how}" for how in ("greedy", "sampled", "book") for mark in ("rep-4", "loops", "distinct-2")),
    *("bits per byte", "rep-4, data"),
    *("nats, random", "nats, random again", "nats, random shuffled", "right, random again"),
    *("extracted, met again", "extracted, met once"),
    "nats a token",
)


class Book(NamedTuple):
    """The tokens to train on and those held out, and how the ids are spelled."""

    train_T: Tensor
    held_T: Tensor
    tokenizer: Tokenizer


@cache
def book() -> Book:
    """The bundled novel. Its last tenth is held out, from the vocabulary too."""
    text = bundled.path("moby_dick").read_text(encoding="utf-8")
    cut = round(len(text) * (1 - HELD_OUT))
    tokenizer = train_tokenizer(BPE(vocab_size=VOCABULARY), iter([text[:cut]]))
    train_T, held_T = (torch.tensor(tokenizer.encode(part)) for part in (text[:cut], text[cut:]))
    return Book(train_T, held_T, tokenizer)


def pool(seed: int) -> Tensor:
    """[P, T]: the passages that a duplicated corpus meets again and again."""
    return passages(book().train_T, POOL, LENGTH + 1, generator(seed, "handbook", "repeating", "pool"))


def text(settings: Mapping[str, Any], seed: int, count: int, source: torch.Generator) -> Tensor:
    """[N, LENGTH + 1] to train on: of the first `unique` of the book, made repetitive as the settings say."""
    train_T = book().train_T
    row_NT = passages(train_T[: round(settings["unique"] * len(train_T))], count, LENGTH + 1, source)
    row_NT = met_again(row_NT, pool(seed), settings["across"], source)
    row_NT = said_again(row_NT, settings["within"], source)
    if drill := settings.get("drilled"):
        row_NT = drilled(row_NT, WORDS, drill, source)
    return row_NT


def packed(row_NT: Tensor) -> Rows:
    """Passages as rows, each a document of its own, all of it learnt but the first token."""
    shape = len(row_NT), row_NT.shape[1] - 1
    column = np.broadcast_to(np.arange(shape[1]), shape)
    before, tokens = row_NT[:, :-1].numpy(), row_NT[:, 1:].numpy()
    return Rows(before, tokens, column, np.zeros(shape, np.int64), np.ones(shape, bool))


def trained(settings: Mapping[str, Any], seed: int) -> Transformer:
    """The model, trained on the next token and on what is held against repetition."""
    told = {"layers": settings["layers"], "dim": settings["dim"], "context": LENGTH, "position": "rope"}
    told |= {"attention": {"kind": "mha", "heads": 4}, "feedforward": settings["feedforward"]}
    model = parse(Architecture, told, trusted=True).build(VOCABULARY, seed)
    objective = parse(Causal, {"against": settings["against"]})
    predictor = objective.predictor()
    corruption = objective.corruption(Setting(model.architecture, book().tokenizer, LENGTH))
    source, chance = (generator(seed, "handbook", "repeating", purpose) for purpose in ("text", "corruption"))

    def loss(step: int) -> Tensor:
        rows = packed(text(settings, seed, settings["rows"], source))
        noise = torch.rand(corruption.planes, *rows.tokens_BT.shape, dtype=torch.float64, generator=chance)
        batch = corruption.learn(rows, noise.numpy())
        counts, sums = predictor.counts(batch), predictor(model, batch).sums
        means = [predictor.weights.get(name, 1.0) * sums[name] / count for name, count in counts.items() if count]
        return torch.stack(means).sum()

    fit(model, loss, settings["steps"], settings["rate"], settings["adamw_rate"])
    return model


# ---------------------------------------------------------------- what it does


def marks(how: str, texts: Sequence[Sequence[int]]) -> dict[str, float]:
    """rep-4 as a mean over texts, the share of texts that end in a loop, and distinct-2 over all of them."""
    return {
        f"rep-4, {how}": sum(repetition(ids, GRAM) for ids in texts) / len(texts),
        f"loops, {how}": sum(loop_in(ids) is not None for ids in texts) / len(texts),
        f"distinct-2, {how}": distinct(texts, 2),
    }


def written(model: Transformer, seed: int) -> dict[str, float]:
    """Greedy and sampled texts beside the book's own."""
    source = generator(seed, "handbook", "repeating", "begun")
    row_NT = passages(book().held_T, TEXTS, LENGTH, source)
    found = marks("book", row_NT[:, BEGUN:].tolist())
    begun, seeds = row_NT[:, :BEGUN].tolist(), [derive(seed, "repeating", row) for row in range(TEXTS)]
    for how, sampling in (("greedy", GREEDY), ("sampled", Sampling(max_new_tokens=WRITTEN))):
        found |= marks(how, [answer.ids for answer in generate(model, begun, sampling, (), seeds)])
    return found


@torch.no_grad()
def held_out(model: Transformer, seed: int) -> dict[str, float]:
    """Loss of held-out passages, each token from those before it: bits per byte and nats a token."""
    lengths_V = torch.tensor([len(book().tokenizer.token_bytes(id)) for id in range(VOCABULARY)])
    row_NT = passages(book().held_T, TESTED, LENGTH + 1, generator(seed, "handbook", "repeating", "held out"))
    nats = F.cross_entropy(model(row_NT[:, :-1]).flatten(0, 1), row_NT[:, 1:].flatten(), reduction="sum")
    size = float(lengths_V[row_NT[:, 1:]].sum())
    return {"bits per byte": float(nats) / math.log(2) / size, "nats a token": float(nats) / row_NT[:, 1:].numel()}


@torch.no_grad()
def copying(model: Transformer, seed: int) -> dict[str, float]:
    """Random tokens said twice: nats a token the first and the second time, and how many of the second are right. Only
    what stood before can tell them (Olsson et al. 2022, arXiv 2209.11895). `shuffled`: the second time in another
    order, where knowing which tokens stood before helps as much, and what followed each does not."""
    source = generator(seed, "handbook", "repeating", "random")
    half_NT = torch.randint(WORDS.start, WORDS.stop, (RANDOM, HALF), generator=source)
    other_NT = half_NT.gather(1, torch.rand(half_NT.shape, generator=source).argsort(1))
    again_NT, shuffled_NT = torch.cat([half_NT, half_NT], 1), torch.cat([half_NT, other_NT], 1)
    logits_NTV = model(again_NT[:, :-1])
    nats_NT, mixed_NT = (
        F.cross_entropy(logits.transpose(1, 2), row_NT[:, 1:], reduction="none")
        for logits, row_NT in ((logits_NTV, again_NT), (model(shuffled_NT[:, :-1]), shuffled_NT))
    )
    right_NT = logits_NTV.argmax(-1) == again_NT[:, 1:]
    return {
        "nats, random": float(nats_NT[:, : HALF - 1].mean()),
        "nats, random again": float(nats_NT[:, HALF:].mean()),  # the second's first token follows from nothing
        "nats, random shuffled": float(mixed_NT[:, HALF:].mean()),
        "right, random again": float(right_NT[:, HALF:].float().mean()),
    }


def extracted(model: Transformer, row_NT: Tensor) -> float:
    """The share of passages whose next tokens greedy decoding says verbatim (Carlini et al. 2022, arXiv 2202.07646)."""
    begun, greedy = row_NT[:, :BEGUN].tolist(), Sampling(temperature=0.0, max_new_tokens=EXTRACTED)
    answers = generate(model, begun, greedy, (), [0] * len(begun))
    wanted = row_NT[:, BEGUN : BEGUN + EXTRACTED].tolist()
    right: list[bool] = [list(answer.ids) == ids for answer, ids in zip(answers, wanted, strict=True)]
    return sum(right) / len(right)


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Every one of `MEASURES` of one model."""
    model = trained(settings, seed)
    shown_NT = text(settings, seed, 256, generator(seed, "handbook", "repeating", "shown"))
    once_NT = passages(book().train_T, POOL, LENGTH + 1, generator(seed, "handbook", "repeating", "once"))
    return {
        **written(model, seed),
        **held_out(model, seed),
        "rep-4, data": sum(repetition(ids, GRAM) for ids in shown_NT.tolist()) / len(shown_NT),
        **copying(model, seed),
        "extracted, met again": extracted(model, pool(seed)),
        "extracted, met once": extracted(model, once_NT),
    }
