"""Models in GGUF files: small ones written as llama.cpp's converter writes them, our own, and the real SmolLM2.

That llama.cpp opens ours is `benchmarks/gguf_export.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf as package
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmlab.checkpoints import gguf
from llmlab.checkpoints.bundle import Bundle, Stored, rescaled
from llmlab.checkpoints.gguf_file import GGUF, encoded
from llmlab.checkpoints.hf import save_hf
from llmlab.errors import InputError
from llmlab.families import llama
from llmlab.families.mapping import explicit, pair_halves, to_hf
from llmlab.inference import native, packing
from llmlab.inference.fast import quickened
from llmlab.model.attention import GroupedQuery
from llmlab.model.feedforward import GEGLU, GELU, GELUTanh, SwiGLU
from llmlab.model.positions import Alibi
from llmlab.model.rescaling import Rescaling
from llmlab.model.rotary import Rope, RopeInterleaved
from llmlab.model.transformer import Architecture
from llmlab.tokenization.tokenizer import Tokenizer

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")

IDS = torch.arange(2 * 24).view(2, 24) * 37 % 261
NAMES = package.get_tensor_name_map(package.MODEL_ARCH.LLAMA, 2)


def converted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Query and key rows as llama.cpp's converter turns them: each head's two halves interleaved."""
    return (
        weights.reshape(heads, 2, len(weights) // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)
    )


def write(
    path: Path, bundle: Bundle, fields: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None
) -> None:
    """A GGUF of a llama by the gguf package's writer and its own table of names. `fields` and `tensors` go in besides,
    or, where they are None, out."""
    a, tokenizer = bundle.architecture, bundle.tokenizer
    writer = package.GGUFWriter(path, "llama")
    values = {
        "llama.vocab_size": bundle.model.vocab_size,
        "llama.block_count": a.layers,
        "llama.context_length": a.context,
        "llama.embedding_length": a.dim,
        "llama.feed_forward_length": a.feedforward.hidden_width(a.dim),
        "llama.attention.head_count": a.attention.heads,
        "llama.attention.head_count_kv": a.attention.key_heads,
        "llama.attention.key_length": a.attention.width(a.dim),
        "llama.attention.value_length": a.attention.width(a.dim),
        "llama.rope.freq_base": a.position.base,
        "llama.rope.dimension_count": a.attention.width(a.dim),
        "llama.attention.layer_norm_rms_epsilon": a.norm.eps,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [tokenizer.token(id) for id in range(tokenizer.vocab_size)],
        "tokenizer.ggml.token_type": [3, 3, 3, *[1] * (tokenizer.vocab_size - 3)],
        "tokenizer.ggml.merges": ["t h", "th e"],
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        "tokenizer.chat_template": tokenizer.chat_template,
    } | (fields or {})
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in values.items():
        if value is not None:
            add[type(value)](key, value)
    state = to_hf(llama, a, bundle.model.state_dict())
    weights: dict[str, Any] = {}
    for name, tensor in state.items():
        stem, _, part = name.rpartition(".")
        heads = {"q_proj": a.attention.heads, "k_proj": a.attention.key_heads}.get(stem.rpartition(".")[2])
        array = tensor.detach().numpy()
        weights[f"{NAMES.get_name(stem)}.{part}"] = converted(array, heads) if heads else array
    for name, array in (weights | (tensors or {})).items():
        if array is not None:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama-tied", "llama-free", "llama-mha-tied", "llama-wide-free", "llama-bias-tied"])
def test_a_converted_llama_reads_back_bit_for_bit(tmp_path: Path, make: Callable[..., Bundle], kind: str) -> None:
    bundle = make(kind)
    write(tmp_path / "m.gguf", bundle)
    again = gguf.read(tmp_path / "m.gguf")
    before, after = bundle.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.data_ptr() % 64 == 0 for parameter in again.model.parameters())
    assert (again.model(IDS) - bundle.model(IDS)).abs().max() < 1e-5  # the base and eps went through a 32-bit float
    text = "the <|im_end|> thermal 文字 🙂"
    assert again.tokenizer.encode(text) == bundle.tokenizer.encode(text)
    assert again.tokenizer.chat_template == bundle.tokenizer.chat_template
    assert (again.tokenizer.bos_id, again.tokenizer.eos_id) == (0, 0)


