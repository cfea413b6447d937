"""Quantised linears: the half-step bound, exact requantisation, kernels against the plain path."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import InputError
from llmlab.model import quantized
from llmlab.model.quantized import (
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    dequantize_groups,
    dequantize_rows,
    pack_nibbles,
    quantize_groups,
    quantize_rows,
    unpack_nibbles,
    use_kernels,
)

# Weights as trained, and the awkward ones: all equal, all zero, far from zero and close together, tiny, huge.
SCALES = st.sampled_from([1e-30, 1e-7, 1e-3, 0.02, 1.0, 300.0, 1000.0])
SHIFTS = st.sampled_from([0.0, 0.0, -0.03, 1.0, -7.7, 1e4])


@st.composite
def weights(draw, limit=60_000.0):
    rows, groups = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(rows, 32 * groups, generator=generator) * draw(SCALES) + draw(SHIFTS)
    if draw(st.booleans()):
        weight[0] = weight[0, 0]
    if draw(st.booleans()):
        weight[-1] = 0
    return weight.clamp(-limit, limit)


@settings(deadline=None, max_examples=150)
@given(weights())
def test_int8_lies_within_half_a_step_and_twice_is_once(weight):
    codes, scale = quantize_rows(weight)
    back = dequantize_rows(codes, scale)
    assert codes.abs().max() <= 127
    assert torch.all((back.double() - weight.double()).abs() <= scale.double()[:, None] / 2)
    again_codes, again_scale = quantize_rows(back)
    assert torch.equal(again_codes, codes)
    assert torch.equal(again_scale, scale)


@settings(deadline=None, max_examples=300)
@given(weights())
def test_int4_lies_within_half_a_step_and_twice_is_once(weight):
    codes, scale, minimum = quantize_groups(weight, 32)
    assert codes.max() <= 15
    exact = codes.double().view(*scale.shape, 32) * scale.double()[..., None] + minimum.double()[..., None]
    off = (exact.view(weight.shape) - weight.double()).abs().view(*scale.shape, 32)
    assert torch.all(off <= scale.double()[..., None] / 2)
    back = dequantize_groups(codes, scale, minimum)
    assert torch.equal(back.double(), exact.view(weight.shape)), "float32 holds every dequantised weight exactly"
    for first, second in zip((codes, scale, minimum), quantize_groups(back, 32), strict=True):
        assert torch.equal(first, second)


def test_a_step_is_no_larger_than_the_range_asks_for():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)) * 0.02
    _, scale, minimum = quantize_groups(weight, 64)
    ideal = (weight.view(64, -1, 64).amax(2) - weight.view(64, -1, 64).amin(2)) / 15
    assert scale.shape == minimum.shape == (64, 4)
    assert torch.all(scale.float() <= ideal * 1.003)
    assert torch.all(quantize_rows(weight)[1].float() <= weight.abs().amax(1) / 127 * 1.0001)


def test_q4_1_blocks_are_taken_over_without_loss():
    """llama.cpp's Q4_1 is d * code + m in groups of 32 with fp16 d and m: the same numbers must come out."""
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(0, 16, (40, 4, 32), generator=generator)
    codes[..., 0], codes[..., 1] = 0, 15
    d = (torch.rand(40, 4, generator=generator) * 0.02 + 1e-3).half()
    m = -(torch.rand(40, 4, generator=generator) * 0.2).half()
    weight = codes * d.float()[..., None] + m.float()[..., None]
    found, scale, minimum = quantize_groups(weight.view(40, 128), 32)
    assert torch.equal(found.view(codes.shape).long(), codes)
    assert torch.equal(scale, d)
    assert torch.equal(minimum, m)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_nibbles_round_trip(rows, pairs, seed):
    codes = torch.randint(0, 16, (rows, 2 * pairs), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    assert torch.equal(unpack_nibbles(pack_nibbles(codes)), codes)


@pytest.mark.parametrize(
    ("columns", "group", "hint"), [(96, 64, "32 would fit"), (100, 32, "int8"), (320, 128, "32 or 64 would fit")]
)
def test_columns_that_are_no_whole_groups_are_refused_by_name(columns, group, hint):
    problem = f"blocks.0.up: {columns} columns are no whole number of groups of {group}.*{hint}"
    with pytest.raises(InputError, match=problem):
        quantize_groups(torch.zeros(4, columns), group, "blocks.0.up")


def test_weights_that_no_scale_can_hold_are_refused_by_name():
    broken = torch.zeros(4, 32)
    broken[1, 2] = float("nan")
    for quantize in (lambda w: quantize_rows(w, "head"), lambda w: quantize_groups(w, 32, "head")):
        with pytest.raises(InputError, match="head: holds a weight that is not finite"):
            quantize(broken)
    broken[1, 2] = 1e5
    with pytest.raises(InputError, match="head: holds a weight beyond 65504"):
        quantize_groups(broken, 32, "head")


def linears():
    for rows, columns in ((48, 64), (50, 96), (1, 32), (33, 256)):
        generator = torch.Generator().manual_seed(rows)
        weight = torch.randn(rows, columns, generator=generator) * 0.05
        bias = torch.randn(rows, generator=generator)
        yield weight, bias, Int8Linear.of(weight, bias)
        yield weight, None, Int8Linear.of(weight)
        yield weight, bias, Int4Linear.of(weight, 32, bias)
        yield weight, None, Int4Linear.of(weight, 32)


def test_the_plain_path_is_the_dequantised_matrix():
    x = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(0))
    for weight, bias, linear in linears():
        assert (linear.weight - weight).abs().max() < 0.05
        part = x[..., : weight.shape[1]]
        torch.testing.assert_close(linear(part), F.linear(part, linear.weight, bias))
        assert linear(part, role=("a", "b")).shape == (2, 3, len(weight))


