"""Quantised models: every linear replaced, saved and read back bit for bit, measured beside where they came from."""

import json

import pytest
import torch

from llmlab.checkpoints.bundle import Bundle
from llmlab.compression.quantize import (
    Int4,
    Int8,
    Quantize,
    is_quantized,
    largest_error,
    load_quantized,
    name_of,
    quantize,
    quantize_model,
    save_quantized,
)
from llmlab.data.shards import write_shards
from llmlab.errors import InputError, Stopped
from llmlab.model.attention import MultiHead
from llmlab.model.feedforward import GELU
from llmlab.model.linear import Linear
from llmlab.model.quantized import Int8Embedding, QuantizedLinear, use_kernels
from llmlab.model.transformer import Architecture
from llmlab.recipe import parse
from llmlab.runtime import StopFlag
from llmlab.stages import Session
from llmlab.tokenization.train import BPE, train_tokenizer

TEXTS = [f"The whale number {number} swims in the wide sea. 鲸" * 3 for number in range(12)]


def build(tied: bool = True, bias: bool = False, vocab: int = 300):
    attention, feedforward = MultiHead(heads=4, bias=bias), GELU(bias=bias)
    return Architecture(
        layers=2, dim=64, context=48, tied=tied, initial_std=0.2, attention=attention, feedforward=feedforward
    ).build(vocab)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(BPE(vocab_size=300), iter(TEXTS))


KINDS = [Int8(), Int4(), Int4(group=64)]


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("embedding", ["int8", "keep"])
def test_every_linear_is_replaced_and_the_original_untouched(kind, tied, embedding):
    model = build(tied)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = quantize_model(model, kind, embedding)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not [module for module in made.modules() if isinstance(module, Linear)]
    assert isinstance(made.head, QuantizedLinear)
    assert isinstance(made.embedding, Int8Embedding) == (embedding == "int8")
    ids = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        off = (made(ids) - model(ids)).norm() / model(ids).norm()
    assert 0 < off < (0.05 if kind.kind == "int8" else 0.4)
    assert 0 < largest_error(model, made) < 0.1


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("embedding", ["int8", "keep"])
def test_saved_and_read_back_is_the_same_model(kind, tied, embedding, tmp_path, tokenizer):
    made = quantize_model(build(tied, bias=True), kind, embedding)
    use_kernels(made)
    save_quantized(tmp_path / "a", made, tokenizer, kind)
    read = load_quantized(tmp_path / "a")
    ids = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    use_kernels(made, on=False)
    with torch.no_grad():
        assert torch.equal(read.model(ids), made(ids))
    assert read.tokenizer.encode("whale") == tokenizer.encode("whale")
    assert read.architecture == made.architecture
    save_quantized(tmp_path / "b", read.model, read.tokenizer, kind)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_a_tied_int8_head_is_stored_once(tmp_path):
    whole = sum(p.numel() * 4 for p in build().parameters())
    save_quantized(tmp_path / "int8", quantize_model(build(), Int8()), None, Int8())
    save_quantized(tmp_path / "int4", quantize_model(build(), Int4()), None, Int4())
    sizes = {kind: (tmp_path / kind / "model.safetensors").stat().st_size for kind in ("int8", "int4")}
    assert sizes["int8"] < whole / 3.4
    assert sizes["int4"] < whole / 4.2
    read = load_quantized(tmp_path / "int8").model
    assert read.head.codes.data_ptr() == read.embedding.codes.data_ptr()


def test_quantising_twice_changes_nothing():
    for kind in KINDS:
        once = quantize_model(build(tied=False), kind, "keep")
        plain = build(tied=False)
        for path, module in once.named_modules():
            if isinstance(module, QuantizedLinear):
                plain.get_submodule(path).weight.data = module.weight
        twice = quantize_model(plain, kind, "keep")
        for name, tensor in once.state_dict().items():
            assert torch.equal(tensor, twice.state_dict()[name]), name


def test_a_width_without_whole_groups_is_refused_by_name():
    odd = Architecture(layers=1, dim=48, context=8, attention=MultiHead(heads=4)).build(20)
    with pytest.raises(
        InputError, match=r"blocks\.0\.attention\.query: 48 columns are no whole number of groups of 32"
    ):
        quantize_model(odd, Int4())
    quantize_model(odd, Int8())


