"""Next-token prediction: the cross entropy of pretraining and of SFT, and token log-probabilities for the rest.

Logits exist only at positions where something is learnt: hidden states are selected first, so a chat whose answer is
a tenth of its tokens costs a tenth of the head. Log-softmax runs in float32 whatever autocast does.

Shapes: B rows, T tokens, N learnt positions of the batch, D width, V vocabulary.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.data.batch import IGNORE, Batch
from llmlab.objectives.chunked import Nats, cross_entropy, positions_at_once
from llmlab.objectives.objective import Objective, Terms

B = TypeVar("B", bound=Batch)


class Selected(NamedTuple):
    """The learnt positions of a batch: their logits, their targets, and where in the flattened [B * T] they stand."""

    logits_NV: Tensor
    targets_N: Tensor
    where_N: Tensor


def logits_where_learnt(model: Any, batch: Batch, role: Any = None) -> Selected:
    """Float32 logits at the positions whose target is not `IGNORE`, and nowhere else. On the model's device."""
    batch = batch.to(next(model.parameters()).device)
    return selected(model, model.hidden(batch.ids_BT, batch.at, role=role), batch.targets_BT)


def selected(model: Any, hidden_BTD: Tensor, targets_BT: Tensor) -> Selected:
    """The same from hidden states that are there already."""
    hidden_ND, targets_N, where_N = learnt(hidden_BTD, targets_BT)
    return Selected(model.logits(hidden_ND).float(), targets_N, where_N)


def learnt(hidden_BTD: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and targets of the positions whose target is not `IGNORE`, and where they stand."""
    flat_BTxD, targets_BTx = hidden_BTD.flatten(0, 1), targets_BT.flatten()
    where_N = (targets_BTx != IGNORE).nonzero().squeeze(1)
    if len(where_N) < len(targets_BTx):
        flat_BTxD, targets_BTx = flat_BTxD.index_select(0, where_N), targets_BTx.index_select(0, where_N)
    return flat_BTxD, targets_BTx, where_N


class TokenPrediction(Objective[B], ABC):
    """Cross entropy in nats a token over targets that are not -100 (term `cross_entropy`), accuracy as a figure.

    `z_loss` > 0 adds the term `z`: the squared log of the softmax's denominator, which keeps logits from drifting
    (PaLM, Chowdhery et al. 2022, section 5); it is a mean over the same tokens. `at_once`: positions whose logits exist
    at once; None: as many as fit `chunked.LOGITS_BYTES`. What a prediction is read off is the subclass's own:
    `hidden`.
    """

    def __init__(self, z_loss: float = 0.0, at_once: int | None = None) -> None:
        self.weights = {"cross_entropy": 1.0} | ({"z": z_loss} if z_loss else {})
        self.at_once = at_once

    def counts(self, batch: B) -> dict[str, float]:
        return dict.fromkeys(self.weights, float(batch.learnt))

    def amounts(self, batch: B) -> dict[str, float]:
        return text_amounts(batch)

    def beside(self, chosen: Selected, batch: B) -> dict[str, Tensor]:
        """Further terms from the same logits, sums over the learnt positions; their weights are the subclass's."""
        return {}

    @abstractmethod
    def hidden(self, model: Any, batch: B) -> Tensor:
        """[B, T, D], from which the targets are predicted; the batch lies on the model's device."""

    def __call__(self, model: Any, batch: B) -> Terms:
        batch = batch.to(next(model.parameters()).device)
        return self.terms(model, batch, self.hidden(model, batch))

    def terms(self, model: Any, batch: B, hidden_BTD: Tensor) -> Terms:
        """The terms from the hidden states."""
        if (nats := self._chunked(model, batch, hidden_BTD)) is not None:
            return Terms({"cross_entropy": nats.sum}, {"accuracy": (nats.hits, float(batch.learnt))})
        chosen = selected(model, hidden_BTD, batch.targets_BT)
        logits_NV, targets_N, _ = chosen
        sums = {"cross_entropy": F.cross_entropy(logits_NV, targets_N, reduction="sum")}
        if "z" in self.weights:
            sums["z"] = torch.logsumexp(logits_NV, -1).square().sum()
        sums |= self.beside(chosen, batch)
        hits = (logits_NV.detach().argmax(-1) == targets_N).sum()
        return Terms(sums, {"accuracy": (hits, float(len(targets_N)))})

    def _chunked(self, model: Any, batch: B, hidden_BTD: Tensor) -> Nats | None:
        """The cross entropy without all logits, where it is the only term and they would be many."""
        head_VD: Tensor | None = getattr(model, "projection", None)
        if head_VD is None or self.weights.keys() != {"cross_entropy"} or not torch.is_grad_enabled():
            return None
        device = hidden_BTD.device.type
        half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
        at_once = self.at_once or positions_at_once(len(head_VD), 2 if half else 4)
        if batch.learnt <= at_once and not (half and device == "cpu"):
            return None
        hidden_ND, targets_N, _ = learnt(hidden_BTD, batch.targets_BT)
        return cross_entropy(hidden_ND, head_VD, targets_N, at_once, half)


class NextToken(TokenPrediction[Batch]):
    """Targets are read off the stream of what was given: the next token, or the one that a mask hides."""

    def hidden(self, model: Any, batch: Batch) -> Tensor:
        states: Tensor = model.hidden(batch.ids_BT, batch.at)
        return states


def text_amounts(batch: Batch) -> dict[str, float]:
    """Tokens that are not padding, and those of them that are learnt (traps 46, 47)."""
    return {"tokens": float(batch.tokens), "learnt_tokens": float(batch.learnt)}


def token_logprobs(model: Any, batch: Batch, role: Any = None, temperature: float = 1.0) -> Tensor:
    """Log-probability of each target, [B, T] float32; 0 where nothing is learnt.

    `temperature` must be the sampler's where these are compared with the sampler's own (trap 26).
    """
    logits_NV, targets_N, where_N = logits_where_learnt(model, batch, role)
    return scatter(token_logprob(logits_NV, targets_N, temperature), where_N, batch.targets_BT.shape)


def token_logprob(logits_NV: Tensor, targets_N: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of `targets_N` under softmax(logits / temperature), [N] float32."""
    logits_NV = logits_NV.float() if temperature == 1.0 else logits_NV.float() / temperature
    return -F.cross_entropy(logits_NV, targets_N, reduction="none")


def scatter(values_N: Tensor, where_N: Tensor, shape: torch.Size) -> Tensor:
    """Put values of the learnt positions back into [B, T]; 0 elsewhere. Each place is written once, so exactly."""
    empty = values_N.new_zeros(shape.numel())
    return empty.index_copy(0, where_N, values_N).view(shape)
