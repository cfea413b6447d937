"""From logits to a token: the settings, what they make of logits, and noise that knows only its own row.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from llmlab.inference.constrain import Constraint
from llmlab.inference.processors import (
    ban,
    bias,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    penalise_counts,
    penalise_repetition,
    temper,
)
from llmlab.recipe import Section
from llmlab.runtime import derive

# What one request may name: so many ids, so many letters in all its stop texts.
MOST_BIASES, MOST_STOP_LETTERS = 1024, 65_536
NEVER = -100.0  # the bias of an id that shall not come


LENGTHS = ("max_new_tokens", "min_new_tokens")


class Sampling(Section):
    """How answers are drawn. The defaults draw from the model's own distribution."""

    temperature: float = Field(1.0, ge=0, description="logits are divided by it; 0: always the likeliest token")
    top_k: int | None = Field(None, gt=0, description="only the k likeliest tokens; null: all")
    top_p: float = Field(1.0, gt=0, le=1, description="only the fewest likeliest tokens of at least this mass; 1: all")
    min_p: float = Field(0.0, ge=0, le=1, description="only what is this many times as likely as the likeliest; 0: all")
    typical_p: float = Field(
        1.0, gt=0, le=1, description="only the most typical tokens of at least this mass (locally typical); 1: all"
    )
    repetition_penalty: float = Field(
        1.0, gt=0, description="above 1: tokens seen in prompt or answer grow less likely"
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="taken off the logit of each token that the answer has said"
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="taken off a token's logit as often as the answer has said it"
    )
    no_repeat_ngram_size: int = Field(
        0, ge=0, description="so many tokens in a row come but once in prompt and answer; 0: no such rule"
    )
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = Field(
        {}, max_length=MOST_BIASES, description="added to the logits of these ids, -100 to 100"
    )
    constraint: Constraint | None = Field(None, description="the form that the whole answer must have; null: any")
    max_new_tokens: int = Field(256, gt=0, description="longest answer in tokens")
    min_new_tokens: int = Field(0, ge=0, description="no stop token before so many tokens")
    stop: tuple[str, ...] = Field((), description="texts that end the answer; they are no part of it")
    seed: int = Field(0, description="the same seed draws the same answer")

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty stop text would end every answer before it begins")
        for stop in value:
            if any("\ud800" <= character <= "\udfff" for character in stop):
                raise ValueError(f"{stop!r} holds half of a surrogate pair, which no text does")
        if (size := sum(map(len, value))) > MOST_STOP_LETTERS:
            raise ValueError(f"the stop texts have {size} letters, more than {MOST_STOP_LETTERS}")
        return value

    @model_validator(mode="after")
    def _lengths(self) -> "Sampling":
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} is more than max_new_tokens {self.max_new_tokens}")
        return self

    @property
    def greedy(self) -> bool:
        """Whether no chance is left."""
        return self.temperature == 0 or self.top_k == 1

    @cached_property
    def alike(self) -> str:
        """Equal for samplings whose rows `process` may be handed together: what it does not read may differ."""
        return self.model_dump_json(exclude={"constraint", "no_repeat_ngram_size", "stop", "seed", *LENGTHS})

    @property
    def counts(self) -> bool:
        """Whether it matters how often the answer has said a token."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0


# ---------------------------------------------------------------- from logits to a distribution


def never(ids: Collection[int]) -> dict[int, float]:
    """The `logit_bias` under which none of these ids comes; of more than a request may name, the first ones."""
    return dict.fromkeys(sorted(ids)[:MOST_BIASES], NEVER)


def process(
    logits_BV: Tensor,
    sampling: Sampling,
    seen_BV: Tensor | None = None,
    banned_BV: Tensor | None = None,
    counts_BV: Tensor | None = None,
) -> Tensor:
    """The logits, in float32, of the distribution that is drawn from. The trainer scores with the same call.

    `seen_BV`: tokens in prompt or answer so far, needed for a repetition penalty. `counts_BV`: how often the answer has
    said each token, needed for a presence or a frequency penalty. `banned_BV`: what must not come now, be it for
    `no_repeat_ngram_size`, `min_new_tokens` or a constraint (`row.py` knows). A greedy sampling leaves temperature and
    all that comes after it out, as transformers does.

    The order is that of transformers (`_get_logits_processor`): bias, repetition penalty, bans, temperature, top-k,
    top-p, min-p, typical. Presence and frequency, which it lacks, come after the repetition penalty, as in vLLM.
    """
    logits_BV = logits_BV.float()
    if sampling.logit_bias:
        logits_BV = bias(logits_BV, sampling.logit_bias)
    if sampling.repetition_penalty != 1:
        if seen_BV is None:
            raise ValueError("a repetition penalty needs seen_BV")
        logits_BV = penalise_repetition(logits_BV, seen_BV, sampling.repetition_penalty)
    if sampling.counts:
        if counts_BV is None:
            raise ValueError("a presence or frequency penalty needs counts_BV")
        logits_BV = penalise_counts(logits_BV, counts_BV, sampling.presence_penalty, sampling.frequency_penalty)
    if banned_BV is not None:
        logits_BV = ban(logits_BV, banned_BV)
    return logits_BV if sampling.greedy else _narrow(logits_BV, sampling)


def _narrow(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    if sampling.temperature != 1:
        logits_BV = temper(logits_BV, sampling.temperature)
    if sampling.top_k is not None:
        logits_BV = keep_top_k(logits_BV, sampling.top_k)
    logits_BV = keep_top_p(logits_BV, sampling.top_p)
    if sampling.min_p > 0:
        logits_BV = keep_min_p(logits_BV, sampling.min_p)
    return keep_typical(logits_BV, sampling.typical_p) if sampling.typical_p < 1 else logits_BV


# ---------------------------------------------------------------- drawing


class Draw(NamedTuple):
    """`ids_B` int64, and `logprobs_B` float32: each id's log-probability in the distribution it was drawn from."""

    ids_B: Tensor
    logprobs_B: Tensor


