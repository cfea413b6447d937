"""Rotary angles rescaled at load: the arithmetic, the refusals, and every path by which such a model reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import llmlab
from llmlab.checkpoints.bundle import Bundle, rescaled
from llmlab.checkpoints.convert import convert
from llmlab.checkpoints.hf import load_hf, save_hf
from llmlab.checkpoints.native import save_model
from llmlab.compression.quantize import Int8, quantize_model, save_quantized
from llmlab.errors import InputError
from llmlab.inference import native
from llmlab.model.rescaling import SCALINGS, Rescaling, read_rescaling, reread
from llmlab.model.rotary import YaRN, ntk_base
from llmlab.model.transformer import Architecture
from llmlab.recipe import parse
from llmlab.tokenization.train import BPE, train_tokenizer

CONTEXT, FACTOR = 32, 4


def architecture(**fields: Any) -> Architecture:
    sizes: dict[str, Any] = {"layers": 2, "dim": 128, "context": CONTEXT, "initial_std": 0.15}
    sizes |= {"attention": {"kind": "gqa", "heads": 4, "kv_heads": 2}, "feedforward": {"kind": "swiglu", "width": 256}}
    return parse(Architecture, sizes | fields)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    tokenizer = train_tokenizer(BPE(vocab_size=272), iter(["the whale swims in the wide and silent sea"] * 4))
    a = architecture()
    return Bundle(a.build(tokenizer.vocab_size, seed=5).eval(), tokenizer, a, "whole tiles")


@pytest.fixture(scope="module")
def folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    save_model(path, bundle.model, bundle.tokenizer)
    return path


@pytest.mark.parametrize(
    ("told", "kind", "factor"),
    [
        ("yarn", "yarn", 4.0),
        ("yarn factor=2", "yarn", 2.0),
        ("kind=ntk factor=8", "ntk", 8.0),
        ("pi factor=3", "linear", 3.0),
        ({"kind": "pi"}, "linear", 4.0),
        (Rescaling(kind="llama3", factor=2), "llama3", 2.0),
    ],
)
def test_it_may_be_told_as_text_or_settings(told: Any, kind: str, factor: float) -> None:
    found = read_rescaling(told)
    assert (found.kind, found.factor) == (kind, factor)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ("yarn factor=0.5", r"rope\.factor: 0.5 would shorten the context"),
        ("yran", r"rope\.kind: unknown value 'yran' .did you mean 'yarn'"),
        ("yarn 4", r"rope: '4' is no setting .write: yarn factor=4"),
        ("", r"rope\.kind"),
        ({"factor": 2}, r"rope\.kind: is required"),
        ({"kind": "yarn", "factor": float("nan")}, r"rope\.factor"),
        ({"kind": "yarn", "by": 2}, r"rope\.by: no field 'by' here"),
    ],
)
def test_what_is_wrong_is_named(told: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_rescaling(told)


def test_the_trained_length_is_the_models_and_the_context_grows() -> None:
    a = Rescaling(kind="yarn", factor=2.5).architecture(architecture())
    assert a.context == 80
    assert a.position.scaling == YaRN(by=2.5, trained=CONTEXT)  # type: ignore[union-attr]
    plain = architecture()
    assert Rescaling(kind="yarn", factor=1).architecture(plain) is plain
    ntk = Rescaling(kind="ntk", factor=4).architecture(plain).position.scaling.frequencies(16, 10_000.0)  # type: ignore[union-attr]
    based = plain.position.scaling.frequencies(16, ntk_base(10_000.0, 16, 4))  # type: ignore[union-attr]
    assert torch.equal(ntk, based)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"position": "alibi"}, "positions are alibi, with no angles"),
        ({"position": "learned"}, "positions are learned"),
        ({"position": {"kind": "rope", "scaling": {"kind": "linear", "by": 2}}}, r"rescaled already \(linear, by 2\)"),
        ({"position": {"kind": "rope", "scaling": "float16"}}, r"rescaled already \(float16\)"),
    ],
)
def test_a_model_that_cannot_be_rescaled_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Rescaling(kind="yarn").architecture(architecture(**fields))


@pytest.mark.parametrize("kind", SCALINGS)
def test_a_rescaled_model_shares_its_weights_and_changes_nothing_else(bundle: Bundle, kind: str) -> None:
    longer = rescaled(bundle, read_rescaling(kind))
    ids = torch.arange(3 * CONTEXT)[None] % 272
    before = bundle.model(ids)
    after = longer.model(ids)
    assert longer.architecture.context == FACTOR * CONTEXT
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.equal(bundle.model(ids), before)
    pairs = zip(bundle.model.parameters(), longer.model.parameters(), strict=True)
    assert all(ours is theirs for ours, theirs in pairs)
    with torch.device("cpu"):
        fresh = longer.architecture.build(272, seed=5).eval()  # the same weights, built by that architecture
    assert torch.equal(fresh(ids), after)


@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn", "llama3"])
def test_transformers_opens_what_is_written_with_equal_logits(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers", reason="a test dependency")
    longer = rescaled(bundle, Rescaling(kind=kind, factor=FACTOR))  # type: ignore[arg-type]
    save_hf(tmp_path / "hf", longer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").float().eval()
    assert theirs.config.max_position_embeddings == FACTOR * CONTEXT
    ids = torch.arange(3 * CONTEXT)[None] * 7 % 272
    with torch.no_grad():
        assert (theirs(ids).logits - longer.model(ids)).abs().max() < 1e-4
        assert (theirs(ids).logits - bundle.model(ids)).abs().max() > 1e-2
    again = load_hf(tmp_path / "hf")
    assert torch.equal(again.model(ids), longer.model(ids))
    assert again.architecture.context == longer.architecture.context


def test_what_hugging_face_cannot_say_is_refused_by_name(bundle: Bundle, tmp_path: Path) -> None:
    for kind, says in (("dynamic", "scaling"), ("logn", "scaling")):
        with pytest.raises(InputError, match=says):
            save_hf(tmp_path / kind, rescaled(bundle, read_rescaling(kind)))
        assert convert(rescaled(bundle, read_rescaling(kind)), tmp_path / kind, "llmlab")["parity"] == 0


@pytest.mark.skipif(native.missing() is not None, reason=f"plain path only: {native.missing()}")
@pytest.mark.parametrize("kind", SCALINGS)
def test_the_native_step_reads_past_the_old_context_or_says_why_not(folder: Path, kind: str) -> None:
    lm = llmlab.load(folder, "bf16", rope={"kind": kind, "factor": FACTOR})
    prompt = "whale " * 30
    assert 2 * CONTEXT < len(lm.tokenizer.encode(prompt)) < lm.context == FACTOR * CONTEXT
    if kind in ("dynamic", "logn"):
        assert "plain path: its rope" in lm.why
        assert lm.generate("whale", max_new_tokens=3)
        return
    assert lm.why == "bf16 weights, native step"
    ids = lm.tokenizer.encode(prompt)
    said = lm.generate(prompt, max_new_tokens=1, temperature=0)
    best = lm.logits(torch.tensor([ids]))[0, -1]
    assert said == lm.tokenizer.decode([int(best.argmax())]) or float(best.topk(2).values.diff().abs()) < 0.05


def test_a_prompt_past_the_old_context_is_too_long_without_it(folder: Path) -> None:
    prompt = "whale " * 30
    with pytest.raises(InputError, match="context"):
        llmlab.load(folder).generate(prompt, max_new_tokens=2)
    assert llmlab.load(folder, rope="yarn").generate(prompt, max_new_tokens=2)


def test_dynamic_angles_keep_no_cache_past_the_trained_length(folder: Path) -> None:
    lm = llmlab.load(folder, rope="dynamic")
    assert lm.batching is None
    assert lm.logits(torch.arange(2 * CONTEXT)[None]).isfinite().all()
    with pytest.raises(InputError, match="a cache would be stale"):
        lm.generate("whale " * 30, max_new_tokens=2)


def test_a_folder_of_quantised_weights_is_rescaled_too(bundle: Bundle, tmp_path: Path) -> None:
    quantized = quantize_model(bundle.model, Int8())
    save_quantized(tmp_path / "int8", quantized, bundle.tokenizer, Int8())
    lm = llmlab.load(tmp_path / "int8", rope="yarn")
    assert lm.context == FACTOR * CONTEXT
    ids = torch.arange(2 * CONTEXT)[None]
    assert torch.equal(lm.logits(ids), reread(quantized, lm.bundle.architecture)(ids))


def test_a_bundle_that_was_not_made_yet_is_not_made(folder: Path) -> None:
    from llmlab.adapters.opening import open_policy

    stored = open_policy(folder)
    longer = rescaled(stored, read_rescaling("yarn"))
    assert not isinstance(longer.made, torch.nn.Module)
    assert longer.model.architecture.context == FACTOR * CONTEXT
    assert replace(stored).model.architecture.context == CONTEXT
