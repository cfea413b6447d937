"""Distillation: a small model learns what a large one says of each next token (Hinton et al. 2015, arXiv 1503.02531).

    L = (1 - a) CE(student, text) + a T^2 KL(softmax(teacher / T) || softmax(student / T))

The factor T^2 keeps the gradient of the second term of one size whatever the temperature. While it trains, both models
are in memory; what is saved is saved by the student, later.

N learnt positions, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.data.batch import Batch
from llmlab.objectives.language import Selected, TokenPrediction, logits_where_learnt


def divergence(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 times the divergence of the student from the teacher at each position, [N] in nats."""
    wanted_NV = F.log_softmax(teacher_NV.float() / temperature, -1)
    given_NV = F.log_softmax(student_NV.float() / temperature, -1)
    return temperature**2 * F.kl_div(given_NV, wanted_NV, reduction="none", log_target=True).sum(-1)


class Distilled(TokenPrediction[Batch]):
    """Next-token prediction beside a frozen teacher of the same vocabulary. `share` is a, in (0, 1]."""

    def __init__(self, teacher: nn.Module, share: float = 0.5, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}, and must be above 0 and at most 1")
        self.weights = {"cross_entropy": 1.0 - share, "divergence": share}
        self.teacher, self.temperature = teacher.requires_grad_(False).eval(), temperature

    def hidden(self, model: nn.Module, batch: Batch) -> Tensor:
        states: Tensor = model.hidden(batch.ids_BT, batch.at)  # type: ignore[operator]
        return states

    def beside(self, chosen: Selected, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            teacher_NV = logits_where_learnt(self.teacher, batch).logits_NV
        return {"divergence": divergence(chosen.logits_NV, teacher_NV, self.temperature).sum()}
