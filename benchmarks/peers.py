"""What decode, prefill and batch share: files of SmolLM2 for the peers, from the same weights, and how they run."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from llmlab.checkpoints.convert import convert
from llmlab.checkpoints.hf import save_hf
from llmlab.checkpoints.where import open_model
from llmlab.language_model import LanguageModel, load

THREADS = 2
VERSIONS = ("torch", "transformers", "llama-cpp-python")
KINDS = {"int4": "q4_1", "int8": "q8_0"}  # ours -> llama.cpp's: Q4_1 is what shipped, 4-bit matrices and 8-bit table
TEXT = "It was in the year of the great comet that the ship left the harbour, and nobody could say where she went. "


def ours(weights: str) -> LanguageModel:
    torch.set_num_threads(THREADS)
    lm = load("smollm2", weights)
    assert lm.batching is not None, lm.why
    return lm


def gguf(folder: str, weights: str) -> Path:
    """SmolLM2 as llama.cpp's type of these weights."""
    path = Path(folder) / f"{KINDS[weights]}.gguf"
    convert("smollm2", path, "gguf", KINDS[weights])
    return path


def transformers_bf16(folder: str) -> Any:
    save_hf(Path(folder) / "hf", open_model("smollm2"))
    return AutoModelForCausalLM.from_pretrained(Path(folder) / "hf", dtype=torch.bfloat16).eval()


class LlamaCpp:
    """llama.cpp by its own C interface: texts side by side, greedy."""

    def __init__(self, path: Path, texts: int = 1, context: int = 1024) -> None:
        llama_cpp.llama_backend_init()
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        self._quiet = quiet  # it must live as long as it may be called
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        model = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = context * texts, 512, 512, texts
        settings.n_threads = settings.n_threads_batch = THREADS
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.batch = llama_cpp.llama_batch_init(512, 0, texts)

    def read(self, tokens: Sequence[tuple[int, int, int]], ask: set[int]) -> None:
        """Tokens as (id, place, text); logits are made for the indexes `ask`."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for at, (id, place, text) in enumerate(tokens):
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = id, place, 1, at in ask
            batch.seq_id[at][0] = text
        assert llama_cpp.llama_decode(self.context, batch) == 0

    def best(self, at: int) -> int:
        row = llama_cpp.llama_get_logits_ith(self.context, at)
        return int(np.ctypeslib.as_array(row, (self.vocabulary,)).argmax())

    def reset(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def prompt(self, ids: Sequence[int], text: int = 0) -> int:
        """Read a prompt; the likeliest next id."""
        self.read([(id, place, text) for place, id in enumerate(ids)], {len(ids) - 1})
        return self.best(len(ids) - 1)

    def decode(self, prompts: Sequence[Sequence[int]], new: int) -> Callable[[], list[list[int]]]:
        """Read the prompts now; the call decodes `new` tokens more of each, all texts in each step."""
        self.reset()
        said = [[self.prompt(ids, text)] for text, ids in enumerate(prompts)]
        return partial(self._decode, [len(ids) for ids in prompts], said, new)

    def _decode(self, places: Sequence[int], said: list[list[int]], new: int) -> list[list[int]]:
        for step in range(new):
            tokens = [(ids[-1], place + step, text) for text, (ids, place) in enumerate(zip(said, places, strict=True))]
            self.read(tokens, set(range(len(tokens))))
            for text, ids in enumerate(said):
                ids.append(self.best(text))
        return said
