"""Hugging Face folders, both ways, against transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.hf import load_hf, save_hf
from llmlab.errors import InputError
from llmlab.model.positions import Alibi, RopeInterleaved

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")

IDS = torch.arange(2 * 24).view(2, 24) * 37 % 261


def theirs(config: Any, seed: int = 0) -> Any:
    """A random model of transformers with weights large enough to tell layouts apart."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def llama_config(**changes: Any) -> Any:
    sizes = {"vocab_size": 264, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}
    return transformers.LlamaConfig(**(sizes | heads | rope | changes))


def gpt2_config(**changes: Any) -> Any:
    return transformers.GPT2Config(
        **({"vocab_size": 264, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64} | changes)
    )


CONFIGS = {
    "llama": llama_config(),
    "llama tied": llama_config(tie_word_embeddings=True),
    "llama mha": llama_config(num_key_value_heads=4),
    "llama wide heads": llama_config(head_dim=16),
    "llama biases": llama_config(attention_bias=True, mlp_bias=True, num_key_value_heads=1),
    "gpt2": gpt2_config(),
    "gpt2 free": gpt2_config(tie_word_embeddings=False),
    "gpt2 narrow relu": gpt2_config(n_inner=48, activation_function="relu"),
}


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_reads_what_transformers_writes(tmp_path: Path, config: Any) -> None:
    model = theirs(config)
    model.save_pretrained(tmp_path)
    bundle = load_hf(tmp_path)
    assert (bundle.model(IDS) - model(IDS).logits).abs().max() < 1e-4
    assert bundle.architecture.tied == config.tie_word_embeddings
    assert bundle.tokenizer is None


@torch.no_grad()
def test_transformers_opens_what_we_write(tmp_path: Path, make: Callable[..., Bundle], family_kind: str) -> None:
    bundle = make(family_kind)
    save_hf(tmp_path / "m", bundle)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert (bundle.model(IDS) - model.eval()(IDS).logits).abs().max() < 1e-4


def test_ours_to_theirs_to_ours_is_bit_equal(tmp_path: Path, make: Callable[..., Bundle], family_kind: str) -> None:
    bundle = make(family_kind)
    save_hf(tmp_path / "m", bundle)
    again = load_hf(tmp_path / "m")
    before, after = bundle.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.is_contiguous() for parameter in again.model.parameters())
    save_hf(tmp_path / "n", again)
    for name in ("model.safetensors", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "n" / name).read_bytes(), name


@torch.no_grad()
def test_neighbour_paired_rotary_leaves_with_equal_logits(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    architecture = make("llama-free").architecture.model_copy(update={"position": RopeInterleaved(base=5000.0)})
    model = architecture.build(264).eval()
    save_hf(tmp_path / "m", Bundle(model, None, architecture, "here"))
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert (model(IDS) - reference(IDS).logits).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs(llama_config()).to(dtype).save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    bundle = load_hf(tmp_path)
    assert {parameter.dtype for parameter in bundle.model.parameters()} == {torch.float32}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert (bundle.model(IDS) - model(IDS).logits).abs().max() < 1e-4


def shards(folder: Path) -> tuple[Any, dict[str, Any]]:
    model = theirs(llama_config())
    model.save_pretrained(folder, max_shard_size="20KB")
    assert not (folder / "model.safetensors").exists()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    return model, index


@torch.no_grad()
def test_sharded_weights(tmp_path: Path) -> None:
    model, _ = shards(tmp_path)
    assert (load_hf(tmp_path).model(IDS) - model(IDS).logits).abs().max() < 1e-4


def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path: Path) -> None:
    _, index = shards(tmp_path)
    path = tmp_path / "model.safetensors.index.json"

    def refused(change: dict[str, str], drop: str, says: str) -> None:
        weights = {name: file for name, file in (index["weight_map"] | change).items() if name != drop}
        path.write_text(json.dumps({"weight_map": weights}))
        with pytest.raises(InputError, match=says):
            load_hf(tmp_path)

    first = next(iter(index["weight_map"]))
    refused({"model.extra": index["weight_map"][first]}, "", r"model\.extra.*is not in")
    refused({}, "model.norm.weight", "does not put")
    refused({first: "../../elsewhere.safetensors"}, "", "outside its folder")
    refused({first: "model-9.safetensors"}, "", r"model-9\.safetensors.*cannot be read|does not put")


