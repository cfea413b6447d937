"""What each method of the ledger of training memory costs in loss, after as many steps of the same rows. Question 17.

Rows that go on from a trained model do so on another text. Rates are said in `training_rows.py`.
"""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.training_rows import LEDGER
from llmlab.handbook.trials import Trial


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    from llmlab.handbook.training_ledger import loss_of
    from llmlab.handbook.training_rows import BY_NAME

    return {"loss": loss_of(BY_NAME[settings["row"]], seed, settings["steps"])}


RACE = Trial(
    name="memory_savers",
    title=Text("methods that save memory: held-out nats a byte", "省内存的方法：留出文本每字节奈特"),
    arms={row.name: {"row": row.name, "diff": list(row.diff)} for row in LEDGER},
    common={"steps": 60},
    measures=("loss",),
    run=run,
    listed=False,
)
