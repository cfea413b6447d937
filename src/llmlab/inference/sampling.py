"""From logits to a token: the settings, the processors as pure functions, and noise that knows only its own row.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from llmlab.recipe import Section
from llmlab.runtime import derive


class Sampling(Section):
    """How answers are drawn. The defaults draw from the model's own distribution."""

    temperature: float = Field(1.0, ge=0, description="logits are divided by it; 0: always the likeliest token")
    top_k: int | None = Field(None, gt=0, description="only the k likeliest tokens; null: all")
    top_p: float = Field(1.0, gt=0, le=1, description="only the fewest likeliest tokens of at least this mass; 1: all")
    repetition_penalty: float = Field(
        1.0, gt=0, description="above 1: tokens seen in prompt or answer grow less likely"
    )
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


# ---------------------------------------------------------------- processors: [B, V] -> [B, V]


def penalise_repetition(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Positive logits of tokens seen before are divided, negative ones multiplied (Keskar et al. 2019, 1909.05858)."""
    lowered = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, lowered, logits_BV)


def ban(logits_BV: Tensor, banned_BV: Tensor) -> Tensor:
    """Where `banned_BV` is true: probability 0."""
    return logits_BV.masked_fill(banned_BV, float("-inf"))


def temper(logits_BV: Tensor, temperature: float) -> Tensor:
    """Divide by the temperature, the largest logit moved to 0 first so that a tiny temperature cannot overflow."""
    smallest = torch.finfo(torch.float32).tiny  # below it the temperature itself would round to 0
    return (logits_BV - logits_BV.amax(-1, keepdim=True)) / max(temperature, smallest)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Only the k likeliest (Fan et al. 2018, arXiv 1805.04833), and those as likely as the k-th."""
    if k >= logits_BV.shape[-1]:
        return logits_BV
    least_B1 = logits_BV.topk(k).values[..., -1:]
    return logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Only the fewest likeliest whose mass reaches p, one at least (Holtzman et al. 2019, arXiv 1904.09751)."""
    if p >= 1:
        return logits_BV
    total_B1 = logits_BV.logsumexp(-1, keepdim=True)
    vocabulary = logits_BV.shape[-1]
    for width in (128, 2048, vocabulary):  # the mass mostly lies in few tokens, and sorting all of them is slow
        top = logits_BV.topk(min(width, vocabulary))
        mass_BW = (top.values - total_B1).exp()
        before_BW = mass_BW.cumsum(-1) - mass_BW
        if width >= vocabulary or bool((before_BW[..., -1] >= p).all()):
            break
    kept_BW = torch.where(before_BW < p, top.values, float("-inf"))
    return torch.full_like(logits_BV, float("-inf")).scatter(-1, top.indices, kept_BW)


def process(
    logits_BV: Tensor, sampling: Sampling, seen_BV: Tensor | None = None, banned_BV: Tensor | None = None
) -> Tensor:
    """The logits, in float32, of the distribution that is drawn from. The trainer scores with the same call.

    `seen_BV`: tokens in prompt or answer so far, needed for a repetition penalty. `banned_BV`: must not come now.
    A greedy sampling leaves temperature, top-k and top-p out: they cannot change which token is the likeliest.
    """
    logits_BV = logits_BV.float()
    if sampling.repetition_penalty != 1:
        if seen_BV is None:
            raise ValueError("a repetition penalty needs seen_BV")
        logits_BV = penalise_repetition(logits_BV, seen_BV, sampling.repetition_penalty)
    if banned_BV is not None:
        logits_BV = ban(logits_BV, banned_BV)
    if sampling.greedy:
        return logits_BV
    if sampling.temperature != 1:
        logits_BV = temper(logits_BV, sampling.temperature)
    if sampling.top_k is not None:
        logits_BV = keep_top_k(logits_BV, sampling.top_k)
    return keep_top_p(logits_BV, sampling.top_p)


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
        best_B1 = processed_BV.argmax(-1, keepdim=True)
        value_B = processed_BV.gather(-1, best_B1)[:, 0]
        return Draw(best_B1[:, 0], value_B - value_B)  # 0, and NaN for NaN or infinity
    logprobs_BV = processed_BV.log_softmax(-1)
    vocabulary = processed_BV.shape[-1]
    noise_BV = np.stack([noise(key, position, vocabulary) for key, position in zip(keys, positions, strict=True)])
    ids_B1 = (logprobs_BV.exp() / torch.from_numpy(noise_BV).to(logprobs_BV.device)).argmax(-1, keepdim=True)
    return Draw(ids_B1[:, 0], logprobs_BV.gather(-1, ids_B1)[:, 0])
