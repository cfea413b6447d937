"""The native step against the plain path, and against itself in every company."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab import compiled
from llmlab.errors import InputError
from llmlab.inference import native
from llmlab.inference.batching import Batching, Request
from llmlab.inference.beam import Beam
from llmlab.inference.engine import Completion
from llmlab.inference.fast import FastModel, quickened, unfit
from llmlab.inference.packing import BITS, KINDS, Kind, loses, pack, pack_together, unpacked
from llmlab.inference.paged_front import PagedFront
from llmlab.inference.pages import PAGE, Pages
from llmlab.inference.sampling import Sampling, choose, key_of, process
from llmlab.inference.speculative import Draft, Guesser, PromptLookup
from llmlab.model.groups import Groups
from llmlab.model.transformer import Architecture, Transformer
from llmlab.runtime import generator

VOCABULARY, CONTEXT = 96, 160
# Where a machine has all that is needed, a step that does not compile must fail and not skip.
only_native = pytest.mark.skipif(native.missing() is not None, reason=f"plain path only: {native.missing()}")
each_kind = pytest.mark.parametrize("kind", KINDS)


def tiny(heads: int = 4, key_heads: int = 2, **fields: Any) -> Transformer:
    sizes: dict[str, Any] = {"layers": 2, "dim": 64, "context": CONTEXT, "initial_std": 0.15}
    sizes["attention"] = {
        "kind": "gqa",
        "heads": heads,
        "kv_heads": key_heads,
        "head_dim": 32,
        **fields.pop("mixer", {}),
    }
    sizes["feedforward"] = {"kind": "swiglu", "width": 96}
    return Architecture.model_validate(sizes | fields).build(VOCABULARY, seed=3).eval()


# ---------------------------------------------------------------- packing


@each_kind
def test_what_is_packed_comes_out(kind: Kind) -> None:
    weight = torch.randn(48, 96, generator=generator(0, "packing"))
    once = unpacked(pack(weight, kind))
    if kind == "bf16":
        assert torch.equal(once, weight.bfloat16().float())
        return
    groups = weight.view(48, 3, 32)
    step = (groups.amax(-1) - groups.amin(-1)) / 15 if kind == "int4" else groups.abs().amax(-1) / 127
    error = (once - weight).view(48, 3, 32).abs().amax(-1)
    assert (error <= 0.51 * step + 2**-10).all()  # scales are halves


def random_groups(seed: int, bits: int, outputs: int = 32, groups: int = 3) -> Groups:
    draw = np.random.default_rng(seed)
    codes = draw.integers(0, 256, (outputs, groups, bits * 4), dtype=np.uint8)
    step, least = (draw.normal(size=(outputs, groups)).astype(np.float16) for _ in range(2))
    return Groups(codes, step, least)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.sampled_from([4, 8]), kind=st.sampled_from(["int4", "int8"]))
def test_codes_and_scales_are_laid_out_without_loss(seed: int, bits: int, kind: Kind) -> None:
    groups = random_groups(seed, bits)
    codes = groups.codes if bits == 8 else np.concatenate([groups.codes & 15, groups.codes >> 4], -1)
    want = codes * groups.step[..., None].astype(np.float32) + groups.least[..., None].astype(np.float32)
    assert np.array_equal(groups.dense().numpy(), want.reshape(32, 96))
    got = unpacked(pack(groups, kind))
    assert loses(groups, kind) == (bits > BITS[kind])
    assert loses(groups, kind) or torch.equal(got, groups.dense())


def test_matrices_packed_together_are_those_packed_apart() -> None:
    parts = [random_groups(0, 4, 48), random_groups(1, 8, 16).dense(), random_groups(2, 4, 16)]
    for kind in KINDS:
        packed, first = pack_together(parts, kind), 0
        assert packed.data.data_ptr() % 64 == 0
        for part in parts:
            alone = pack(part, kind)
            assert torch.equal(packed.rows(first, part.shape[0]).data, alone.data)
            first += part.shape[0]
        assert packed.outputs == first


def test_four_bit_weights_lose_nothing_in_int4() -> None:
    """As in a Q4_1 file: 16 evenly spaced values a group, in halves."""
    g = generator(1, "q4_1")
    codes = torch.randint(0, 16, (16, 2, 32), generator=g)
    codes[..., 0], codes[..., 1] = 0, 15
    step, least = torch.rand(16, 2, 1, generator=g).half().float(), torch.randn(16, 2, 1, generator=g).half().float()
    weight = (codes * step + least).view(16, 64)
    assert torch.equal(unpacked(pack(weight, "int4")), weight)


# ---------------------------------------------------------------- the step


def rows(model: FastModel, ids: list[int], first: int = 0) -> tuple[list[int], list[int], torch.Tensor]:
    pages = torch.arange(first, first + -(-CONTEXT // PAGE), dtype=torch.int32)
    return ids, list(range(len(ids))), pages.expand(len(ids), -1)


SHAPES = [
    {},
    {"heads": 2, "key_heads": 1},
    {"heads": 5, "key_heads": 1},
    {"heads": 3, "key_heads": 3},
    {"tied": False},
    {"mixer": {"bias": True, "output_bias": False}},
    {"position": {"kind": "rope", "base": 500.0}},
]


@only_native
@each_kind
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_step_says_what_the_plain_path_says(shape: dict[str, Any], kind: Kind) -> None:
    model = tiny(**shape)
    fast = FastModel(model, kind, 40, threads=2)
    ids = torch.randint(0, VOCABULARY, (90,), generator=generator(0, "ids")).tolist()
    packed = fast.transformer()
    with torch.inference_mode():
        want = packed(torch.tensor([ids]))[0]
    got = fast._rows(*rows(fast, ids), ask=range(90))
    # What is left is the rounding of activations: to 8 bits a group, or to bf16.
    assert (got - want).std() < 0.03 * want.std()
    assert (got - want).abs().max() < 0.2 * want.std()
    before, after = model.state_dict(), packed.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight) == (weight.ndim == 1) for name, weight in before.items())  # as packed


@only_native
@each_kind
def test_a_token_has_the_same_bytes_however_its_text_is_cut_and_in_any_company(kind: Kind) -> None:
    fast, alone = FastModel(tiny(), kind, 60, threads=2), FastModel(tiny(), kind, 60, threads=1)
    ids = torch.randint(0, VOCABULARY, (77,), generator=generator(1, "ids")).tolist()
    want = alone._rows(*rows(alone, ids), ask=range(77))
    cut, done = random.Random(0), 0
    while done < 77:
        size = min(cut.choice([1, 2, 3, 4, 7, 8, 9, 25]), 77 - done)
        others = cut.randrange(6)
        _, places, tables = rows(fast, ids)
        company = [cut.randrange(VOCABULARY) for _ in range(others)]
        own = [torch.full((1, tables.shape[1]), 20 + i, dtype=torch.int32) for i in range(others)]
        spots = [cut.randrange(PAGE) for _ in range(others)]
        together = [*company, *ids[done : done + size]], [*spots, *places[done : done + size]]
        got = fast._rows(*together, torch.cat([*own, tables[:size]]), range(others, others + size))
        assert torch.equal(got, want[done : done + size])
        done += size


@only_native
def test_a_weight_that_is_no_number_does_not_pass_for_one() -> None:
    model = tiny()
    model.get_parameter("blocks.0.attention_norm.weight").data[3] = float("nan")
    fast = FastModel(model, "int8", 20)
    assert not fast._rows([1], [0], torch.zeros(1, 10), [0]).isfinite().any()


@only_native
@each_kind
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_matrix_that_holds_no_number_is_refused(kind: Kind, wrong: float) -> None:
    model = tiny()
    model.get_parameter("blocks.1.feedforward.down.weight").data[3, 5] = wrong
    with pytest.raises(InputError, match="not finite"):
        FastModel(model, kind, 20)


@only_native
def test_auto_takes_the_fewest_bits_that_lose_nothing_in_any_matrix() -> None:
    for kind in ("int4", "int8"):
        model = quickened(tiny(), kind).transformer()  # packed once already
        fast = quickened(model, "auto")
        assert fast.kind == kind
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fast.transformer().parameters(), strict=True))
    model.get_parameter("blocks.1.feedforward.down.weight").data[3, 5] += 0.001
    fast = quickened(model, "auto")
    assert fast.kind == "bf16"
    after = fast.transformer().state_dict()
    matrices = {name: weight for name, weight in model.state_dict().items() if weight.ndim > 1}
    assert all(torch.equal(after[name], weight.bfloat16().float()) for name, weight in matrices.items())


@only_native
def test_a_skeleton_is_enough_where_weights_are_read_one_by_one() -> None:
    model = tiny(tied=False, mixer={"bias": True, "output_bias": False})
    with torch.device("meta"):
        skeleton = Transformer(model.architecture, VOCABULARY)
    asked: list[str] = []

    def read(name: str) -> torch.Tensor:
        asked.append(name)
        return model.state_dict()[name].bfloat16()

    fast, whole = FastModel(skeleton, "bf16", 40, read=read), FastModel(model, "bf16", 40)
    assert set(asked) == set(model.state_dict())
    ids = list(range(30))
    gains = {name for name, weight in model.state_dict().items() if weight.ndim == 1}
    for name, weight in fast.transformer().state_dict().items():
        assert torch.equal(weight, model.state_dict()[name].bfloat16().float()), name
    assert gains
    assert torch.equal(fast._rows(*rows(fast, ids), ask=range(30)), whole._rows(*rows(whole, ids), ask=range(30)))


def test_a_step_that_does_not_compile_is_a_reason_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "step.cpp"
    broken.write_text("int main( {")
    monkeypatch.setenv("LLMLAB_HOME", str(tmp_path))
    step = compiled.Compiled(broken, "the native step")
    assert "not compile" in (step.unusable or "") or compiled.compiler() is None


def test_the_native_step_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMLAB_NATIVE", "0")
    assert "LLMLAB_NATIVE=0" in (native.available() or "")


UNFIT: list[dict[str, Any]] = [
    {"norm": "layernorm"},
    {"wiring": "post"},
    {"position": "alibi"},
    {"position": {"kind": "rope", "fraction": 0.5}},
    {"position": {"kind": "rope", "scaling": {"kind": "logn", "trained": 16}}},
    {"mixer": {"window": 8}},
    {"mixer": {"norm": True}},
    {"mixer": {"bias": True}},
    {"mask": "prefix"},
    {"feedforward": {"kind": "gelu", "width": 96}},
    {"feedforward": {"kind": "swiglu", "width": 90}},
    {"embedding": {"scale": 2.0}},
    {"shared": True},
]


@pytest.mark.parametrize("fields", UNFIT, ids=str)
def test_a_model_that_the_step_does_not_compute_is_refused_with_a_reason(fields: dict[str, Any]) -> None:
    fields = dict(fields)
    feedforward = fields.pop("feedforward", None)
    model = tiny(**fields)
    if feedforward:
        sizes = model.architecture.model_dump() | {"feedforward": feedforward}
        model = Architecture.model_validate(sizes).build(VOCABULARY)
    assert unfit(model)
    with pytest.raises(ValueError, match=unfit(model) or "no reason"):
        FastModel(model, "int8", 4)


# ---------------------------------------------------------------- pages


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_pages_are_never_held_by_two_who_write(seed: int) -> None:
    draw, pages = random.Random(seed), Pages(8)
    texts: list[tuple[list[int], list[int]]] = []
    written: dict[int, tuple[int, ...]] = {}  # what lies on a page: the whole text up to its end
    for _ in range(60):
        if texts and draw.random() < 0.4:
            pages.give_back(texts.pop(draw.randrange(len(texts)))[1])
            continue
        ids = [draw.randrange(2) for _ in range(draw.randrange(1, 5) * PAGE // 2 * 2)]
        held = pages.share(ids)
        for at, page in enumerate(held):
            assert written[page] == tuple(ids[: (at + 1) * PAGE])
        assert len(held) * PAGE < len(ids)
        for at in range(len(held), len(ids) // PAGE):
            page = pages.take()
            if page is None:
                break
            assert all(page not in others for _, others in texts)
            assert page not in held
            held.append(page)
            written[page] = tuple(ids[: (at + 1) * PAGE])
            pages.name(page, held[at - 1] if at else None, ids[at * PAGE : (at + 1) * PAGE])
        texts.append((ids, held))
    for _, held in texts:
        pages.give_back(held)
    assert pages.free == 8


def test_what_is_unused_longest_is_forgotten_first() -> None:
    pages, texts = Pages(3), [[n] * PAGE for n in range(3)]
    for ids in texts:
        page = pages.take()
        assert page is not None
        pages.name(page, None, ids)
        pages.give_back([page])
    assert len(pages.share([*texts[0], 9])) == 1  # in use again
    pages.take()
    assert not pages.share([*texts[1], 9])
    assert len(pages.share([*texts[2], 9])) == 1


# ---------------------------------------------------------------- batching


@only_native
@each_kind
def test_batching_draws_what_the_step_says_of_the_whole_text(kind: Kind) -> None:
    fast = FastModel(tiny(initial_std=0.3), kind, 60, threads=2)
    sampling = Sampling(max_new_tokens=12, temperature=0.7, top_k=9, repetition_penalty=1.3, min_new_tokens=3)
    stops = [7, 9]
    for seed, prompt in enumerate([[1, 2, 3], [4] * 40, [5, 6]]):
        ids, logprobs = list(prompt), []
        while len(ids) - len(prompt) < 12 and not (logprobs and ids[-1] in stops):
            logits = fast._rows(*rows(fast, ids), ask=[len(ids) - 1])
            seen, banned = torch.zeros(2, 1, VOCABULARY, dtype=torch.bool)
            seen[0, ids] = True
            banned[0, stops] = len(ids) - len(prompt) < 3
            drawn = choose(process(logits, sampling, seen, banned), False, [key_of(seed)], [len(ids)])
            ids.append(int(drawn.ids_B))
            logprobs.append(float(drawn.logprobs_B))
        (got,) = Batching(fast).generate([Request(prompt, sampling, stops, seed)])
        assert got.ids == ids[len(prompt) :]
        assert got.logprobs == logprobs


def _requests(seed: int, many: int) -> list[tuple[list[int], Sampling, int]]:
    draw = random.Random(seed)
    beginnings = [[draw.randrange(VOCABULARY) for _ in range(48)] for _ in range(3)]
    found = []
    for number in range(many):
        start = draw.choice([[], [], *beginnings])
        prompt = start + [draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 40))]
        sampling = Sampling(
            max_new_tokens=draw.randrange(1, 24),
            temperature=draw.choice([0, 0.5, 1.0, 1.5]),
            top_k=draw.choice([None, 5]),
            top_p=draw.choice([1.0, 0.8]),
            repetition_penalty=draw.choice([1.0, 1.2]),
        )
        found.append((prompt, sampling, number))
    return found


def _guesser(name: str, kind: Kind) -> Guesser | None:
    if name == "draft":  # coarser weights of the same model
        return Draft(FastModel(tiny(initial_std=0.3), "int8" if kind == "int4" else "int4", 60))
    return PromptLookup(tokens=5, ngram=2) if name == "lookup" else None


@pytest.fixture(scope="module")
def alone() -> Callable[[Kind], list[Completion]]:
    """What each of the 200 requests answers alone, on one thread."""

    @cache
    def answers(kind: Kind) -> list[Completion]:
        batching = Batching(FastModel(tiny(initial_std=0.3), kind, 400, threads=1))
        want: list[Completion] = []
        for prompt, sampling, seed in _requests(0, 200):
            # a pool of its own each time would be the same with less work: nothing known, nobody beside it
            batching.pages = Pages(400)
            want += batching.generate([Request(prompt, sampling, [11], seed)])
        return want

    return answers


@only_native
@pytest.mark.invariance
@each_kind
@pytest.mark.parametrize("guesser", ["alone", "lookup", "draft"])
def test_200_requests_among_others_answer_as_each_alone_to_the_last_bit(
    kind: Kind, guesser: str, alone: Callable[[Kind], list[Completion]]
) -> None:
    requests, want = _requests(0, 200), alone(kind)
    fast = FastModel(tiny(initial_std=0.3), kind, 45, threads=2)
    together = Batching(fast, step_tokens=48, step_rows=24, guesser=_guesser(guesser, kind))
    draw, numbers, got = random.Random(1), {}, dict[int, Completion]()
    doomed: list[int] = []
    waiting = [*requests, *_requests(7, 60)]
    draw.shuffle(waiting)
    known = {id(request): number for number, request in enumerate(requests)}
    for turn in count():
        for request in [waiting.pop() for _ in range(min(draw.randrange(4), len(waiting)))]:
            number = together.submit(Request(request[0], request[1], [11], request[2]))
            if id(request) in known:
                numbers[number] = known[id(request)]
                got[known[id(request)]] = Completion([], [], "length")
            else:
                doomed.append(number)
        for token in together.step():
            if token.row in numbers:
                one = got[numbers[token.row]]
                reason = token.finish_reason or "length"
                got[numbers[token.row]] = Completion([*one.ids, token.id], [*one.logprobs, token.logprob], reason)
        if doomed and turn % 3 == 0:
            together.cancel(doomed.pop(0))
        if not waiting and not together.busy:
            break
    assert [got[number] for number in range(200)] == want
    counts = together.counts
    assert counts.rows / counts.steps > 4
    assert counts.cancelled > 30
    assert counts.shared_tokens > 0
    assert counts.preempted > 0
    assert (guesser == "alone") == (counts.guessed == 0)
    assert (guesser == "alone") == (counts.accepted == 0)


@only_native
@pytest.mark.parametrize("name", ["lookup", "draft"])
def test_right_guesses_save_steps(name: str) -> None:
    """A model that is its own draft is never wrong, and a text that turns in circles is foretold by itself."""
    fast = FastModel(tiny(), "int8", 40)
    guesser = Draft(FastModel(tiny(), "int8", 20), tokens=4) if name == "draft" else PromptLookup()
    prompt, sampling = [1, 2, 3], Sampling(max_new_tokens=60, temperature=0 if name == "lookup" else 0.8)
    plain, quick = Batching(fast), Batching(fast, guesser=guesser)
    assert quick.generate([Request(prompt, sampling)]) == plain.generate([Request(prompt, sampling)])
    if name == "draft":
        assert quick.counts.accepted == quick.counts.guessed
        assert quick.counts.steps == 12  # five tokens a step
    assert quick.counts.steps == 60 - quick.counts.accepted
    assert quick.counts.accepted > 10
    assert quick.pages.free == 40
    assert not isinstance(guesser, Draft) or guesser._pages.free == 20


@only_native
@each_kind
def test_what_is_no_number_does_not_reach_who_comes_next(kind: Kind) -> None:
    """A broken text leaves NaN in its pages, and unseen keys count with weight zero."""
    fast = FastModel(tiny(), kind, 1)
    want = Batching(fast).generate([Request([1, 2, 3], Sampling(max_new_tokens=4))])
    for held in (fast._keys, fast._values):
        held[:] = 0x7FC0
    assert fast._rows([1], [0], torch.zeros(1, 1), [0]).isnan().any()
    assert Batching(fast).generate([Request([1, 2, 3], Sampling(max_new_tokens=4))]) == want


@only_native
def test_scores_are_the_models_own_however_the_prompt_is_cut() -> None:
    """Of the prompt where it is echoed, and of the answer; penalties and temperature do not touch them."""
    fast = FastModel(tiny(initial_std=0.3), "bf16", 40, threads=2)
    prompt = torch.randint(0, VOCABULARY, (70,), generator=generator(2, "ids")).tolist()
    request = Request(prompt, Sampling(max_new_tokens=3, temperature=0.5), [], 1, likeliest=4, echo=True)
    batching = Batching(fast, step_tokens=32)
    batching.generate([Request(prompt, Sampling(max_new_tokens=1))])  # whose pages must not hide the prompt
    tokens = list(batching.stream(request))
    ids = [*prompt, *(token.id for token in tokens)]
    logprobs = fast._rows(*rows(fast, ids), ask=range(len(ids) - 1)).log_softmax(-1)
    assert [len(token.prompt) for token in tokens] == [69, 0, 0]
    for place, scored in enumerate([*tokens[0].prompt, *(token.scored for token in tokens)]):
        assert scored is not None
        assert scored.logprob == float(logprobs[place, ids[place + 1]])
        assert [value for _, value in scored.likeliest] == logprobs[place].topk(4).values.tolist()


@only_native
def test_who_stops_listening_frees_the_place() -> None:
    batching = Batching(FastModel(tiny(), "int8", 20))
    stream = batching.stream(Request([1, 2, 3], Sampling(max_new_tokens=50)))
    next(stream)
    stream.close()
    assert not batching.busy
    assert batching.pages.free == 20
    assert batching.counts.cancelled == 1


@only_native
def test_an_answer_is_read_again_by_nobody() -> None:
    """The next turn of a conversation shares the pages of the last one's answer too."""
    batching = Batching(FastModel(tiny(), "int8", 20))
    (first,) = batching.generate([Request([1, 2, 3], Sampling(max_new_tokens=40))])
    batching.generate([Request([1, 2, 3, *first.ids, 5], Sampling(max_new_tokens=2))])
    assert batching.counts.shared_tokens == 32  # of 43 that are held, whole pages


