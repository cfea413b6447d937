"""One model, many decoders: what each says after the same beginnings, and how much of it is repetition.

The weights are SmolLM2's as they come: 4 bits each (Q4_1), so all of it is said of a quantised model. They are computed
with as they lie in the file, what is multiplied with them in 8 bits; the texts of some arms are scored in fp32 as well.
No chat template; no special token may come, so that no text ends early, but where an arm allows it.

V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch

from llmlab.evaluation.mauve import mauve
from llmlab.evaluation.repetition import copied, distinct, repetition, self_bleu
from llmlab.handbook import openings
from llmlab.handbook.openings import Opening
from llmlab.inference.batching import Batching, Request
from llmlab.inference.engine import Token
from llmlab.inference.front import DecoderFront
from llmlab.inference.loops import loop_in
from llmlab.inference.paged_front import PagedFront
from llmlab.inference.postfilter import PostFilter
from llmlab.inference.sampling import Sampling, never
from llmlab.language_model import LanguageModel, Ways, load
from llmlab.runtime import derive

MODEL, ENCODER = "smollm2", "minilm"
BOOK, DAILY, OTHERS, FEW = 6, 2, 18, 3  # passages, everyday openings, more passages of people, and those of slow arms
PIECE, CLUSTERS = 32, 6  # tokens of a piece of text that is embedded; clusters of pieces
TOGETHER = 5  # prompts that are searched for at once: what a search keeps must have room in the pages
EDGE = 32  # tokens at the beginning and the end of an answer
Ids = list[int]
Life = dict[str, float | str]


class Said(NamedTuple):
    """An answer, and the nats of each of its tokens under the model itself, before any processor."""

    ids: Ids
    nats: list[float]


@cache
def model() -> LanguageModel:
    return load(MODEL, "int4")


@cache
def exact() -> LanguageModel:
    return load(MODEL)


@cache
def encoder() -> LanguageModel:
    return load(ENCODER)


# ---------------------------------------------------------------- saying


def asked(settings: Mapping[str, Any], seed: int) -> list[Opening]:
    """The passages of the book first, then the everyday openings."""
    passages = openings.slice_of(seed, BOOK + OTHERS)[:BOOK]
    match settings["prompts"]:
        case "open":
            return list(map(openings.cut, passages))
        case "open, everyday":
            return [*map(openings.cut, passages), *openings.everyday(seed, DAILY)]
        case "few":
            return [openings.cut(one) for one in passages[:FEW]]
        case "begun again":
            return [openings.begun_again(one) for one in passages]
        case "said often":
            return [openings.said_often(one) for one in passages]
    raise ValueError(f"no such prompts: {settings['prompts']}")


def sampling_of(lm: LanguageModel, settings: Mapping[str, Any]) -> tuple[Sampling, frozenset[int]]:
    """The sampling and what ends a text: nothing does but where the arm says so."""
    ends = lm.stop_ids if settings["ends"] else frozenset[int]()
    bias = never(lm.tokenizer.special_ids - ends)
    return Sampling(**settings["sampling"], max_new_tokens=settings["tokens"], logit_bias=bias), ends


def drawn(lm: LanguageModel, prompts: Sequence[Ids], settings: Mapping[str, Any], seed: int) -> list[Said]:
    """All texts at once. A stop token is no part of its text."""
    sampling, ends = sampling_of(lm, settings)
    requests = [
        Request(prompt, sampling, ends, derive(seed, "bench", row), likeliest=0) for row, prompt in enumerate(prompts)
    ]
    told = []
    for tokens in answered(batching(lm), requests):
        kept = [token for token in tokens if token.id not in ends]
        told.append(Said([token.id for token in kept], [-token.scored.logprob for token in kept if token.scored]))
    return told


def answered(over: Batching, requests: Sequence[Request]) -> list[list[Token]]:
    """The tokens of each request, with what was scored beside them."""
    boxes: dict[int, list[Token]] = {over.submit(request): [] for request in requests}
    while over.busy:
        for token in over.step():
            boxes[token.row].append(token)
    return list(boxes.values())


def batching(lm: LanguageModel) -> Batching:
    found = lm.batching
    assert found is not None
    return found


def searched(lm: LanguageModel, prompts: Sequence[Ids], settings: Mapping[str, Any]) -> list[list[Ids]]:
    """All texts that the search ends with for each prompt, best first."""
    search = Ways(search=settings["search"]).search
    assert search is not None
    sampling, ends = sampling_of(lm, settings)
    found = []
    for start in range(0, len(prompts), TOGETHER):
        some = prompts[start : start + TOGETHER]
        if search.states:
            found += search.find(DecoderFront(lm.model), some, sampling, ends, [0] * len(some))
        else:
            with PagedFront(batching(lm).model, batching(lm).pages).held() as front:
                found += search.find(front, some, sampling, ends, [0] * len(some))
    return [[one.ids for one in own] for own in found]


def scored(lm: LanguageModel, prompts: Sequence[Ids], texts: Sequence[Ids]) -> list[Said]:
    """Texts of whatever origin with the nats of their tokens after the prompts."""
    told, rows = [Said([], []) for _ in texts], [row for row, ids in enumerate(texts) if ids]
    requests = [
        Request([*prompts[row], *texts[row]], Sampling(max_new_tokens=1), likeliest=0, echo=True, draws=False)
        for row in rows
    ]
    for row, (token,) in zip(rows, answered(batching(lm), requests), strict=True):
        told[row] = Said(texts[row], [-one.logprob for one in token.prompt[-len(texts[row]) :]])
    return told


@torch.no_grad()
def exact_nats(lm: LanguageModel, prompt: Ids, ids: Ids) -> float:
    """Mean nats a token in fp32."""
    logprobs_TV = lm.logits(torch.tensor([[*prompt, *ids]]))[0, len(prompt) - 1 : -1].log_softmax(-1)
    return -float(logprobs_TV.gather(-1, torch.tensor(ids)[:, None]).mean())


# ---------------------------------------------------------------- an arm


def run(settings: Mapping[str, Any], seed: int) -> Life:
    """The figures of one arm that it can be asked for."""
    lm = model()
    begun = asked(settings, seed)
    prompts = [lm.prompt(one.prompt) for one in begun]
    book, alike, kept = sum(bool(one.onward) for one in begun) or len(begun), None, None
    if settings["human"]:
        texts = [lm.tokenizer.encode(one.onward)[: settings["tokens"]] for one in begun]
        said = scored(lm, prompts, texts)
    elif settings["search"] is not None:
        found = searched(lm, prompts, settings)
        alike = sum(self_bleu(own) for own in found) / len(found) if len(found[0]) > 1 else None
        said = scored(lm, prompts, [own[0] for own in found])
    else:
        said = drawn(lm, prompts, settings, seed)
    if settings["filter"] is not None:
        embed = encoder().embed if settings["filter"] == "meaning" else None
        left = [PostFilter().of(lm.tokenizer.decode(one.ids), embed) for one in said]
        whole = sum(len(one.ids) for one in said[:book])
        said = scored(lm, prompts, [lm.tokenizer.encode(one.text) for one in left])
        kept = sum(len(one.ids) for one in said[:book]) / whole
    told: Life = dict(marks(prompts[:book], said[:book]))
    if len(said) > book:
        told["rep_4_everyday"] = mean([repetition(one.ids) for one in said[book:]])
    if settings["prompts"] in ("open", "open, everyday"):
        told["mauve"] = likeness(lm, [one.ids for one in said[:book]], settings, seed)
        told["rep_4_few"] = mean([repetition(one.ids) for one in said[:FEW]])
    elif settings["prompts"] == "few":
        told["rep_4_few"] = told["rep_4"]
    if settings["exact"]:
        told["fp32_gap"] = mean(
            [exact_nats(exact(), p, one.ids) - mean(one.nats) for p, one in zip(prompts[:FEW], said, strict=False)]
        )
    told |= {name: value for name, value in (("alike", alike), ("kept", kept)) if value is not None}
    return told


def marks(prompts: Sequence[Ids], said: Sequence[Said]) -> dict[str, float]:
    """What is asked of every arm: means over the texts, but distinct-2 and self-BLEU of all of them together. Who never
    loops has its whole text before a loop, and a loop without a period counts as none."""
    texts = [one.ids for one in said]
    loops = [loop_in(ids) for ids in texts]
    return {
        "rep_4": mean([repetition(ids) for ids in texts]),
        "rep_3": mean([repetition(ids, 3) for ids in texts]),
        "looping": mean([float(loop is not None) for loop in loops]),
        "before_loop": mean([loop.start if loop else len(ids) for loop, ids in zip(loops, texts, strict=True)]),
        "period": mean([float(loop.period) for loop in loops if loop]) if any(loops) else 0.0,
        "distinct_2": distinct(texts, 2),
        "self_bleu": self_bleu(texts),
        "copied": mean([copied(ids, prompt) for ids, prompt in zip(texts, prompts, strict=True)]),
        "tokens": mean([float(len(ids)) for ids in texts]),
        "nats": mean([mean(one.nats) for one in said if one.nats]),
        "nats_first": mean([mean(one.nats[:EDGE]) for one in said if one.nats]),
        "nats_last": mean([mean(one.nats[-EDGE:]) for one in said if one.nats]),
    }


def likeness(lm: LanguageModel, texts: Sequence[Ids], settings: Mapping[str, Any], seed: int) -> float:
    """MAUVE of pieces of the texts against pieces of other passages; the human arm is measured like any other."""
    said = pieces(lm, texts)
    people_ND = torch.stack(list(people(seed, settings["tokens"])))
    return mauve(encoder().embed(said), people_ND, CLUSTERS, seed)


@cache
def people(seed: int, tokens: int) -> tuple[torch.Tensor, ...]:
    """The vectors of pieces of passages that no arm was asked to go on with."""
    lm = model()
    others = [openings.cut(one) for one in openings.slice_of(seed, BOOK + OTHERS)[BOOK:]]
    return tuple(encoder().embed(pieces(lm, [lm.tokenizer.encode(one.onward)[:tokens] for one in others])))


def pieces(lm: LanguageModel, texts: Sequence[Ids]) -> list[str]:
    cut = [ids[start : start + PIECE] for ids in texts for start in range(0, len(ids), PIECE)]
    return [text for ids in cut if (text := lm.tokenizer.decode(ids)).strip()]


def mean(values: Sequence[float]) -> float:
    """0 for none."""
    return sum(values) / len(values) if values else 0.0
