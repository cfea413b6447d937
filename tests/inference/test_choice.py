"""The choice of path: checked once on a machine, kept, explained; whatever is wrong falls back with its reason."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from llmlab import compiled
from llmlab.inference import choice, native
from llmlab.inference.choice import choose, held
from llmlab.inference.fast import FastModel
from llmlab.inference.packing import KINDS, Kind
from llmlab.inference.stepper import Piece
from llmlab.model.transformer import Architecture, Transformer

only_native = pytest.mark.skipif(native.missing() is not None, reason=f"plain path only: {native.missing()}")
WIDTHS: dict[str, Any] = {
    "layers": 3,
    "dim": 64,
    "context": 96,
    "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 32},
    "feedforward": {"kind": "swiglu", "width": 96},
}


def model(**fields: Any) -> Transformer:
    return Architecture.model_validate(WIDTHS | fields).build(96).eval()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records of its own, beside the step that is compiled already."""
    native.available()
    monkeypatch.setenv("LLMLAB_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Kind]:
    """Every check that is made from here on."""
    made: list[Kind] = []
    really = choice._measured

    def counted(architecture: Architecture, kind: Kind) -> dict[str, float | None]:
        made.append(kind)
        return really(architecture, kind)

    monkeypatch.setattr(choice, "_measured", counted)
    return made


@only_native
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "fields",
    [{}, {"tied": False}, {"attention": {"kind": "mha", "heads": 2, "bias": True, "output_bias": False}}],
    ids=str,
)
def test_a_sound_step_is_chosen_and_explained(kind: Kind, fields: dict[str, Any], own_cache: Path) -> None:
    found = choose(model(**fields), kind)
    assert found.model is not None
    assert found.model.kind == kind
    told = "\n".join(found.explain())
    assert f"native step with {kind} weights" in told
    assert "of the logits' spread" in told
    assert str(own_cache) in told
    assert "LLMLAB_NATIVE=0" in told


@only_native
def test_it_is_measured_once_whatever_the_depth(measured: list[Kind]) -> None:
    first = choose(model(), "int8")
    again = choose(model(layers=2, context=48), "int8")
    assert measured == ["int8"]
    assert again.figures == first.figures
    choose(model(), "bf16")
    choose(model(dim=96), "int8")
    assert measured == ["int8", "bf16", "int8"]


@only_native
@pytest.mark.parametrize("changed", ["cpu", "sets", "torch", "source"])
def test_another_machine_torch_or_source_is_measured_anew(
    measured: list[Kind], changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(model().architecture, "int8")
    match changed:
        case "cpu":
            monkeypatch.setattr(choice, "cpu_name", lambda: "another")
        case "sets":
            monkeypatch.setattr(choice, "instruction_sets", lambda: frozenset({"avx512f"}))
        case "torch":
            monkeypatch.setattr(torch, "__version__", "99.0")
        case "source":
            monkeypatch.setattr(native, "identity", lambda: "another")
    held(model().architecture, "int8")
    assert measured == ["int8", "int8"]


@only_native
@pytest.mark.parametrize("damage", ["", "no json", "[]", "{}", "foreign", "wrong key", "not a number"])
def test_a_damaged_or_foreign_record_is_made_again(measured: list[Kind], damage: str, own_cache: Path) -> None:
    found = held(model().architecture, "int8")
    (path,) = own_cache.glob("native/check-*.json")
    whole = json.loads(path.read_text())
    match damage:
        case "foreign":
            path.write_text(json.dumps(whole | {"more": 1}))
        case "wrong key":
            path.write_text(json.dumps(whole | {"key": whole["key"] | {"cpu": "another"}}))
        case "not a number":
            path.write_text(json.dumps(whole | {"typical": "small"}))
        case _:
            path.write_text(damage)
    assert held(model().architecture, "int8") == found
    assert measured == ["int8", "int8"]
    assert json.loads(path.read_text()) == whole


@only_native
def test_a_cache_that_cannot_be_written_is_no_reason_not_to_talk(own_cache: Path) -> None:
    (own_cache / "native").write_text("a file where a folder should be")
    assert choose(model(), "int8").model is not None


@only_native
@pytest.mark.parametrize("wrong", ["one token", "no numbers", "scaled"])
def test_a_wrong_kernel_falls_back_and_says_so(
    wrong: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sound = FastModel.step

    def step(self: FastModel, pieces: Sequence[Piece], ask: Sequence[int]) -> torch.Tensor:
        logits = sound(self, pieces, ask)
        if wrong == "one token" and len(ask) == 3:  # as if a block of three rows lost its last
            logits[2] = 0
        elif wrong == "no numbers":
            logits[0, 0] = float("nan")
        elif wrong == "scaled":
            logits *= 1.2
        return logits

    monkeypatch.setattr(FastModel, "step", step)
    for _ in range(2):  # measured, and from the record
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = choose(model(), "int8")
        assert found.model is None
        assert found.reason is not None
        assert ("no numbers" if wrong == "no numbers" else "is off by") in found.reason
        assert found.reason in caplog.text
        assert found.reason in found.explain()[0]


def test_what_the_step_does_not_compute_or_the_machine_lacks_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "rope" in str(choose(model(position="alibi"), "int8").reason)
    monkeypatch.setattr(compiled, "compiler", lambda: None)
    monkeypatch.setattr(compiled, "instruction_sets", lambda: compiled.NEEDED)
    monkeypatch.delenv("LLMLAB_NATIVE", raising=False)
    assert "compiler" in choose(model(), "int8").explain()[0]
    monkeypatch.setenv("LLMLAB_NATIVE", "0")
    assert "switched off" in choose(model(), "int8").explain()[0]
