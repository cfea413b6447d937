"""Contrastive search: a likely token whose state is unlike those before it.

B texts, C candidates of all texts, K candidates of one, S tokens so far, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from llmlab.errors import InputError
from llmlab.inference.constrain import Guide
from llmlab.inference.front import Front
from llmlab.inference.hypothesis import Hypothesis, SearchPart, refuse_drawing
from llmlab.inference.rules import Rules, Watch
from llmlab.inference.sampling import Sampling


class Contrastive(SearchPart):
    """Of the `top_k` likeliest tokens the one with the largest (1 - a) p - a s: p its probability, s the largest cosine
    of its last hidden state with that of any token before it, a `penalty_alpha` (Su et al. 2022, arXiv 2202.06417).

    A text's score is the mean of these over its tokens.
    """

    states: ClassVar[bool] = True
    kind: Literal["contrastive"] = "contrastive"
    penalty_alpha: float = Field(0.6, ge=0, le=1, description="weight of unlikeness; 0 is greedy")
    top_k: int = Field(4, gt=0, le=4096, description="tokens to choose from")

    def check(self, sampling: Sampling) -> None:
        refuse_drawing("contrastive", sampling)
        if sampling.top_k is not None:
            problem = f"{sampling.top_k} cannot go with contrastive search, which has a top_k of its own"
            raise InputError("sampling.top_k", problem, "set search.top_k")
        for name, plain in (("top_p", 1), ("min_p", 0), ("typical_p", 1)):
            if (value := getattr(sampling, name)) != plain:
                problem = f"{value:g} cannot go with contrastive search, which draws nothing"
                raise InputError(f"sampling.{name}", problem, "leave it out, or use search best_of")

    @torch.inference_mode()
    def find(
        self,
        front: Front,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        stop_ids: Collection[int],
        seeds: Sequence[int],
        watch: Watch | None = None,
        guide: Guide | None = None,
    ) -> list[list[Hypothesis]]:
        """One hypothesis a prompt. Penalties and bans act before the probabilities are taken."""
        self.check(sampling)
        if not prompts:
            return []
        texts = front.texts(prompts)
        limits = front.limits(texts, sampling.max_new_tokens)
        rules = Rules(texts, sampling.model_copy(update={"temperature": 1.0}), stop_ids, watch, guide)
        seen = front.start(prompts, max(limits))
        logits_BV, states_BSD, real_BS = seen.logits_BV, F.normalize(seen.hidden_BTD.float(), dim=-1), seen.real_BT
        ids: list[list[int]] = [[] for _ in prompts]
        totals, reasons = [0.0 for _ in prompts], list[Literal["stop", "length"]](["length"] * len(prompts))
        rows, parents = list(range(len(prompts))), list(range(len(prompts)))  # the prompts at work; their front rows
        while True:
            K = min(self.top_k, logits_BV.shape[-1])
            top = rules.process(logits_BV).softmax(-1).topk(K)
            forked = [parent for parent in parents for _ in range(K)]
            seen = front.advance(top.indices.flatten().tolist(), forked)
            new_CD = F.normalize(seen.hidden_BTD[:, -1].float(), dim=-1)
            score_BK = self._scores(top.values, new_CD, states_BSD, real_BS)
            values, chosen = score_BK.max(-1)
            tokens = top.indices.gather(-1, chosen[:, None])[:, 0].tolist()
            going = []
            for slot, (row, token, value) in enumerate(zip(rows, tokens, values.tolist(), strict=True)):
                ids[row].append(token)
                totals[row] += value
                if rules.ends(slot, token):
                    reasons[row] = "stop"
                elif len(ids[row]) < limits[row]:
                    going.append(slot)
            if not going:
                break
            parents = [slot * K + int(chosen[slot]) for slot in going]
            rules.advance([tokens[slot] for slot in going], going)
            rows, logits_BV = [rows[slot] for slot in going], seen.logits_BV[parents]
            states_BSD = torch.cat([states_BSD[going], new_CD[parents][:, None]], 1)
            real_BS = torch.cat([real_BS[going], real_BS.new_ones(len(going), 1)], 1)
        found = zip(ids, totals, reasons, strict=True)
        return [[Hypothesis(own, total / len(own), reason)] for own, total, reason in found]

    def _scores(self, p_BK: Tensor, new_CD: Tensor, states_BSD: Tensor, real_BS: Tensor) -> Tensor:
        """[B, K]; the states are of length 1. What has no probability is never chosen."""
        new_BKD = new_CD.view(*p_BK.shape, -1)
        cosine_BKS = (new_BKD @ states_BSD.mT).masked_fill(~real_BS[:, None], float("-inf"))
        scores = (1 - self.penalty_alpha) * p_BK - self.penalty_alpha * cosine_BKS.amax(-1)
        return scores.masked_fill(p_BK == 0, float("-inf"))
