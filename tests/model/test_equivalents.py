"""Converted models compute what the given ones do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmlab.errors import InputError
from llmlab.model.equivalents import fold_gains, grouped, to_multihead, to_rmsnorm
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse


def build(**parts: Any) -> Transformer:
    """A small model whose gains and biases are not neutral."""
    model = parse(Architecture, {"layers": 2, "dim": 32, "context": 32, "initial_std": 0.2, **parts}).build(40).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return model


@torch.no_grad()
def gap(one: Transformer, other: Transformer) -> float:
    ids = torch.randint(40, (2, 20), generator=torch.Generator().manual_seed(2))
    return float((one(ids) - other(ids)).abs().max())


@pytest.mark.parametrize(
    "norm", ["layernorm", {"kind": "layernorm", "bias": False}, "rmsnorm", {"kind": "rmsnorm", "offset": 1.0}]
)
@pytest.mark.parametrize("wiring", ["pre", "parallel"])
def test_gains_fold_into_what_reads_them(norm: Any, wiring: str, feedforward_kind: type) -> None:
    model = build(norm=norm, wiring=wiring, feedforward=feedforward_kind())
    folded = fold_gains(model)
    assert gap(model, folded) < 1e-4
    gains = [p for name, p in folded.named_parameters() if name.endswith("norm.weight")]
    assert len(gains) == 5
    assert all(torch.equal(gain + getattr(model.architecture.norm, "offset", 0), torch.ones(32)) for gain in gains)


@pytest.mark.parametrize("position", ["rope", "learned", "alibi", "none"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("wiring", ["pre", "parallel"])
def test_layernorm_becomes_rmsnorm(position: str, tied: bool, wiring: str) -> None:
    model = build(
        norm="layernorm", position=position, tied=tied, wiring=wiring, feedforward={"kind": "gelu", "bias": True}
    )
    converted = to_rmsnorm(model)
    assert converted.architecture.norm.kind == "rmsnorm"
    assert gap(model, converted) < 1e-4
    with torch.no_grad():  # the test can fail: what is not centred is not the same function
        converted.embedding.weight.add_(0.1)
    assert gap(model, converted) > 1e-3


def test_heads_written_out_and_joined_again() -> None:
    model = build(attention={"kind": "gqa", "heads": 4, "kv_heads": 2, "bias": True})
    wide = to_multihead(model)
    assert wide.architecture.attention.kind == "mha"
    assert gap(model, wide) < 1e-5
    assert gap(model, grouped(wide, 2)) < 1e-5
    assert gap(wide, grouped(wide, 1)) > 1e-3  # heads that differ do not survive an average
    with pytest.raises(InputError, match="kv_heads: 3 does not divide 4"):
        grouped(wide, 3)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"wiring": "post"}, "model: wiring post cannot be converted"),
        ({"norm": "rmsnorm"}, "model.norm: rmsnorm is no layernorm"),
        ({"norm": "layernorm", "position": "sinusoidal"}, "model.position: sinusoidal"),
        ({"norm": "layernorm", "position": "none", "attention": "lstm"}, "model.attention: lstm has no keys"),
    ],
)
def test_what_cannot_be_converted_says_so(parts: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        to_rmsnorm(build(**parts))
