"""What is known of each family: how far its logits lie from the reference's, and which files go which way."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from llmlab.checkpoints.gguf_names import DIALECTS
from llmlab.families.mapping import known

RECORD = "parity.json"  # beside the families


def families() -> list[dict[str, Any]]:
    """One row a family: `name`; `parity`, the largest difference of a logit from its reference on tiny random models,
    float32, from the committed record that the tests hold against a fresh measurement; `reads` and `writes`, formats.
    """
    measured = json.loads((resources.files("llmlab.families") / RECORD).read_text(encoding="utf-8"))
    rows = []
    for name in known():
        formats = ["hf", *(["gguf"] if name in DIALECTS else [])]
        rows.append({"name": name, "parity": measured.get(name), "reads": formats, "writes": formats})
    return rows
