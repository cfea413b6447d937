"""Positions: trained at 128 tokens, read at up to 1024. Questions 31 to 40."""

from llmlab.handbook.question import Text
from llmlab.handbook.raced import Race

LITERAL = "llmlab.handbook.literal.positions"
WAYS = ("linear", "ntk", "dynamic", "yarn", "logn", "window", "sinks")

RACE = Race(
    name="positions",
    title=Text("position encodings, trained at 128 tokens", "位置编码：以 128 个词元训练"),
    preset="race-positions",
    arms={
        "none": {"model.position": "none"},
        "sinusoidal": {"model.position": "sinusoidal"},
        "learned": {"model.position": "learned"},
        "rope": {"model.position": "rope"},
        "alibi": {"model.position": "alibi"},
        "t5": {"model.position": "t5"},
        "shaw": {"model.position": "shaw"},
        "xl": {"model.position": "xl"},
        "rotated vectors": {"model.position": f"{LITERAL}:RotatedVectors"},
        "multiplied weights": {"model.position": f"{LITERAL}:MultipliedWeights"},
        "multiplied scores": {"model.position": f"{LITERAL}:MultipliedScores"},
        "low dimension": {"model.position": "none", "model.attention.head_dim": 8},
        "rope, wide": {"model.position": "rope", "model.dim": 256},
    },
    measures=(
        "bits_per_byte",
        "parameters",
        *(f"bits_per_byte@{k}x" for k in (1, 2, 4, 8)),
        *(f"{way}@{k}x" for way in WAYS for k in (2, 4, 8)),
    ),
)
