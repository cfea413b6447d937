"""What a temperature is worth by task: sums have one right answer, stories have none.

Sums are written by the model of `addition.py`, its digits drawn instead of taken at their likeliest. Stories are gone
on with by a small model of the bundled book, one token a byte, and scored by the share of their words that the book
has (quality), by distinct runs of eight bytes (diversity), and by how far their runs of three bytes are from those of
held-out text (the Jensen-Shannon divergence of Lin 1991, in bits: 0 the same, 1 nothing in common).

N problems or texts, T tokens, L digits, V vocabulary.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from math import log2
from typing import Any

import torch
from torch import Tensor

from llmlab.evaluation.repetition import distinct
from llmlab.handbook import addition
from llmlab.handbook.fitting import fit
from llmlab.handbook.little_model import VOCABULARY, book, nats, passages
from llmlab.inference.engine import generate
from llmlab.inference.sampling import Sampling, choose, key_of, process
from llmlab.model.attention import MultiHead
from llmlab.model.transformer import Architecture, Transformer
from llmlab.runtime import derive, generator

BEGUN, WRITTEN, TEXTS = 32, 96, 96  # bytes of a beginning, bytes written, texts
TESTED = 500  # sums
RUN, WIDE = 3, 8  # bytes of the runs whose frequencies are compared, and of those that are to differ
STORY = Architecture(layers=4, dim=128, context=BEGUN + WRITTEN, attention=MultiHead(heads=4))


# ---------------------------------------------------------------- sums


@torch.no_grad()
def drawn(model: Transformer, numbers_NL2: Tensor, sampling: Sampling, seed: int) -> Tensor:
    """int64 [N, L]: the sums that the model writes, each digit drawn with its own before it."""
    sums_NL = torch.zeros(numbers_NL2.shape[:2], dtype=torch.int64)
    keys = [key_of(derive(seed, "sum", row)) for row in range(len(numbers_NL2))]
    for place in range(addition.DIGITS):
        logits_NLV = addition.answered(model, addition.rows(numbers_NL2, sums_NL))
        processed_NV = process(logits_NLV[:, place], sampling)
        sums_NL[:, place] = choose(processed_NV, sampling.greedy, keys, [place] * len(keys)).ids_B
    return sums_NL


def sums(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """`exact <setting>`: the share of sums that are right to the last of 8 digits."""
    model = addition.untrained(settings, seed)
    addition.train(model, seed, settings["steps"])
    numbers_NL2 = addition.exam(seed, TESTED)
    right_NL = addition.sums(numbers_NL2)
    told = {}
    for name, one in settings["settings"].items():
        said_NL = drawn(model.eval(), numbers_NL2, Sampling(**one), seed)
        told[f"exact {name}"] = float((said_NL == right_NL).all(1).double().mean())
    return told


# ---------------------------------------------------------------- stories


def words(text: bytes) -> list[bytes]:
    """Runs of letters in lower case, without the first and the last, which may be cut."""
    return re.findall(rb"[a-z]+", text.lower())[1:-1]


@cache
def known() -> frozenset[bytes]:
    """The words of the part of the book that is trained on."""
    return frozenset(words(bytes(book()[0].tolist())))


def runs(texts: Sequence[bytes]) -> dict[bytes, float]:
    """The relative frequencies of runs of three bytes."""
    counts = Counter(text[start : start + RUN] for text in texts for start in range(len(text) - RUN + 1))
    total = sum(counts.values())
    return {run: count / total for run, count in counts.items()}


def divergence(p: Mapping[bytes, float], q: Mapping[bytes, float]) -> float:
    """Jensen-Shannon, in bits."""

    def half(a: Mapping[bytes, float], b: Mapping[bytes, float]) -> float:
        return sum(x * log2(2 * x / (x + b.get(run, 0.0))) for run, x in a.items())

    return (half(p, q) + half(q, p)) / 2


def marks(texts: Sequence[bytes], human: Sequence[bytes]) -> dict[str, float]:
    """`words`, `distinct` and `divergence` of what was written, beside as much text of people."""
    written = [word for text in texts for word in words(text)]
    return {
        "words": sum(word in known() for word in written) / max(1, len(written)),
        "distinct": distinct([list(text) for text in texts], WIDE),
        "divergence": divergence(runs(texts), runs(human)),
    }


def stories(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """`words <setting>`, `distinct <setting>`, `divergence <setting>`; those of other held-out text as `human`."""
    model = STORY.build(VOCABULARY, seed)
    (text, held_out), source = book(), generator(seed, "handbook", "temperatures", "text")

    def loss(step: int) -> Tensor:
        return nats(model, passages(text, settings["text_rows"], STORY.context, source))

    fit(model, loss, settings["steps"], settings["rate"], settings["adamw_rate"])
    draws = generator(seed, "handbook", "temperatures", "test")
    middle = len(held_out) // 2
    begun = passages(held_out[:middle], TEXTS, BEGUN, draws).tolist()
    human, other = (
        [bytes(row) for row in passages(half, TEXTS, WRITTEN, draws).tolist()]
        for half in (held_out[:middle], held_out[middle:])
    )
    seeds = [derive(seed, "story", row) for row in range(TEXTS)]
    told = {f"{mark} human": value for mark, value in marks(other, human).items()}
    for name, one in settings["settings"].items():
        answers = generate(model, begun, Sampling(**one, max_new_tokens=WRITTEN), (), seeds)
        told |= {f"{mark} {name}": value for mark, value in marks([bytes(a.ids) for a in answers], human).items()}
    return told
