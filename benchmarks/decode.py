"""bf16_over_transformers: tokens a second of one greedy stream, SmolLM2-135M in bf16, ours against transformers."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from paired import measure, report
from transformers import AutoModelForCausalLM

from llmlab.checkpoints.hf import save_hf
from llmlab.checkpoints.pull import pull
from llmlab.checkpoints.where import open_model
from llmlab.inference.engine import generate
from llmlab.inference.sampling import Sampling

TOKENS = 64
PROMPT = "The whale is the largest animal that has ever lived, and yet"


def main() -> None:
    pull("smollm2")
    bundle = open_model("smollm2")
    ids = bundle.tokenizer.encode(PROMPT)
    with tempfile.TemporaryDirectory() as folder:
        save_hf(Path(folder) / "hf", bundle)
        theirs = AutoModelForCausalLM.from_pretrained(Path(folder) / "hf", dtype=torch.bfloat16).eval()
    ours = bundle.model.to(torch.bfloat16).eval()
    sampling = Sampling(temperature=0, max_new_tokens=TOKENS, min_new_tokens=TOKENS)

    def run_ours() -> float:
        begin = time.perf_counter()
        (done,) = generate(ours, [ids], sampling, stop_ids=(), seeds=[0])
        assert len(done.ids) == TOKENS
        return TOKENS / (time.perf_counter() - begin)

    def run_theirs() -> float:
        begin = time.perf_counter()
        with torch.inference_mode():
            out = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS)
        assert out.shape[1] == len(ids) + TOKENS
        return TOKENS / (time.perf_counter() - begin)

    report(
        "decode",
        "tokens/s, prompt included",
        {"bf16_over_transformers": measure(run_ours, run_theirs)},
        ("torch", "transformers"),
    )


if __name__ == "__main__":
    main()
