"""Logits equal to those of ChatGLM's published code, which is in no package: `golden/` holds figures recorded from
running it elsewhere on tiny weights that follow from a formula."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.convert import convert
from llmlab.checkpoints.hf import load_hf, save_hf
from llmlab.errors import InputError
from llmlab.families import chatglm, mapping
from llmlab.inference.cache import DenseCache
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse

GOLDEN = Path(__file__).parent / "golden"
CASES: list[dict[str, Any]] = [
    case for name in ("chatglm", "chatglm2") for case in json.loads((GOLDEN / f"{name}.json").read_text())["cases"]
]


def pattern(name: str, shape: list[int]) -> Tensor:
    """The formula of `golden/*.json: weights`."""
    i = torch.arange(1, 1 + int(torch.tensor(shape).prod()), dtype=torch.float64)
    wave = torch.sin(i * i * 0.37 + zlib.crc32(name.encode()) % 10007).reshape(shape)
    if len(shape) == 1:
        return (1 + 0.3 * wave if name.endswith("norm.weight") else 0.3 * wave).float()
    return ((0.4 if min(shape) < 40 else 0.3) * wave).float()


def tensors(case: dict[str, Any]) -> dict[str, Tensor]:
    return {name: pattern(name, shape) for name, shape in case["tensors"].items()}


def opened(case: dict[str, Any]) -> Transformer:
    architecture, vocab_size = chatglm.read_config(case["config"])
    model = architecture.build(vocab_size).eval()
    model.load_state_dict(mapping.from_hf(chatglm, model, tensors(case)))
    return model


def rows(case: dict[str, Any]) -> list[list[int]]:
    return [[*prompt, *answer] for prompt, answer in zip(case["prompts"], case["answers"], strict=True)]


def padded(model: Transformer, texts: list[list[int]]) -> tuple[Tensor, Places]:
    """Texts of several lengths, padded on the left, with the places of each text alone."""
    width = max(map(len, texts))
    ids, places = [], []
    for text in texts:
        at = model.architecture.mask.places(torch.tensor([text]))
        nothing = Places(at.position[:, :1] * 0, at.order[:, :1] * 0, at.document[:, :1] * 0 - 1)
        for _ in range(width - len(text)):
            at = nothing.cat(at)
        ids.append([0] * (width - len(text)) + text)
        places.append(at)
    position, order, document = (
        torch.cat([getattr(at, field) for at in places]) for field in ("position", "order", "document")
    )
    return torch.tensor(ids), Places(position, order, document)


case = pytest.mark.parametrize("case", CASES, ids=["chatglm-6b", "chatglm2", "chatglm2-layernorm"])


@case
def test_logits_equal_the_published_code(case: dict[str, Any]) -> None:
    model = opened(case)
    for text, expected in zip(rows(case), case["logits"]["alone"], strict=True):
        assert (model(torch.tensor([text]))[0] - torch.tensor(expected)).abs().max() < 1e-4


@case
def test_left_padding_equals_the_published_code(case: dict[str, Any]) -> None:
    model = opened(case)
    ids, at = padded(model, rows(case))
    for got, expected in zip(model(ids, at), case["logits"]["padded"], strict=True):
        assert (got[-len(expected) :] - torch.tensor(expected)).abs().max() < 1e-4


@case
def test_cached_decoding_equals_the_published_code(case: dict[str, Any]) -> None:
    """Ragged prompts, then their answers token by token."""
    model = opened(case)
    ids, at = padded(model, case["prompts"])
    answers, cache, steps = torch.tensor(case["answers"]), DenseCache(32), []
    for step in range(answers.shape[1] + 1):
        steps.append(model(ids, at, cache)[:, -1])
        ids, at = answers[:, step : step + 1], model.architecture.mask.after(at)
    assert (torch.stack(steps, 1) - torch.tensor(case["logits"]["cached"])).abs().max() < 1e-4


@pytest.mark.parametrize(
    "part",
    [
        {"wiring": {"kind": "deepnorm", "alpha": 6**0.5}},
        {"position": {"kind": "rope", "axes": 2}},
        {"position": {"kind": "rope_interleaved", "axes": 2, "scaling": "float16"}},
        {"mask": {"kind": "blank", "start_id": 36, "blank_ids": [34, 35]}},
        {"feedforward": {"kind": "gelu", "width": 48, "bias": True}},
    ],
    ids=["alpha", "frequencies", "layout", "blank", "gelu"],
)
def test_golden_figures_tell_near_misses(part: dict[str, Any]) -> None:
    """What the figures are worth: an architecture one detail off does not reach them."""
    good, golden = opened(CASES[0]), CASES[0]
    near = parse(Architecture, good.architecture.model_dump() | part).build(good.vocab_size).eval()
    near.load_state_dict(good.state_dict())
    text = torch.tensor(rows(golden)[1])[None]
    text[0, 0] = 35 if "mask" in part else text[0, 0]
    expected = good(text) if "mask" in part else torch.tensor(golden["logits"]["alone"][1])
    assert (near(text) - expected).abs().max() > 5e-5 > 10 * (good(text) - expected).abs().max()


@case
def test_config_and_weights_there_and_back(case: dict[str, Any]) -> None:
    model = opened(case)
    written = mapping.written(chatglm, model.architecture, model.vocab_size)
    assert chatglm.read_config(written) == (model.architecture, model.vocab_size)
    theirs = tensors(case)
    again = mapping.to_hf(chatglm, model.architecture, model.state_dict())
    assert set(again) == set(theirs)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in again.items())
    assert all(written[field] == value for field, value in case["config"].items() if field in written)


@pytest.mark.parametrize(
    ("which", "field", "value", "says"),
    [
        (0, "position_encoding_2d", False, "only True is"),
        (0, "pre_seq_len", 4, "only whole weights"),
        (1, "quantization_bit", 4, "only whole weights"),
        (1, "apply_residual_connection_post_layernorm", True, "only False is"),
        (1, "rope_ratio", 50, "only 1 is"),
    ],
)
def test_what_is_not_built_is_refused(which: int, field: str, value: object, says: str) -> None:
    with pytest.raises(InputError, match=f"config.json: {field}: .*{says}"):
        chatglm.read_config(CASES[which]["config"] | {field: value})


def test_other_architectures_are_refused_by_name() -> None:
    first, second = opened(CASES[0]).architecture, opened(CASES[1]).architecture
    for near, says in (
        (first.model_copy(update={"mask": second.mask}), "model.mask"),
        (second.model_copy(update={"position": parse(Architecture, {"position": "rope"}).position}), "model.position"),
        (replace_wiring(first, 2.0), "model.wiring.alpha"),
    ):
        with pytest.raises(InputError, match=says):
            mapping.written(chatglm, near, 40)


def replace_wiring(a: Architecture, alpha: float) -> Architecture:
    return a.model_copy(update={"wiring": a.wiring.model_copy(update={"alpha": alpha})})


@case
def test_missing_unknown_and_misshapen_tensors_are_errors(case: dict[str, Any]) -> None:
    model, good = opened(case), tensors(case)
    first = chatglm.names(model.architecture)[2].theirs
    with pytest.raises(InputError, match=f"{first}: this tensor is missing"):
        mapping.from_hf(chatglm, model, {key: value for key, value in good.items() if key != first})
    with pytest.raises(InputError, match="surprise: unknown tensor"):
        mapping.from_hf(chatglm, model, good | {"surprise": torch.zeros(1)})
    with pytest.raises(InputError, match="has shape"):
        mapping.from_hf(chatglm, model, good | {first: good[first][:-1]})


@case
def test_folder_there_and_back(case: dict[str, Any], tmp_path: Path) -> None:
    """Written, read again, converted to llmlab's own format: the tokens that the mask needs go with the config."""
    model = opened(case)
    save_hf(tmp_path / "hf", Bundle(model, None, model.architecture, "here"))
    back = load_hf(tmp_path / "hf")
    assert back.architecture == model.architecture
    assert convert(back, tmp_path / "own", "llmlab")["parity"] < 1e-6
