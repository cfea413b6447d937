"""One text, one loop, six objectives. Question 1 (and, beside it, 2 and 4).

All arms have the same tokens, blocks of the same kind, and four of them; T5's are two in the encoder and two in the
decoder, which have cross-attention besides. `blind` learns how frequent tokens are and nothing else.
"""

from llmlab.handbook.question import Text
from llmlab.handbook.raced import Race

STEPS = 200

RACE = Race(
    name="objectives",
    title=Text("objectives of pretraining, one text and one loop", "预训练目标：同一文本、同一训练循环"),
    preset="race-positions",
    common={
        "model.dim": 64,
        "pretrain.batch_size": 8,
        "pretrain.micro_batch": 8,
        "pretrain.training.steps": STEPS,
        "pretrain.training.evaluate_every": STEPS,
        "pretrain.training.checkpoint_every": STEPS,
    },
    arms={
        "causal": {"model.mask": "causal", "pretrain.objective": "causal"},
        "prefix": {"model.mask": "prefix", "pretrain.objective": "prefix"},
        "masked": {"model.mask": "bidirectional", "pretrain.objective": "masked"},
        "permutation": {"model.mask": "bidirectional", "model.streams": 2, "pretrain.objective": "permutation"},
        "spans": {"model.layers": 2, "model.encoder_layers": 2, "model.position": "t5", "pretrain.objective": "spans"},
        "blanks": {"model.mask": "prefix", "pretrain.objective": "blanks"},
        "blind": {"model.layers": 1, "model.position": "llmlab.handbook.literal.blind:Blind"},
    },
    measures=(
        "bits_per_byte",
        "onward_bits_per_byte",
        "masked_accuracy",
        "suffix_bits_per_byte",
        "spans_bits_per_hidden_byte",
        "blanks_bits_per_hidden_byte",
        "parameters",
    ),
)
