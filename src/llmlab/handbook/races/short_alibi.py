"""Short rows and long ones: trained at 64 or 128 tokens, read at 128. Questions 37 and 40."""

from llmlab.handbook.question import Text
from llmlab.handbook.raced import Race

# As many tokens a step, and as many of them in all; the context, in which all are read, is the same.
ROWS = {128: 16, 64: 32}

RACE = Race(
    name="short_alibi",
    title=Text("trained at 64 or 128 tokens, read at 128", "以 64 或 128 个词元训练，均以 128 个词元评测"),
    preset="race-positions",
    arms={
        f"{position}, {length}": {
            "model.position": position,
            "pretrain.length": length,
            "pretrain.batch_size": rows,
            "pretrain.micro_batch": rows,
        }
        for position in ("sinusoidal", "alibi")
        for length, rows in ROWS.items()
    },
    measures=("bits_per_byte@context", "seconds", "peak_bytes", "parameters"),
)
