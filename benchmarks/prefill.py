"""Tokens a second of reading a prompt of 512, SmolLM2-135M: ours against llama.cpp and transformers.

`prefill_over_llamacpp` and `prefill_over_transformers` are of the weights that `generate`, `chat` and `serve` take by
default (int4 for SmolLM2, as shipped); the other claims name their weights.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from paired import measure, report
from peers import TEXT, VERSIONS, LlamaCpp, gguf, ours, transformers_bf16

from llmlab.inference.batching import Request
from llmlab.inference.sampling import Sampling
from llmlab.language_model import LanguageModel

TOKENS = 512
UNSEEN = itertools.count(100)


def by_ours(lm: LanguageModel, ids: list[int]) -> Callable[[], float]:
    def run() -> float:
        assert lm.batching is not None
        own = [next(UNSEEN), *ids[1:]]  # another first token: nothing of it is known yet
        began = time.perf_counter()
        lm.batching.generate([Request(own, Sampling(temperature=0, max_new_tokens=1))])
        return len(own) / (time.perf_counter() - began)

    return run


def by_llama(model: LlamaCpp, ids: list[int]) -> Callable[[], float]:
    def run() -> float:
        model.reset()
        began = time.perf_counter()
        model.prompt(ids)
        return len(ids) / (time.perf_counter() - began)

    return run


def by_transformers(model: Any, ids: list[int]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            model(torch.tensor([ids]), use_cache=True, logits_to_keep=1).logits.argmax(-1)
        return len(ids) / (time.perf_counter() - began)

    return run


def main() -> None:
    claims = {}
    with tempfile.TemporaryDirectory() as folder:
        lms = {weights: ours(weights) for weights in ("int4", "int8", "bf16")}
        ids = lms["int4"].tokenizer.encode(TEXT * 40)[:TOKENS]
        for weights, claim in (("int4", "prefill_over_llamacpp"), ("int8", "int8_over_llamacpp")):
            theirs = LlamaCpp(gguf(folder, weights))
            claims[claim] = measure(by_ours(lms[weights], ids), by_llama(theirs, ids))
        theirs = transformers_bf16(folder)
        for weights, claim in (("int4", "prefill_over_transformers"), ("bf16", "bf16_over_transformers")):
            claims[claim] = measure(by_ours(lms[weights], ids), by_transformers(theirs, ids))
    report("prefill", "tokens/s", claims, VERSIONS)


if __name__ == "__main__":
    main()
