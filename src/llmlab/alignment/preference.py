"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290): pairs without a reward model or sampling.

The reference's log-probabilities are two numbers a pair, computed once before the first step: in training there is one
model, whole or with an adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmlab.data.batch import PairBatch
from llmlab.objectives.language import token_logprobs
from llmlab.objectives.objective import Objective, Terms
from llmlab.objectives.preference import dpo as dpo_loss
from llmlab.objectives.preference import sequence_logprobs


@dataclass(frozen=True)
class ReferredPairs:
    """A batch of pairs and the reference's log-probability of each answer, [2B]: chosen ones, then rejected ones."""

    batch: PairBatch
    reference_B: Tensor


class DPOObjective(Objective[ReferredPairs]):
    """-log sigmoid of the difference of implicit rewards beta * log(policy / reference), a mean over pairs."""

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.weights = {"loss": 1.0}

    def counts(self, batch: ReferredPairs) -> dict[str, float]:
        return {"loss": float(batch.batch.pairs)}

    def amounts(self, batch: ReferredPairs) -> dict[str, float]:
        return {"tokens": float(batch.batch.tokens), "pairs": float(batch.batch.pairs)}

    def __call__(self, model: Any, batch: ReferredPairs) -> Terms:
        model.eval()  # no dropout: policy and reference differ by their weights alone
        chosen_B, rejected_B = sequence_logprobs(token_logprobs(model, batch.batch)).chunk(2)
        reference_chosen_B, reference_rejected_B = batch.reference_B.chunk(2)
        result = dpo_loss(chosen_B, rejected_B, reference_chosen_B, reference_rejected_B, self.beta)
        count = float(batch.batch.pairs)
        margin_B = result.chosen_reward_B - result.rejected_reward_B
        figures: dict[str, tuple[Tensor | float, float]] = {
            "accuracy": ((margin_B > 0).sum(), count),
            "margin": (margin_B.sum(), count),
            "chosen_reward": (result.chosen_reward_B.sum(), count),
            "rejected_reward": (result.rejected_reward_B.sum(), count),
        }
        return Terms({"loss": result.loss_B.sum()}, figures)


@torch.no_grad()
def reference_logprobs(model: Any, batches: Sequence[PairBatch]) -> Tensor:
    """Log-probability of both answers of every pair under `model` as it is now, [pairs, 2]."""
    model.eval()
    sides = [torch.stack(sequence_logprobs(token_logprobs(model, batch)).chunk(2), 1) for batch in batches]
    return torch.cat(sides)
