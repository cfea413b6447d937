"""Tokens a second of 16 greedy streams at once, in all: SmolLM2-135M, ours against llama.cpp's parallel decoding."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable

from paired import measure, report
from peers import TEXT, VERSIONS, LlamaCpp, gguf, ours

from llmlab.inference.batching import Request
from llmlab.inference.sampling import Sampling
from llmlab.language_model import LanguageModel

STREAMS, TOKENS = 16, 64


def by_ours(lm: LanguageModel, prompts: list[list[int]]) -> Callable[[], float]:
    sampling = Sampling(temperature=0, max_new_tokens=TOKENS, min_new_tokens=TOKENS)

    def run() -> float:
        batching = lm.batching
        assert batching is not None
        numbers = {batching.submit(Request(ids, sampling, lm.stop_ids)) for ids in prompts}
        begun = set[int]()
        while begun != numbers:
            begun |= {token.row for token in batching.step()}
        began, count = time.perf_counter(), 0
        while batching.busy:
            count += len(batching.step())
        return count / (time.perf_counter() - began)

    return run


def by_llama(model: LlamaCpp, prompts: list[list[int]]) -> Callable[[], float]:
    def run() -> float:
        go_on = model.decode(prompts, TOKENS - 1)
        began = time.perf_counter()
        said = go_on()
        return sum(len(ids) - 1 for ids in said) / (time.perf_counter() - began)

    return run


def main() -> None:
    claims = {}
    with tempfile.TemporaryDirectory() as folder:
        for weights, claim in (("int4", "batch16_over_llamacpp"), ("int8", "int8_batch16_over_llamacpp")):
            lm = ours(weights)
            ids = lm.tokenizer.encode(TEXT * 4)
            prompts = [ids[start : start + 24] for start in range(STREAMS)]
            theirs = LlamaCpp(gguf(folder, weights), STREAMS, 256)
            claims[claim] = measure(by_ours(lm, prompts), by_llama(theirs, prompts))
    report("batch", "tokens/s", claims, VERSIONS)


if __name__ == "__main__":
    main()
