"""Tokens a second of one greedy stream, SmolLM2-135M, ours against llama.cpp (4 and 8 bit) and transformers (bf16).

The files for llama.cpp are written from the same weights: Q4_1 (as shipped: 4-bit matrices, 8-bit table) and Q8_0.
Prefill is measured beside it: 512 tokens read, one written.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import torch
from paired import measure, report
from transformers import AutoModelForCausalLM

from llmlab.checkpoints.convert import convert
from llmlab.checkpoints.hf import save_hf
from llmlab.checkpoints.pull import pull
from llmlab.checkpoints.where import open_model
from llmlab.inference.batching import Request
from llmlab.inference.sampling import Sampling
from llmlab.language_model import LanguageModel, load

TOKENS, PROMPT_TOKENS, THREADS = 128, 512, 2
PROMPT = "The whale is the largest animal that has ever lived, and yet"
UNSEEN = itertools.count(100)
TEXT = "It was in the year of the great comet that the ship left the harbour, and nobody could say where she went. "


def decode_ours(lm: LanguageModel, ids: list[int]) -> Callable[[], float]:
    sampling = Sampling(temperature=0, max_new_tokens=TOKENS, min_new_tokens=TOKENS)

    def run() -> float:
        assert lm.batching is not None
        stream = lm.batching.stream(Request(ids, sampling, lm.stop_ids))
        next(stream)
        began, count = time.perf_counter(), sum(1 for _ in stream)
        assert count == TOKENS - 1
        return count / (time.perf_counter() - began)

    return run


def prefill_ours(lm: LanguageModel, ids: list[int]) -> Callable[[], float]:
    def run() -> float:
        assert lm.batching is not None
        own = [next(UNSEEN), *ids[1:]]  # another first token: nothing of it is known yet
        began = time.perf_counter()
        lm.batching.generate([Request(own, Sampling(temperature=0, max_new_tokens=1))])
        return len(own) / (time.perf_counter() - began)

    return run


def llama(path: Path) -> Any:
    return llama_cpp.Llama(
        str(path), n_ctx=1024, n_threads=THREADS, n_threads_batch=THREADS, n_batch=512, verbose=False, logits_all=False
    )


def decode_llama(model: Any, ids: list[int]) -> Callable[[], float]:
    def run() -> float:
        model.reset()
        model.eval(ids)
        began = time.perf_counter()
        for _ in range(TOKENS - 1):
            model.eval([model.sample(temp=0.0)])
        return (TOKENS - 1) / (time.perf_counter() - began)

    return run


def prefill_llama(model: Any, ids: list[int]) -> Callable[[], float]:
    def run() -> float:
        model.reset()
        began = time.perf_counter()
        model.eval(ids)
        return len(ids) / (time.perf_counter() - began)

    return run


def decode_transformers(model: Any, ids: list[int]) -> Callable[[], float]:
    def run() -> float:
        with torch.inference_mode():
            past = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
            began = time.perf_counter()
            for _ in range(TOKENS - 1):
                token = past.logits[:, -1:].argmax(-1)
                past = model(token, past_key_values=past.past_key_values, use_cache=True)
        return (TOKENS - 1) / (time.perf_counter() - began)

    return run


def prefill_transformers(model: Any, ids: list[int]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        return len(ids) / (time.perf_counter() - began)

    return run


def main() -> None:
    torch.set_num_threads(THREADS)
    pull("smollm2")
    lms = {weights: load("smollm2", weights) for weights in ("int4", "int8", "bf16")}
    tokenizer = lms["int4"].tokenizer
    short, long = tokenizer.encode(PROMPT), tokenizer.encode(TEXT * 40)[:PROMPT_TOKENS]
    claims = {}
    with tempfile.TemporaryDirectory() as folder:
        for weights, kind in (("int4", "q4_1"), ("int8", "q8_0")):
            path = Path(folder) / f"{kind}.gguf"
            convert("smollm2", path, "gguf", kind)
            theirs = llama(path)
            claims[f"decode_{weights}_over_llama_cpp"] = measure(
                decode_ours(lms[weights], short), decode_llama(theirs, short)
            )
            claims[f"prefill_{weights}_over_llama_cpp"] = measure(
                prefill_ours(lms[weights], long), prefill_llama(theirs, long)
            )
        save_hf(Path(folder) / "hf", open_model("smollm2"))
        peer = AutoModelForCausalLM.from_pretrained(Path(folder) / "hf", dtype=torch.bfloat16).eval()
        claims["decode_bf16_over_transformers"] = measure(
            decode_ours(lms["bf16"], short), decode_transformers(peer, short)
        )
        for weights in ("bf16", "int4"):
            claims[f"prefill_{weights}_over_transformers"] = measure(
                prefill_ours(lms[weights], long), prefill_transformers(peer, long)
            )
    report("decode", "tokens/s", claims, ("torch", "transformers", "llama-cpp-python"))


if __name__ == "__main__":
    main()
