"""Every question of the handbook: texts, thresholds that decide, figures that come out as recorded."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import llmlab
from llmlab.compression.int8_products import W8A8Linear, quantize_tokens
from llmlab.errors import InputError
from llmlab.handbook import (
    decoding_desk,
    exact_repeats,
    ladder,
    q10_domain_models,
    q11_longer_text,
    q30_token_repetition,
    q41_layernorm,
    q50_gelu,
    q51_swish,
    q53_geglu,
    q54_swiglu,
    roofline,
)
from llmlab.handbook.question import Check, Claim, Figures, Question, Text, Verdict, asked, built, load
from llmlab.handbook.raced import shipped as shipped_race
from llmlab.handbook.runner import SHIPPED, key, shipped
from llmlab.inference import engine, processors, sampling
from llmlab.inference.cache import DenseCache
from llmlab.inference.loops import LoopWatch
from llmlab.longtext.chunk import spans
from llmlab.model import rotary
from llmlab.model.attention import Attention
from llmlab.model.block import Block
from llmlab.model.feedforward import FeedForward, GatedFeedForward
from llmlab.model.masks import Prefix
from llmlab.model.norms import RootMeanSquare
from llmlab.model.places import Places
from llmlab.model.positions import LearnedEncoding, SinusoidalEncoding
from llmlab.model.relative import AlibiEncoding, T5Encoding
from llmlab.model.rotary import NoScaling, RotaryEncoding, YaRN
from llmlab.stages import Session

BUILT = built()
QUESTIONS = [load(number) for number in BUILT]
CLAIMS = [(question, claim) for question in QUESTIONS for claim in question.claims]
CHECKS = [
    (question, claim, check)
    for question in QUESTIONS
    for claim in question.decided((shipped(question.number) or {"figures": {}})["figures"])
    for check in claim.checks
]
shown, put = Attention._shown, DenseCache._put
CHINESE = re.compile(r"[一-鿿]")

# The specification's verdicts. A change here is a change of what the handbook is said to be worth.
VERDICTS = {
    1: Verdict.CORRECTED,
    2: Verdict.CORRECTED,
    3: Verdict.NOT_REPRODUCED,
    4: Verdict.CORRECTED,
    5: Verdict.CORRECTED,
    6: Verdict.CORRECTED,
    7: Verdict.CORRECTED,
    8: Verdict.REFUTED,
    9: Verdict.CORRECTED,
    10: Verdict.REFUTED,
    11: Verdict.REFUTED,
    12: Verdict.CORRECTED,
    13: Verdict.NOT_REPRODUCED,
    14: Verdict.NOT_REPRODUCED,
    16: Verdict.CORRECTED,
    17: Verdict.NOT_REPRODUCED,
    30: Verdict.REFUTED,
    31: Verdict.CORRECTED,
    32: Verdict.REFUTED,
    33: Verdict.CORRECTED,
    34: Verdict.REFUTED,
    35: Verdict.REFUTED,
    36: Verdict.NOT_REPRODUCED,
    37: Verdict.NOT_REPRODUCED,
    38: Verdict.REFUTED,
    39: Verdict.REFUTED,
    40: Verdict.REFUTED,
    41: Verdict.CORRECTED,
    42: Verdict.CORRECTED,
    43: Verdict.REFUTED,
    44: Verdict.REFUTED,
    45: Verdict.REFUTED,
    46: Verdict.REFUTED,
    47: Verdict.CORRECTED,
    48: Verdict.REFUTED,
    49: Verdict.CONFIRMED,
    50: Verdict.CORRECTED,
    51: Verdict.CONFIRMED,
    52: Verdict.CORRECTED,
    53: Verdict.CORRECTED,
    54: Verdict.REFUTED,
}

# What was registered before its race was run, and did not come out at our scale.
UNEXPECTED = {
    (2, "instruction last"): "two layers: the gain's interval holds 0; four layers gain more, not less",
    (3, "sudden, trained"): "the smallest models know digits already: the start of the loss's fall is off the ladder",
    (5, "end suppressed, trained"): "without a chat template hardly an answer ends by itself: nothing is suppressed",
    (6, "copies held down"): "from scratch DITTO's copies take half of the text; with the paper's fine-tuning untried",
    (6, "loops by layers"): "attention alone loops less with two layers than with one",
    (6, "two layers copy"): "three seeds; with periods so short one layer copies by place alone",
    (
        10,
        "least data, most worth",
    ): "three seeds; so it is of English, but Chinese gains as much from an English beginning with all of its text",
    (
        10,
        "adapters forget less",
    ): "of English they do; on a script that the base never met an adapter, embeddings frozen, "
    "wrecks more than it learns, while it is on",
    (11, "lost in the middle"): "within its length SmolLM2 finds nearly every fact, wherever it stands",
    (13, "weak arithmetic"): "PyTorch's fp32 products of one row read at a third of the bandwidth; narrow kinds pass",
    (
        14,
        "int8 or fp16",
    ): "PyTorch's bf16 product of one row is so slow that even LLM.int8() decodes in less time; not so "
    "fp16's, which is what the question asks for",
    (14, "width"): "the same slow product: bf16 reads faster than fp32, and decodes one text no faster",
    (17, "who teaches"): "the teacher had as few steps as its student, and in one seed of five is the worse of the two",
    (
        17,
        "free of charge",
    ): "after 60 steps what the last bits of a loss in chunks began has grown to 0.0012 nats a byte; without them 0",
    (35, "mended"): "YaRN against plain rotations at 4 times the trained length: the interval holds 0",
    (36, "rope, trained"): "YaRN without fine-tuning: the interval holds 0",
    (
        36,
        "a window survives",
    ): "three seeds; a window of 28 and four sinks costs a model of 32 tokens more than 0.1 bits",
    (36, "measuring, trained"): "three seeds: what ALiBi gains side by side and on the same tokens is not told apart",
    (37, "what helps, trained"): "YaRN's interval holds 0, dynamic NTK's mean is on the other side",
    (37, "bases"): "without fine-tuning a larger base is no gain here",
    (37, "rescaled, untuned"): "three seeds: YaRN far better than PI and plain RoPE, NTK not told apart from PI",
    (37, "rescaled, tuned"): "after 50 steps YaRN is still better than PI",
    (37, "sinks"): "a window alone does as well as one with sinks: so short a model has no sink to lose",
    (40, "faster"): "seconds were taken beside other processes: too wide an interval",
    (41, "across samples, trained"): "BatchNorm over 2,048 tokens is a little better than LayerNorm, not worse",
    (44, "batch statistics, trained"): "the same arm of the same race",
    (49, "width, trained"): "after so few steps a wider block is not told apart from a narrow one",
    (51, "activation, trained"): "Swish costs more than the margin against both, after so few steps",
    (52, "gain, trained"): "net of their parameters gates lose a little, after so few steps",
    (53, "printed, trained"): "what the printed GEGLU costs is not told apart from nothing",
}

each = pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: f"q{question.number}")
# What takes seconds is measured once; the formula tier often enough to see that nothing but the seed decides it.
each_formula = pytest.mark.parametrize(
    "question", [q for q in QUESTIONS if q.tier == "formula"], ids=lambda question: f"q{question.number}"
)
each_check = pytest.mark.parametrize(
    ("question", "claim", "check"),
    CHECKS,
    ids=[f"q{q.number}-{claim.name}-{check.figure}" for q, claim, check in CHECKS],
)


@cache
def measured(number: int) -> Figures:
    torch.set_num_threads(1)
    question = load(number)
    return question.figures(Session()) | trained(question)


def trained(question: Question) -> Figures:
    """Figures of the races that ship; none while one of them is missing."""
    told = {name: record for name in question.races if (record := shipped_race(name)) is not None}
    return question.raced(told) if question.raced is not None and len(told) == len(question.races) else {}


def record(question: Question) -> dict[str, Any]:
    found = shipped(question.number)
    assert found is not None, f"question {question.number} has no shipped record"
    return found


def beyond(check: Check) -> float:
    """A value on the other side of the threshold."""
    return check.threshold + {"<": 1.0, "<=": 1.0, "==": 1.0, ">": -1.0, ">=": -1.0}[check.relation]


def as_expected(question: Question) -> Figures:
    """The figures of the record; those that failed a check put on the side on which they were expected."""
    figures: Figures = dict(record(question)["figures"])
    for claim in question.decided(figures):
        for check in claim.checks:
            if not check.passed(figures):
                figures[check.figure] = 2 * check.threshold - beyond(check)
    return figures


# ---------------------------------------------------------------- verdicts


@each
def test_the_verdict_is_the_specified_one(question: Question) -> None:
    assert question.verdict(record(question)["figures"]) is VERDICTS[question.number]


@each
def test_what_did_not_come_out_as_expected_is_known(question: Question) -> None:
    figures = record(question)["figures"]
    fallen = {claim.name for claim in question.decided(figures) if not all(c.passed(figures) for c in claim.checks)}
    assert fallen == {name for number, name in UNEXPECTED if number == question.number}


@each_check
def test_a_figure_across_its_threshold_flips_check_claim_and_verdict(
    question: Question, claim: Claim, check: Check
) -> None:
    figures = as_expected(question)
    before, verdict = claim.judged(figures), question.verdict(figures)
    pushed = figures | {check.figure: beyond(check)}
    assert check.passed(figures)
    assert not check.passed(pushed)
    after = claim.judged(pushed)
    assert after.gravity > before.gravity
    deciding = [one.judged(pushed) for one in question.decided(pushed) if one.kind != "aside"]
    assert question.verdict(pushed) is max(deciding, key=lambda found: found.gravity)
    if claim.kind != "aside" and after is Verdict.NOT_REPRODUCED:
        assert question.verdict(pushed) is Verdict.NOT_REPRODUCED is not verdict


@each_check
def test_a_figure_that_is_no_number_proves_nothing(question: Question, claim: Claim, check: Check) -> None:
    for value in (math.nan, math.inf, -math.inf):
        figures = record(question)["figures"] | {check.figure: value}
        assert claim.judged(figures) is Verdict.NOT_REPRODUCED


@each_check
def test_a_threshold_is_far_from_rounding(question: Question, claim: Claim, check: Check) -> None:
    """No check hangs on the last bits: ten times a tiny gap, or a percent of another figure, changes nothing."""
    value = record(question)["figures"][check.figure]
    for moved in (value * 1.01, value * 0.99) if check.relation != "==" else (value,):
        assert check.passed({check.figure: moved}) == check.passed({check.figure: value})
    if check.relation == "<" and 0 < value < 1e-6:
        assert check.passed({check.figure: 10 * value})


def test_verdicts_combine_by_gravity() -> None:
    def question(*parts: tuple[str, Verdict]) -> Question:
        claims = tuple(
            Claim(f"claim {place}", "said", "说", (Check(f"figure {place}", ">", 0.0, "asks", "问"),), verdict, kind)  # type: ignore[arg-type]
            for place, (kind, verdict) in enumerate(parts)
        )
        return dataclasses.replace(load(50), claims=claims)

    right, wrong = {f"figure {place}": 1.0 for place in range(3)}, {f"figure {place}": -1.0 for place in range(3)}
    mixed = question(("main", Verdict.CONFIRMED), ("main", Verdict.CORRECTED), ("aside", Verdict.REFUTED))
    assert mixed.verdict(right) is Verdict.CORRECTED  # the aside does not decide
    assert mixed.verdict(right | {"figure 0": -1.0}) is Verdict.REFUTED  # what was to be confirmed is refuted
    assert mixed.verdict(right | {"figure 1": -1.0}) is Verdict.NOT_REPRODUCED  # the correction did not show
    assert mixed.verdict(right | {"figure 2": -1.0}) is Verdict.CORRECTED
    guarded = question(("main", Verdict.CONFIRMED), ("control", Verdict.CONFIRMED))
    assert guarded.verdict(right) is Verdict.CONFIRMED
    assert guarded.verdict(right | {"figure 1": -1.0}) is Verdict.NOT_REPRODUCED  # a broken instrument
    assert question(("main", Verdict.PREDICTED_ONLY)).verdict(right) is Verdict.PREDICTED_ONLY
    assert question(("main", Verdict.PREDICTED_ONLY)).verdict(wrong) is Verdict.NOT_REPRODUCED


@pytest.mark.parametrize("relation", ["<", "<=", ">", ">=", "=="])
def test_relations(relation: Any) -> None:
    check = Check("x", relation, 2.0, "asks", "问")
    expected = {"<": (1, 0, 0), "<=": (1, 1, 0), ">": (0, 0, 1), ">=": (0, 1, 1), "==": (0, 1, 0)}[relation]
    assert tuple(int(check.passed({"x": value})) for value in (1.0, 2.0, 3.0)) == expected


# ---------------------------------------------------------------- figures


@each
def test_figures_are_finite_and_evidence_is_made_of_them(question: Question) -> None:
    figures = record(question)["figures"]
    assert all(math.isfinite(value) for value in figures.values())
    doubled = question.evidence({name: 2 * value + 1 for name, value in figures.items()})
    for spoken, other in zip(question.evidence(figures), doubled, strict=True):
        assert spoken != other, "the numbers of the evidence must come from the figures"
        assert "\n" not in spoken
    again = question.tables({name: 2 * value + 1 for name, value in figures.items()})
    for table, other in zip(question.tables(figures), again, strict=True):
        assert table.rows != other.rows, "and so must those of its tables"
        assert {len(row) for row in table.rows} == {len(table.heads)}


@each_formula
def test_two_runs_give_the_same_figures_whatever_the_global_generator_does(question: Question) -> None:
    first = measured(question.number)
    torch.manual_seed(123)
    assert question.figures(Session()) | trained(question) == first


@each_formula
def test_another_seed_gives_the_same_verdict(question: Question) -> None:
    figures = question.figures(Session(seed=1)) | trained(question)
    assert question.verdict(figures) is VERDICTS[question.number]


@each
def test_the_shipped_record_is_what_comes_out(question: Question) -> None:
    found, figures = record(question), measured(question.number)
    assert found["key"] == key(question, 0), "settings or measure changed: run it again and ship the record"
    assert found["verdict"] == question.verdict(figures)
    assert found["figures"].keys() == figures.keys()
    for name, value in figures.items():
        assert value == pytest.approx(found["figures"][name], rel=1e-3, abs=1e-5), name
    decided = question.decided(figures)
    checks = [check for claim in decided for check in claim.checks]
    assert [row["passed"] for row in found["checks"]] == [check.passed(figures) for check in checks]
    assert [row["threshold"] for row in found["checks"]] == [check.threshold for check in checks]
    assert [row["verdict"] for row in found["claims"]] == [claim.judged(figures) for claim in decided]


def test_every_record_belongs_to_a_question() -> None:
    assert sorted(path.name for path in SHIPPED.glob("q*.json")) == [f"q{number:02d}.json" for number in BUILT]


def test_numbers_of_the_specification() -> None:
    """Computed independently (numpy) for the specification; ours must find the same."""
    q41, q50, q51 = measured(41), measured(50), measured(51)
    assert q50["printed_error"] == pytest.approx(0.0242, abs=5e-5)
    assert q50["printed_error_at"] == pytest.approx(-2.20, abs=5e-3)
    assert q50["tanh_error"] == pytest.approx(4.7e-4, abs=5e-6)
    assert (q50["printed_rms"], q50["tanh_rms"]) == (pytest.approx(8.1e-3, abs=5e-5), pytest.approx(1.3e-4, abs=5e-6))
    assert pytest.approx(1.66712, abs=5e-6) == q50_gelu.HIDDEN_BETA
    assert q50["curvature_at_0"] == pytest.approx(0.798, abs=5e-4)
    assert q50["curvature_far"] == pytest.approx(0.002, abs=5e-4)
    for beta in (1, 10, 100):
        assert q51[f"relu_distance_beta_{beta}"] == pytest.approx(0.2785 / beta, rel=1e-3)
    assert (q51["minimum"], q51["minimum_at"]) == (pytest.approx(-0.278, abs=5e-4), pytest.approx(-1.278, abs=5e-4))
    assert (q51["curvature_at_0"], q51["curvature_at_4"]) == (pytest.approx(0.5), pytest.approx(-0.033, abs=5e-4))
    assert (q41["excess_d8"], q41["excess_d64"]) == (pytest.approx(0.069, abs=5e-4), pytest.approx(0.0079, abs=5e-5))
    assert q41["kept_eps_inside"] == pytest.approx(0.032, abs=5e-4)
    assert q41["kept_eps_outside"] == pytest.approx(0.909, abs=5e-4)


# ---------------------------------------------------------------- experiments that can fail


def blind_to_the_prefix(self: Prefix, ids: Tensor) -> Places:
    return Places.causal(*ids.shape)


def counted_twice(self: Attention, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    mixed: Tensor = shown(self, q, k, v, *rest)
    return mixed + v.mean(2, keepdim=True)


def centring(self: RootMeanSquare, x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def spanning_everything(self: RootMeanSquare, x: Tensor) -> Tensor:
    return self.weight * x * torch.rsqrt(x.square().mean() + self.eps)


def added_nothing(self: SinusoidalEncoding, x: Tensor, at: Places) -> Tensor:
    return x


def wrapped_around(self: LearnedEncoding, x: Tensor, at: Places) -> Tensor:
    return x + torch.nn.functional.embedding(at.position % 48, self.weight)


def without_logarithm(self: T5Encoding, distance: Tensor) -> Tensor:
    return distance.clamp(0, self.part.buckets - 1)


def turned_the_wrong_half(self: RotaryEncoding, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([second, first], -1) * sin


def all_alike(pairs: int, base: float) -> Tensor:
    return torch.ones(pairs)


def gated_by_the_value(self: GatedFeedForward, x: Tensor, role: object = None) -> Tensor:
    y: Tensor = self.down(self.activation(self.up(x)) * self.gate(x))
    return y


def looking_aside(self: FeedForward, x: Tensor, role: object = None) -> Tensor:
    y: Tensor = self.down(self.activation(self.up(x + 1e-3 * x.mean(-2, keepdim=True))))
    return y


def liking_what_is_far(self: AlibiEncoding, prepared: Tensor) -> Tensor:
    return prepared.abs().float()[:, None] * self.slopes(prepared.device)[:, None, None]


def normed_last(self: Block, x: Tensor, part: Callable[[Tensor], Tensor], norm: torch.nn.Module, after: Any) -> Tensor:
    y: Tensor = norm(x + part(x))
    return y


def all_or_nothing(seed: int, size: float) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    drawn = torch.rand(ladder.TESTED, 1, generator=source, dtype=torch.float64) < math.exp(-ladder.nats(size))
    return drawn.expand(-1, ladder.LENGTHS[-1])


def without_the_token_scale(self: W8A8Linear, x: Tensor) -> Tensor:
    codes, scale = quantize_tokens(x)
    return torch._int_mm(codes, self.codes.t()) * scale.mean() * self.scale


def same_noise(key: int, position: int, vocabulary: int) -> Any:
    import numpy

    return numpy.ones(vocabulary, dtype=numpy.float32)


def kept_in_double(self: DenseCache, buffers: dict[int, Tensor], layer: int, new_BGTK: Tensor) -> Tensor:
    return put(self, buffers, layer, new_BGTK.double()).to(new_BGTK.dtype)


def without_overlap(length: int, size: int, overlap: int = 0) -> Any:
    return spans(length, size)


@pytest.mark.parametrize(
    ("number", "owner", "name", "broken", "verdict"),
    [
        (2, Prefix, "places", blind_to_the_prefix, Verdict.NOT_REPRODUCED),
        (3, ladder, "right", all_or_nothing, Verdict.NOT_REPRODUCED),
        (4, Attention, "_shown", counted_twice, Verdict.NOT_REPRODUCED),
        (5, LoopWatch, "push", lambda self, id: None, Verdict.NOT_REPRODUCED),
        (7, processors, "penalise_repetition", exact_repeats.printed, Verdict.NOT_REPRODUCED),
        (8, rotary, "_plain", all_alike, Verdict.NOT_REPRODUCED),
        (10, q10_domain_models, "runs", lambda ids: {0}, Verdict.NOT_REPRODUCED),
        (11, q11_longer_text, "spans", without_overlap, Verdict.NOT_REPRODUCED),
        (12, DenseCache, "_put", kept_in_double, Verdict.NOT_REPRODUCED),
        (13, roofline, "matrix_weights", lambda a: a.layers * a.dim**2, Verdict.NOT_REPRODUCED),
        (14, W8A8Linear, "product", without_the_token_scale, Verdict.NOT_REPRODUCED),
        (16, sampling, "noise", same_noise, Verdict.NOT_REPRODUCED),
        (30, q30_token_repetition, "shuffled", lambda seed: torch.arange(4068), Verdict.NOT_REPRODUCED),
        (31, SinusoidalEncoding, "embed", added_nothing, Verdict.NOT_REPRODUCED),
        (32, LearnedEncoding, "embed", wrapped_around, Verdict.NOT_REPRODUCED),
        (33, T5Encoding, "bucket", without_logarithm, Verdict.NOT_REPRODUCED),
        (34, RotaryEncoding, "_turn", turned_the_wrong_half, Verdict.NOT_REPRODUCED),
        (35, rotary, "_plain", all_alike, Verdict.NOT_REPRODUCED),
        (
            36,
            YaRN,
            "frequencies",
            lambda self, pairs, base: NoScaling().frequencies(pairs, base),
            Verdict.NOT_REPRODUCED,
        ),
        (37, LearnedEncoding, "embed", lambda self, x, at: x, Verdict.NOT_REPRODUCED),
        (38, AlibiEncoding, "slopes", lambda self, device: torch.zeros(self.heads), Verdict.NOT_REPRODUCED),
        (39, AlibiEncoding, "bias", liking_what_is_far, Verdict.NOT_REPRODUCED),
        (40, AlibiEncoding, "bias", liking_what_is_far, Verdict.NOT_REPRODUCED),
        (42, RootMeanSquare, "forward", centring, Verdict.NOT_REPRODUCED),
        (43, RootMeanSquare, "forward", spanning_everything, Verdict.NOT_REPRODUCED),
        (48, Block, "_wired", normed_last, Verdict.NOT_REPRODUCED),
        (49, FeedForward, "forward", looking_aside, Verdict.REFUTED),
        (50, q50_gelu, "gelu", q50_gelu.PrintedGELU(), Verdict.NOT_REPRODUCED),
        (51, q51_swish, "SwishFunction", lambda beta: torch.sigmoid, Verdict.REFUTED),
        (52, GatedFeedForward, "forward", gated_by_the_value, Verdict.NOT_REPRODUCED),
        (53, GatedFeedForward, "forward", gated_by_the_value, Verdict.NOT_REPRODUCED),
        (54, GatedFeedForward, "forward", gated_by_the_value, Verdict.NOT_REPRODUCED),
    ],
)
def test_a_broken_part_changes_the_verdict(
    number: int, owner: Any, name: str, broken: Any, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, broken)
    question = load(number)
    assert question.verdict(question.figures(Session()) | trained(question)) is verdict


def test_an_unbiased_layernorm_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.LayerNorm, "forward", q41_layernorm.PrintedLayerNorm.forward)
    assert load(41).verdict(load(41).figures(Session())) is not Verdict.CORRECTED


def test_an_engine_that_minds_its_neighbours_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = engine._prefill

    def leaking(model: Any, prompts: Any, *rest: Any) -> tuple[Tensor, Places]:
        logits_BV, at = right(model, prompts, *rest)
        return logits_BV + 3 * (len(prompts) > 1) * logits_BV.roll(1, 0), at

    monkeypatch.setattr(engine, "_prefill", leaking)
    question = load(16)
    assert question.verdict(question.figures(Session())) is Verdict.NOT_REPRODUCED


def test_the_written_out_blocks_are_those_of_transformers() -> None:
    """The references of questions 53 and 54 against T5 v1.1's gated block and LLaMA's."""
    from transformers import LlamaConfig, T5Config
    from transformers.models.llama.modeling_llama import LlamaMLP
    from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

    block = q53_geglu._block(0)
    config = T5Config(
        d_model=q53_geglu.DIM, d_ff=block.up.weight.shape[0], feed_forward_proj="gated-gelu", dropout_rate=0
    )
    theirs = T5DenseGatedActDense(config).double().eval()
    theirs.wi_0.weight, theirs.wi_1.weight, theirs.wo.weight = block.gate.weight, block.up.weight, block.down.weight
    x = torch.linspace(-2, 2, 3 * q53_geglu.DIM, dtype=torch.float64).reshape(3, -1)
    assert torch.allclose(q53_geglu._by_hand(block, x), theirs(x), atol=1e-12)

    llama_block = q54_swiglu._block(0)
    llama = LlamaMLP(
        LlamaConfig(hidden_size=q54_swiglu.DIM, intermediate_size=llama_block.up.weight.shape[0], num_attention_heads=4)
    ).double()
    llama.gate_proj.weight, llama.up_proj.weight = llama_block.gate.weight, llama_block.up.weight
    llama.down_proj.weight = llama_block.down.weight
    assert torch.allclose(llama_block(x), llama(x), atol=1e-12)


def test_the_sampler_question_scores_what_the_handbook_omits() -> None:
    """Each setting of sampling and of searches; apart: what the handbook has, a form, and stops and seeds by name."""
    apart = {"temperature", "max_new_tokens", "min_new_tokens", "stop", "seed", "constraint"}
    assert set(decoding_desk.OMITTED) == set(sampling.Sampling.model_fields) - apart | {"total length", "stop texts"}
    assert set(decoding_desk.SEARCHES) == {"beams", "groups", "length_penalty", "early_stopping", "contrastive"}
    assert measured(16)["parameters_tried"] == 18


# ---------------------------------------------------------------- texts


def spoken(question: Question) -> Iterator[Text]:
    yield from (question.claim, question.correction, question.run, *question.on_paper.values())
    for claim in question.claims:
        yield claim.said
        yield from (check.asks for check in claim.checks)
    yield question.evidence(record(question)["figures"])
    for table in question.tables(record(question)["figures"]):
        yield table.title
        cells = (cell for line in (table.heads, *table.rows) for cell in line)
        yield from (cell for cell in cells if isinstance(cell, Text))
    yield Text(*(record(question)["evidence"][lang] for lang in ("en", "zh")))


def test_there_are_54_questions() -> None:
    assert list(asked()) == list(range(1, 55))
    assert {one.family for one in asked().values()} <= set("APNFKRDMSCEX")
    for one in asked().values():
        assert CHINESE.search(one.text.zh)
        assert not CHINESE.search(one.text.en)
        assert one.text.en.endswith(("?", "."))


@each
def test_both_languages_are_there(question: Question) -> None:
    for text in spoken(question):
        assert text.en.strip() == text.en != ""
        assert not CHINESE.search(text.en), text.en
        assert text.zh.strip() == text.zh != ""
        assert CHINESE.search(text.zh), text.zh
        assert not re.search(r"[一-鿿] ?[,;!?]|  ", text.zh), f"half-width mark in {text.zh}"


@each
def test_a_correction_has_its_papers_and_every_error_is_dealt_with(question: Question) -> None:
    assert question.papers
    assert all(
        re.search(r"\b(19|20)\d\d\b.*arXiv \d{4}\.\d{5}$|arXiv \d{4}\.\d{4,5}$", paper) for paper in question.papers
    )
    tested = {code for claim in question.claims for code in claim.errors}
    assert tested <= question.errors.keys()
    assert question.on_paper.keys() == question.errors.keys() - tested


@each
def test_names_are_unique_and_files_exist(question: Question) -> None:
    names = [claim.name for claim in question.claims]
    assert len(set(names)) == len(names)
    rows = [(claim.name, check.figure) for claim, check in question.checks]
    assert len(set(rows)) == len(rows)
    assert all(claim.checks for claim in question.claims)
    package = Path(llmlab.__file__).parent.parent
    assert all((package / used).is_file() for used in question.uses)
    json.dumps(dict(question.settings))


def pieces(text: str, size: int) -> set[str]:
    return {text[start : start + size] for start in range(len(text) - size + 1)}


@pytest.mark.parametrize(("drop", "longest"), [(r"\s", 15), (r"[^一-鿿]", 8)], ids=["any characters", "Chinese alone"])
def test_nothing_is_copied_from_the_handbook(drop: str, longest: int, shared: Path) -> None:
    """Not so many characters in a row are the handbook's, be it with formulas and English, or in Chinese alone."""
    handbook = (shared.parent / "handbook" / "original-zh.txt").read_text(encoding="utf-8")
    original = pieces(re.sub(drop, "", handbook).lower(), longest + 1)
    ours = [text for one in asked().values() for text in one.text]
    ours += [text for question in QUESTIONS for both in spoken(question) for text in both]
    for text in ours:
        without_terms = re.sub(r"(?i)large language models?|position encoding", "|", text)
        assert pieces(re.sub(drop, "", without_terms).lower(), longest + 1) & original == set(), text


@each
def test_the_errors_are_those_of_the_specification(question: Question, shared: Path) -> None:
    map_text = (shared.parent / "handbook" / "map.md").read_text(encoding="utf-8")
    section = map_text.split(f"### Q{question.number}. ")[1].split("\n### ")[0]
    found = dict(re.findall(rf"(E{question.number}\.\d+) \(([WMI])\b", section))
    assert dict(question.errors) == found


@pytest.mark.parametrize("number", [0, -1, 55, 99])
def test_no_such_question(number: int) -> None:
    with pytest.raises(InputError, match=r"no question .*1 to 54"):
        load(number)
