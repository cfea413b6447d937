"""The rows of the ledger of training memory: each method as what it changes in one recipe.

Learning rates are the best of two or three tries (50 or 60 steps, seed 99, which no ledger uses), some at
the edge tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

ROWS, WIDTH = 8, 64  # of a step

RECIPE: dict[str, Any] = {
    "model": {"layers": 4, "dim": 64, "context": WIDTH, "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2}},
    "dtype": "fp32",
    "pretrain": {
        "batch_size": ROWS,
        "micro_batch": ROWS,
        "training": {"steps": 200, "optimizer": {"kind": "adamw", "lr": 3e-3}},
    },
    "sft": {
        "batch_size": ROWS,
        "micro_batch": ROWS,
        "training": {"steps": 200, "optimizer": {"kind": "adamw", "lr": 3e-3, "weight_decay": 0.0}},
    },
}


@dataclass(frozen=True)
class Row:
    """A method: its name and what it changes in the recipe. `beside` names the row that it is held against, where that
    is not the first of its group."""

    name: str
    diff: tuple[str, ...] = ()
    group: Literal["scratch", "adapt"] = "scratch"
    beside: str | None = None

    @property
    def against(self) -> str:
        return self.beside or ("adamw" if self.group == "scratch" else "all weights")


def _optimizer(text: str) -> tuple[str, ...]:
    return (f"pretrain.training.optimizer={{{text}}}",)


def _adapter(text: str, lr: float, *more: str) -> tuple[str, ...]:
    return (f"sft.adapter={{{text}}}", f"sft.training.optimizer.lr={lr}", *more)


BIASED = ("model.attention.bias=true", "model.feedforward={kind: swiglu, bias: true}", "model.norm=layernorm")

LEDGER = (
    Row("adamw"),
    Row("bf16 moments", ("pretrain.training.optimizer.moments=bf16",)),
    Row("adamw8bit", _optimizer("kind: adamw8bit, lr: 3.0e-3")),
    Row("muon", _optimizer("kind: muon, lr: 0.05, adamw_lr: 3.0e-3")),
    Row("lion", _optimizer("kind: lion, lr: 2.0e-3, weight_decay: 0.3")),
    Row("adafactor", _optimizer("kind: adafactor, lr: 0.15")),
    Row("galore", _optimizer("kind: galore, rank: 16, refresh: 50, lr: 3.0e-2")),
    Row("sgd with momentum", _optimizer("kind: sgd, momentum: 0.9, lr: 0.1")),
    Row("sgd", _optimizer("kind: sgd, lr: 0.5")),
    Row("in backward", ("pretrain.training.clip=null", "pretrain.training.in_backward=true")),
    Row("checkpointing, full", ("pretrain.training.activation_checkpointing=full",)),
    Row("checkpointing, selective", ("pretrain.training.activation_checkpointing=selective",)),
    Row("accumulation of 4", (f"pretrain.micro_batch={ROWS // 4}",)),
    Row("chunked loss", ("pretrain.logits_at_once=32",)),
    Row("bf16 products", ("dtype=bf16", "kernels=plain")),
    Row("not clipped", ("pretrain.training.clip=null",)),
    Row("untied head", ("model.tied=false",)),
    Row("shared layers", ("model.shared=true",)),
    Row("all weights", (), "adapt"),
    Row("lora", _adapter("rank: 4, alpha: 8", 0.01), "adapt"),
    Row("lora, int8 base", _adapter("rank: 4, alpha: 8", 0.01, "sft.base_weights=int8"), "adapt"),
    Row("lora, int4 base", _adapter("rank: 4, alpha: 8", 0.01, "sft.base_weights=int4"), "adapt"),
    Row("dora", _adapter("kind: dora, rank: 4, alpha: 8", 0.01), "adapt"),
    Row("ia3", _adapter("kind: ia3", 0.1), "adapt"),
    Row("prefix", _adapter("kind: prefix, tokens: 8", 0.1), "adapt"),
    Row("prompt", _adapter("kind: prompt, tokens: 8", 0.3), "adapt"),
    Row("ptuning", _adapter("kind: ptuning, tokens: 8", 0.03), "adapt"),
    Row("bottleneck", _adapter("kind: bottleneck, width: 8", 0.03), "adapt"),
    Row("freeze", _adapter("kind: freeze, first: 2", 0.01), "adapt"),
    Row("all weights, with biases", BIASED, "adapt"),
    Row("bitfit", (*BIASED, *_adapter("kind: bitfit", 0.1)), "adapt", "all weights, with biases"),
)
BY_NAME = {row.name: row for row in LEDGER}
