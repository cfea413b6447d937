"""A reward model: an adapter and a scalar head on the policy's base, trained on which of two answers is better.

Bradley-Terry (1952) on the score of each answer's last token, as in Stiennon et al. 2020 (arXiv 2009.01325) and Ouyang
et al. 2022. Pairs fix scores up to a constant only, and training any scale: at the end both are set so that held-out
answers have mean 0 and deviation 1, which gives PPO's KL price a meaning. The order of answers does not change.
"""

import torch
from torch import Tensor

from llmlab.adapters.roles import RoleModel
from llmlab.data.batch import PairBatch
from llmlab.objectives.objective import Objective, Terms
from llmlab.objectives.preference import bradley_terry


def pair_scores(model: RoleModel, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Scores [B] of the chosen and of the rejected answers, each read at its last real token, whichever the padding
    side: the token at which the policy was done."""
    scores_BT = model.values("reward", batch.ids_BT, batch.at)
    chosen_B, rejected_B = scores_BT.gather(1, batch.last_B[:, None])[:, 0].chunk(2)
    return chosen_B, rejected_B


class PreferenceObjective(Objective[PairBatch]):
    """-log sigmoid(chosen - rejected), a mean over pairs."""

    weights = {"loss": 1.0}  # noqa: RUF012

    def counts(self, batch: PairBatch) -> dict[str, float]:
        return {"loss": float(batch.pairs)}

    def amounts(self, batch: PairBatch) -> dict[str, float]:
        return {"tokens": float(batch.tokens), "pairs": float(batch.pairs)}

    def __call__(self, model: RoleModel, batch: PairBatch) -> Terms:
        chosen_B, rejected_B = pair_scores(model, batch)
        margin_B = (chosen_B - rejected_B).detach()
        count = float(batch.pairs)
        figures: dict[str, tuple[Tensor | float, float]] = {
            "accuracy": ((margin_B > 0).sum(), count),
            "margin": (margin_B.sum(), count),
        }
        return Terms({"loss": bradley_terry(chosen_B, rejected_B).sum()}, figures)


@torch.no_grad()
def standardise(model: RoleModel, scores: Tensor) -> tuple[float, float]:
    """Shift and scale the reward head so that `scores` would have mean 0 and deviation 1; what they had."""
    mean, deviation = float(scores.mean()), float(scores.std(correction=0))
    head = model.head("reward")
    scale = deviation if deviation > 0 else 1.0
    head.weight.div_(scale)
    head.bias.sub_(mean).div_(scale)
    return mean, deviation