@pytest.mark.parametrize("broken", ["format", "missing", "unknown", "shape", "dtype", "layers", "kind", "truncated"])
def test_a_damaged_folder_is_refused_by_name(broken, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "int4"
    save_quantized(folder, quantize_model(build(), Int4()), None, Int4())
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    wanted = {
        "format": "this llmlab reads 'llmlab-quantized'", "missing": r"up\.codes: missing tensor",
        "unknown": "strange: unknown tensor", "shape": r"up\.codes: is torch.uint8 \[2, 2\]",
        "dtype": r"up\.scale: is torch.float32", "layers": "9000 layers are promised", "kind": "did you mean 'int4'",
        "truncated": "truncated or damaged safetensors",
    }  # fmt: skip
    name = "blocks.0.feedforward.up"
    match broken:
        case "format":
            config["format"] = "else"
        case "layers":
            config["architecture"]["layers"] = 9000
        case "kind":
            config["quantization"] = {"kind": "int44"}
        case "missing":
            del tensors[f"{name}.codes"]
        case "unknown":
            tensors["strange"] = torch.zeros(2)
        case "shape":
            tensors[f"{name}.codes"] = torch.zeros(2, 2, dtype=torch.uint8)
        case "dtype":
            tensors[f"{name}.scale"] = tensors[f"{name}.scale"].float()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    if broken == "truncated":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[:-100])
    assert is_quantized(folder) == (broken != "format")
    with pytest.raises(InputError, match=wanted[broken]):
        load_quantized(folder)


def test_a_plain_model_folder_is_not_quantised(tmp_path):
    assert not is_quantized(tmp_path)


# ---------------------------------------------------------------- the stage


@pytest.fixture
def base(tokenizer):
    model = build(vocab=tokenizer.vocab_size).eval()
    return Bundle(model, tokenizer, model.architecture, "memory")


def test_the_stage_writes_and_measures_each_kind(base, tokenizer, tmp_path):
    shards = write_shards(TEXTS, tokenizer, tmp_path / "held_out")
    section = parse(Quantize, {"kinds": ["int8", "int4", {"kind": "int4", "group": 64}], "new_tokens": 8})
    figures = quantize(section, base, shards, tmp_path / "out", Session())
    rows = {row["kind"]: row for row in figures["weights"]}
    assert list(rows) == ["fp32", "int8", "int4", "int4-64"]
    assert rows["fp32"]["bytes"] > 3 * rows["int8"]["bytes"] > 3 * rows["int4-64"]["bytes"]
    for kind in ("int8", "int4", "int4-64"):
        row = rows[kind]
        bits = row["held_out_bits_per_byte"] - rows["fp32"]["held_out_bits_per_byte"]
        assert row["difference"] == pytest.approx(bits, abs=1e-9)
        assert row["difference_interval"][0] <= row["difference"] <= row["difference_interval"][1]
        assert row["tokens_per_second"] > 0
        assert load_quantized(tmp_path / "out" / kind).model.vocab_size == tokenizer.vocab_size
    assert rows["int8"]["largest_error"] < rows["int4"]["largest_error"]
    assert json.dumps(figures)


def test_the_stage_runs_without_held_out_text(base, tmp_path):
    figures = quantize(Quantize(kinds=(Int8(),), new_tokens=4), base, None, tmp_path, Session())
    assert "held_out_bits_per_byte" not in figures["weights"][0]


def test_the_same_stage_twice_writes_the_same_bytes(base, tmp_path):
    for name in ("a", "b"):
        quantize(Quantize(new_tokens=4), base, None, tmp_path / name, Session())
    for kind in ("int8", "int4"):
        first, second = (tmp_path / name / kind / "model.safetensors" for name in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()


def test_a_stop_is_heeded(base, tmp_path):
    flag = StopFlag()
    flag.requested = True
    with pytest.raises(Stopped):
        quantize(Quantize(new_tokens=4), base, None, tmp_path, Session(stop=flag))
    assert not list(tmp_path.iterdir())


def test_a_wrong_kind_is_told():
    with pytest.raises(InputError, match=r"unknown kind 'int3'.*allowed: int8, int4"):
        parse(Quantize, {"kinds": ["int3"]})
