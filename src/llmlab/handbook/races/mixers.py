"""What carries information between tokens: attention of several kinds, recurrent nets. Questions 3, 4, 8 and 15."""

from llmlab.handbook.question import Text
from llmlab.handbook.raced import Race

RACE = Race(
    name="mixers",
    title=Text("attention and recurrent nets, learnt positions aside", "注意力与循环网络，均不加位置编码"),
    preset="race-positions",
    common={"model.position": "none"},
    arms={
        **{kind: {"model.attention": kind} for kind in ("mha", "linear", "rnn", "lstm", "gru")},
        "gqa": {"model.attention": {"kind": "gqa", "heads": 4, "kv_heads": 2}},
        "mqa": {"model.attention": {"kind": "mqa", "heads": 4}},
        "one head": {"model.attention": {"kind": "mha", "heads": 1}},
        "mha, rope": {"model.attention": "mha", "model.position": "rope"},
    },
    measures=("bits_per_byte", "parameters", "bits_per_byte@1x", "bits_per_byte@8x"),
)
