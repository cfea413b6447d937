"""The committed record of parities against a fresh measurement. LLMLAB_WRITE_PARITY=1 writes it anew."""

from __future__ import annotations

import importlib.resources
import json
import os
from pathlib import Path

import pytest
import torch

from llmlab.checkpoints.directions import RECORD, families
from llmlab.families.mapping import family, known

from . import test_chatglm
from .references import REFERENCES, reference
from .sides import TOLERANCE, difference, opened, texts

SHIPPED = Path(str(importlib.resources.files("llmlab.families") / RECORD))


@torch.no_grad()
def measured(name: str) -> float:
    """Over every reference configuration of the family; recorded figures where its code is in no package."""
    if name == "chatglm":
        gaps = []
        for case in test_chatglm.CASES:
            model = test_chatglm.opened(case)
            for text, expected in zip(test_chatglm.rows(case), case["logits"]["alone"], strict=True):
                gaps.append(float((model(torch.tensor([text]))[0] - torch.tensor(expected)).abs().max()))
        return max(gaps)
    worst = 0.0
    for config in REFERENCES[name]:
        theirs = reference(name, config)
        ours = opened(name, theirs)
        if "as" in config:
            gap = difference(theirs, ours)
        else:
            gap = float((theirs(texts()).logits - ours(texts())).abs().max())
        worst = max(worst, gap)
    return worst


def test_the_record_is_whole() -> None:
    if os.environ.get("LLMLAB_WRITE_PARITY"):
        SHIPPED.write_text(json.dumps({name: float(f"{measured(name):.3g}") for name in known()}, indent=1) + "\n")
    assert sorted(json.loads(SHIPPED.read_text())) == known()
    for row in families():
        assert 0 <= row["parity"] <= TOLERANCE
        assert row["reads"]
        assert row["writes"]
        assert family(row["name"])


@pytest.mark.parametrize("name", known())
def test_the_record_is_what_is_measured(name: str) -> None:
    """Sums in another order move the last bits from one machine to another: a factor of ten is another thing."""
    recorded, fresh = json.loads(SHIPPED.read_text())[name], measured(name)
    assert fresh <= TOLERANCE
    assert recorded / 10 <= fresh <= max(recorded, 1e-7) * 10
