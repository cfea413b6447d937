"""Pooling as sentence-transformers writes it down: read, written, refused where vectors would be others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.convert import convert
from llmlab.checkpoints.sentence import read_pooling, write_pooling
from llmlab.checkpoints.where import open_model
from llmlab.errors import InputError
from llmlab.model.pooling import Pooling
from llmlab.model.transformer import Architecture
from llmlab.recipe import parse

ENCODER: dict[str, Any] = {
    **{"layers": 1, "dim": 16, "context": 32, "mask": "bidirectional", "wiring": "post", "head": "none", "pooled": 0},
    **{"position": "learned", "embedding": {"norm": True, "segments": 2}},
    **{"norm": "layernorm", "attention": {"kind": "mha", "bias": True}, "feedforward": {"kind": "gelu", "bias": True}},
}
POOLINGS = [
    Pooling(),
    Pooling(max_tokens=256),
    Pooling(kind="first", normalised=False),
    Pooling(kind="first", max_tokens=12),
]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_there_and_back(tmp_path: Path, pooling: Pooling) -> None:
    write_pooling(tmp_path, pooling, 16)
    assert read_pooling(tmp_path) == pooling


@pytest.mark.parametrize("to", ["hf", "llmlab"])
def test_a_converted_encoder_keeps_its_pooling(tmp_path: Path, to: str) -> None:
    architecture = parse(Architecture, ENCODER)
    bundle = Bundle(architecture.build(30), None, architecture, "test", Pooling(max_tokens=20))
    answer = convert(bundle, tmp_path / "copy", to)
    assert answer["parity"] < 1e-6
    assert open_model(tmp_path / "copy").pooling == Pooling(max_tokens=20)
    plain = Bundle(architecture.build(30), None, architecture, "test")
    convert(plain, tmp_path / "plain", to)
    assert open_model(tmp_path / "plain").pooling is None


def test_an_encoder_decoder_is_converted_too(tmp_path: Path) -> None:
    small = {"layers": 2, "encoder_layers": 1, "dim": 16, "position": "t5", "attention": {"kind": "mha", "scale": 1.0}}
    architecture = parse(Architecture, {**small, "feedforward": "relu", "start_id": 0, "context": 64})
    bundle = Bundle(architecture.build(30), None, architecture, "test")
    for to in ("hf", "llmlab"):
        assert convert(bundle, tmp_path / to, to)["parity"] < 1e-6
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text())["decoder_start_token_id"] == 0


@pytest.mark.parametrize(
    ("file", "value", "says"),
    [
        ("modules.json", {}, "holds no list of modules"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "has a module 'Dense'"),
        ("modules.json", [{"type": "x.Pooling", "path": "../1_Pooling"}], "outside its own"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools by pooling_mode_max_tokens, which is not"),
        ("1_Pooling/config.json", {}, "pools by none"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "max_seq_length is long"),
    ],
)
def test_what_is_not_built_is_refused(tmp_path: Path, file: str, value: Any, says: str) -> None:
    write_pooling(tmp_path, Pooling(max_tokens=256), 16)
    (tmp_path / file).write_text(json.dumps(value))
    with pytest.raises(InputError, match=says):
        read_pooling(tmp_path)