@only_native
@pytest.mark.parametrize(
    ("prompt", "said"), [([], "is empty"), ([1] * 200, "no room"), ([1, 96], "96 is outside"), ([-1], "-1 is outside")]
)
def test_impossible_prompts_are_refused(prompt: list[int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Batching(FastModel(tiny(), "int8", 20)).submit(Request(prompt, Sampling()))


@only_native
@each_kind
def test_beams_are_searched_over_the_very_logits_of_each_text(kind: Kind) -> None:
    """The score of a text is the sum of what the step says of the whole of it, alone, to the last bit."""
    fast, pages = FastModel(tiny(initial_std=0.3), kind, 80, threads=2), Pages(80)
    prompt = torch.randint(0, VOCABULARY, (27,), generator=generator(4, "ids")).tolist()
    with PagedFront(fast, pages).held() as front:
        (found,) = Beam(beams=5, length_penalty=0.0).find(front, [prompt], Sampling(max_new_tokens=20), [], [0])
    assert pages.free == 80
    assert len({tuple(one.ids) for one in found}) == 5
    for one in found:
        ids = [*prompt, *one.ids]
        logprobs = fast._rows(*rows(fast, ids), ask=range(26, len(ids) - 1)).log_softmax(-1)
        told = [float(logprobs[at, id]) for at, id in enumerate(one.ids)]
        assert one.score == sum(told)