def key_of(seed: int) -> int:
    """The key of a row's noise."""
    return derive(seed, "sampling")


def noise(key: int, position: int, vocabulary: int) -> NDArray[np.float32]:
    """Exponential noise [V] of mean 1, a pure function of (key, position): no state, no neighbours.

    Philox counts instead of stepping (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"); its raw bits
    are the same in every numpy. 32 bits of resolution near 0, where the smallest noise decides.
    """
    bits = np.random.Philox(key=key, counter=(0, 0, 0, position)).random_raw((vocabulary + 1) // 2).view(np.uint32)
    uniform = (bits[:vocabulary].astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    with np.errstate(divide="ignore"):  # a uniform that rounds to 1 becomes infinite noise: a token that loses
        drawn: NDArray[np.float32] = -np.log1p(-uniform)
    return drawn


def choose(processed_BV: Tensor, greedy: bool, keys: Sequence[int], positions: Sequence[int]) -> Draw:
    """Draw one id a row from processed logits; row i with the noise of (keys[i], positions[i]).

    argmax p / e with e exponential is a draw from p: the Gumbel-max trick (Gumbel 1954) with one logarithm less. So
    the same noise under nearly equal distributions draws the same token. Greedy: the lowest of the likeliest ids, with
    log-probability 0. A row of logits that are not numbers has log-probability NaN.
    """
    if greedy:
        best_B1 = _argmax(processed_BV)
        value_B = processed_BV.gather(-1, best_B1)[:, 0]
        return Draw(best_B1[:, 0], value_B - value_B)  # 0, and NaN for NaN or infinity
    logprobs_BV = processed_BV.log_softmax(-1)
    vocabulary = processed_BV.shape[-1]
    noise_BV = np.stack([noise(key, position, vocabulary) for key, position in zip(keys, positions, strict=True)])
    ids_B1 = _argmax(logprobs_BV.exp() / torch.from_numpy(noise_BV).to(logprobs_BV.device))
    return Draw(ids_B1[:, 0], logprobs_BV.gather(-1, ids_B1)[:, 0])


def _argmax(values_BV: Tensor) -> Tensor:
    """int64 [B, 1]: the first of the largest. numpy's is eight times as quick as PyTorch's on a CPU."""
    if values_BV.device.type != "cpu" or values_BV.dtype is not torch.float32:
        return values_BV.argmax(-1, keepdim=True)
    return torch.from_numpy(values_BV.detach().numpy().argmax(-1, keepdims=True))
