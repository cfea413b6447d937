"""Tiny random models of the reference implementation: for each family, as many configs as it takes for every field to
matter. What the files of the hub leave out is left out in one of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="the reference implementation is a test dependency")

VOCAB = 60
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
# dim 24 of 3 heads, which is no multiple of most numbers
ODD = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
LLAMA = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 16}

# ---------------------------------------------------------------- decoders

REFERENCES: dict[str, list[dict[str, Any]]] = {
    "openai-gpt": [
        {"n_embd": 32, "n_layer": 2, "n_head": 4},
        {"n_embd": 24, "n_layer": 3, "n_head": 3, "n_positions": 16, "afn": "relu", "layer_norm_epsilon": 0.1},
        {"n_embd": 32, "n_layer": 1, "n_head": 2, "afn": "swish", "tie_word_embeddings": False},
    ],
    "gpt2": [
        {"n_embd": 32, "n_layer": 2, "n_head": 4},
        {
            "n_embd": 24,
            "n_layer": 1,
            "n_head": 3,
            "n_inner": 40,
            "n_positions": 16,
            "activation_function": "relu",
            "layer_norm_epsilon": 0.1,
            "tie_word_embeddings": False,
        },
        {"n_embd": 32, "n_layer": 1, "n_head": 2, "activation_function": "gelu"},
    ],
    "gpt_neox": [
        {**SIZES, "num_attention_heads": 4},
        {
            **ODD,
            "use_parallel_residual": False,
            "attention_bias": False,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 0.1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        },
        {**SIZES, "num_attention_heads": 2, "tie_word_embeddings": True, "rotary_pct": 1.0, "rotary_emb_base": 100},
        {
            **SIZES,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
    ],
    "bloom": [
        {"hidden_size": 32, "n_layer": 2, "n_head": 4},
        {"hidden_size": 24, "n_layer": 2, "n_head": 3, "layer_norm_epsilon": 0.1, "tie_word_embeddings": False},
        {"hidden_size": 36, "n_layer": 1, "n_head": 6, "seq_length": 64},
    ],
    "llama": [
        LLAMA,
        {
            **LLAMA,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rms_norm_eps": 0.1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        {**ODD, "num_key_value_heads": 1, "hidden_act": "gelu_pytorch_tanh"},
        {**LLAMA, "hidden_act": "relu", "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}},
        {
            **LLAMA,
            "max_position_embeddings": 6,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        },
        {**LLAMA, "max_position_embeddings": 128, "rope_parameters": {**YARN, "rope_theta": 1e4}},
        {
            **LLAMA,
            "head_dim": 16,
            "max_position_embeddings": 256,
            "rope_parameters": {
                **YARN,
                "original_max_position_embeddings": 64,
                "rope_theta": 100.0,
                "beta_fast": 4.0,
                "beta_slow": 0.5,
                "attention_factor": 1.5,
                "truncate": False,
            },
        },
        {
            **LLAMA,
            "head_dim": 16,
            "max_position_embeddings": 16_384,
            "rope_parameters": {
                **YARN,
                "original_max_position_embeddings": 4096,
                "rope_theta": 1e4,
                "mscale": 2.0,
                "mscale_all_dim": 1.0,
            },
        },
        {
            **LLAMA,
            "max_position_embeddings": 64,
            "rope_parameters": {**LLAMA3, "rope_theta": 100.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        },
        # As versions before 5 have it.
        {**LLAMA, "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {**LLAMA, "max_position_embeddings": 6, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
    ],
    "mistral": [
        {**LLAMA, "sliding_window": 4, "rms_norm_eps": 0.1},
        {**ODD, "num_key_value_heads": 3, "head_dim": 6, "sliding_window": None, "tie_word_embeddings": True},
        {**ODD, "hidden_size": 32, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 1},
    ],
    "glm": [
        {**LLAMA, "head_dim": 16},
        {
            **ODD,
            "hidden_size": 32,
            "num_key_value_heads": 3,
            "head_dim": 24,
            "attention_bias": False,
            "hidden_act": "gelu",
            "tie_word_embeddings": True,
            "partial_rotary_factor": 0.25,
            "rms_norm_eps": 0.1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        {
            **LLAMA,
            "head_dim": 16,
            "max_position_embeddings": 128,
            "rope_theta": 100.0,
            "rope_scaling": YARN,
        },
    ],
    "qwen2": [
        {**LLAMA},
        {
            **ODD,
            "num_key_value_heads": 1,
            "use_sliding_window": True,
            "sliding_window": 3,
            "max_window_layers": 1,
            "rms_norm_eps": 0.1,
            "tie_word_embeddings": True,
        },
        {**LLAMA, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0, "rope_theta": 1e6},
        {
            **LLAMA,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 2,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        {**LLAMA, "head_dim": 4, "max_position_embeddings": 128, "rope_scaling": YARN},
    ],
    "gemma3_text": [
        {
            **LLAMA,
            "num_hidden_layers": 3,
            "head_dim": 16,
            "query_pre_attn_scalar": 40,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        {
            **SIZES,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window_pattern": 2,
            "sliding_window": 3,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "hidden_activation": "gelu",
            "rope_theta": 500.0,
            "rope_local_base_freq": 50.0,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "rms_norm_eps": 0.1,
        },
        {**LLAMA, "head_dim": 16, "sliding_window": 5},  # all local
        {**LLAMA, "head_dim": 16, "layer_types": ["full_attention", "full_attention"]},
    ],
    "glm4": [
        {**LLAMA, "head_dim": 16},
        {
            **ODD,
            "hidden_size": 32,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "attention_bias": False,
            "rms_norm_eps": 0.1,
        },
    ],
    "qwen3": [
        {**LLAMA, "head_dim": 16},
        {**ODD, "num_key_value_heads": 3, "head_dim": 8, "attention_bias": True, "tie_word_embeddings": True},
        {
            **LLAMA,
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 3,
            "max_window_layers": 1,
            "rms_norm_eps": 0.1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ],
}

# ---------------------------------------------------------------- encoders and encoder-decoders
# `as` names the reference's class, `untied` gives it a head of its own, whatever its config says.

BERT = {**SIZES, "num_attention_heads": 4, "max_position_embeddings": 40}
XLNET = {"d_model": 32, "n_head": 4, "n_layer": 2, "d_inner": 40}
T5 = {"d_model": 32, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
T5 |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "pad_token_id": 0}
V1_1 = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

REFERENCES |= {
    "bert": [
        {"as": "BertForPreTraining", **BERT},
        {"as": "BertForMaskedLM", **BERT, "hidden_act": "gelu_new", "layer_norm_eps": 0.1},
        {"as": "BertForNextSentencePrediction", **BERT, "hidden_act": "relu", "type_vocab_size": 3},
        {"as": "BertModel", **BERT},
    ],
    "roberta": [
        {"as": "RobertaForMaskedLM", **BERT, "type_vocab_size": 1, "pad_token_id": 1},
        {"as": "RobertaModel", **BERT, "pad_token_id": 3},
    ],
    "albert": [
        {"as": "AlbertForPreTraining", **BERT, "embedding_size": 12},
        {"as": "AlbertForMaskedLM", **BERT, "embedding_size": 32, "hidden_act": "gelu"},
        {"as": "AlbertModel", **BERT, "embedding_size": 12},
    ],
    "xlnet": [
        {"as": "XLNetLMHeadModel", **XLNET},
        {"as": "XLNetLMHeadModel", **XLNET, "clamp_len": 3, "attn_type": "uni", "tie_word_embeddings": False},
        {"as": "XLNetModel", **XLNET, "ff_activation": "relu"},
    ],
    "t5": [
        {"as": "T5ForConditionalGeneration", **T5, "num_decoder_layers": 3},
        {"as": "T5ForConditionalGeneration", **V1_1},
        {"as": "T5ForConditionalGeneration", **V1_1, "feed_forward_proj": "gated-silu", "untied": True},
    ],
    "mt5": [
        {"as": "MT5ForConditionalGeneration", **V1_1, "untied": True},
        {"as": "MT5ForConditionalGeneration", **T5, "feed_forward_proj": "relu", "layer_norm_epsilon": 0.1},
    ],
}


def reference(name: str, config: dict[str, Any]) -> Any:
    """The model in float32, with gains and biases that a test can see."""
    torch.manual_seed(0)
    small = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "initializer_range": 0.3}
    rest = {key: value for key, value in copied(config).items() if key not in ("as", "untied")}
    made = transformers.AutoConfig.for_model(name, **small | rest)
    if "as" in config:
        model = getattr(transformers, config["as"])(made).eval().float()
        model.config.architectures = [config["as"]]
    else:
        model = transformers.AutoModelForCausalLM.from_config(made).eval().float()
    with torch.no_grad():
        if config.get("untied"):
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def copied(value: Any) -> Any:
    """A config takes the dictionaries that it is given and writes into them."""
    return {key: copied(item) for key, item in value.items()} if isinstance(value, dict) else value
