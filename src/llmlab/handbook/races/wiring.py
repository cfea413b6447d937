"""Where the norm stands in a deep stack, by learning rate, with and without warm-up. Questions 44, 46 and 47.

The shallow arms are Post-LN as it was first trained; `blind` learns how frequent tokens are and nothing else, so that
a stack that is stuck can be told from one that learns. The middle rate was chosen on seeds that do not race: at 1e-3
and without warm-up DeepNorm learnt with one of two seeds at once, with the other late.
"""

from llmlab.handbook.question import Text
from llmlab.handbook.raced import Race

RATES = {"slow": 2.5e-4, "middle": 7e-4, "fast": 4e-3}
LR, WARMUP = "pretrain.training.optimizer.lr", "pretrain.training.schedule.warmup"
SHALLOW = 6
STEPS = 400

RACE = Race(
    name="wiring",
    title=Text("where the norm stands, 24 layers of width 64", "归一化的位置：24 层，宽 64"),
    preset="race-positions",
    common={
        "model.layers": 24,
        "model.dim": 64,
        "model.context": 64,
        "model.norm": "layernorm",
        "model.initial_std": None,
        "pretrain.batch_size": 4,
        "pretrain.micro_batch": 4,
        "pretrain.training.steps": STEPS,
        "pretrain.training.evaluate_every": STEPS,
        "pretrain.training.checkpoint_every": STEPS,
        "pretrain.training.optimizer": {"kind": "adamw", "lr": RATES["middle"]},
        "pretrain.training.schedule": {"kind": "wsd", "warmup": 0.0, "decay": 0.2},
    },
    arms={
        **{
            f"{wiring}, {rate}, cold": {"model.wiring": wiring, LR: lr}
            for wiring in ("post", "pre", "deepnorm")
            for rate, lr in RATES.items()
        },
        "sandwich, middle, cold": {"model.wiring": "sandwich"},
        "sandwich, fast, cold": {"model.wiring": "sandwich", LR: RATES["fast"]},
        **{f"{wiring}, middle, warm": {"model.wiring": wiring, WARMUP: 0.1} for wiring in ("post", "deepnorm")},
        "post, shallow, cold": {"model.wiring": "post", "model.layers": SHALLOW, LR: 2e-3},
        "post, shallow, warm": {"model.wiring": "post", "model.layers": SHALLOW, LR: 2e-3, WARMUP: 0.3},
        "blind": {"model.wiring": "post", "model.layers": 1, "model.position": "llmlab.handbook.literal.blind:Blind"},
    },
    measures=("bits_per_byte", "parameters"),
)
