"""A sentence that has been said is likelier to be said again, and likelier still after each time (Xu et al. 2022,
arXiv 2206.02369): what a real model gives the tokens of a sentence that stood there n times before.

Sentences are of a real book, each behind the text that leads up to it; or tokens drawn at random in their place, which
no text ever held: what copies those cannot know them. The book is an old one and may be among what the model was
trained on; that raises what it gives the first copy, and so makes the rise smaller.

T tokens, C copies, L tokens of a sentence, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llmlab.checkpoints.where import open_model
from llmlab.handbook.long_text import text_of
from llmlab.runtime import generator
from llmlab.tokenization.tokenizer import Tokenizer

MODEL = "smollm2"
SENTENCES, COPIES = 12, 9  # a seed; the last copy stands behind eight others
LEAST, MOST, LEAD = 10, 24, 32  # tokens of a sentence, and of the text before it
MARKS = ("probability", "rising", "whole")
MEASURES = tuple(f"{mark}_{copy}" for mark in MARKS for copy in range(COPIES))


def sentences(tokenizer: Tokenizer, seed: int) -> list[tuple[list[int], list[int]]]:
    """(lead, sentence) in ids, from a stretch of the book that the seed chooses; each ends as a sentence does."""
    text = text_of(seed)
    found = list[tuple[list[int], list[int]]]()
    for match in re.finditer(r"(?<=[.!?]) [A-Z][^.!?]*[.!?](?= )", text):
        sentence = tokenizer.encode(match[0].replace("\n", " "))
        lead = tokenizer.encode(text[: match.start()][-8 * LEAD :].replace("\n", " "))[-LEAD:]
        if LEAST <= len(sentence) <= MOST and len(lead) == LEAD:
            found.append((lead, sentence))
    return found[:: max(1, len(found) // SENTENCES)][:SENTENCES]


def at_random(sentence: list[int], tokenizer: Tokenizer, source: torch.Generator) -> list[int]:
    """As many tokens, none of them special, all as likely."""
    words = torch.tensor([id for id in range(tokenizer.vocab_size) if id not in tokenizer.special_ids])
    return words[torch.randint(len(words), (len(sentence),), generator=source)].tolist()


def copies(logits_TV: Tensor, lead: int, sentence: list[int]) -> tuple[Tensor, Tensor]:
    """([C, L] the probability of each token of each copy, whether it was the likeliest of all), from the logits of the
    text: `lead` tokens, then the copies."""
    answer_CL = torch.tensor(sentence).repeat(COPIES, 1)
    said_CLV = logits_TV[lead - 1 : lead - 1 + answer_CL.numel()].view(*answer_CL.shape, -1)
    probability_CL = said_CLV.softmax(-1).gather(-1, answer_CL[..., None])[..., 0]
    return probability_CL, said_CLV.argmax(-1) == answer_CL


@torch.inference_mode()
def run(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Of the copy behind n others: `probability_n`, the mean over sentences of its tokens' mean probability;
    `rising_n`, the share of tokens likelier than in the first copy; `whole_n`, the share of sentences of which every
    token is the likeliest, so that greedy decoding says it once more."""
    bundle = open_model(MODEL)
    model, tokenizer = bundle.model.eval(), bundle.tokenizer
    assert tokenizer is not None
    source = generator(seed, "handbook", "self-reinforcement")
    rows = list[Tensor]()
    for lead, real in sentences(tokenizer, seed):
        sentence = real if settings["sentences"] == "real" else at_random(real, tokenizer, source)
        logits_TV = model(torch.tensor([lead + COPIES * sentence]))[0].float()
        probability_CL, likeliest_CL = copies(logits_TV, len(lead), sentence)
        rising_CL = probability_CL > probability_CL[:1]
        parts = (probability_CL.mean(1), rising_CL.float().mean(1), likeliest_CL.all(1).float())
        rows.append(torch.stack(parts).flatten())
    return dict(zip(MEASURES, torch.stack(rows).mean(0).tolist(), strict=True))
