"""Resident memory of a process through its life: weights made, prompts answered, everything deleted, the heap trimmed.

Each life is a process of its own, so that nothing else has shaped its heap.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

MEASURES = ("loaded", "peak", "answered", "deleted", "trimmed")
NO_TRIM = "this C library has no malloc_trim"


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    """Megabytes above what the process had before, at each of `MEASURES`."""
    command = [sys.executable, "-m", "llmlab.handbook.release", json.dumps(dict(settings)), str(seed)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float | str] = json.loads(done.stdout)
    return found


def _life(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    import torch

    from llmlab.handbook.ledger import shaped
    from llmlab.handbook.smollm2_shape import SMOLLM2, VOCABULARY
    from llmlab.inference.engine import generate
    from llmlab.inference.sampling import Sampling
    from llmlab.model.transformer import Transformer
    from llmlab.runtime import PeakMemory, generator, resident_bytes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    torch.set_num_threads(1)

    def answer(model: Transformer, prompt: list[int]) -> None:
        generate(model, [prompt], Sampling(temperature=0, max_new_tokens=settings["new"]), (), [seed])

    # What the libraries take for themselves the first time (code, kernels, tables) is not what is asked about: a model
    # of one layer has lived here before.
    answer(shaped(SMOLLM2, VOCABULARY, layers=1), [1] * settings["length"])
    gc.collect()
    if trim is not None:
        trim(0)
    before = resident_bytes()

    def above(bytes: int) -> float:
        return (bytes - before) / 1e6

    found: dict[str, float | str] = {}
    model = shaped(SMOLLM2, VOCABULARY, layers=settings["layers"])
    found["loaded"] = above(resident_bytes())
    source = generator(seed, "handbook", "release")
    with PeakMemory() as peak:
        for _ in range(settings["texts"]):
            length = int(torch.randint(settings["length"] // 2, settings["length"], (1,), generator=source))
            answer(model, torch.randint(VOCABULARY, (length,), generator=source).tolist())
    found["peak"], found["answered"] = above(peak.bytes), above(resident_bytes())
    del model
    gc.collect()
    found["deleted"] = above(resident_bytes())
    if trim is None:
        return found | {"trimmed": NO_TRIM}
    trim(0)
    return found | {"trimmed": above(resident_bytes())}


if __name__ == "__main__":
    print(json.dumps(_life(json.loads(sys.argv[1]), int(sys.argv[2]))))
