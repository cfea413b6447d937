"""Where the norm stands in a deep stack, with and without warm-up. Questions 44 to 47."""

from llmlab.handbook.question import Text
from llmlab.handbook.raced import Race

WIRINGS = ("post", "pre", "sandwich", "deepnorm")
RATES = {"slow": 1e-3, "fast": 4e-3}
WARM, COLD = 0.1, 0.0

RACE = Race(
    name="wiring",
    title=Text("where the norm stands, 24 layers of width 64", "归一化的位置：24 层，宽 64"),
    preset="race-positions",
    common={
        "model.layers": 24,
        "model.dim": 64,
        "model.norm": "layernorm",
        "model.initial_std": None,
        "pretrain.batch_size": 8,
        "pretrain.micro_batch": 8,
        "pretrain.training.steps": 200,
        "pretrain.training.evaluate_every": 200,
        "pretrain.training.optimizer": {"kind": "adamw", "lr": 1e-3},
    },
    arms={
        f"{wiring}, {rate}, {'warm' if warm else 'cold'}": {
            "model.wiring": wiring,
            "pretrain.training.optimizer.lr": lr,
            "pretrain.training.schedule.warmup": warm,
        }
        for wiring in WIRINGS
        for rate, lr in RATES.items()
        for warm in (WARM, COLD)
    },
    measures=("bits_per_byte", "parameters"),
)
