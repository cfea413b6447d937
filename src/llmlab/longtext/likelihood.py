"""How likely a language model finds a question behind a passage: passages are ordered by it where words and vectors
have found them (Ponte & Croft 1998; Sachan et al. 2022, Improving Passage Retrieval with Zero-Shot Question Generation,
arXiv 2204.07496). It needs no training, and sees what a passage says of a word, not only that it has it.

N passages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llmlab.errors import InputError
from llmlab.inference.batching import Request
from llmlab.inference.sampling import Sampling

if TYPE_CHECKING:
    from llmlab.language_model import LanguageModel

BEFORE, BETWEEN = "Passage: ", "\nQuestion about the passage:"


def question_likelihood(lm: LanguageModel, question: str, passages: Sequence[str]) -> npt.NDArray[np.float32]:
    """float32 [N]: mean log-probability of the question's tokens behind each passage, in nats. A passage that does not
    fit the context with the question is cut at its end.

    Errors: InputError for a model without keys in pages, and for a question that leaves no room.
    """
    batching, tokenizer = lm.batching, lm.tokenizer
    if batching is None:
        raise InputError(lm.bundle.origin, "makes one text at a time", "a llama-like model orders passages")
    before, between = tokenizer.prompt(BEFORE), tokenizer.encode(BETWEEN)
    asked = tokenizer.encode(f" {question}")
    room = lm.context - len(before) - len(between) - len(asked)
    if room < 1:
        raise InputError("question", f"has {len(asked)} tokens", f"the model that orders passages holds {lm.context}")
    rows = tokenizer.encode_batch([" ".join(passage.split()) for passage in passages])
    likelihood_N = np.zeros(len(rows), np.float32)
    for index, row in enumerate(rows):  # a passage fills a step by itself, so nothing is gained by asking at once
        prompt = [*before, *row[:room], *between, *asked]
        first = len(prompt) - len(asked)
        request = Request(prompt, Sampling(), likeliest=0, echo=True, echo_from=first, draws=False)
        (told,) = batching.stream(request)
        likelihood_N[index] = sum(scored.logprob for scored in told.prompt) / len(asked)
    return likelihood_N
