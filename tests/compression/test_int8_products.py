"""Products of integers against exact arithmetic, and outliers kept apart from them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llmlab.compression.int8_products import OUTLIER, OutlierLinear, W8A8Linear, quantize_tokens
from llmlab.compression.quantize import quantize_model
from llmlab.errors import InputError
from llmlab.model.attention import MultiHead
from llmlab.model.linear import Linear
from llmlab.model.transformer import Architecture


def drawn(rows, columns, seed=0, scale=1.0):
    return scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 6), st.integers(1, 70), st.integers(0, 2**31), st.sampled_from([1e-20, 1e-3, 1.0, 1e4]))
def test_a_token_lies_within_half_a_step(rows, columns, seed, scale):
    x = drawn(rows, columns, seed, scale)
    x[0] = 0
    codes, step = quantize_tokens(x)
    assert codes.abs().max() <= 127
    off = (codes.double() * step.double() - x.double()).abs()
    assert torch.all(off <= step.double() * (0.5 + 1e-4))
    assert torch.all(codes[0] == 0)


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("columns", [48, 50])
def test_w8a8_is_its_codes_multiplied_exactly(rows, columns):
    weight, x, bias = drawn(32, columns), drawn(rows, columns, 1), drawn(1, 32, 2)[0]
    linear = W8A8Linear(weight, bias)
    codes, step = quantize_tokens(x)
    by_hand = (codes.double() @ linear.codes.double().T) * step.double() * linear.scale.double() + bias.double()
    torch.testing.assert_close(linear(x).double(), by_hand, rtol=1e-6, atol=1e-6)
    assert linear(x[None].bfloat16()).dtype == torch.bfloat16
    assert linear(x[None]).shape == (1, rows, 32)


def test_a_token_does_not_mind_its_neighbours():
    linear, x = W8A8Linear(drawn(32, 64)), drawn(9, 64, 1)
    x[3] *= 100
    assert torch.equal(linear(x)[:2], linear(x[:2]))


def test_without_outliers_both_are_the_same_and_with_all_apart_none_is_an_integer():
    weight, x = drawn(32, 64), drawn(9, 64, 1)
    assert x.abs().max() < OUTLIER
    assert torch.equal(OutlierLinear(weight)(x), W8A8Linear(weight)(x))
    apart = OutlierLinear(weight, threshold=0.0)
    torch.testing.assert_close(apart(x), x @ apart.weight.T)


def test_outliers_apart_are_what_the_paper_says():
    weight, x = drawn(32, 64), drawn(9, 64, 1)
    x[4, 7] = 60.0  # one token's outlier takes the column out for all of them
    linear = OutlierLinear(weight)
    within, apart = x.clone(), torch.zeros_like(x)
    within[:, 7], apart[:, 7] = 0, x[:, 7]
    codes, step = quantize_tokens(within)
    by_hand = (codes.double() @ linear.codes.double().T) * step.double() * linear.scale.double()
    by_hand += apart.double() @ linear.weight.double().T
    torch.testing.assert_close(linear(x).double(), by_hand, rtol=1e-5, atol=1e-5)
    exact = x.double() @ weight.double().T
    split, plain = ((one(x).double() - exact).norm() for one in (linear, W8A8Linear(weight)))
    assert split < plain / 2


@pytest.mark.parametrize("part", [W8A8Linear, OutlierLinear])
def test_a_whole_model_takes_them(part):
    class Kind:
        def build(self, weight: torch.Tensor, bias: torch.Tensor | None, name: str) -> nn.Module:
            return part(weight, bias, name)

    model = Architecture(layers=2, dim=64, context=32, attention=MultiHead(heads=4)).build(50)
    made = quantize_model(model, Kind(), "keep")
    assert not [module for module in made.modules() if isinstance(module, Linear)]
    assert isinstance(made.head, part)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        exact, near = model(ids), made(ids)
    assert 0 < (near - exact).norm() < 0.05 * exact.norm()


def test_a_weight_that_is_no_number_is_refused():
    with pytest.raises(InputError, match=r"blocks\.0"):
        W8A8Linear(torch.tensor([[torch.nan] * 4]), name="blocks.0")
