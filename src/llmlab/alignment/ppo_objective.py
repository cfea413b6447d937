"""PPO's objective (Schulman et al. 2017, arXiv 1707.06347): policy and critic through one backward."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor

from llmlab.adapters.roles import RoleModel
from llmlab.alignment.rollout import Rollout, answer_logits
from llmlab.objectives.language import scatter, token_logprob
from llmlab.objectives.objective import Objective, Terms
from llmlab.objectives.policy import clipped_ratio_loss, clipped_value_loss, entropy, kl_k3_value_only
from llmlab.recipe import Section


class Clipping(Section):
    """The loss: how far a step may go, and what each term weighs."""

    ratio: float = Field(0.2, gt=0, description="a ratio beyond 1 +- this earns nothing more")
    value: float = Field(0.2, gt=0, description="how far a value may move from its old one in a rollout")
    value_weight: float = Field(0.5, ge=0, description="of the value loss beside the policy loss")
    entropy_weight: float = Field(0.0, ge=0, description="bonus a nat of entropy")


@dataclass(frozen=True)
class PPOBatch:
    """Rows of a rollout; `figures` of the whole rollout come with the first of its batches."""

    rollout: Rollout
    figures: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    where: str = ""


class PPOObjective(Objective[PPOBatch]):
    """Clipped ratio, clipped value, entropy: means over answer tokens, one backward for policy and critic."""

    def __init__(self, clipping: Clipping) -> None:
        self.clipping = clipping
        self.weights = {"policy": 1.0, "value": clipping.value_weight}
        if clipping.entropy_weight:
            self.weights["entropy"] = -clipping.entropy_weight

    def counts(self, batch: PPOBatch) -> dict[str, float]:
        return dict.fromkeys(self.weights, float(batch.rollout.mask_BT.sum()))

    def amounts(self, batch: PPOBatch) -> dict[str, float]:
        return {"tokens": float(batch.rollout.length_B.sum()), "learnt_tokens": float(batch.rollout.mask_BT.sum())}

    def __call__(self, model: RoleModel, batch: PPOBatch) -> Terms:
        model.eval()  # no dropout: the ratio compares two policies, not two noises
        r, c = batch.rollout, self.clipping
        mask_BT = r.mask_BT
        where_N = mask_BT.flatten().nonzero()[:, 0]
        policy_BTD, critic_BTD = model.hiddens(("policy", "critic"), r.ids_BT, r.at)
        logits_NV, ids_N = answer_logits(model, policy_BTD, r.ids_BT, where_N)
        logprobs_BT = scatter(token_logprob(logits_NV, ids_N), where_N, r.ids_BT.shape)
        policy = clipped_ratio_loss(logprobs_BT, r.old_BT, r.advantages_BT, mask_BT, c.ratio)
        value = clipped_value_loss(model.read("critic", critic_BTD), r.values_BT, r.returns_BT, mask_BT, c.value)
        entropy_N = entropy(logits_NV if c.entropy_weight else logits_NV.detach())
        sums = {"policy": policy.loss_BT.sum(), "value": value.loss_BT.sum(), "entropy": entropy_N.sum()}
        moved_BT = torch.where(mask_BT, kl_k3_value_only(r.old_BT, logprobs_BT.detach()), 0.0)
        figures: dict[str, Tensor] = {
            "clip_fraction": policy.clipped_BT.sum(),
            "value_clip_fraction": value.clipped_BT.sum(),
            "kl_to_old": moved_BT.sum(),
            "entropy_per_token": entropy_N.detach().sum(),
        }
        of_tokens = {name: (total, float(len(where_N))) for name, total in figures.items()}
        return Terms({name: sums[name] for name in self.weights}, of_tokens | dict(batch.figures))
