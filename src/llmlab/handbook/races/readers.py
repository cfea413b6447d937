"""Reading for a label: small models trained here by masked or by next tokens, and pulled ones. Question 9.

`untrained` is the encoder before any pretraining. The share hidden, the steps and the learning rates were chosen on
seeds 100 and 101, by few trials: better settings may exist for each model. MiniLM and SmolLM2 must have been pulled
(`llmlab pull minilm`, `llmlab pull smollm2`).
"""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    from llmlab.handbook.choosing import measured

    return measured(settings["model"], seed)


COUNTS = {"topics": (10, 100), "entities": (10, 100, 1000)}
RACE = Trial(
    name="readers",
    title=Text("reading for a label: encoders and decoders", "为标签而读：编码器与解码器"),
    arms={kind: {"model": kind} for kind in ("encoder", "decoder", "untrained", "minilm", "smollm2")},
    run=run,
    measures=(
        *(f"{name} {how}@{count}" for name, counts in COUNTS.items() for how in ("probe", "tuned") for count in counts),
        *("first names tuned@1000", "second names tuned@1000", "topics zero-shot", "topics few-shot"),
        *("megaflops", "prompt megaflops", "milliseconds", "prompt milliseconds", "megabytes"),
        *("english tokens", "chinese tokens"),
    ),
)
