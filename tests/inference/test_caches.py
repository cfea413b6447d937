"""Every kind of cache against the model without one: pieces, padding, rows that leave or double, endless texts."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.inference.cache import PromptCache, RowCache
from llmlab.inference.caches import CacheKind, Dense, Int8, Rolling
from llmlab.inference.engine import generate, stream
from llmlab.inference.int8_cache import _quantised
from llmlab.inference.rolling_cache import RollingCache
from llmlab.inference.sampling import Sampling
from llmlab.model import relative
from llmlab.model.encoding import Encoding
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer

VOCABULARY, CONTEXT = 23, 24
KINDS: list[Any] = [member() for member in get_args(get_args(CacheKind)[0])]
# Largest share of the logits' norm that a cache may change; dense and a rolling one that is not full round differently.
BOUND = {"dense": 1e-5, "rolling": 1e-5, "int8": 0.03}
WINDOW, SINKS = 6, 2


def tiny(position: Any = "rope", attention: Any = "gqa", **fields: Any) -> Transformer:
    sizes = {"layers": 2, "dim": 32, "context": CONTEXT, "initial_std": 0.2}
    told = {**sizes, "position": position, "attention": attention, **fields}
    return Architecture.model_validate(told).build(VOCABULARY, seed=3).eval()


def ragged(lengths: list[int], seed: int) -> tuple[Tensor, Places]:
    width = max(lengths)
    ids = torch.randint(VOCABULARY, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    return ids, Places.of_lengths(lengths, width, "left")


def refused(kind: Any, model: Transformer) -> bool:
    """What the parts declare of one another."""
    a = model.architecture
    return isinstance(kind, Rolling) and not (a.position.moves and a.attention.scores)


def in_pieces(model: Transformer, ids: Tensor, at: Places, cache: RowCache, cuts: list[int]) -> Tensor:
    """Logits of pieces that end at these columns, or before where the cache has no room."""
    out, done = [], 0
    for end in [*cuts, ids.shape[1]]:
        while done < end:
            piece = slice(done, min(end, done + cache.room()))
            out.append(model(ids[:, piece], at[:, piece], cache))
            done = piece.stop
    return torch.cat(out, 1)


def share(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_any_split_gives_the_logits_of_one_pass_or_a_refusal(
    mixing: tuple[dict[str, Any], dict[str, Any]], kind: Any, data: st.DataObject
) -> None:
    model = tiny(*mixing)
    if refused(kind, model):
        with pytest.raises(InputError, match=r"cache: rolling"):
            kind.build(CONTEXT, model.architecture)
        return
    lengths = data.draw(st.lists(st.integers(1, CONTEXT - 2), min_size=1, max_size=4))
    ids, at = ragged(lengths, data.draw(st.integers(0, 99)))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(lengths)), max_size=5)))
    with torch.inference_mode():
        split = in_pieces(model, ids, at, kind.build(max(lengths), model.architecture), cuts)
        assert share(split[at.real], model(ids, at)[at.real]) < BOUND[kind.kind]


@pytest.mark.parametrize("kind", [*KINDS, Rolling(window=3, sinks=1)], ids=lambda kind: kind.kind)
@settings(max_examples=10, deadline=None)
@given(rows=st.lists(st.integers(0, 4), min_size=1, max_size=9), seed=st.integers(0, 9))
def test_rows_may_leave_change_places_and_be_doubled(kind: Any, rows: list[int], seed: int) -> None:
    """A row goes on as it would have gone on alone, also when its copies go other ways."""
    for model in (tiny(), tiny("none", "lstm")):
        if refused(kind, model):
            continue
        lengths = [3, 7, 5, 1, 6]
        ids, at = ragged(lengths, seed)
        after = torch.randint(VOCABULARY, (len(rows), 2), generator=torch.Generator().manual_seed(seed + 1))
        with torch.inference_mode():
            cache = kind.build(12, model.architecture)
            in_pieces(model, ids, at, cache, [])
            last = at[:, -1:]
            for step in range(2):
                kept = rows if step == 0 else list(range(len(rows)))[::-1]
                cache.keep_rows(kept)
                last, after = model.architecture.mask.after(last[kept]), after if step == 0 else after[kept]
                rows = rows if step == 0 else [rows[row] for row in kept]
                got = model(after[:, step : step + 1], last, cache)
            for number, row in enumerate(rows):
                alone = torch.cat([ids[row, -lengths[row] :], after[number]])[None]
                own = kind.build(12, model.architecture)
                expected = in_pieces(model, alone, Places.causal(*alone.shape), own, [lengths[row]])
                near = 1e-3 if kind.kind == "int8" else 1e-4  # a key's last bit in company may round to another code
                torch.testing.assert_close(got[number], expected[0, -1:], rtol=near, atol=near)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_trim_takes_back_what_came_after(kind: Any) -> None:
    model = tiny()
    ids, at = ragged([8], 1)
    cache = kind.build(8, model.architecture)
    with torch.inference_mode():
        whole = model(ids, at, cache)
        cache.trim(5)
        again = model(ids[:, 5:], at[:, 5:], cache)
    assert cache.length == 8
    torch.testing.assert_close(again, whole[:, 5:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
@pytest.mark.parametrize("sampling", [Sampling(temperature=0, max_new_tokens=9), Sampling(max_new_tokens=9)])
def test_the_engine_generates_over_any_cache(kind: Any, sampling: Sampling) -> None:
    model, prompts = tiny(initial_std=0.3), [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]
    plain = generate(model, prompts, sampling, [0], [1, 2, 3])
    kept = generate(model, prompts, sampling, [0], [1, 2, 3], cache=kind)
    assert [row.ids for row in kept] == [row.ids for row in plain]  # int8 is near enough for these
    streamed = list(stream(model, prompts[0], sampling, [0], 1, cache=kind))
    assert [token.id for token in streamed] == plain[0].ids
    with pytest.raises(InputError, match=f"cache: {kind.kind} cannot be chosen where a memory is given"):
        stream(model, [1], sampling, [], 0, memory=PromptCache(CONTEXT), cache=kind)


# ---------------------------------------------------------------- rolling


class Pairwise(Encoding):
    """Rotary positions of the paper, pair by pair: each query numbers the keys that it sees as its cache would."""

    content = True

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary: Any = rotary

    def prepare(self, at_q: Places, at_k: Places) -> tuple[Places, Places]:
        return at_q, at_k

    def scores(self, layer: int, q_BHTK: Tensor, k_BHSK: Tensor, prepared: tuple[Places, Places]) -> Tensor:
        at_q, at_k = prepared
        behind = (at_q.order - (WINDOW + SINKS - 1)).clamp(min=0)
        by_query = []
        for t in range(q_BHTK.shape[2]):
            q_at = Places(*[(at_q.order - behind)[:, t : t + 1]] * 2, at_q.document[:, t : t + 1])
            number = torch.where(at_k.order < SINKS, at_k.order, at_k.order - behind[:, t : t + 1])
            k_at = Places(number, number, at_k.document)
            q = self.rotary.query(q_BHTK[:, :, t : t + 1], self.rotary.prepare(q_at, q_at))
            by_query.append(q @ self.rotary.key(k_BHSK, self.rotary.prepare(k_at, k_at)).mT)
        return torch.cat(by_query, 2) - q_BHTK @ k_BHSK.mT


def within_the_cache(at_q: Places, at_k: Places) -> Tensor:
    """Distances as the paper counts them: the sinks stand right before the window."""
    behind = (at_q.order - (WINDOW + SINKS - 1)).clamp(min=0)[:, :, None]
    return at_q.order[:, :, None] - at_k.order[:, None, :] - behind * (at_k.order[:, None, :] < SINKS)


def masked(model: Transformer) -> Transformer:
    """The same weights, no cache: a mask of the window and the sinks, and the numbers of the paper."""
    a = model.architecture
    if a.keyed.window is None:
        part = a.keyed.model_copy(update={"window": WINDOW, "sinks": SINKS})
        a = a.model_copy(update={"attention": part})
    reference = a.build(VOCABULARY, seed=3).eval()
    if model.position.turns:
        reference.position = Pairwise(model.position)
    return reference


@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_a_rolling_cache_is_the_mask_of_its_window_and_sinks(
    mixing: tuple[dict[str, Any], dict[str, Any]], data: st.DataObject
) -> None:
    """Texts five times as long as the cache, ragged, in any pieces."""
    model, kind = tiny(*mixing), Rolling(window=WINDOW, sinks=SINKS)
    if refused(kind, model):
        return  # asserted above
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    ids, at = ragged([*lengths, 40], data.draw(st.integers(0, 99)))
    cuts = sorted(data.draw(st.sets(st.integers(1, 39), max_size=5)))
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        split = in_pieces(model, ids, at, kind.build(0, model.architecture), cuts)
        patch.setattr(relative, "distances", within_the_cache)
        expected = masked(model)(ids, at)
        torch.testing.assert_close(split[at.real], expected[at.real], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("position", ["rope", "rope_interleaved", "alibi", "t5", "shaw", "xl", "none"])
def test_without_sinks_it_is_the_windowed_model_as_it_stands(position: str) -> None:
    """Distances are all that these encodings know, so nothing shows that tokens were numbered anew."""
    model, ids = tiny(position), torch.arange(120).remainder(VOCABULARY).view(2, 60)
    windowed = tiny(position, {"kind": "gqa", "window": WINDOW})
    with torch.inference_mode():
        split = in_pieces(model, ids, Places.causal(2, 60), RollingCache(WINDOW, 0), [3])
        torch.testing.assert_close(split, windowed(ids), rtol=1e-4, atol=1e-4)


def test_local_layers_roll_with_positions_of_their_own() -> None:
    local = {"layers": [0], "window": 4, "position": {"kind": "rope", "base": 50.0}}
    model, ids = tiny(local=local), torch.arange(60).remainder(VOCABULARY)[None]
    windowed = tiny(attention={"kind": "gqa", "window": WINDOW}, local=local)
    with torch.inference_mode():
        split = in_pieces(model, ids, Places.causal(1, 60), RollingCache(WINDOW, 0), [])
        torch.testing.assert_close(split, windowed(ids), rtol=1e-4, atol=1e-4)


def test_memory_and_numbers_stay_flat_over_ten_windows_and_more() -> None:
    model, cache = tiny(), RollingCache(WINDOW, SINKS)
    token, held, highest = torch.ones(2, 1, dtype=torch.int64), [], 0
    with torch.inference_mode():
        for place in range(12 * (WINDOW + SINKS)):
            at = Places.causal(2, 1, start=place)
            model(token, at, cache)
            buffers = [*cache._keys.values(), *cache._values.values()]
            held.append(sum(buffer.untyped_storage().nbytes() for buffer in buffers))
            runs = cache.numbered(at, cache.extend(at))
            highest = max(highest, *(int(run.queries.position.max()) for run in runs))
            assert cache.length <= cache.capacity == WINDOW + SINKS
        orders = cache._places.order[0].sort().values.tolist() if cache._places else []
    assert len(set(held)) == 1
    assert highest == WINDOW + SINKS - 1
    last = 12 * (WINDOW + SINKS) - 1
    assert orders == [*range(SINKS), *range(last - WINDOW + 1, last + 1)]


def test_a_text_goes_on_past_the_context() -> None:
    model, kind = tiny(), Rolling(window=WINDOW, sinks=SINKS)
    prompts = [[1] * (2 * CONTEXT), [3, 4]]  # also a prompt that is longer than it
    section = Sampling(max_new_tokens=3 * CONTEXT)
    together = generate(model, prompts, section, [], [5, 6], cache=kind)
    assert [len(row.ids) for row in together] == [3 * CONTEXT] * 2
    for prompt, seed, ours in zip(prompts, [5, 6], together, strict=True):
        assert generate(model, [prompt], section, [], [seed], cache=kind)[0].ids == ours.ids
    with pytest.raises(InputError, match="leaves no room"):
        generate(model, prompts, section, [], [5, 6], cache=Dense())


def test_a_full_rolling_cache_forgets_all() -> None:
    model, cache = tiny(), RollingCache(3, 1)
    with torch.inference_mode():
        model(torch.ones(1, 4, dtype=torch.int64), Places.causal(1, 4), cache)
        cache.trim(3)
    assert cache.length == 0


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        (Rolling(), {"position": "learned"}, "learned positions are told once"),
        (Rolling(), {"position": "sinusoidal"}, "sinusoidal positions are told once"),
        (Rolling(), {"mask": "prefix"}, "cannot go with mask prefix"),
        (Rolling(), {"position": "none", "attention": "gru"}, "nothing to do for gru"),
        (Rolling(window=CONTEXT), {}, f"window {CONTEXT} and sinks 4 does not fit the context of {CONTEXT}"),
        (Rolling(sinks=CONTEXT), {}, f"sinks {CONTEXT} does not fit the context"),
    ],
)
def test_what_a_cache_cannot_go_with_is_refused_by_name(kind: Any, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        generate(tiny(**fields), [[1, 2]], Sampling(), [], [0], cache=kind)


def test_rows_of_a_rolling_cache_that_never_fills_are_those_of_a_dense_one() -> None:
    model, prompts = tiny(initial_std=0.3), [[1, 2, 3], [4] * 9]
    section = Sampling(max_new_tokens=7)
    kept = generate(model, prompts, section, [], [1, 2], cache=Rolling(window=CONTEXT - 1, sinks=1))
    for ours, theirs in zip(kept, generate(model, prompts, section, [], [1, 2]), strict=True):
        assert ours.ids == theirs.ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


# ---------------------------------------------------------------- eight bits


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_comes_back_within_half_a_step(size: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = (torch.randn(2, 3, 50, 16, generator=generator) * size).to(dtype)
    codes, scale = _quantised(numbers)
    step = numbers.float().abs().amax(-1, keepdim=True) / 127
    assert (codes.dtype, scale.dtype) == (torch.int8, torch.float16)
    slack = 127 * 3.1e-8 if size < 1e-2 else 0.0  # a small step is itself rounded, to 6e-8
    rounding = 0.0 if dtype == torch.float32 else 1.0  # the division rounds in bf16
    error = (codes.float() * scale.float() - numbers.float()).abs()
    assert bool((error <= step * (0.5 + 0.07 + rounding) + slack).all())


def test_eight_bits_are_a_quarter_of_the_memory_and_keep_their_dtype() -> None:
    model, ids = tiny({"kind": "rope"}, {"kind": "gqa", "head_dim": 64}), torch.arange(20)[None]
    exact, narrow = (kind.build(20, model.architecture) for kind in (Dense(), Int8()))
    with torch.inference_mode():
        for cache in (exact, narrow):
            model(ids, Places.causal(1, 20), cache)
        held = [
            sum(b.nbytes for d in caches for part in (d._keys, d._values) for b in part.values())
            for caches in ([exact], [narrow.codes, narrow.scales])
        ]
        assert held[1] / held[0] == pytest.approx((64 + 2) / (64 * 4))
        half = model.to(torch.bfloat16)
        assert half(ids, Places.causal(1, 20), Int8().build(20, half.architecture)).dtype == torch.bfloat16
