"""From the tokens of a text to one vector (Reimers & Gurevych 2019, Sentence-BERT, arXiv 1908.10084).

B rows, T tokens, D width.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from llmlab.model.places import Places
from llmlab.recipe import Section


class Pooling(Section):
    """What a sentence encoder was trained with."""

    kind: Literal["mean", "first"] = Field("mean", description="the mean of all real tokens, or the first one")
    normalised: bool = Field(True, description="whether vectors have length one, so that products are cosines")
    max_tokens: int | None = Field(None, gt=2, description="longest text, special tokens included; null: the context")

    def __call__(self, hidden_BTD: Tensor, at: Places) -> Tensor:
        """float32 [B, D]; padding counts for nothing."""
        real_BT1, wide_BTD = at.real[..., None], hidden_BTD.float()
        if self.kind == "mean":
            vector_BD = (wide_BTD * real_BT1).sum(1) / real_BT1.sum(1).clamp(min=1)
        else:
            first_B = at.real.int().argmax(1)
            vector_BD = wide_BTD.gather(1, first_B[:, None, None].expand(-1, 1, wide_BTD.shape[-1]))[:, 0]
        return F.normalize(vector_BD, dim=-1) if self.normalised else vector_BD
