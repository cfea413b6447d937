"""What next-token training may hold against repetition, beside or in place of some of its likelihood: a closed union.

`cross_entropy` stays the plain likelihood of the text whatever stands beside it, so losses of one name are of like
things; the weights of the terms say what is made small.

B rows, T tokens, N learnt positions, R rows of copies, V vocabulary.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from llmlab.data.batch import Batch
from llmlab.data.corruption import FOLLOWING, Corruption, Noise, Rows, batch_of
from llmlab.data.sentences import sentence_ends
from llmlab.objectives import repeats
from llmlab.objectives.language import NextToken, Selected, TokenPrediction, token_logprob
from llmlab.objectives.objective import Terms
from llmlab.recipe import KINDS, Section

if TYPE_CHECKING:
    from llmlab.objectives.kind import Setting


class AgainstPart(Section, ABC):
    """One way of it."""

    kind: str

    @abstractmethod
    def predictor(self, z_loss: float) -> TokenPrediction[Any]:
        """The terms of the loss."""

    def corruption(self, setting: Setting) -> Corruption:
        """What is done to rows in training."""
        return FOLLOWING


class Nothing(AgainstPart):
    """The likelihood alone."""

    kind: Literal["none"] = "none"

    def predictor(self, z_loss: float) -> NextToken:
        return NextToken(z_loss)


class Unlikelihood(AgainstPart):
    """Each token that stands earlier in the text is held down, but for the one that comes next (Welleck et al. 2020,
    arXiv 1908.04319, token level). Left out: the sequence level, which has the model write in training."""

    kind: Literal["unlikelihood"] = "unlikelihood"
    alpha: float = Field(1.0, gt=0.0, description="weight of the term")

    def predictor(self, z_loss: float) -> NextToken:
        return AgainstSeen(self.alpha, z_loss)


class LabelSmoothing(AgainstPart):
    """A part of the target goes to all tokens alike (Szegedy et al. 2015, arXiv 1512.00567). Made against certainty,
    not against repetition; it stands here as what is often said to help."""

    kind: Literal["label_smoothing"] = "label_smoothing"
    share: float = Field(0.1, gt=0.0, lt=1.0, description="the part of the target that all tokens share")

    def predictor(self, z_loss: float) -> NextToken:
        return Smoothed(self.share, z_loss)


class Ditto(AgainstPart):
    """Some rows say one of their sentences over and over, and each copy is to be less likely than the one before (Xu
    et al. 2022, DITTO, arXiv 2206.02369).

    A row is chosen by itself where the paper changes whole steps, so that a step's rows may be split at will, and the
    sentence is one that ends by its tokens, in a row as packed. The paper starts from a trained model; here the term
    stands in pretraining from the start. As there, a row of copies teaches nothing else.
    """

    kind: Literal["ditto"] = "ditto"
    rate: float = Field(0.5, gt=0.0, lt=1.0, description="share of the rows that are made so")
    factor: float = Field(0.5, ge=0.0, lt=1.0, description="lambda: how likely a copy is to be, of the one before")
    weight: float = Field(1.0, gt=0.0, description="weight of the term")

    def predictor(self, z_loss: float) -> NextToken:
        return AgainstCopies(self.factor, self.weight, z_loss)

    def corruption(self, setting: Setting) -> Corruption:
        ends_V = sentence_ends(setting.tokenizer)

        def learn(rows: Rows, noise: Noise) -> CopiesBatch:
            chosen_B = noise[0, :, 0] < self.rate
            made = repeats.copied(rows.document_BT, ends_V[rows.tokens_BT], noise[1], chosen_B)
            changed_B1 = made.period_B[:, None] > 0
            tokens_BT = np.take_along_axis(rows.tokens_BT, made.source_BT, 1)
            row_of_copies = changed_B1 & (np.arange(tokens_BT.shape[1]) >= made.first_B[:, None])
            before_BT = np.where(row_of_copies, np.roll(tokens_BT, 1, 1), rows.before_BT)
            # The copies go on in the document of their sentence, to the end of the row.
            last_B1 = np.maximum(made.first_B - 1, 0)[:, None]
            document_BT, position_BT = (
                np.where(row_of_copies, np.take_along_axis(part, last_B1, 1) + step, part)
                for part, step in (
                    (rows.document_BT, 0),
                    (rows.position_BT, np.arange(tokens_BT.shape[1]) - last_B1),
                )
            )
            learnt_BT = rows.learnt_BT & ~changed_B1
            plain = batch_of(before_BT, tokens_BT, learnt_BT, position_BT, position_BT, document_BT)
            return CopiesBatch(
                plain.ids_BT,
                plain.targets_BT,
                plain.at,
                said_BT=torch.from_numpy(tokens_BT),
                period_B=torch.from_numpy(made.period_B),
                first_B=torch.from_numpy(made.first_B),
            )

        return Corruption(learn, 2, json.dumps(self.model_dump(mode="json"), sort_keys=True))


Against = Annotated[Nothing | Unlikelihood | LabelSmoothing | Ditto, *KINDS]


# ---------------------------------------------------------------- their terms


class AgainstSeen(NextToken):
    """Term `unlikelihood`, a mean over the tokens that are learnt."""

    def __init__(self, alpha: float = 1.0, z_loss: float = 0.0) -> None:
        super().__init__(z_loss)
        self.weights = {**self.weights, "unlikelihood": alpha}

    def beside(self, chosen: Selected, batch: Batch) -> dict[str, Tensor]:
        length = batch.ids_BT.shape[1]
        row_N = chosen.where_N.div(length, rounding_mode="floor")
        allowed_BTT = repeats.candidates(batch.ids_BT, batch.targets_BT, batch.at)
        allowed_NT = allowed_BTT.flatten(0, 1).index_select(0, chosen.where_N)
        ids_NT = batch.ids_BT.index_select(0, row_N)
        return {"unlikelihood": repeats.unlikelihood(chosen.logits_NV, ids_NT, allowed_NT).sum()}


class Smoothed(NextToken):
    """`cross_entropy` with what is left of the target, and term `uniform`, a mean over the same tokens."""

    def __init__(self, share: float = 0.1, z_loss: float = 0.0) -> None:
        super().__init__(z_loss)
        self.weights = {**self.weights, "cross_entropy": 1.0 - share, "uniform": share}

    def beside(self, chosen: Selected, batch: Batch) -> dict[str, Tensor]:
        return {"uniform": repeats.uniform(chosen.logits_NV).sum()}


@dataclass(frozen=True)
class CopiesBatch(Batch):
    """Rows of which some say one sentence over and over: `said_BT` is what comes next at every place, `period_B` the
    tokens of the sentence (0: a row of plain text), `first_B` the place where its second copy is begun."""

    _: KW_ONLY
    said_BT: Tensor
    period_B: Tensor
    first_B: Tensor

    def to(self, device: torch.device) -> Self:
        said, period, first = (part.to(device) for part in (self.said_BT, self.period_B, self.first_B))
        return replace(super().to(device), said_BT=said, period_B=period, first_B=first)

    def part(self, rows: slice, where: str = "") -> Self:
        said, period, first = (part[rows] for part in (self.said_BT, self.period_B, self.first_B))
        return replace(super().part(rows, where), said_BT=said, period_B=period, first_B=first)

    @property
    def copies(self) -> int:
        """How many tokens stand in copies behind a first one."""
        return int(torch.where(self.period_B > 0, self.ids_BT.shape[1] - self.first_B, 0).sum())


class AgainstCopies(NextToken):
    """Term `ditto`, a mean over the tokens of the copies. Plain batches have none."""

    def __init__(self, factor: float = 0.5, weight: float = 1.0, z_loss: float = 0.0) -> None:
        super().__init__(z_loss)
        self.factor = factor
        self.weights = {**self.weights, "ditto": weight}

    def counts(self, batch: Batch) -> dict[str, float]:
        return super().counts(batch) | {"ditto": float(batch.copies) if isinstance(batch, CopiesBatch) else 0.0}

    def terms(self, model: Any, batch: Batch, hidden_BTD: Tensor) -> Terms:
        plain = super().terms(model, batch, hidden_BTD)
        ditto = hidden_BTD.new_zeros((), dtype=torch.float32)
        if isinstance(batch, CopiesBatch) and batch.copies:
            of_R = (batch.period_B > 0).nonzero().squeeze(1)
            logits_RTV = model.logits(hidden_BTD.index_select(0, of_R)).float()
            said_RT = batch.said_BT.index_select(0, of_R)
            logprob_RT = token_logprob(logits_RTV.flatten(0, 1), said_RT.flatten()).view_as(said_RT)
            period_R, first_R = (part.index_select(0, of_R) for part in (batch.period_B, batch.first_B))
            ditto = repeats.less_likely(logprob_RT, period_R, first_R, self.factor).sum()
        return Terms({**plain.sums, "ditto": ditto}, plain.figures)
