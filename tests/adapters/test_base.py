"""A frozen base in few bits: its codes are the file's, its gradients those of the dense weights, its bytes counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmlab.adapters.base import held_bytes, hold, rounded, undone
from llmlab.adapters.count import base_bytes
from llmlab.adapters.lora import LoRA
from llmlab.adapters.opening import open_policy
from llmlab.adapters.part import adapter_parameters, add_adapter
from llmlab.adapters.peft_format import save_adapter
from llmlab.adapters.roles import Role, RoleModel, counted_bytes
from llmlab.checkpoints import gguf
from llmlab.checkpoints.bundle import Bundle, Stored
from llmlab.checkpoints.native import save_model
from llmlab.errors import InputError
from llmlab.model.quantized import QuantizedLinear
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.runtime import generator

VOCABULARY, D, F, LAYERS = 264, 64, 128, 2
SMALL: dict[str, Any] = {"layers": LAYERS, "dim": D, "context": 32, "initial_std": 0.2}
SMALL |= {"attention": {"kind": "gqa", "heads": 4, "kv_heads": 2}, "feedforward": {"kind": "swiglu", "width": F}}
MATRICES = LAYERS * (2 * D * D + 2 * D * D // 2 + 3 * D * F)  # weights in the linears of the blocks
RSS = 0.9e9  # bytes of the whole process in a step of SmolLM2, PyTorch and the mapped file included


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """One model as llmlab's folder and as GGUF files of four and eight bits."""
    model = parse(Architecture, SMALL).build(VOCABULARY, 0)
    save_model(tmp_path / "plain", model, None)
    tokenizer = _tokenizer()
    for kind in ("q4_1", "q4_0", "q8_0"):
        gguf.write(tmp_path / f"{kind}.gguf", model, tokenizer, kind)
    return tmp_path


def _tokenizer() -> Any:
    from llmlab.tokenization.train import BPE, train_tokenizer

    return train_tokenizer(BPE(vocab_size=VOCABULARY), iter(["the cat and the hat and the rat"] * 3))


def ids() -> Tensor:
    return torch.randint(VOCABULARY, (2, 9), generator=generator(0, "ids"))


def with_lora(model: Transformer) -> Transformer:
    add_adapter(model, "a", LoRA(rank=2), seed=0)
    with torch.no_grad():
        for key, parameter in adapter_parameters(model, "a").items():
            parameter.normal_(0, 0.1, generator=generator(1, key))
    return model


@pytest.mark.parametrize("kind", ["q4_1", "q4_0", "q8_0"])
def test_stored_is_the_file_and_nothing_was_made_dense(files: Path, kind: str) -> None:
    bundle = open_policy(files / f"{kind}.gguf")
    few = hold(bundle, "stored")
    assert isinstance(bundle.made, Stored)
    with torch.no_grad():
        assert torch.equal(few.model(ids()), bundle.model(ids()))
    again = undone(hold(open_policy(files / f"{kind}.gguf"), "stored").model)
    for name, weight in bundle.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


@pytest.mark.parametrize("kind", ["stored", "int8", "int4"])
def test_the_gradient_is_that_of_the_dense_weights(files: Path, kind: Any) -> None:
    few = with_lora(hold(open_policy(files / "q4_1.gguf"), kind).model)
    dense = with_lora(undone(hold(open_policy(files / "q4_1.gguf"), kind).model))
    for model in (few, dense):
        model(ids(), role="a").logsumexp(-1).square().sum().backward()
    mine, theirs = adapter_parameters(few, "a"), adapter_parameters(dense, "a")
    for key in mine:
        assert mine[key].grad is not None
        largest = float(theirs[key].grad.abs().max())
        assert torch.allclose(mine[key].grad, theirs[key].grad, rtol=0, atol=1e-6 * largest)
    assert all(p.grad is None for name, p in few.named_parameters() if ".adapters." not in name)


@pytest.mark.parametrize("kind", ["stored", "int8", "int4"])
def test_no_dense_matrix_waits_for_the_backward_pass(files: Path, kind: Any) -> None:
    model = with_lora(hold(open_policy(files / "q4_1.gguf"), kind).model)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        model(ids(), role="a").sum().backward()
    linears = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    matrices = {(linear.out_features, linear.in_features) for linear in linears}
    assert kept
    assert not [tensor.shape for tensor in kept if tuple(tensor.shape) in matrices | {(k, n) for n, k in matrices}]