def test_kernels_agree_with_the_plain_path_for_every_shape():
    x = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(0))
    for weight, _, linear in linears():
        assert use_kernels(linear) == []
        assert linear.kernel
        part = x[..., : weight.shape[1]]
        for inputs in (part, part[0], part[:0], part.bfloat16(), part.transpose(0, 1)):
            with torch.no_grad():
                fast, slow = linear(inputs), linear.plain(inputs)
            assert fast.shape == slow.shape
            assert fast.dtype == inputs.dtype
            scale = float(slow.float().norm()) + 1e-9
            assert float((fast.float() - slow.float()).norm()) <= 0.02 * scale
        use_kernels(linear, on=False)
        assert torch.equal(linear(part), linear.plain(part))


def test_a_gradient_takes_the_plain_path():
    linear = Int4Linear.of(torch.randn(16, 32), 32)
    use_kernels(linear)
    x = torch.randn(3, 32, requires_grad=True)
    linear(x).sum().backward()
    torch.testing.assert_close(x.grad, linear.weight.sum(0).expand(3, 32))


def test_a_width_that_the_int8_kernel_gets_wrong_in_silence_stays_plain(caplog):
    linear = Int8Linear.of(torch.randn(16, 584))
    reasons = use_kernels(linear)
    assert not linear.kernel
    assert "584 columns are no multiple of 16" in reasons[0]
    assert reasons[0] in caplog.text
    assert torch.isfinite(linear(torch.randn(2, 584))).all()


@pytest.mark.parametrize("answer", ["wrong", "nan", "missing"])
def test_a_kernel_that_differs_or_fails_is_not_used(answer, monkeypatch, caplog):
    def packed(self, x):
        if answer == "missing":
            raise NotImplementedError("no such operator")
        return self.plain(x) * (1.05 if answer == "wrong" else float("nan"))

    monkeypatch.setattr(Int8Linear, "packed", packed)
    linear = Int8Linear.of(torch.randn(16, 64))
    assert len(use_kernels(linear)) == 1
    assert not linear.kernel
    x = torch.randn(2, 64)
    assert torch.equal(linear(x), linear.plain(x))
    assert "plain path" in caplog.text


def test_what_a_kernel_packs_is_never_in_the_state():
    linear = Int4Linear.of(torch.randn(16, 32), 32)
    before = sorted(linear.state_dict())
    use_kernels(linear)
    assert sorted(linear.state_dict()) == before == ["codes", "minimum", "scale"]


def test_an_int8_embedding_is_its_table():
    table = torch.randn(10, 12)
    embedding = Int8Embedding(*quantize_rows(table))
    ids = torch.tensor([[1, 2, 9], [0, 0, 3]])
    assert torch.equal(embedding(ids), F.embedding(ids, embedding.weight))
    assert (embedding.weight - table).abs().max() <= quantized.quantize_rows(table)[1].float().max() / 2


def test_the_real_weights_are_taken_over_without_loss(smollm2):
    """SmolLM2's matrices are Q4_1 already: our codes, scales and minima must give the very same numbers."""
    from gguf.constants import GGMLQuantizationType

    from llmlab.checkpoints.gguf_file import GGUF

    file = GGUF(smollm2)
    names = [name for name, entry in file.tensors.items() if entry.quantization == GGMLQuantizationType.Q4_1]
    for name in names[::40]:
        weight = file.tensor(name)
        assert torch.equal(dequantize_groups(*quantize_groups(weight, 32, name)), weight), name
