"""The engine against itself, one row at a time and without a cache, and what it keeps in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from llmlab.adapters.lora import LoRA
from llmlab.adapters.part import add_adapter
from llmlab.errors import InputError, LlmlabError
from llmlab.inference.cache import PromptCache
from llmlab.inference.engine import Completion, _closed_up, generate, stream
from llmlab.inference.sampling import Sampling, choose, key_of, process
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.runtime import generator

VOCABULARY, CONTEXT = 29, 32


def tiny(position: Any = "rope", attention: Any = "gqa", **fields: Any) -> Transformer:
    sizes = {
        "layers": 2,
        "dim": 32,
        "context": CONTEXT,
        "initial_std": 0.3,
        "position": position,
        "attention": attention,
    }
    return Architecture.model_validate(sizes | fields).build(VOCABULARY, seed=1).eval()


def slow(model: Transformer, prompt: list[int], sampling: Sampling, stop_ids: list[int], seed: int) -> Completion:
    """The same, said plainly: no batch, no padding, no cache, every token computed anew."""
    ids, logprobs = list(prompt), []
    while True:
        with torch.inference_mode():
            logits = model(torch.tensor([ids]))[:, -1]
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[0, ids] = True
        banned = torch.zeros_like(seen)
        if len(ids) - len(prompt) < sampling.min_new_tokens:
            banned[0, stop_ids] = True
        drawn = choose(process(logits, sampling, seen, banned), sampling.greedy, [key_of(seed)], [len(ids)])
        ids.append(int(drawn.ids_B))
        logprobs.append(float(drawn.logprobs_B))
        answer = ids[len(prompt) :]
        if answer[-1] in stop_ids:
            return Completion(answer, logprobs, "stop")
        if len(answer) == sampling.max_new_tokens or len(ids) == model.architecture.context:
            return Completion(answer, logprobs, "length")


def assert_same(ours: Completion, theirs: Completion) -> None:
    assert ours.ids == theirs.ids
    assert ours.finish_reason == theirs.finish_reason
    assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


SECTIONS = [
    Sampling(max_new_tokens=12),
    Sampling(max_new_tokens=12, temperature=0),
    Sampling(max_new_tokens=12, temperature=0.8, top_k=8, top_p=0.9, repetition_penalty=1.4, min_new_tokens=6),
]
prompts_ = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=CONTEXT - 1), min_size=1, max_size=6)


@pytest.mark.parametrize("section", SECTIONS, ids=["plain", "greedy", "everything"])
@settings(max_examples=12, deadline=None)
@given(prompts=prompts_, seed=st.integers(0, 1000))
def test_a_batch_with_a_cache_answers_as_each_row_alone_without_one(
    section: Sampling, prompts: list[list[int]], seed: int
) -> None:
    model, stop_ids = tiny(), [0, 3, 5, 7]
    seeds = list(range(seed, seed + len(prompts)))
    for ours, prompt, own in zip(generate(model, prompts, section, stop_ids, seeds), prompts, seeds, strict=True):
        assert_same(ours, slow(model, prompt, section, stop_ids, own))


def test_every_position_and_attention_through_the_engine(mixing: Any) -> None:
    model = tiny(*mixing)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]
    for ours, prompt, seed in zip(
        generate(model, prompts, SECTIONS[0], [0], [1, 2, 3]), prompts, [1, 2, 3], strict=True
    ):
        assert_same(ours, slow(model, prompt, SECTIONS[0], [0], seed))


@pytest.mark.parametrize("mixed", [{}, {"position": "alibi"}, {"attention": {"kind": "mha", "window": 6}}])
def test_a_prompt_is_the_prefix_of_a_prefix_model(mixed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, memory = tiny(mask="prefix", **mixed), PromptCache(CONTEXT)
    monkeypatch.setattr("llmlab.inference.engine.PREFILL_COLUMNS", 3)  # a prefix is read at once all the same
    prompts = [[1, 2, 3, 4, 5, 6, 7], [4, 2], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]]
    answers = generate(model, prompts, SECTIONS[1], [], [0, 0, 0])
    list(stream(model, [1, 2, 3, 4], SECTIONS[1], [], 0, memory=memory))  # shares a beginning, which saw less
    remembered = [token.id for token in stream(model, prompts[0], SECTIONS[1], [], 0, memory=memory)]
    assert remembered == answers[0].ids
    differs = False
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer.ids[:-1]]])
        with torch.inference_mode():
            said = model(ids, Places.causal(*ids.shape).prefix([len(prompt)]))[0, len(prompt) - 1 :].argmax(-1)
            differs |= model(ids)[0, len(prompt) - 1 :].argmax(-1).tolist() != answer.ids
        assert said.tolist() == answer.ids
    assert differs  # from what a causal reading of the same prompts says


def test_long_prompts_go_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    prompts = [list(range(20)), [4, 2], list(range(28, 10, -1))]
    whole = generate(model, prompts, SECTIONS[0], [0], [1, 2, 3])
    monkeypatch.setattr("llmlab.inference.engine.PREFILL_COLUMNS", 3)
    for ours, theirs in zip(generate(model, prompts, SECTIONS[0], [0], [1, 2, 3]), whole, strict=True):
        assert_same(ours, theirs)


def test_streaming_is_generating() -> None:
    model = tiny()
    tokens = list(stream(model, [1, 2, 3], SECTIONS[0], [0], 9))
    [completion] = generate(model, [[1, 2, 3]], SECTIONS[0], [0], [9])
    assert [token.id for token in tokens] == completion.ids
    assert [token.logprob for token in tokens] == completion.logprobs
    assert [token.finish_reason for token in tokens] == [None] * (len(tokens) - 1) + [completion.finish_reason]


def test_the_seed_and_nothing_else_decides() -> None:
    model = tiny()
    state = torch.get_rng_state()
    first, second, other = (generate(model, [[1, 2]], SECTIONS[0], [], [seed])[0] for seed in (5, 5, 6))
    assert first == second
    assert first.ids != other.ids
    assert torch.equal(torch.get_rng_state(), state)


def test_the_context_ends_the_answer() -> None:
    model = tiny()
    [completion] = generate(model, [[1] * (CONTEXT - 3)], Sampling(max_new_tokens=99), [], [0])
    assert (len(completion.ids), completion.finish_reason) == (3, "length")


def test_a_row_may_be_ended_from_outside_and_the_others_go_on() -> None:
    model = tiny()
    heard: list[tuple[int, int]] = []

    def enough(row: int, token: int) -> bool:
        heard.append((row, token))
        return row == 1 and sum(r == 1 for r, _ in heard) == 2

    plain = generate(model, [[1], [2], [3]], SECTIONS[0], [], [1, 2, 3])
    ended = generate(model, [[1], [2], [3]], SECTIONS[0], [], [1, 2, 3], on_token=enough)
    assert [len(c.ids) for c in ended] == [12, 2, 12]
    assert [c.finish_reason for c in ended] == ["length", "stop", "length"]
    assert ended[1].ids == plain[1].ids[:2]
    assert (ended[0].ids, ended[2].ids) == (plain[0].ids, plain[2].ids)
    assert [token for row, token in heard if row == 2] == plain[2].ids


def test_no_stop_before_the_minimum() -> None:
    model, everything = tiny(), list(range(1, VOCABULARY))  # almost every token ends the answer
    [soon] = generate(model, [[1]], Sampling(max_new_tokens=12), everything, [4])
    [late] = generate(model, [[1]], Sampling(max_new_tokens=12, min_new_tokens=5), everything, [4])
    assert len(soon.ids) < 5
    assert late.ids[:5] == [0] * 5


def test_finished_rows_leave_the_batch() -> None:
    model = tiny()
    sizes: list[int] = []
    run = Transformer.hidden

    def counted(ids: Any, *rest: Any) -> Any:
        sizes.append(len(ids))
        return run(model, ids, *rest)

    model.hidden = counted  # type: ignore[method-assign]
    answers = generate(model, [[n] for n in range(8)], Sampling(max_new_tokens=10), [0, 1, 2, 3, 4, 5], list(range(8)))
    lengths = [len(answer.ids) for answer in answers]
    assert len(set(lengths)) > 2  # else this shows nothing
    assert sizes == [8] + [sum(length > step for length in lengths) for step in range(1, max(lengths))]


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 30), min_size=1))
def test_closing_up_keeps_all_and_moves_only_into_holes(going: set[int]) -> None:
    slots = _closed_up(sorted(going), 31)
    assert sorted(slots) == sorted(going)
    assert all(slot == new for new, slot in enumerate(slots) if new in going)


def test_each_row_keeps_its_role_when_others_leave() -> None:
    model = tiny()
    heard: list[tuple[Any, ...]] = []
    run = Transformer.hidden

    def listening(ids: Any, at: Any, cache: Any, role: Any) -> Any:
        heard.append(role)
        return run(model, ids, at, cache)

    model.hidden = listening  # type: ignore[method-assign]
    generate(
        model,
        [[1], [2], [3]],
        Sampling(max_new_tokens=3),
        [],
        [1, 2, 3],
        ("a", "b", "c"),
        on_token=lambda row, _: row == 0,
    )
    assert heard == [("a", "b", "c"), ("c", "b"), ("c", "b")]


def test_rows_of_several_adapters_answer_as_each_adapter_alone() -> None:
    model = tiny()
    for seed, name in enumerate(("a", "b")):
        add_adapter(model, name, LoRA(rank=2, alpha=64), seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".B"):
                parameter.normal_(0, 0.3, generator=generator(0, name))
    prompts, roles, seeds = [[1, 2, 3], [4], [1, 2, 3], [1, 2, 3]], ("a", "base", "b", "a"), [1, 2, 1, 1]
    together = generate(model, prompts, SECTIONS[0], [0, 5, 9], seeds, roles)
    for ours, prompt, role, seed in zip(together, prompts, roles, seeds, strict=True):
        assert_same(ours, generate(model, [prompt], SECTIONS[0], [0, 5, 9], [seed], role)[0])
    assert together[0].ids == together[3].ids != together[2].ids


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_autocast_reaches_the_cache_and_leaves_training_alone(dtype: torch.dtype | None) -> None:
    model = tiny()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        [one] = generate(model, [[1, 2, 3]], SECTIONS[0], [], [1])
        model(torch.tensor([[1, 2, 3]])).float().square().mean().backward()
    assert len(one.ids) == 12
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_dropout_is_off_and_each_module_gets_its_mode_back() -> None:
    model = tiny(dropout=0.5).train()
    model.blocks[0].eval()
    before = [module.training for module in model.modules()]
    answers = [generate(model, [[1, 2]], SECTIONS[0], [], [5]) for _ in range(2)]
    assert answers[0] == answers[1]
    assert [module.training for module in model.modules()] == before
    assert True in before
    assert False in before


class Largest(TorchDispatchMode):
    """The most elements that any tensor had while it was on."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def test_no_tensor_grows_with_vocabulary_times_length() -> None:
    vocabulary, rows, tokens = 20_011, 4, 24  # trap 31
    model = Architecture(layers=1, dim=8, context=64, attention="mqa").build(vocabulary).eval()  # type: ignore[arg-type]
    with Largest() as largest:
        generate(model, [[1] * 20] * rows, Sampling(max_new_tokens=tokens), [], list(range(rows)))
    assert vocabulary * rows <= largest.elements < 2 * vocabulary * rows


