"""Two ways to tell a text with another text at hand and no training: a passage of it in front (BM25), or what followed
in it where the model was in nearly the same state (kNN-LM, Khandelwal et al. 2019, arXiv 1911.00172).

Both answer the losses of rows as a model alone does. N rows, L tokens, S tokens kept, K neighbours, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.handbook.repeating_model import book
from llmlab.longtext.bm25 import Index
from llmlab.model.places import Places
from llmlab.model.transformer import Transformer

PASSAGE = 128  # tokens of a passage; the next begins in its middle
NEIGHBOURS = 16
SHARES, WARMTHS = (0.05, 0.1, 0.2, 0.3, 0.4), (0.1, 0.3, 1.0)  # what is tried of the mixture


class Passages:
    """The passage with most of the words that a row begins with is put in front of the row."""

    def __init__(self, losses: Callable[[Tensor, int], Tensor], text_T: Tensor) -> None:
        self.losses = losses
        starts = range(0, max(1, len(text_T) - PASSAGE // 2), PASSAGE // 2)
        newline = book().tokenizer.encode("\n")
        pieces = [text_T[start : start + PASSAGE].tolist() for start in starts]
        self.passage_NL = torch.tensor([newline * (PASSAGE - len(piece)) + piece for piece in pieces])
        self.index = Index()
        self.index.add([_text(piece) for piece in pieces])

    def __call__(self, row_NL: Tensor, read: int) -> Tensor:
        begun_UL, which_N = torch.unique(row_NL[:, :read], dim=0, return_inverse=True)
        found_U = torch.tensor([int(self.index.scores(_text(ids)).argmax()) for ids in begun_UL.tolist()])
        return self.losses(torch.cat([self.passage_NL[found_U[which_N]], row_NL], 1), PASSAGE + read)


def _text(ids: Sequence[int]) -> str:
    return book().tokenizer.decode(list(ids))


@dataclass(frozen=True)
class Neighbours:
    """The model's probabilities, mixed with those of the tokens that followed the nearest states in the text.

    p = (1 - share) p_model + share * sum over the K nearest of softmax(-d^2 / (warmth * the mean of all d^2)) [their
    token is the next one]
    """

    model: Transformer
    key_SD: Tensor
    next_S: Tensor
    share: float
    warmth: float

    @classmethod
    def tuned(cls, model: Transformer, text_T: Tensor, validated_NL: Tensor) -> Neighbours:
        """The mixture that tells a validation text best."""
        length = min(PASSAGE, len(text_T) - 1)
        row_NL = text_T.unfold(0, length + 1, length)
        with torch.no_grad():
            keys, following = _states(model, row_NL[:, :-1]).flatten(0, 1), row_NL[:, 1:].flatten()
            parts = cls(model, keys, following, SHARES[0], WARMTHS[0])._parts(validated_NL, 1)
            made = [cls(model, keys, following, share, warmth) for share in SHARES for warmth in WARMTHS]
            return min(made, key=lambda one: float(one._mixed(*parts).mean()))

    def __call__(self, row_NL: Tensor, read: int) -> Tensor:
        return self._mixed(*self._parts(row_NL, read))

    def _parts(self, row_NL: Tensor, read: int) -> tuple[Tensor, Tensor, Tensor]:
        """The model's own losses [N, L - read], squared distances [N, L - read, K], and whether each neighbour was
        followed by what is to be told."""
        state_NLD, wanted_NL = _states(self.model, row_NL[:, :-1])[:, read - 1 :], row_NL[:, read:]
        told_NL = F.cross_entropy(self.model.logits(state_NLD).transpose(1, 2), wanted_NL, reduction="none")
        distance_QK, place_QK = _nearest(state_NLD.flatten(0, 1), self.key_SD)
        agrees_QK = self.next_S[place_QK] == wanted_NL.reshape(-1, 1)
        return told_NL, distance_QK.view(*wanted_NL.shape, -1), agrees_QK.view(*wanted_NL.shape, -1)

    def _mixed(self, told_NL: Tensor, distance_NLK: Tensor, agrees_NLK: Tensor) -> Tensor:
        weight_NLK = (-distance_NLK / (self.warmth * distance_NLK.mean())).softmax(-1)
        near_NL = (weight_NLK * agrees_NLK).sum(-1)
        return -((1 - self.share) * (-told_NL).exp() + self.share * near_NL).log()


def _states(model: Transformer, row_NL: Tensor) -> Tensor:
    return model.hidden(row_NL, Places.causal(*row_NL.shape))


def _nearest(query_QD: Tensor, key_SD: Tensor) -> tuple[Tensor, Tensor]:
    """[Q, K]: squared distances to the nearest keys, and which they are."""
    found = [
        torch.cdist(piece, key_SD).topk(min(NEIGHBOURS, len(key_SD)), largest=False)
        for piece in torch.split(query_QD, 512)
    ]
    return torch.cat([one.values for one in found]).square(), torch.cat([one.indices for one in found])
