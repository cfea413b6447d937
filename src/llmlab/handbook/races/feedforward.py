"""The feed-forward network: activations, gates, widths. Questions 49 to 54."""

from llmlab.handbook.question import Text
from llmlab.handbook.raced import Race

LITERAL = "llmlab.handbook.literal.feedforward"

RACE = Race(
    name="feedforward",
    title=Text("feed-forward networks of equal size", "参数量相等的前馈网络"),
    preset="race-positions",
    arms={
        **{kind: {"model.feedforward": kind} for kind in ("relu", "gelu", "gelu_tanh", "swish")},
        **{kind: {"model.feedforward": kind} for kind in ("glu", "bilinear", "reglu", "geglu", "swiglu")},
        "swish, learnt": {"model.feedforward": {"kind": "swish", "learnt": True}},
        "relu, width 1": {"model.feedforward": {"kind": "relu", "width": 128}},
        "relu, width 2": {"model.feedforward": {"kind": "relu", "width": 256}},
        "relu, width 8": {"model.feedforward": {"kind": "relu", "width": 1024}},
        "none": {"model.feedforward": f"{LITERAL}:NoFeedForward"},
        "gelu without cube": {"model.feedforward": f"{LITERAL}:GELUWithoutCube"},
        "one matrix glu": {"model.feedforward": f"{LITERAL}:OneMatrixGLU"},
        "one matrix geglu": {"model.feedforward": f"{LITERAL}:OneMatrixGEGLU"},
    },
    measures=("bits_per_byte", "parameters"),
)
