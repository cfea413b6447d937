"""Question 14's measures: a model in every precision, outliers planted without changing it, timings taken in turn."""

import math

import pytest
import torch

from llmlab.compression.int8_products import OutlierLinear
from llmlab.handbook import precisions
from llmlab.handbook.question import Verdict, load
from llmlab.handbook.raced import Told, race, shipped
from llmlab.model.linear import Linear
from llmlab.stages import Session

TIMED = {"rows": 2, "prompt": 16, "new": 2, "rounds": 1}


@pytest.fixture(scope="module")
def model():
    return precisions.LITTLE.build(precisions.VOCABULARY, 0).requires_grad_(False)


def test_the_methods_have_one_order_everywhere():
    names = precisions.METHODS
    for kind in ("layer prefill", "prefill", "megabytes"):
        asked = [measure for measure in race("precision_speed").measures if measure.startswith(f"{kind} ")]
        assert [m for m in asked if "native" not in m] == [f"{kind} {method}" for method in names]
    assert set(race("precision_loss").measures) == {f"{name}{m}" for name in ("", "planted ") for m in names}


@pytest.mark.parametrize("method", precisions.METHODS)
def test_a_changed_model_is_nearly_the_same_and_the_original_is_untouched(model, method):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = precisions.changed(model, method)
    ids = torch.arange(30)[None]
    exact, near = model(ids), made(ids).float()
    assert (near - exact).norm() < 0.15 * exact.norm()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    integers = method not in precisions.DTYPES
    assert integers != any(type(module) is Linear for module in made.modules())
    wanted = precisions.DTYPES.get(method, torch.bfloat16)
    assert all(parameter.dtype == wanted for parameter in made.parameters())


def test_bytes_fall_with_the_bits(model):
    sizes = {method: precisions.size(precisions.changed(model, method)) for method in precisions.METHODS}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert sizes["fp32"] == 4 * parameters
    assert sizes["fp16"] == sizes["bf16"] == 2 * parameters
    assert sizes["W4A16"] < sizes["W8A16"] == sizes["W8A8"] == sizes["LLM.int8()"] < sizes["bf16"]


def test_planting_outliers_changes_nothing_but_makes_some(model):
    made = precisions.planted(model, 0)
    ids = torch.arange(40)[None]
    torch.testing.assert_close(made(ids), model(ids), atol=1e-4, rtol=1e-4)
    counts = []
    for one in (model, made):
        split = precisions.changed(one, "LLM.int8()")
        assert any(isinstance(module, OutlierLinear) for module in split.modules())
        counts.append(precisions._outliers(split, ids.tolist()))
    assert counts[1] > counts[0] + 1


def test_all_take_turns():
    order = []

    def timed(name, seconds):
        def run():
            order.append(name)
            return seconds

        return run

    assert precisions.in_turn({"a": timed("a", 1.0), "b": timed("b", 2.0)}, 2) == {"a": 1.0, "b": 2.0}
    assert "".join(order) == "baabba"


def test_a_model_and_layers_are_timed_by_every_method(model, monkeypatch):
    monkeypatch.setattr(precisions, "FRESH", 2)
    told = precisions.model_timed(model, TIMED, 0) | precisions.layers_timed(TIMED, 0)
    assert {*told, "bandwidth"} == set(race("precision_speed").measures)
    assert all(isinstance(value, str) or value > 0 for name, value in told.items() if name != "outlier columns")


def test_a_cpu_without_integer_products_leaves_them_out_and_says_so(model, monkeypatch):
    monkeypatch.setattr(precisions, "instruction_sets", lambda: frozenset({"avx2"}))
    monkeypatch.setattr(precisions.native, "available", lambda: "no compiler")
    monkeypatch.setattr(precisions, "FRESH", 2)
    told = precisions.model_timed(model, TIMED, 0) | precisions.layers_timed(TIMED, 0)
    assert "VNNI" in told["decode W8A8"]
    assert told["decode native int8"] == "no compiler"
    assert told["layer decode W8A16"] > 0
    both = shipped("precision_speed"), shipped("precision_loss")
    ceilings = shipped("speed")
    assert all(both)
    assert ceilings is not None
    rows = {m: {arm: [value] * 5 for arm in ("1 text", "8 texts")} for m, value in {**told, "bandwidth": 9.0}.items()}
    speed = Told({**both[0].record, "rows": rows})
    question = load(14)
    races = {"precision_speed": speed, "precision_loss": both[1], "speed": ceilings}
    figures = question.figures(Session()) | question.raced(races)
    assert all(math.isfinite(value) for value in figures.values())
    names = {claim.name for claim in question.decided(figures)}
    assert {"range", "precise enough", "products", "both accelerate", "width"} <= names
    assert not names & {"int8 or fp16", "outliers apart", "weights alone", "roofline"}
    assert isinstance(question.verdict(figures), Verdict)
    assert "Not all could be timed" in question.evidence(figures).en
    times, beats, _ = question.tables(figures)
    row = {str(name): cells for name, *cells in times.rows}
    assert set(row["W8A8"]) == set(row["native int8"]) == {"–"}
    assert "–" not in row["W8A16"]
    assert {name for name, *cells in beats.rows if "–" not in cells} == {"W8A16 / fp16", "W8A16 / bf16"}
    assert figures["compared"] == 8


def test_nothing_beats_its_roofline_and_words_follow_the_comparisons():
    told = {name: shipped(name) for name in load(14).races}
    figures = load(14).raced(told)
    beside = {name: value for name, value in figures.items() if ": roofline" in name}
    assert len(beside) == 2 * 2 * 10
    assert all(value > 1 for value in beside.values()), "a ceiling that is beaten is none"
    # One row more or less does not change what a plain pass of fp32 must read: the weights, and 262 tokens' cache.
    assert figures["1 text: roofline decode fp32"] == pytest.approx(
        figures["1 text: decode fp32"] / 1e3 * figures["1 text: bandwidth"] * 1e9 / (4 * 134_515_008 + 262 * 46_080),
        rel=1e-3,
    )
    assert figures["int8_faster"] + figures["int8_slower"] <= figures["compared"] == 24