def test_the_tokenizer_and_chat_template_leave_with_the_model(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    bundle = make()
    save_hf(tmp_path / "m", bundle)
    names = {path.name for path in (tmp_path / "m").iterdir()}
    tokenizer_files = {"tokenizer.json", "tokenizer_config.json"}
    assert names == {"config.json", "generation_config.json", "model.safetensors"} | tokenizer_files
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    text = "The thermal 文字 🙂\n  then"
    assert reference(text)["input_ids"] == bundle.tokenizer.encode(text)
    turns = [{"role": "user", "content": "the"}]
    expected = "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    assert reference.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == expected
    generation = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [0, 2]  # the end of a text, and the end of a turn
    config = transformers.AutoConfig.from_pretrained(tmp_path / "m")
    assert (config.bos_token_id, config.eos_token_id) == (0, 0)


@torch.no_grad()
def test_transformers_stops_where_we_would(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    bundle = make("llama-free")
    head = bundle.model.head.weight
    head.zero_()
    head[2] = 100 * bundle.model.hidden(torch.tensor([[5, 6]]), _causal(2))[0, -1]  # <|im_end|> comes next
    save_hf(tmp_path / "m", bundle)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    out = model.generate(torch.tensor([[5, 6]]), max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert out.tolist() == [[5, 6, 2]]


def _causal(length: int) -> Any:
    from llmlab.model.places import Places

    return Places.causal(1, length)


def test_a_part_that_no_family_has_is_named(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    architecture = make().architecture.model_copy(update={"position": Alibi()})
    bundle = Bundle(architecture.build(264), None, architecture, "here")
    with pytest.raises(InputError, match="no Hugging Face family"):
        save_hf(tmp_path / "m", bundle)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "lama"}, r"did you mean 'llama'\? allowed: .*gpt2, llama"),
        ({"model_type": None}, "allowed: .*gpt2, llama"),
        ({"hidden_size": None}, "dim"),
        ({"hidden_size": "wide"}, "wrong kind|impossible"),
        ({"num_attention_heads": 0}, "heads"),
        ({"num_attention_heads": 5, "head_dim": None}, "divide"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers"),
        ({"num_hidden_layers": 3}, r"model\.layers\.2.*missing"),
        ({"num_hidden_layers": 1}, r"model\.layers\.1.*unknown"),
        ({"intermediate_size": 48}, r"mlp.*\[40, 32\]"),
        ({"vocab_size": 300}, r"embed_tokens.*\[264, 32\]"),
        ({"vocab_size": -3}, "vocab_size"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "llama3"),
        ({"hidden_act": "relu"}, "hidden_act"),
    ],
)
def test_a_config_that_does_not_fit_is_one_clear_line(
    tmp_path: Path, make: Callable[..., Bundle], change: dict[str, Any], says: str
) -> None:
    save_hf(tmp_path / "m", make("llama-free"))
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=says) as caught:
        load_hf(tmp_path / "m")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["llama-free", "gpt2-tied"])
def test_each_tensor_is_needed_and_its_shape_checked(tmp_path: Path, make: Callable[..., Bundle], kind: str) -> None:
    save_hf(tmp_path / "m", make(kind))
    weights = tmp_path / "m" / "model.safetensors"
    state = load_file(weights)
    for name in state:
        save_file({key: value for key, value in state.items() if key != name}, weights)
        with pytest.raises(InputError, match=name):
            load_hf(tmp_path / "m")
        save_file(state | {name: state[name][..., :-1].contiguous()}, weights)
        with pytest.raises(InputError, match=rf"{name}.*\["):
            load_hf(tmp_path / "m")
    save_file(state | {"surplus.weight": torch.zeros(1)}, weights)
    with pytest.raises(InputError, match=r"surplus\.weight"):
        load_hf(tmp_path / "m")


def test_pickled_weights_are_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(llama_config().to_dict()))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(InputError, match="convert them to safetensors"):
        load_hf(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        load_hf(tmp_path)
