"""What the norm computes: LayerNorm, RMSNorm and what the handbook makes of them. Questions 41 to 44."""

from llmlab.handbook.question import Text
from llmlab.handbook.raced import Race

LITERAL = "llmlab.handbook.literal.norms"

RACE = Race(
    name="norms",
    title=Text("normalisations, four pre-norm layers", "归一化：四层，置于子层之前"),
    preset="race-positions",
    arms={
        "layernorm": {"model.norm": "layernorm"},
        "rmsnorm": {"model.norm": "rmsnorm"},
        "partial": {"model.norm": {"kind": "rmsnorm", "partial": 0.0625}},
        "no gain": {"model.norm": f"{LITERAL}:NoGain"},
        "whole input": {"model.norm": f"{LITERAL}:WholeInput"},
        "batch": {"model.norm": f"{LITERAL}:Batch"},
    },
    measures=("bits_per_byte", "bits_per_byte@8x", "parameters"),
)