def test_what_two_prompts_share_is_computed_once() -> None:
    model = tiny()
    memory = PromptCache(CONTEXT)
    computed: list[int] = []
    run = Transformer.hidden

    def counted(ids: Any, *rest: Any) -> Any:
        computed.append(ids.shape[1])
        return run(model, ids, *rest)

    model.hidden = counted  # type: ignore[method-assign]
    section = Sampling(max_new_tokens=4, repetition_penalty=1.5)  # a penalty counts the cached part too
    first = [1, 2, 3, 4, 5]
    answer = [token.id for token in stream(model, first, section, [], 3, memory=memory)]
    second = [*first, *answer, 6, 7]
    computed.clear()
    again = list(stream(model, second, section, [], 3, memory=memory))
    assert computed[0] == 3  # the last token of the answer was never run; then the two new ones
    assert [token.id for token in again] == [token.id for token in stream(model, second, section, [], 3)]


def test_an_interrupted_answer_leaves_a_memory_that_can_be_used() -> None:
    model, memory, section = tiny(), PromptCache(CONTEXT), Sampling(max_new_tokens=6)
    run = Transformer.hidden
    calls = 0

    def interrupted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        result = run(model, *args)
        if calls == 3:
            raise KeyboardInterrupt
        return result

    model.hidden = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        list(stream(model, [1, 2, 3], section, [], 1, memory=memory))
    del model.hidden
    got = [token.id for token in stream(model, [1, 2, 3, 9], section, [], 1, memory=memory)]
    assert got == [token.id for token in stream(model, [1, 2, 3, 9], section, [], 1)]


def test_nothing_in_nothing_out() -> None:
    assert generate(tiny(), [], Sampling(), [], []) == []


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([[]], "prompt: is empty"),
        ([[1], []], "prompt 2: is empty"),
        (
            [[1] * CONTEXT],
            f"prompt: has {CONTEXT} tokens, which leaves no room for an answer in the context of {CONTEXT}",
        ),
    ],
)
def test_impossible_prompts_are_refused_with_numbers(prompts: list[list[int]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        generate(tiny(), prompts, Sampling(), [], [0] * len(prompts))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_answers_nan_is_an_error_not_an_answer(temperature: float) -> None:
    model = tiny()
    with torch.no_grad():
        model.embedding.weight[3] = torch.nan
    with pytest.raises(LlmlabError, match="not a number"):
        generate(model, [[1, 2]], Sampling(temperature=temperature), [], [0])
