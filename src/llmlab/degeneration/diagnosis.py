"""Why this model repeats itself, and what helps: the measures, the causes and the remedies, with figures.

Sizes are such that a model of a hundred million parameters takes a minute or two on two cores. All is drawn from the
seed; nothing depends on time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from llmlab.degeneration import causes, duplicates
from llmlab.degeneration.cause import Cause, rounded
from llmlab.degeneration.material import Material, gather
from llmlab.degeneration.remedies import Remedy, best, tried
from llmlab.degeneration.voice import Said, Voice, mean_nats
from llmlab.errors import InputError
from llmlab.evaluation import statistics
from llmlab.evaluation.openings import Opening, bundled_documents, fitting
from llmlab.evaluation.perplexity import begin_id
from llmlab.evaluation.repetition import copied, distinct, repetition, self_bleu
from llmlab.inference.loops import loop_in
from llmlab.inference.sampling import Sampling
from llmlab.language_model import LanguageModel
from llmlab.recipe import Section
from llmlab.tokenization.tokenizer import Tokenizer

BEGINS = "<|endoftext|>"  # what documents stand behind, where a model's bos begins a chat
QUESTIONS = (
    "Hello! Who are you?",
    "What is the capital of France?",
    "Name three animals.",
    "Is the sea salty? Answer with yes or no.",
)


class Diagnosing(Section):
    """How much is asked of the model."""

    texts: int = Field(16, gt=1, description="openings that are gone on with, by each way of decoding")
    prompt_tokens: int = Field(24, gt=0, description="length of an opening; at most a quarter of the context")
    new_tokens: int = Field(96, ge=8, description="length of a continuation, as far as the context holds it")
    free_texts: int = Field(64, gt=1, description="texts that are drawn from nothing")
    free_tokens: int = Field(64, ge=8, description="length of each of them, as far as the context holds it")
    passage: int = Field(24, ge=8, description="tokens in a row that two free texts have in common by no chance")
    asked: int = Field(24, gt=1, description="passages of the training text that the model is to complete")
    searched: int = Field(4, gt=1, description="openings that contrastive search goes on with")
    training_tokens: int = Field(4_000_000, gt=0, description="so many tokens of the training text are read at most")
    seed: int = Field(0, description="equal seeds give equal figures")


def diagnose(
    lm: LanguageModel,
    data: Path | None = None,
    settings: Diagnosing | None = None,
    notice: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """`{"model", "measures", "causes", "likely", "remedies", "helps"}`.

    Errors: InputError for a model without a tokenizer, one that does not go on with text token by token, one whose
    context is too short, and for a file that is missing, empty or no text.
    """
    s = settings or Diagnosing()
    voice = Voice(lm, s.seed)
    prompt_tokens, new = fitting(lm.context, s.prompt_tokens, s.new_tokens)
    if new < 8:
        raise InputError(lm.bundle.origin, f"has a context of {lm.context} tokens", "32 are the least to repeat in")
    notice("reading")
    material = gather(lm.bundle, data, prompt_tokens, new, s.texts, s.training_tokens)
    prompts = [one.prompt for one in material.openings]
    human = _of_people(voice, material.openings)
    notice("the likeliest texts")
    greedy = voice.say(prompts, voice.unending(temperature=0, max_new_tokens=new), "greedy")
    remedies, sampled = list[Remedy](), list[Said]()
    for remedy, said in tried(voice, prompts, greedy, mean_nats(human), s.searched, s.seed):
        notice(f"tried {remedy.name}")
        remedies.append(remedy)
        sampled = said if remedy.name == "sampling" else sampled
    found = _causes(voice, material, greedy, sampled, s, notice)
    likely = sorted((cause for cause in found if cause.likely), key=lambda cause: -cause.strength)
    human_rep_4 = float(np.mean([repetition(one.ids) for one in human]))
    return {
        "model": lm.bundle.origin,
        "measures": _measures(greedy, human, prompts),
        "causes": [cause.json() for cause in found],
        "likely": [cause.name for cause in likely],
        "remedies": [remedy.json() for remedy in remedies],
        "helps": best(remedies, human_rep_4, mean_nats(human)),
    }


def _of_people(voice: Voice, openings: Sequence[Opening]) -> list[Said]:
    nats = voice.read([[*one.prompt, *one.human] for one in openings])
    return [Said(one.human, row[len(one.prompt) - 1 :]) for one, row in zip(openings, nats, strict=True)]


def _measures(greedy: Sequence[Said], human: Sequence[Said], prompts: Sequence[list[int]]) -> list[dict[str, Any]]:
    """Of the greedy texts, each beside the same of how people went on."""
    ours, theirs = ([one.ids for one in texts] for texts in (greedy, human))

    def of(texts: list[list[int]]) -> dict[str, float]:
        return {
            "rep_4": float(np.mean([repetition(ids) for ids in texts])),
            "loops": float(np.mean([loop_in(ids) is not None for ids in texts])),
            "distinct_2": distinct(texts),
            "self_bleu": self_bleu(texts),
            "copied": float(np.mean([copied(ids, prompt) for ids, prompt in zip(texts, prompts, strict=True)])),
        }

    mine, other = of(ours) | {"nats": mean_nats(greedy)}, of(theirs) | {"nats": mean_nats(human)}
    interval = statistics.mean([repetition(ids) for ids in ours]).interval
    rows = [{"measure": name, "value": rounded(mine[name]), "human": rounded(other[name])} for name in mine]
    rows[0]["interval"] = rounded(interval)
    return rows


def _causes(
    voice: Voice,
    material: Material,
    greedy: Sequence[Said],
    sampled: Sequence[Said],
    s: Diagnosing,
    notice: Callable[[str], object],
) -> list[Cause]:
    lm, openings = voice.lm, material.openings
    notice("free texts")
    free = in_free_texts(voice, openings, s)
    found = [causes.maximising(greedy, sampled, s.seed), causes.reinforcement(voice, openings[: s.texts], lm.context)]
    notice("how texts end")
    ends = material.held_out or material.training
    found.append(causes.end_token(voice, ends, _answers(voice, s), s.texts))
    if material.training is None:
        return [free, *found]
    notice("the training text")
    text = duplicates.Counted(material.training)
    known = duplicates.in_training(voice, text, s.asked, s.seed)
    size = len(openings[0].prompt) + len(openings[0].human)
    special = lm.tokenizer.special_ids
    human = [[*one.prompt, *one.human] for one in openings]
    all_ = causes.pieces(material.training, size, 4 * s.texts, special)
    seen = causes.pieces(text.single(), size, s.texts, special)
    if material.held_out is not None and len(seen) > 1:
        found.append(causes.small_data(voice, seen, human))
    if len(all_) > 1:
        found.append(causes.within_documents(all_, _bundled(lm.tokenizer, size, 4 * s.texts)))
    joined = {**known.figures, **{f"free_{name.removeprefix('free_')}": value for name, value in free.figures.items()}}
    return [Cause(known.name, known.strength, f"{known.evidence}; {free.evidence}", joined), *found]


def in_free_texts(voice: Voice, openings: Sequence[Opening], s: Diagnosing) -> Cause:
    """Repeated training data by what is said from nothing."""
    size = min(s.free_tokens, voice.lm.context - 1)
    n = min(s.passage, size)
    start = _beginning(voice.lm.tokenizer, openings)
    sampling = voice.unending(temperature=1, max_new_tokens=size)
    free = voice.say([[start]] * s.free_texts, sampling, "free")
    return duplicates.in_free_texts(free, _of_people(voice, openings), n)


def _beginning(tokenizer: Tokenizer, openings: Sequence[Opening]) -> int:
    """The token behind which documents stand."""
    named = tokenizer.token_id(BEGINS)
    begin = begin_id(tokenizer) if named is None else named
    return openings[0].prompt[0] if begin is None else begin


def _answers(voice: Voice, s: Diagnosing) -> list[bool] | None:
    """Whether each of a few simple questions is answered with an end; None for a model that is not asked in a chat."""
    lm = voice.lm
    if lm.tokenizer.chat_template is None:
        return None
    prompts = [lm.prompt([{"role": "user", "content": question}]) for question in QUESTIONS]
    room = min(s.new_tokens, lm.context - max(map(len, prompts)))
    if room < 8:
        return None
    said = voice.say(prompts, Sampling(temperature=0, max_new_tokens=room), "answers", may_end=True)
    return [len(one.ids) < room for one in said]


def _bundled(tokenizer: Tokenizer, size: int, most: int) -> list[list[int]]:
    return causes.pieces(bundled_documents(tokenizer, most), size, most, tokenizer.special_ids)
