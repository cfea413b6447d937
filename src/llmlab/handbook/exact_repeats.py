"""What a penalty and a rule against repeated runs do by their formulas: exact checks of question 7.

B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.evaluation.repetition import repetition
from llmlab.handbook.decoding_desk import Desk
from llmlab.handbook.measures import draw
from llmlab.handbook.question import Figures
from llmlab.inference import processors

PENALTY = 1.3
SIZES = (2, 3)  # of runs that may come but once
ROWS, VOCABULARY = 8, 64


def printed(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """The formula as Keskar et al. 2019 print it: what was seen is divided by the penalty, whatever its sign."""
    return torch.where(seen_BV, logits_BV / penalty, logits_BV)


def penalised(seed: int) -> Figures:
    """Ours against the rule written out, sign by sign; and what the printed formula does where logits are negative."""
    logits_BV = 5 * draw(seed, "q07.logits", ROWS, VOCABULARY)
    seen_BV = draw(seed, "q07.seen", ROWS, VOCABULARY) > 0
    ours_BV = processors.penalise_repetition(logits_BV, seen_BV, PENALTY)
    expected = [
        [
            value if not seen else value / PENALTY if value > 0 else value * PENALTY
            for value, seen in zip(values, row, strict=True)
        ]
        for values, row in zip(logits_BV.tolist(), seen_BV.tolist(), strict=True)
    ]
    negative_BV, positive_BV = seen_BV & (logits_BV < 0), seen_BV & (logits_BV > 0)
    printed_BV = printed(logits_BV, seen_BV, PENALTY)
    return {
        "penalty_gap": float((ours_BV - torch.tensor(expected, dtype=torch.float64)).abs().max()),
        "ours_largest_change": float((ours_BV - logits_BV)[seen_BV].max()),
        "printed_least_reward": float((printed_BV - logits_BV)[negative_BV].min()),
        "printed_positive_gap": float((printed_BV - ours_BV)[positive_BV].abs().max()),
    }


def blocked(seed: int) -> Figures:
    """A tiny model that repeats itself when greedy: rep-n of prompt and answer, the largest with the rule for that n,
    without it the smallest."""
    desk = Desk(seed)
    found: Figures = {"blocked_rep": 0.0, "free_rep": 1.0}
    for size in SIZES:
        free, held = (
            max(
                repetition([*prompt, *ids], size)
                for prompt, ids in zip(
                    desk.prompts, desk.texts(temperature=0.0, no_repeat_ngram_size=rule), strict=True
                )
            )
            for rule in (0, size)
        )
        found["blocked_rep"] = max(found["blocked_rep"], held)
        found["free_rep"] = min(found["free_rep"], free)
    return found
