"""Models of seventeen published kinds: what the papers and the released code say of each, and its config cut small.

They are made by our own family files, each of which is held equal to its reference by tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from llmlab.families import mapping
from llmlab.handbook.measures import draw
from llmlab.model.transformer import Transformer

VOCABULARY = 60


class Row(NamedTuple):
    """What the papers and the released code say of a model, and its config cut small."""

    name: str
    model_type: str
    wiring: str
    norm: str
    embedding: bool  # a norm on the embeddings
    final: bool  # a norm after the last block
    heads: bool  # norms on queries and keys
    config: Mapping[str, Any]


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
GROUPED = {**SMALL, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "head_dim": 8}
GPT = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64}
GEMMA = {**GROUPED, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2, "sliding_window": 8}
CHATGLM = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "layernorm_epsilon": 1e-5}
XLNET = {"n_layer": 2, "d_model": 32, "n_head": 4, "d_inner": 64}
T5 = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 2}
FIRST = {**CHATGLM, "bos_token_id": 4, "gmask_token_id": 1, "mask_token_id": 0, "inner_hidden_size": 64}
SECOND = {
    **CHATGLM,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "kv_channels": 8,
    "ffn_hidden_size": 64,
    "padded_vocab_size": VOCABULARY,
    "add_qkv_bias": True,
}
TABLE = (
    Row("GPT-1", "openai-gpt", "post", "layernorm", False, False, False, GPT),
    Row("GPT-2", "gpt2", "pre", "layernorm", False, True, False, GPT),
    Row("BERT", "bert", "post", "layernorm", True, False, False, SMALL),
    Row("RoBERTa", "roberta", "post", "layernorm", True, False, False, SMALL),
    Row("ALBERT", "albert", "post", "layernorm", True, False, False, {**SMALL, "embedding_size": 16}),
    Row("XLNet", "xlnet", "post", "layernorm", False, False, False, XLNET),
    Row("T5", "t5", "pre", "rmsnorm", False, True, False, T5),
    Row("LLaMA", "llama", "pre", "rmsnorm", False, True, False, GROUPED),
    Row("Mistral", "mistral", "pre", "rmsnorm", False, True, False, GROUPED),
    Row("Qwen2", "qwen2", "pre", "rmsnorm", False, True, False, GROUPED),
    Row("Qwen3", "qwen3", "pre", "rmsnorm", False, True, True, GROUPED),
    Row("Gemma 3", "gemma3_text", "sandwich", "rmsnorm", False, True, True, GEMMA),
    Row("BLOOM", "bloom", "pre", "layernorm", True, True, False, {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    Row("GPT-NeoX", "gpt_neox", "parallel", "layernorm", False, True, False, SMALL),
    Row("GLM-4", "glm", "pre", "rmsnorm", False, True, False, GROUPED),
    Row("ChatGLM-6B", "chatglm", "deepnorm", "layernorm", True, False, False, FIRST),
    Row("ChatGLM2", "chatglm", "pre", "rmsnorm", False, True, False, SECOND),
)


def published(row: Row, seed: int) -> Transformer:
    """Random weights, gains and biases, so that nothing is neutral."""
    architecture, vocabulary = mapping.family(row.model_type).read_config({"vocab_size": VOCABULARY, **row.config})
    model: Transformer = architecture.build(vocabulary, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * draw(seed, f"q48.{row.name}.{name}", *parameter.shape).float())
    return model.eval()
