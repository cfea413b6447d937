"""Token predictions that are read off something else than one stream: a query stream, a decoder, a pooled pair.

B rows, T tokens, D width.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from llmlab.data.batch import Batch, SourceBatch, TextPairBatch
from llmlab.objectives.language import TokenPrediction
from llmlab.objectives.objective import Terms


class QueryStream(TokenPrediction[Batch]):
    """Each token from those before it in its batch's order, itself unseen (Yang et al. 2019, XLNet)."""

    def hidden(self, model: Any, batch: Batch) -> Tensor:
        states: Tensor = model.queries(batch.ids_BT, batch.at)
        return states


class FromSource(TokenPrediction[SourceBatch]):
    """The decoder's next token, from what the encoder read and what was said (Raffel et al. 2019, T5)."""

    def hidden(self, model: Any, batch: SourceBatch) -> Tensor:
        memory = model.encode(batch.source_BS, batch.source_at)
        states: Tensor = model.hidden(batch.ids_BT, batch.at, memory=memory)
        return states


class MaskedPair(TokenPrediction[TextPairBatch]):
    """Hidden tokens of two texts, and whether the second follows the first (term `next_sentence`, a mean over pairs;
    class 0 says that it does, as in BERT's files)."""

    def __init__(self, z_loss: float = 0.0) -> None:
        super().__init__(z_loss)
        self.weights = MappingProxyType({**self.weights, "next_sentence": 1.0})

    def counts(self, batch: TextPairBatch) -> dict[str, float]:
        return super().counts(batch) | {"next_sentence": float(len(batch.follows_B))}

    def hidden(self, model: Any, batch: TextPairBatch) -> Tensor:
        states: Tensor = model.hidden(batch.ids_BT, batch.at)
        return states

    def terms(self, model: Any, batch: TextPairBatch, hidden_BTD: Tensor) -> Terms:
        words = super().terms(model, batch, hidden_BTD)
        classes_B2, wanted_B = model.pooler(hidden_BTD).float(), (~batch.follows_B).long()
        sums = {**words.sums, "next_sentence": F.cross_entropy(classes_B2, wanted_B, reduction="sum")}
        right = (classes_B2.detach().argmax(-1) == wanted_B).sum()
        return Terms(sums, {**words.figures, "next_sentence_accuracy": (right, float(len(wanted_B)))})
