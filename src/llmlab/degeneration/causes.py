"""Reasons in how a model speaks: decoding, what it makes of what it said, how it ends, what it learnt from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from llmlab.data.batch import Ids
from llmlab.degeneration.cause import Cause
from llmlab.degeneration.material import without
from llmlab.degeneration.voice import Said, Voice
from llmlab.evaluation import statistics
from llmlab.evaluation.openings import Opening
from llmlab.evaluation.repetition import repetition
from llmlab.runtime import derive

# Thresholds, set beforehand.
GREEDIER = 0.05  # rep-4 of the likeliest tokens over that of drawn ones
REINFORCED = 0.5  # mean probability of a sentence's tokens where it comes again and again
ENDS = 2.0  # times as likely an end where a text ends as elsewhere; or half of the answers that end
GAP = 0.1  # nats a token more on held-out than on training text, of each nat there
WITHIN = 0.1  # rep-4 of training documents over that of other text


def maximising(greedy: Sequence[Said], sampled: Sequence[Said], seed: int) -> Cause:
    """The likeliest text is not like what people write (Holtzman et al. 2020, arXiv 1904.09751)."""
    a, b = ([repetition(one.ids) for one in texts] for texts in (greedy, sampled))
    difference = statistics.paired_bootstrap(a, b, derive(seed, "maximising"))
    figures = {
        "rep_4_greedy": float(np.mean(a)),
        "rep_4_sampled": float(np.mean(b)),
        "difference": difference.value,
        "difference_interval": difference.interval,
    }
    evidence = f"rep-4 is {np.mean(a):.3f} of the likeliest tokens, {np.mean(b):.3f} of tokens drawn at temperature 1"
    return Cause("maximising_decoding", max(0.0, difference.low) / GREEDIER, evidence, figures)


def reinforcement(
    voice: Voice, openings: Sequence[Opening], context: int, sentence: int = 16, copies: int = 8
) -> Cause:
    """A sentence grows likelier with each time it was said (Xu et al. 2022, arXiv 2206.02369)."""
    copies = max(2, min(copies, (context - len(openings[0].prompt)) // sentence))
    size = min(sentence, len(openings[0].human))
    texts = [[*one.prompt, *one.human[:size] * copies] for one in openings]
    chances = []
    for one, nats in zip(openings, voice.read(texts), strict=True):
        said = np.exp(-np.asarray(nats[len(one.prompt) - 1 :]).reshape(copies, size))
        chances.append(said.mean(1))
    by_copy = np.mean(chances, 0)
    last, first = float(by_copy[-1]), float(by_copy[0])
    figures = {"sentence_tokens": size, "probability_by_copy": [float(value) for value in by_copy]}
    evidence = (
        f"the mean probability of a sentence's tokens is {first:.2f} the first time and {last:.2f} the {copies}th"
    )
    return Cause("self_reinforcement", last / REINFORCED if last > 2 * first else 0.0, evidence, figures)


def end_token(voice: Voice, documents: Sequence[Ids] | None, answers: Sequence[bool] | None, most: int) -> Cause:
    """A model that cannot end a text must go on with it."""
    stops = sorted(voice.lm.stop_ids)
    name = "end_token"
    if not stops:
        return Cause(name, 2.0, "the tokenizer names no token that ends a text", {"stop_ids": 0})
    figures: dict[str, Any] = {"stop_ids": len(stops)}
    told, strengths = list[str](), list[float]()
    if answers:
        ended = sum(answers) / len(answers)
        figures["answers_that_end"] = ended
        told.append(f"{ended:.0%} of its answers end by themselves")
        strengths.append(0.5 / max(ended, 0.05))
    ends = [ids for ids in documents or () if len(ids) > 8 and int(ids[-1]) in stops][:most]
    if ends:
        there, elsewhere, rank = _ends(voice, ends, stops)
        figures |= {"probability_at_ends": there, "probability_elsewhere": elsewhere, "median_rank_at_ends": rank}
        told.append(
            f"its probability is {there:.4f} where a text ends, at rank {rank:.0f}, and {elsewhere:.4f} elsewhere"
        )
        strengths.append(ENDS * elsewhere / there if there > 0 else math.inf)
    if not told:
        return Cause(name, 0.0, "no text is at hand that ends, and no chat template to ask by", figures)
    return Cause(name, min(strengths), "; ".join(told), figures)


def _ends(voice: Voice, documents: Sequence[Ids], stops: list[int]) -> tuple[float, float, float]:
    """Of the likeliest end token: mean probability where texts end and in their middle, median rank where they end."""
    room = min(128, voice.lm.context)
    there, elsewhere, ranks = [], [], []
    for ids in documents:
        text = [int(id) for id in ids[:-1]][-room:]
        chances_TV = voice.lm.logits(torch.tensor([text]))[0].softmax(-1)
        ends_T = chances_TV[:, stops].sum(-1)
        there.append(float(ends_T[-1]))
        elsewhere.append(float(ends_T[:-1].mean()))
        ranks.append(1 + int((chances_TV[-1] > chances_TV[-1, stops].max()).sum()))
    return float(np.mean(there)), float(np.mean(elsewhere)), float(np.median(ranks))


def small_data(voice: Voice, seen: Sequence[list[int]], unseen: Sequence[list[int]]) -> Cause:
    """A model that knows its text by heart knows little else: `seen` are passages that stand in it once."""
    a, b = ([float(np.mean(row)) for row in voice.read(texts)] for texts in (seen, unseen))
    first, second = statistics.mean(a), statistics.mean(b)
    spread = math.hypot(*(0.0 if not math.isfinite(one.low) else one.value - one.low for one in (first, second)))
    gap = second.value - first.value
    figures = {
        "nats_training": first.value,
        "nats_held_out": second.value,
        "gap": gap,
        "gap_interval": [gap - spread, gap + spread],
        "passages": [len(a), len(b)],
    }
    evidence = f"{first.value:.2f} nats a token on its training text, {second.value:.2f} on held-out text"
    return Cause("small_data", max(0.0, gap - spread) / (GAP * first.value), evidence, figures)


def within_documents(training: Sequence[list[int]], other: Sequence[list[int]]) -> Cause:
    """Text that repeats itself teaches it."""
    a, b = ([repetition(ids) for ids in texts] for texts in (training, other))
    first, theirs = statistics.mean(a), float(np.mean(b))
    figures = {"rep_4_training": first.value, "rep_4_interval": first.interval, "rep_4_other_text": theirs}
    evidence = f"rep-4 of {len(a)} passages of the training text is {first.value:.3f}, of other text {theirs:.3f}"
    return Cause("repetition_in_documents", max(0.0, first.low - theirs) / WITHIN, evidence, figures)


def pieces(documents: Sequence[Ids], size: int, most: int, special: frozenset[int]) -> list[list[int]]:
    """Up to `most` pieces of that many tokens, one a document, spread evenly over the text and each document."""
    long = [row for row, ids in enumerate(documents) if len(ids) > size]
    chosen = long if len(long) <= most else [long[n * len(long) // most] for n in range(most)]
    found = []
    for turn, row in enumerate(chosen):
        ids = documents[row]
        start = (len(ids) - size) * (turn % 5) // 4
        found.append(without(ids[start : start + size], special))
    return found