def test_bytes_of_what_is_frozen_to_the_last(files: Path) -> None:
    norms = 4 * D * (2 * LAYERS + 1)
    groups = MATRICES // 32 * 4  # a step and a least value of two bytes each
    table = VOCABULARY * D
    expected = {
        "stored": MATRICES // 2 + groups + table + table // 32 * 4,
        "int4": MATRICES // 2 + groups + table + 4 * VOCABULARY,
    }
    for kind, count in expected.items():
        model = with_lora(hold(open_policy(files / "q4_1.gguf"), kind).model)  # type: ignore[arg-type]
        assert held_bytes(model) == count + norms, kind
    assert held_bytes(with_lora(open_policy(files / "plain").model)) == 4 * (MATRICES + table) + norms


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["fp32", "stored", "int8", "int4"])
def test_bytes_told_before_are_those_that_are_held(files: Path, kind: Any, tied: bool) -> None:
    name = files / "q4_1.gguf"
    if not tied:
        name = files / "free.gguf"
        gguf.write(name, parse(Architecture, SMALL | {"tied": False}).build(VOCABULARY, 0), _tokenizer(), "q4_1")
    bundle = open_policy(name)
    assert isinstance(bundle.made, Stored)
    told = base_bytes(bundle.architecture, VOCABULARY, kind, bundle.made)
    model = hold(bundle, kind).model
    roles = RoleModel(model, {"policy": Role(adapter="policy", trained=True)}, LoRA(rank=2), seed=0)
    assert told == held_bytes(with_lora(hold(open_policy(name), kind).model)) == counted_bytes(roles)["base"]


@pytest.mark.parametrize("kind", ["stored", "int8", "int4"])
def test_a_saved_adapter_opens_over_the_base_that_it_was_trained_on(files: Path, kind: Any) -> None:
    source = files / "q4_1.gguf"
    model = with_lora(hold(open_policy(source), kind).model)
    with torch.no_grad():
        expected = model(ids(), role="a")
    save_adapter(files / "a", model, "a", base=source, base_weights=kind)
    assert json.loads((files / "a" / "adapter_config.json").read_text())["base_weights"] == kind
    with torch.no_grad():
        assert torch.allclose(open_policy(files / "a").model(ids()), expected, atol=1e-4)
        plain = rounded(open_policy(source), kind).model(ids())
    assert not torch.allclose(plain, expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_what_is_quantised_here_moves_the_base_and_the_reopened_one_alike(files: Path, kind: Any) -> None:
    bundle = open_policy(files / "plain")
    with torch.no_grad():
        few, plain = hold(bundle, kind).model(ids()), bundle.model(ids())
        assert torch.allclose(rounded(bundle, kind).model(ids()), few, atol=1e-4)
    assert not torch.allclose(few, plain, atol=1e-4)


def test_bases_that_cannot_be_held_so_are_refused(files: Path) -> None:
    with pytest.raises(InputError, match=r"holds no quantised matrix.*int8 and int4 quantise any base"):
        hold(open_policy(files / "plain"), "stored")
    odd = parse(Architecture, SMALL | {"feedforward": {"kind": "swiglu", "width": 40}}).build(VOCABULARY, 0)
    with pytest.raises(InputError, match="40 columns are no whole number of groups of 32"):
        hold(Bundle(odd, None, odd.architecture, "odd"), "int4")
    adapted = with_lora(open_policy(files / "plain").model)
    with pytest.raises(InputError, match="keeps an adapter or is quantised already"):
        hold(Bundle(adapted, None, adapted.architecture, "adapted"), "int8")


STEP = """
import json, resource, sys, torch
from llmlab.adapters.base import held_bytes, hold
from llmlab.adapters.count import base_bytes
from llmlab.adapters.lora import LoRA
from llmlab.adapters.opening import open_policy
from llmlab.adapters.part import add_adapter, adapter_parameters
from llmlab.model.places import Places
from llmlab.objectives.language import NextToken
from llmlab.adapters.roles import Actor
from llmlab.data.batch import Batch
from llmlab.training.adamw import AdamW

torch.set_num_threads(1)
model = hold(open_policy(sys.argv[1]), "stored").model
add_adapter(model, "sft", LoRA(rank=16), 0)
actor = Actor(model, "sft").train()
rows, length = json.loads(sys.argv[2])
ids = torch.randint(model.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(0))
batch = Batch(ids[:, :-1], ids[:, 1:], Places.causal(rows, length))
optimizer = AdamW(lr=1e-3).build(actor)
NextToken()(actor, batch).sums["cross_entropy"].backward()
optimizer.step()
moved = [float(p.abs().max()) for key, p in adapter_parameters(model, "sft").items() if key.endswith(".B")]
print(json.dumps({
    "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "frozen": held_bytes(model),
    "least": min(moved),
}))
"""


def test_a_step_of_smollm2_on_its_four_bits_fits(smollm2: Path) -> None:
    """The base is 4.5 bits a weight as shipped (Q4_1; embedding Q8_0), and never more in memory."""
    done = subprocess.run(
        [sys.executable, "-c", STEP, str(smollm2), "[1, 32]"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    layers, dim, width, keys, words = 30, 576, 1536, 192, 49152
    matrices = layers * (2 * dim * dim + 2 * dim * keys + 3 * dim * width)
    # 20 bytes hold 32 weights of four bits, 36 as many of eight: half-precision steps and least values are with them.
    assert found["frozen"] == matrices // 32 * 20 + words * dim // 32 * 36 + 4 * dim * (2 * layers + 1)
    assert found["least"] > 0
    assert found["rss"] < RSS, f"{found['rss'] / 1e9:.2f} GB"