@torch.no_grad()
def test_transformers_reads_the_same_file_to_the_same_logits(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    write(tmp_path / "m.gguf", make("llama-free"))
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").eval()
    bundle = gguf.read(tmp_path / "m.gguf")
    assert (bundle.model(IDS) - reference(IDS).logits).abs().max() < 1e-4


def test_sentencepiece_tokenizer_and_no_tokenizer(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a"]
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [0.0] * 259 + [-1.0, -2.0],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 1, 1],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    write(tmp_path / "m.gguf", make(), fields)
    tokenizer = gguf.read(tmp_path / "m.gguf").tokenizer
    assert tokenizer.encode("aé") == [259, 260, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.prompt("a") == [1, 259, 260]
    write(
        tmp_path / "n.gguf",
        make(),
        fields | {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_space_prefix": False},
    )
    assert gguf.read(tmp_path / "n.gguf").tokenizer.prompt("a") == [260]
    write(tmp_path / "o.gguf", make(), {"tokenizer.ggml.model": None})
    assert gguf.read(tmp_path / "o.gguf").tokenizer is None


@pytest.mark.parametrize(
    ("fields", "tensors", "says"),
    [
        ({"general.architecture": "mamba"}, {}, "unknown value 'mamba'.*allowed: llama"),
        ({"llama.attention.head_count": None}, {}, "head_count is missing"),
        ({"llama.attention.head_count": [4, 4]}, {}, "head_count is 'a list'"),
        ({"llama.attention.head_count": 0}, {}, "head_count is 0"),
        ({"llama.attention.head_count": 3}, {}, "impossible architecture"),
        ({"llama.attention.head_count_kv": 0}, {}, "impossible architecture"),
        ({"llama.attention.key_length": 7}, {}, "value_length is '8'"),
        ({"llama.embedding_length": 64}, {}, r"token_embd.*\[264, 32\].*\[tokens, 64\]"),
        ({"llama.block_count": 3}, {}, r"blk\.2\.\w+\.weight.*missing"),
        ({"llama.block_count": 1}, {}, r"blk\.1\.\w+\.weight.*unknown"),
        ({"llama.block_count": (1 << 32) - 1}, {}, "4294967295 layers"),
        (
            {"llama.feed_forward_length": 41},
            {},
            r"blk\.0\.ffn_\w+\.weight.*\[40, 32\]|blk\.0\.ffn_\w+\.weight.*\[32, 40\]",
        ),
        ({"llama.feed_forward_length": (1 << 32) - 1}, {}, "ffn_"),
        ({"llama.context_length": 0}, {}, "impossible architecture"),
        ({"llama.rope.dimension_count": 4}, {}, "rope.dimension_count is '4'"),
        ({"llama.rope.scaling.type": "longrope"}, {}, "scaling.type is 'longrope'.*none, linear, yarn"),
        ({"llama.rope.scaling.type": "yarn"}, {}, "rope.scaling.factor is missing, which yarn needs"),
        ({"llama.rope.freq_base": float("nan")}, {}, "rope_parameters.base: got nan"),
        ({"llama.expert_count": 8}, {}, "expert_count is '8'"),
        ({"llama.attention.sliding_window": 16}, {}, "sliding_window"),
        ({}, {"rope_freqs.weight": np.ones(4, np.float32)}, "rope_freqs.weight.*not built"),
        ({}, {"blk.0.extra.weight": np.ones(4, np.float32)}, r"blk\.0\.extra\.weight.*unknown"),
        ({}, {"blk.1.attn_v.weight": None}, r"blk\.1\.attn_v\.weight.*missing"),
        ({}, {"blk.1.attn_k.weight": np.ones((8, 32), np.float32)}, r"blk\.1\.attn_k\.weight.*\[8, 32\]"),
        ({}, {"token_embd.weight": None}, "token_embd.weight"),
        ({"tokenizer.ggml.model": "rwkv"}, {}, "rwkv.*bert"),
        ({"tokenizer.ggml.pre": "unheard-of"}, {}, "unheard-of"),
        ({"tokenizer.ggml.tokens": ["a"] * 300}, {}, "tokenizer"),
        (
            {"tokenizer.ggml.tokens": [f"t{i}" for i in range(300)], "tokenizer.ggml.token_type": None},
            {},
            "300 tokens|fit the tokens",
        ),
        ({"tokenizer.ggml.token_type": [1, 2]}, {}, "token_type"),
        ({"tokenizer.ggml.merges": [[1], [2]]}, {}, "merges"),
        ({"tokenizer.ggml.bos_token_id": 4000}, {}, "bos_token_id is 4000"),
    ],
)
def test_what_is_not_built_or_does_not_fit_is_named(
    tmp_path: Path, make: Callable[..., Bundle], fields: dict[str, Any], tensors: dict[str, Any], says: str
) -> None:
    path = tmp_path / "m.gguf"
    architecture = fields.get("general.architecture")
    write(path, make(), {key: value for key, value in fields.items() if key != "general.architecture"}, tensors)
    if architecture:
        path.write_bytes(path.read_bytes().replace(b"llama", architecture.encode(), 1))
    with pytest.raises(InputError, match=says) as caught:
        gguf.read(path)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_model_is_read_or_refused(tmp_path: Path, make: Callable[..., Bundle], data: st.DataObject) -> None:
    whole, path = tmp_path / "whole.gguf", tmp_path / "m.gguf"
    if not whole.exists():
        write(whole, make())
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):  # the tensor data begin after some 10 KB
        content[data.draw(st.integers(0, 10_000))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        assert gguf.read(path).model
    except InputError as error:
        assert "\n" not in str(error)


# ---------------------------------------------------------------- ours


def save(path: Path, bundle: Bundle, kind: str = "f32") -> list[str]:
    return gguf.write(path, bundle.model, bundle.tokenizer, kind)


@torch.no_grad()
def test_written_and_read_back_bit_for_bit(tmp_path: Path, make: Callable[..., Bundle], family_kind: str) -> None:
    bundle = make(family_kind)
    assert save(tmp_path / "m.gguf", bundle) == []
    again = gguf.read(tmp_path / "m.gguf")
    untold = {"initial_std": again.architecture.initial_std}
    assert explicit(again.architecture) == explicit(bundle.architecture.model_copy(update=untold))
    before, after = bundle.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(again.model(IDS), bundle.model(IDS))
    save(tmp_path / "n.gguf", again)
    assert (tmp_path / "n.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()


@torch.no_grad()
@pytest.mark.parametrize(
    "kind", ["llama-tied", "llama-wide-free", "qwen2-tied", "qwen2-free", "gpt2-tied", "gpt2-free"]
)
def test_transformers_reads_ours_to_the_same_logits(tmp_path: Path, make: Callable[..., Bundle], kind: str) -> None:
    bundle = make(kind)
    if kind.startswith("gpt2"):  # transformers takes GPT-2's own context and width ratio for every GGUF of a gpt2
        wide = bundle.architecture.model_copy(update={"feedforward": GELUTanh(bias=True), "context": 1024})
        bundle = replace(bundle, architecture=wide, made=wide.build(264).eval())
    save(tmp_path / "m.gguf", bundle)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").eval()
    assert (bundle.model(IDS) - reference(IDS).logits).abs().max() < 1e-4


def test_our_llama_has_the_bytes_of_llama_cpps_converter(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    bundle = make("llama-free")
    write(tmp_path / "theirs.gguf", bundle)
    save(tmp_path / "ours.gguf", bundle)
    theirs, ours = package.GGUFReader(tmp_path / "theirs.gguf"), package.GGUFReader(tmp_path / "ours.gguf")
    tensors = {tensor.name: tensor.data.tobytes() for tensor in theirs.tensors}
    assert {tensor.name: tensor.data.tobytes() for tensor in ours.tensors} == tensors
    for key, field in theirs.fields.items():
        if key.startswith("llama.") or key.endswith("_id"):
            assert ours.fields[key].contents() == field.contents(), key
            assert ours.fields[key].types == field.types, key


@pytest.mark.parametrize("kind", ["linear", "yarn", "ntk"])
def test_rescaled_angles_are_written_and_read(tmp_path: Path, make: Callable[..., Bundle], kind: str) -> None:
    longer = rescaled(make(), Rescaling(kind=kind, factor=4))  # type: ignore[arg-type]
    save(tmp_path / "m.gguf", longer)
    again, ids = gguf.read(tmp_path / "m.gguf"), torch.arange(50)[None] * 5 % 264
    assert again.architecture.context == longer.architecture.context
    assert (again.model(ids) - longer.model(ids)).abs().max() < 1e-5
    fields = GGUF(tmp_path / "m.gguf").fields
    assert fields.get("llama.rope.scaling.type", "none") == {"ntk": "none"}.get(kind, kind)  # ntk is a larger base


@torch.no_grad()
def test_neighbours_paired_weights_go_as_they_are(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    plain = make("llama-free")
    architecture = plain.architecture.model_copy(update={"position": RopeInterleaved(base=5_000.0)})
    model = architecture.build(264)
    model.load_state_dict(plain.model.state_dict())
    gguf.write(tmp_path / "m.gguf", model, None, "f32")
    file = GGUF(tmp_path / "m.gguf")
    assert torch.equal(file.tensor("blk.0.attn_q.weight"), model.state_dict()["blocks.0.attention.query.weight"])
    again = gguf.read(tmp_path / "m.gguf")
    assert again.tokenizer is None
    assert (again.model(IDS) - model(IDS)).abs().max() < 1e-4


@pytest.mark.parametrize(("kind", "output"), [("f16", "F16"), ("q8_0", "Q8_0"), ("q4_0", "Q8_0"), ("q4_1", "Q8_0")])
@pytest.mark.parametrize("model", ["llama-tied", "llama-free", "qwen2-tied", "gpt2-tied"])
def test_which_tensor_is_of_which_type(
    tmp_path: Path, make: Callable[..., Bundle], model: str, kind: str, output: str
) -> None:
    kept = save(tmp_path / "m.gguf", make(model), kind)
    types = {name: entry.quantization.name for name, entry in GGUF(tmp_path / "m.gguf").tensors.items()}
    assert {types.pop("output.weight" if model.endswith("free") else "token_embd.weight")} == {output}
    for name, chosen in types.items():
        if name.endswith(".bias") or "norm" in name or name.startswith("position_embd"):
            assert chosen == "F32"
        elif "ffn_down" in name:  # 40 or 48 hidden units are no whole blocks of 32
            assert chosen == "F16"
            assert (name in kept) == (kind != "f16")
        else:
            assert chosen == kind.upper()
    assert len(kept) == (0 if kind == "f16" else 2)
    assert int(package.GGUFReader(tmp_path / "m.gguf").fields["general.file_type"].contents()) == int(
        package.LlamaFileType[f"MOSTLY_{kind.upper()}"]
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"position": Alibi()}, r"llama: model.position alibi.*gpt2: "),
        ({"feedforward": GEGLU(width=40)}, "llama: hidden_act gelu, where llama.cpp has silu"),
        ({"attention": GroupedQuery(window=8)}, "llama: model.attention.window not a part of llama"),
        ({"position": Rope(scaling={"kind": "llama3"})}, "llama: rope_type llama3, where llama.cpp has none, linear"),
        (
            {"position": Rope(scaling={"kind": "yarn", "trained": 8, "fast": 9})},
            "beta_fast 9.0, where llama.cpp has 32",
        ),
        (
            {"attention": GroupedQuery(head_dim=16, bias=True, output_bias=False)},
            "llama: model.attention.output_bias.*qwen2: head_dim 16, where llama.cpp has None",
        ),
    ],
)
def test_a_part_that_gguf_lacks_is_named(
    tmp_path: Path, make: Callable[..., Bundle], change: dict[str, Any], says: str
) -> None:
    model = make().architecture.model_copy(update=change).build(264)
    with pytest.raises(InputError, match=says):
        gguf.write(tmp_path / "m.gguf", model, None)
    assert not list(tmp_path.iterdir())


def test_llama_cpp_has_one_activation_of_gpt2(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    model = make("gpt2-tied").architecture.model_copy(update={"feedforward": GELU(width=48, bias=True)}).build(264)
    with pytest.raises(InputError, match="gpt2: activation_function gelu, where"):
        gguf.write(tmp_path / "m.gguf", model, None)


# ---------------------------------------------------------------- as the weights lie there


BLOCKS = {"q4_0": ("int4", 4), "q4_1": ("int4", 4), "q8_0": ("int8", 8)}


@pytest.fixture
def wide(tokenizer: Tokenizer) -> Bundle:
    """A model whose matrices are whole tiles, so that the native step takes it."""
    mixer = GroupedQuery(heads=4, kv_heads=2, head_dim=32)
    parts = {"attention": mixer, "feedforward": SwiGLU(width=96), "initial_std": 0.15}
    architecture = Architecture(layers=2, dim=64, context=64, **parts)
    return Bundle(architecture.build(272).eval(), tokenizer, architecture, "made here")


@pytest.mark.parametrize("kind", [*BLOCKS, "f16"])
def test_the_model_is_made_when_asked_for_of_the_weights_in_the_file(tmp_path: Path, wide: Bundle, kind: str) -> None:
    save(tmp_path / "m.gguf", wide, kind)
    bundle, file = gguf.read(tmp_path / "m.gguf"), GGUF(tmp_path / "m.gguf")
    assert isinstance(bundle.made, Stored)
    other = replace(bundle, origin="elsewhere")
    assert other.model is other.model
    state = file.state()
    mine = dict(bundle.model.named_parameters())
    assert bundle.made is bundle.model
    assert torch.equal(mine["embedding.weight"], state["token_embd.weight"])
    assert torch.equal(mine["blocks.1.attention.query.weight"], pair_halves(state["blk.1.attn_q.weight"], 4))
    assert torch.equal(mine["blocks.1.attention.key.weight"], pair_halves(state["blk.1.attn_k.weight"], 2))
    assert torch.equal(mine["blocks.0.feedforward.down.weight"], state["blk.0.ffn_down.weight"])
    mine["embedding.weight"].data.zero_()  # memory of its own
    assert torch.equal(other.model.embedding.weight, state["token_embd.weight"])


@torch.no_grad()
@pytest.mark.skipif(native.missing() is not None, reason=f"plain path only: {native.missing()}")
@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_go_to_the_native_step_as_they_are(
    tmp_path: Path, wide: Bundle, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "m.gguf", wide, kind)
    want = gguf.read(tmp_path / "m.gguf").model
    bundle = gguf.read(tmp_path / "m.gguf")
    assert isinstance(bundle.made, Stored)
    monkeypatch.setattr(packing, "quantised", None)  # nothing is quantised again
    fast = quickened(bundle.made.skeleton, "auto", bundle.made.read)
    assert fast.kind == BLOCKS[kind][0]
    packed = fast.transformer()
    for name, weight in want.state_dict().items():
        assert torch.equal(packed.state_dict()[name], weight), name
    assert torch.equal(packed(IDS), want(IDS))


def test_weights_that_are_no_numbers_are_refused_as_blocks_too(tmp_path: Path, wide: Bundle) -> None:
    save(tmp_path / "m.gguf", wide, "q8_0")
    file = GGUF(tmp_path / "m.gguf")
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    at = file.tensors["blk.1.ffn_up.weight"].offset
    content[at : at + 2] = np.array(np.inf, "<f2").tobytes()
    (tmp_path / "m.gguf").write_bytes(content)
    made = gguf.read(tmp_path / "m.gguf").made
    assert isinstance(made, Stored)
    with pytest.raises(InputError, match="not finite"):
        packing.pack(made.read("blocks.1.feedforward.up.weight"), "int8")


# ---------------------------------------------------------------- SmolLM2


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Bundle:
    return gguf.read(smollm2)


def test_smollm2_is_what_its_card_says(real: Bundle) -> None:
    a = real.architecture
    assert sum(parameter.numel() for parameter in real.model.parameters()) == 134_515_008
    assert (a.tied, a.attention.heads, a.attention.key_heads, a.context) == (True, 9, 3, 8192)
    assert (a.layers, a.dim, a.position.base) == (30, 576, 100_000.0)
    tokenizer = real.tokenizer
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (49_152, 1, 2)
    assert "You are a helpful AI assistant named SmolLM" in tokenizer.chat_template
    assert tokenizer.encode("The capital of France is") == [504, 3575, 282, 4649, 314]


@torch.no_grad()
def test_smollm2_says_paris_and_agrees_with_transformers(real: Bundle, smollm2: Path, tmp_path: Path) -> None:
    save_hf(tmp_path / "m", real)
    written = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    ids = torch.tensor([real.tokenizer.encode("The capital of France is")])
    ours = real.model(ids)
    assert (ours - written(ids).logits).abs().max() < 1e-3
    for _ in range(4):
        ids = torch.cat([ids, real.model(ids)[:, -1:].argmax(-1)], 1)
    assert real.tokenizer.decode(ids[0, 5:].tolist()).startswith(" Paris")


MEMORY = """
import sys
import llmlab.language_model
from llmlab.runtime import resident_bytes
before = resident_bytes()
lm = llmlab.load(sys.argv[1], "auto")
text = lm.generate("The capital of France is", max_new_tokens=1, temperature=0)
print(lm.why, resident_bytes() - before, text, sep="|")
"""


@pytest.mark.skipif(native.missing() is not None, reason=f"plain path only: {native.missing()}")
def test_smollm2_takes_the_memory_of_its_four_bits(smollm2: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY, str(smollm2)], check=True, capture_output=True, text=True)
    why, grown, text = done.stdout.strip().split("|")
    assert why == "int4 weights, native step"
    assert text == " Paris"
    assert int(grown) < 300e6  # of which 98 MB are weights; in float32 those are 538


def test_smollm2_written_again_has_the_bytes_it_shipped_with(real: Bundle, smollm2: Path) -> None:
    """Every tensor of three blocks, the norm and the embedding; all of them in benchmarks/gguf_export.py."""
    file = GGUF(smollm2)
    raw = smollm2.read_bytes()
    checked = 0
    for name, (tensor, kind) in gguf.typed(real.model, "q4_1").items():
        entry = file.tensors[name]
        assert entry.quantization is kind
        assert entry.shape == tensor.shape
        if name.split(".")[1] in ("0", "15", "29", "weight"):
            checked += 1
            assert b"".join(encoded(tensor, kind)) == raw[entry.offset : entry.offset + entry.size], name
    assert checked == 3 * 9 + 2
