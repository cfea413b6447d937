"""A model of 512 bytes of context reads 100,000 held-out bytes: through a window with sinks and without, and whole."""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial


def _run(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    from llmlab.handbook.streams import little

    return little(settings, seed)


EDGES = (1, 2, 4, 8, 16, 32, 64, 100)  # thousands of tokens: where the bins of the profile end
MEASURES = (
    *(f"nats_{edge}k" for edge in EDGES),  # mean loss from the edge before to this one
    *(f"peak_mib_{edge}k" for edge in EDGES),  # most resident memory up to here, over what there was before reading
    "cache_bytes",  # keys and values, the most that was held
    # With 95 % intervals. slope: nats that tokens cost more after 100,000 more tokens, by thousands from the second on.
    # gap: what tokens spread over the text cost more than where the window before each is read anew. gap_slope: how
    # that grows in 100,000 tokens; the text may grow harder, but does so both ways.
    *(f"{name}{end}" for name in ("slope", "gap", "gap_slope") for end in ("", "_low", "_high")),
)
RACE = Trial(
    name="streams",
    title=Text(
        "100,000 bytes streamed through 512 places, trained here", "自训小模型用 512 个位置的窗口连续读 10 万字节"
    ),
    arms={
        "window and sinks": {"window": 508, "sinks": 4, "tokens": 100_000, "sampled": 256},
        "window alone": {"window": 512, "sinks": 0, "tokens": 100_000, "sampled": 256},
        "dense": {"window": None, "sinks": 0, "tokens": 8_000, "sampled": 64},
    },
    common={"context": 512, "rows": 8, "steps": 400, "rate": 2e-2, "adamw_rate": 1e-2},
    measures=MEASURES,
    run=_run,
    listed=False,
)
