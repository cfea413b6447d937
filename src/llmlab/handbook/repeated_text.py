"""Text that repeats itself, made so to a dose: runs said again within a passage, whole passages met again and again, or
random tokens said over and over. Pure functions of the text and a generator.

N passages, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

PERIODS = 16, 64  # tokens of a random text that is said over and over
SHORTEST, LONGEST = 6, 20  # tokens of a run that is said again, any length as likely: no head can count back to it


def said_again(passage_NT: Tensor, share: float, source: torch.Generator) -> Tensor:
    """[N, T]: the passages with runs said twice in a row (or oftener, where runs fall together), so that `share` of the
    tokens, on average, are there for the second time. What no longer fits falls off the end.

    A run of L tokens before place s is said again at s: each token from there on is the one that stood L before it.
    """
    count, length = passage_NT.shape
    wanted_N = share * length / ((SHORTEST + LONGEST) / 2) + torch.rand(count, generator=source)
    times_N = wanted_N.floor().long()
    column_T = torch.arange(length)
    for turn in range(int(times_N.max())):
        run_N1 = torch.randint(SHORTEST, LONGEST + 1, (count, 1), generator=source)
        at_N1 = torch.randint(LONGEST, length - LONGEST + 1, (count, 1), generator=source)
        moved_NT = (column_T >= at_N1) & (times_N[:, None] > turn)
        passage_NT = passage_NT.gather(1, column_T - torch.where(moved_NT, run_N1, 0))
    return passage_NT


def met_again(passage_NT: Tensor, pool_PT: Tensor, share: float, source: torch.Generator) -> Tensor:
    """[N, T]: each passage, with probability `share`, replaced by one of a small pool: the same texts over and over,
    none of which repeats itself more than before."""
    replaced_N = torch.rand(len(passage_NT), generator=source) < share
    chosen_N = torch.randint(len(pool_PT), (len(passage_NT),), generator=source)
    return torch.where(replaced_N[:, None], pool_PT[chosen_N], passage_NT)


def drilled(passage_NT: Tensor, vocabulary: range, share: float, source: torch.Generator) -> Tensor:
    """[N, T]: each passage, with probability `share`, replaced by random tokens that are said over and over: what comes
    next is what followed the same token before, and nothing else tells."""
    count, length = passage_NT.shape
    replaced_N1 = torch.rand(count, 1, generator=source) < share
    random_NT = torch.randint(vocabulary.start, vocabulary.stop, passage_NT.shape, generator=source)
    period_N1 = torch.randint(PERIODS[0], PERIODS[1] + 1, (count, 1), generator=source)
    return torch.where(replaced_N1, random_NT.gather(1, torch.arange(length) % period_N1), passage_NT)
