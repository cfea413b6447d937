"""A rolling cache read in blocks against the same cache read one token at a time, in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmlab.inference.engine import read
from llmlab.inference.rolling_cache import RollingCache
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer

VOCABULARY, CONTEXT = 23, 24


@pytest.fixture(scope="module", autouse=True)
def _exact() -> Any:
    """Angles and slopes are made in single precision, so that equal distances between other numbers differ in the
    seventh digit. Here they are made in double."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        yield


def tiny(position: Any = "rope", attention: Any = "gqa", **fields: Any) -> Transformer:
    told = {"layers": 2, "dim": 32, "context": CONTEXT, "initial_std": 0.2}
    a = Architecture.model_validate({**told, "position": position, "attention": attention, **fields})
    return a.build(VOCABULARY, seed=3).double().eval()


def through(model: Transformer, ids: Tensor, at: Places, cache: RollingCache, sizes: list[int]) -> Tensor:
    """Logits of blocks of these sizes in turn, over and over."""
    out, done, turn = [], 0, 0
    with torch.inference_mode():
        while done < ids.shape[1]:
            piece = slice(done, done + sizes[turn % len(sizes)])
            out.append(model(ids[:, piece], at[:, piece], cache))
            done, turn = piece.stop, turn + 1
    return torch.cat(out, 1)


def far(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_blocks_of_any_size_are_tokens_one_at_a_time(
    mixing: tuple[dict[str, Any], dict[str, Any]], data: st.DataObject
) -> None:
    """Rows of any lengths, blocks shorter and longer than the window."""
    model = tiny(*mixing)
    a = model.architecture
    if a.position.moves and a.attention.scores:  # else refused, as test_caches has it
        same_in_blocks(model, data, 22)


@pytest.mark.parametrize("scaling", ["none", {"kind": "logn", "trained": 8}])
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_texts_many_times_as_long_as_the_cache(scaling: Any, data: st.DataObject) -> None:
    same_in_blocks(tiny({"kind": "rope", "scaling": scaling}), data, 60)


def same_in_blocks(model: Transformer, data: st.DataObject, longest: int) -> None:
    window, sinks = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 8))
    lengths = data.draw(st.lists(st.integers(1, longest), min_size=1, max_size=3))
    at = Places.of_lengths([*lengths, longest], longest, "left")
    ids = torch.randint(VOCABULARY, (len(lengths) + 1, longest), generator=torch.Generator().manual_seed(window))
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    blocks = through(model, ids, at, RollingCache(window, sinks), sizes)
    alone = through(model, ids, at, RollingCache(window, sinks), [1])
    assert far(blocks[at.real], alone[at.real]) < 1e-10
    assert bool(blocks.isfinite().all())


@pytest.mark.parametrize("local", [None, {"layers": [0], "window": 4, "position": {"kind": "rope", "base": 50.0}}])
def test_what_comes_after_blocks_is_what_comes_after_tokens(local: Any) -> None:
    """Prefill in blocks, then tokens, then blocks, with rows that leave and are doubled between."""
    model, ids = tiny(local=local), torch.arange(200).remainder(VOCABULARY).view(2, 100).flip(0)
    kept = [1, 0, 1]
    answers = []
    for sizes in ([13], [1]):
        cache, at = RollingCache(7, 3), Places.causal(2, 100)
        through(model, ids[:, :41], at[:, :41], cache, sizes)
        cache.keep_rows(kept)
        one = through(model, ids[kept, 41:50], at[kept, 41:50], cache, [1])
        answers.append(torch.cat([one, through(model, ids[kept, 50:], at[kept, 50:], cache, sizes)], 1))
    assert far(*answers) < 1e-10


def test_an_interrupted_or_forgotten_text_leaves_nothing() -> None:
    model, ids, cache = tiny(), torch.arange(60).remainder(VOCABULARY)[None], RollingCache(5, 2)
    at = Places.causal(1, 60)
    through(model, ids, at, cache, [11])
    with torch.inference_mode():
        for buffer in (*cache._keys.values(), *cache._values.values()):
            buffer.fill_(float("nan"))
    cache.trim(0)
    again = through(model, ids, at, cache, [4])
    assert far(again, through(model, ids, at, RollingCache(5, 2), [4])) == 0


def test_long_prompts_take_a_pass_a_block() -> None:
    model, calls = tiny(), []
    hidden = model.hidden

    def counted(*given: Any) -> Tensor:
        calls.append(given[0].shape[1])
        return hidden(*given)

    model.hidden = counted  # type: ignore[method-assign]
    with torch.inference_mode():
        for _ in read(model, [[1] * 1100], RollingCache(CONTEXT - 4, 4)):
            pass
    assert calls == [512, 512, 76]


def test_what_is_held_does_not_grow() -> None:
    model, cache, ids = tiny(), RollingCache(6, 2), torch.ones(2, 30, dtype=torch.int64)
    held, highest = set(), 0
    with torch.inference_mode():
        for start in range(0, 300_000_000, 60_000_001):  # as if so many had been read between
            for first in (start, start + 30):
                at = Places.causal(2, 30, start=first)
                model(ids, at, cache)
                keys = cache.extend(at)
                runs = cache.numbered(at, keys)
                highest = max(highest, *(int(run.queries.position.max()) for run in runs))
                assert keys.order.shape[1] <= 8 + 30
                held.add(cache.nbytes)
    assert len(held) == 1
    assert highest == 8 - 1 + 30 - 1  # the last place of a full cache, and the rest of a block
