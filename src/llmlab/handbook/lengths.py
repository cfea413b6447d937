"""What the questions on length share: angles that training never met, and how far back attention looks.

S keys, H heads, P turned pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmlab.model.encoding import Shape
from llmlab.model.places import Places
from llmlab.model.relative import Alibi, AlibiEncoding
from llmlab.model.rotary import NoScaling, RopeInterleaved, RotaryEncoding, Scaling

TRAINED, HEADS, HEAD_DIM = 128, 4, 32  # of the models that the race of positions trains
MULTIPLES = (1, 2, 4, 8)


def step_angles(scaling: Scaling, tokens: int, head_dim: int = HEAD_DIM) -> Tensor:
    """float64 [S, P]: the angle in [0, 2 pi) between a key and a query S tokens on, of a text of so many tokens."""
    part = RopeInterleaved(scaling=scaling)
    encoding = part.build(Shape(HEADS * head_dim, HEADS, head_dim, TRAINED, 1))
    assert isinstance(encoding, RotaryEncoding)
    at = Places.causal(1, tokens)
    turn = encoding.prepare(at, at)
    angle = torch.atan2(turn.sin.double(), turn.cos.double())[0, 0, :, 0]
    return angle % (2 * math.pi)


def unmet_pairs(scaling: Scaling, times: int, head_dim: int = HEAD_DIM) -> int:
    """How many pairs turn, at `times` the trained length, to angles that training without scaling never met."""
    return unmet(step_angles(NoScaling(), 2, head_dim)[1], step_angles(scaling, times * TRAINED, head_dim))


def unmet(step_P: Tensor, angle_SP: Tensor) -> int:
    """Pairs that turn by `step_P` a token in training, and later stand at these angles. A pair that went all the way
    round in training has met every angle; another one those up to where it came."""
    reached_P = step_P * TRAINED
    return int(((reached_P < 2 * math.pi) & (angle_SP.amax(0) > reached_P * 1.001)).sum())


def bias_of_the_last(heads: int, length: int) -> Tensor:
    """float64 [H, S]: what ALiBi adds to the scores of a text's last token, the key of the farthest token first."""
    encoding = Alibi().build(Shape(heads * 8, heads, 8, length, 1))
    assert isinstance(encoding, AlibiEncoding)
    at = Places.causal(1, length)
    return encoding.bias(encoding.prepare(at[:, -1:], at))[0, :, 0].double()


def nearest(weights_HS: Tensor, share: float) -> list[int]:
    """For each head: how many of the nearest keys hold at least this share of the weight."""
    held_HS = weights_HS.flip(-1).cumsum(-1)
    return [int((row < share).sum()) + 1 for row in held_HS]
