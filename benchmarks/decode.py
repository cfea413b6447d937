"""Tokens a second of one greedy stream, SmolLM2-135M, ours against llama.cpp (4 and 8 bit) and transformers (bf16)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from paired import measure, report
from peers import VERSIONS, LlamaCpp, gguf, ours, transformers_bf16

from llmlab.inference.batching import Request
from llmlab.inference.sampling import Sampling
from llmlab.language_model import LanguageModel

TOKENS = 128
PROMPT = "The whale is the largest animal that has ever lived, and yet"


def by_ours(lm: LanguageModel, ids: list[int]) -> Callable[[], float]:
    sampling = Sampling(temperature=0, max_new_tokens=TOKENS, min_new_tokens=TOKENS)

    def run() -> float:
        assert lm.batching is not None
        stream = lm.batching.stream(Request(ids, sampling, lm.stop_ids))
        next(stream)
        began, count = time.perf_counter(), sum(1 for _ in stream)
        assert count == TOKENS - 1
        return count / (time.perf_counter() - began)

    return run


def by_llama(model: LlamaCpp, ids: list[int]) -> Callable[[], float]:
    def run() -> float:
        go_on = model.decode([ids], TOKENS - 1)
        began = time.perf_counter()
        go_on()
        return (TOKENS - 1) / (time.perf_counter() - began)

    return run


def by_transformers(model: Any, ids: list[int]) -> Callable[[], float]:
    def run() -> float:
        with torch.inference_mode():
            past = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
            began = time.perf_counter()
            for _ in range(TOKENS - 1):
                token = past.logits[:, -1:].argmax(-1)
                past = model(token, past_key_values=past.past_key_values, use_cache=True)
        return (TOKENS - 1) / (time.perf_counter() - began)

    return run


def main() -> None:
    claims = {}
    with tempfile.TemporaryDirectory() as folder:
        for weights in ("int4", "int8"):
            lm = ours(weights)
            ids = lm.tokenizer.encode(PROMPT)
            theirs = LlamaCpp(gguf(folder, weights))
            claims[f"{weights}_over_llamacpp"] = measure(by_ours(lm, ids), by_llama(theirs, ids))
        lm, theirs = ours("bf16"), transformers_bf16(folder)
        claims["bf16_over_transformers"] = measure(by_ours(lm, ids), by_transformers(theirs, ids))
    report("decode", "tokens/s", claims, VERSIONS)


if __name__ == "__main__":
    main()
