"""Bytes that each of two processes holds, by how a training lies on them. Question 17. Nothing random enters."""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial

WAYS = ("ddp", "zero1", "fsdp", "tensor")


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    from llmlab.handbook.rank_bytes import run as live

    return live(settings, seed)


RACE = Trial(
    name="rank_bytes",
    title=Text("bytes of the rank that holds most", "占用最多的进程的字节数"),
    common={"ranks": 2},
    arms={"alone": {"way": "ddp", "ranks": 1}, **{way: {"way": way} for way in WAYS}},
    measures=("parameters", "gradients", "optimizer"),
    run=run,
    listed=False,
    seeds=1,
)
