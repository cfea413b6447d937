"""LoRA on a tree of linears: what it leaves alone, what it adds, and what merging keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmlab.adapters.adapted import AdaptedLinear, adapted_linears
from llmlab.adapters.lora import LoRA
from llmlab.adapters.merging import merge
from llmlab.adapters.part import (
    adapter_names,
    adapter_parameters,
    add_adapter,
    copy_adapter,
    load_adapter,
    train_only,
)
from llmlab.errors import InputError, LlmlabError
from llmlab.model.linear import Linear
from llmlab.model.places import Places
from llmlab.model.quantized import Int8Linear
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.runtime import generator

VOCABULARY = 40


def build(seed: int = 0, **parts: Any) -> Transformer:
    small: dict[str, Any] = {"layers": 2, "dim": 32, "context": 32, "initial_std": 0.2}
    return parse(Architecture, small | parts).build(VOCABULARY, seed).eval()


def stir(model: Transformer, name: str, seed: int = 1) -> None:
    """Numbers for B too, so that the adapter does something."""
    with torch.no_grad():
        for key, parameter in adapter_parameters(model, name).items():
            parameter.normal_(0, 0.1, generator=generator(seed, name, key))


def some_ids(rows: int = 3, length: int = 7) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=generator(0, "ids"))


def logits(model: Transformer, ids: Tensor, role: Any = None) -> Tensor:
    with torch.no_grad():
        return model(ids, role=role)


def test_a_fresh_adapter_changes_nothing_and_an_unknown_role_is_the_base() -> None:
    ids = some_ids()
    before = logits(build(), ids)
    model = build()
    add_adapter(model, "policy", LoRA(rank=4), seed=0)
    assert len(adapted_linears(model)) == 2 * 7
    assert torch.equal(logits(model, ids, "policy"), before)
    stir(model, "policy")
    assert not torch.allclose(logits(model, ids, "policy"), before)
    assert torch.equal(logits(model, ids), before)
    assert torch.equal(logits(model, ids, "nobody"), before)


def test_the_adapter_is_the_written_formula() -> None:
    base = Linear(6, 5, bias=True)
    torch.nn.init.normal_(base.weight)
    model = build()
    add_adapter(model, "a", LoRA(rank=3, alpha=12.0), seed=0)
    stir(model, "a")
    _, linear = adapted_linears(model)[0]
    part = linear.adapters["a"]
    x = torch.randn(4, 2, 32, generator=generator(0, "x"))
    expected = x @ linear.base.weight.T + 12.0 / 3 * (x @ part.A.T) @ part.B.T
    assert torch.allclose(linear(x, "a"), expected, atol=1e-5)


def test_initial_numbers_are_peft_like_and_keyed_by_seed_name_and_place() -> None:
    model = build()
    add_adapter(model, "a", LoRA(rank=64), seed=0)
    first = {key: p.detach().clone() for key, p in adapter_parameters(model, "a").items()}
    a = first["blocks.0.attention.query.A"]
    bound = (1 / 32) ** 0.5  # Kaiming uniform, a = sqrt 5: gain sqrt(1/3), bound gain * sqrt(3 / fan_in)
    assert float(a.abs().max()) <= bound
    assert float(a.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert all(not value.any() for key, value in first.items() if key.endswith(".B"))
    assert not torch.equal(a, first["blocks.1.attention.query.A"])

    other = build()
    add_adapter(other, "z", LoRA(rank=2), seed=0)
    add_adapter(other, "a", LoRA(rank=64), seed=0)  # another adapter beside it moves nothing
    assert all(torch.equal(p, first[key]) for key, p in adapter_parameters(other, "a").items())
    again = build()
    add_adapter(again, "a", LoRA(rank=64), seed=1)
    assert not torch.equal(adapter_parameters(again, "a")["blocks.0.attention.query.A"], a)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from([None, "a", "b", "nobody"]), min_size=1, max_size=6))
def test_each_row_has_its_own_role(roles: list[str | None]) -> None:
    model = build()
    for name in ("a", "b"):
        add_adapter(model, name, LoRA(rank=2), seed=0)
        stir(model, name)
    ids = some_ids(len(roles))
    mixed = logits(model, ids, tuple(roles))
    for row, role in enumerate(roles):
        assert torch.allclose(mixed[row], logits(model, ids[row : row + 1], role)[0], atol=1e-5)


def test_as_many_roles_as_rows() -> None:
    model = build()
    add_adapter(model, "a", LoRA(), seed=0)
    with pytest.raises(ValueError, match="2 roles for 3 rows"):
        model(some_ids(3), role=("a", "a"))


def test_training_moves_the_named_adapter_and_nothing_else() -> None:
    model = build()
    for name in ("a", "b"):
        add_adapter(model, name, LoRA(rank=2), seed=0)
        stir(model, name)
    train_only(model, ["a"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    for _ in range(2):
        model(some_ids(), role="a").square().mean().backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".adapters.a." in name}
    assert len(moved) == 2 * 2 * 7


def test_dropout_is_the_adapters_own_and_off_in_scoring() -> None:
    """Trap 30: the reference is the base exactly, dropout or not."""
    model = build()
    base = logits(model, some_ids())
    add_adapter(model, "a", LoRA(rank=2, dropout=0.5), seed=0)
    stir(model, "a")
    model.train()
    assert not torch.equal(logits(model, some_ids(), "a"), logits(model, some_ids(), "a"))
    assert torch.equal(logits(model, some_ids()), base)
    model.eval()
    assert torch.equal(logits(model, some_ids(), "a"), logits(model, some_ids(), "a"))


def test_targets_by_ending() -> None:
    model = build()
    add_adapter(model, "a", LoRA(targets=("query", "attention.value")), seed=0)
    paths = [path for path, _ in adapted_linears(model)]
    assert paths == [f"blocks.{i}.attention.{part}" for i in range(2) for part in ("query", "value")]
    with pytest.raises(InputError, match=r"no linear ends in 'q_proj'.*attention\.query"):
        add_adapter(build(), "a", LoRA(targets=("q_proj",)), seed=0)
    with pytest.raises(InputError, match="has an adapter 'a' already"):
        add_adapter(model, "a", LoRA(), seed=0)


@settings(deadline=None, max_examples=10)
@given(rank=st.integers(1, 9), alpha=st.floats(0.5, 40), seed=st.integers(0, 99))
def test_merging_keeps_the_logits_and_restores_the_plain_tree(rank: int, alpha: float, seed: int) -> None:
    model = build(seed)
    add_adapter(model, "a", LoRA(rank=rank, alpha=alpha), seed=0)
    stir(model, "a", seed)
    ids = some_ids()
    with_adapter = logits(model, ids, "a")
    difference = merge(model, "a").difference
    assert difference < 1e-3
    assert torch.allclose(logits(model, ids), with_adapter, atol=1e-3)
    assert adapter_names(model) == []
    assert model.state_dict().keys() == build().state_dict().keys()


def test_merging_one_of_two_leaves_the_other_on() -> None:
    model = build()
    for name in ("a", "b"):
        add_adapter(model, name, LoRA(rank=2), seed=0)
        stir(model, name)
    merge(model, "a")
    assert adapter_names(model) == ["b"]
    assert all(isinstance(linear, AdaptedLinear) for _, linear in adapted_linears(model))


def test_a_merge_that_rounding_spoils_is_refused_and_undone() -> None:
    """Trap 42: bfloat16 weights lose a small adapter; the merge says so instead of doing it."""
    model = build().to(torch.bfloat16)
    add_adapter(model, "a", LoRA(rank=2), seed=0)
    model.float()
    for _, linear in adapted_linears(model):
        linear.base.to(torch.bfloat16)
        linear.base.forward = lambda x, role=None, w=linear.base: x @ w.weight.float().T  # type: ignore[method-assign]
    stir(model, "a")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(LlmlabError, match="merging changes logits by"):
        merge(model, "a")
    assert adapter_names(model) == ["a"]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with pytest.raises(InputError, match=r"no adapter 'b'.*it has: a"):
        merge(model, "b")


def test_adapters_of_other_shapes_or_names_are_refused() -> None:
    model = build()
    add_adapter(model, "a", LoRA(rank=2), seed=0)
    good = {key: p.detach().clone() for key, p in adapter_parameters(model, "a").items()}
    key = "blocks.0.attention.query.A"
    with pytest.raises(InputError, match=r"query\.A is missing"):
        load_adapter(model, "a", {k: v for k, v in good.items() if k != key})
    with pytest.raises(InputError, match="belongs to nothing"):
        load_adapter(model, "a", good | {"blocks.9.attention.query.A": good[key]})
    with pytest.raises(InputError, match=r"shape \(3, 32\), the model needs \(2, 32\)"):
        load_adapter(model, "a", good | {key: torch.zeros(3, 32)})


def test_copy() -> None:
    model = build()
    for name in ("a", "b"):
        add_adapter(model, name, LoRA(rank=2), seed=0)
    stir(model, "a")
    copy_adapter(model, "a", "b")
    ids = some_ids()
    assert torch.equal(logits(model, ids, "a"), logits(model, ids, "b"))
    stir(model, "b", 5)
    assert not torch.equal(logits(model, ids, "a"), logits(model, ids, "b"))


def test_cached_decoding_with_roles() -> None:
    """A row's role goes through the cache as through the plain pass."""
    from llmlab.inference.engine import generate
    from llmlab.inference.sampling import Sampling

    model = build()
    add_adapter(model, "a", LoRA(rank=2), seed=0)
    stir(model, "a")
    done = generate(model, [[1, 2, 3], [4, 5]], Sampling(max_new_tokens=6), [], [7, 8], role=("a", None))
    for prompt, role, completion in zip([[1, 2, 3], [4, 5]], ["a", None], done, strict=True):
        ids = torch.tensor([prompt + completion.ids])
        at = Places.causal(1, ids.shape[1])
        with torch.no_grad():
            logprobs = model(ids, at, role=role).log_softmax(-1)[0, len(prompt) - 1 : -1]
        mine = logprobs.gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]
        assert torch.allclose(mine, torch.tensor(completion.logprobs), atol=1e-4)


def test_a_fresh_adapter_takes_the_models_mode() -> None:
    """Dropout must not be on in a model that is only looked at."""
    for training in (True, False):
        model = build().train(training)
        add_adapter(model, "a", LoRA(rank=2, dropout=0.5), seed=0)
        assert all(module.training == training for module in model.modules())


def test_over_quantised_weights() -> None:
    """QLoRA (Dettmers et al. 2023): the codes stay, the adapter learns through them, and a merge is refused."""
    model = build()
    for block in model.blocks:
        for part in ("query", "output"):
            linear = getattr(block.attention, part)
            setattr(block.attention, part, Int8Linear.of(linear.weight))
    base = logits(model, some_ids())
    add_adapter(model, "a", LoRA(rank=2), seed=0)
    assert len(adapted_linears(model)) == 2 * 7
    assert torch.equal(logits(model, some_ids(), "a"), base)
    stir(model, "a")
    model(some_ids(), role="a").square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter_parameters(model, "a").values())
    assert torch.equal(logits(model, some_ids()), base)
    with pytest.raises(InputError, match="does not fit into quantised weights"):
        merge(model, "a")
