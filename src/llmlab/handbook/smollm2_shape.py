"""The shapes of SmolLM2-135M and LLaMA-7B, without their weights: what memory and speed are counted from."""

from __future__ import annotations

from llmlab.model.attention import GroupedQuery, MultiHead
from llmlab.model.feedforward import SwiGLU
from llmlab.model.rotary import Rope
from llmlab.model.transformer import Architecture

VOCABULARY = 49_152
SMOLLM2 = Architecture(  # the header of its published file
    layers=30,
    dim=576,
    context=8192,
    position=Rope(base=100_000.0),
    attention=GroupedQuery(heads=9, kv_heads=3, head_dim=64),
    feedforward=SwiGLU(width=1536),
)
LLAMA_VOCABULARY = 32_000
LLAMA_7B = Architecture(  # Touvron et al. 2023, arXiv 2302.13971, table 2 and the released configuration
    layers=32, dim=4096, context=2048, attention=MultiHead(heads=32), feedforward=SwiGLU(width=11_008)
)
