"""Searches against transformers, against all texts of a toy vocabulary, and against the papers said plainly."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmlab.errors import InputError, LlmlabError
from llmlab.families import mapping
from llmlab.inference.beam import Beam
from llmlab.inference.best_of import BestOf
from llmlab.inference.caches import Int8, Rolling
from llmlab.inference.contrastive import Contrastive
from llmlab.inference.engine import generate
from llmlab.inference.front import DecoderFront
from llmlab.inference.hypothesis import Hypothesis, SearchPart
from llmlab.inference.paged_front import PagedFront
from llmlab.inference.pages import Pages
from llmlab.inference.plain_step import PlainModel
from llmlab.inference.rules import Rules
from llmlab.inference.sampling import Sampling
from llmlab.inference.search import Search
from llmlab.model.transformer import Architecture, Transformer

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="the reference implementation is a test dependency")

VOCABULARY, CONTEXT, NEW = 40, 48, 12
PROMPTS = [[5, 6, 7, 8, 9], [12], [13, 14, 15], [30, 31]]
SEARCHES = [member() for member in get_args(get_args(Search)[0])]
MIXED: list[dict[str, Any]] = [
    {},
    {"position": "alibi", "attention": "mha"},
    {"position": "xl", "attention": "mqa"},
    {"attention": "lstm", "position": "none"},
    {"attention": "linear", "position": "none"},
    {"mask": "prefix", "position": "t5"},
    {"encoder_layers": 1, "position": "t5", "start_id": 0},
]


def tiny(vocabulary: int = VOCABULARY, seed: int = 1, **fields: Any) -> Transformer:
    sizes = {"layers": 2, "dim": 32, "context": CONTEXT, "initial_std": 0.4}
    return Architecture.model_validate(sizes | fields).build(vocabulary, seed).eval()


def find(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    search: SearchPart,
    stops: Sequence[int] = (),
    **sampling: Any,
) -> list[list[Hypothesis]]:
    told = Sampling(**{"max_new_tokens": NEW, **sampling})
    return search.find(DecoderFront(model), prompts, told, stops, list(range(len(prompts))))


def assert_same(ours: Sequence[Hypothesis], theirs: Sequence[Hypothesis]) -> None:
    assert [one.ids for one in ours] == [one.ids for one in theirs]
    assert [one.finish_reason for one in ours] == [one.finish_reason for one in theirs]
    assert [one.score for one in ours] == pytest.approx([one.score for one in theirs], rel=1e-4, abs=1e-4)


# ---------------------------------------------------------------- beam search as transformers has it


def _llama(torch_seed: int) -> tuple[Any, Transformer]:
    torch.manual_seed(torch_seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, initializer_range=0.4, bos_token_id=None,
    )  # fmt: skip
    return _both("llama", config, transformers.LlamaForCausalLM(config))


def _gpt2(torch_seed: int) -> tuple[Any, Transformer]:
    torch.manual_seed(torch_seed)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return _both("gpt2", config, transformers.GPT2LMHeadModel(config))


def _t5(torch_seed: int) -> tuple[Any, Transformer]:
    torch.manual_seed(torch_seed)
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, initializer_factor=3.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    theirs = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in theirs.decoder.block.named_parameters():
            parameter.mul_(1.0 if "norm" in name else 3.0)
    return _both("t5", config, theirs)


def _both(name: str, config: Any, theirs: Any) -> tuple[Any, Transformer]:
    family = mapping.family(name)
    architecture, vocab_size = family.read_config(config.to_dict())
    ours = architecture.build(vocab_size).eval()
    ours.load_state_dict(mapping.from_hf(family, ours, theirs.state_dict()))
    return theirs.eval(), ours


@pytest.fixture(scope="module", params=[_llama, _gpt2, _t5], ids=["llama", "gpt2", "t5"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Transformer]:
    """A tiny model of transformers, and ours with its weights."""
    make: Callable[[int], tuple[Any, Transformer]] = request.param
    return make(0)


def reference(theirs: Any, stops: list[int], **arguments: Any) -> tuple[list[list[int]], list[float]]:
    """Ids and scores of transformers, prompt by prompt, best first."""
    whole = theirs.config.is_encoder_decoder
    width = max(map(len, PROMPTS))
    pads = [[0] * (width - len(prompt)) for prompt in PROMPTS]
    pairs = list(zip(PROMPTS, pads, strict=True))
    ids = torch.tensor([prompt + pad if whole else pad + prompt for prompt, pad in pairs])
    real = torch.tensor([[1] * len(a) + b if whole else b + [1] * len(a) for a, b in pairs])
    out = theirs.generate(
        ids, attention_mask=real, do_sample=False, max_new_tokens=NEW, eos_token_id=stops or None, pad_token_id=0,
        return_dict_in_generate=True, output_scores=True, **arguments,
    )  # fmt: skip
    rows = []
    for row in out.sequences[:, 1 if whole else width :].tolist():
        ends = [place for place, token in enumerate(row) if token in stops]
        rows.append(row[: ends[0] + 1] if ends else row)
    return rows, out.sequences_scores.tolist()


@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0, -1.0])
def test_beam_search_is_that_of_transformers(pair: tuple[Any, Transformer], penalty: float, early: Any) -> None:
    """Several prompts of unequal length at once, every returned text with its score, some of which end early."""
    theirs, ours = pair
    reasons = set()
    said = find(ours, PROMPTS, Beam(beams=2))[0][0].ids  # tokens that are really said
    for stops, beams in (([said[4]], 2), ([3, said[6]], 4), ([39, 8, 1], 3)):
        rows, scores = reference(
            theirs, stops, num_beams=beams, num_return_sequences=beams, length_penalty=penalty, early_stopping=early
        )
        search = Beam(beams=beams, length_penalty=penalty, early_stopping=early)
        found = find(ours, PROMPTS, search, stops)
        assert [one.ids for prompt in found for one in prompt] == rows
        assert [one.score for prompt in found for one in prompt] == pytest.approx(scores, rel=5e-4, abs=1e-4)
        for prompt, together in zip(PROMPTS, found, strict=True):
            assert_same(find(ours, [prompt], search, stops)[0], together)
        reasons |= {one.finish_reason for prompt in found for one in prompt}
    assert "stop" in reasons
    assert "length" in reasons or penalty > 1 or early is True


def test_processors_act_on_log_probabilities_as_in_transformers(pair: tuple[Any, Transformer]) -> None:
    theirs, ours = pair
    rows, _ = reference(theirs, [3], num_beams=3, repetition_penalty=1.7, min_new_tokens=6)
    found = find(ours, PROMPTS, Beam(beams=3), [3], repetition_penalty=1.7, min_new_tokens=6)
    assert [prompt[0].ids for prompt in found] == rows
    assert all(len(row) >= 6 for row in rows)
    if not theirs.config.is_encoder_decoder:  # T5's decoder says little twice; its penalty is shown by the ids above
        assert rows != [prompt[0].ids for prompt in find(ours, PROMPTS, Beam(beams=3), [3])]


# ---------------------------------------------------------------- beam search against all texts


@torch.no_grad()
def all_texts(model: Transformer, prompt: list[int], stops: list[int], new: int, penalty: float) -> list[Hypothesis]:
    """Every text that ends by a stop token or at the limit, best first."""
    told = []
    for length in range(1, new + 1):
        free = [token for token in range(model.vocab_size) if token not in stops]
        last = range(model.vocab_size) if length == new else stops
        for *first, end in product(*[free] * (length - 1), last):
            told.append([*first, end])
    texts = []
    for ids in told:
        logprobs = model(torch.tensor([[*prompt, *ids]]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        total = float(logprobs.gather(-1, torch.tensor(ids)[:, None]).double().sum())
        texts.append(Hypothesis(ids, total / len(ids) ** penalty, "stop" if ids[-1] in stops else "length"))
    return sorted(texts, key=lambda one: -one.score)


@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.5])
def test_beams_for_all_texts_find_all_texts_alone_and_in_batches(penalty: float, early: Any) -> None:
    """The trap: a batch that ends early, or takes another prompt's length, when prompts differ in length."""
    model, stops, new = tiny(5, seed=2), [4], 3
    prompts = [[1, 2, 3, 0, 1, 2], [3], [2, 2]]
    search = Beam(beams=5**new, length_penalty=penalty, early_stopping=early)
    for prompt, together in zip(prompts, find(model, prompts, search, stops, max_new_tokens=new), strict=True):
        expected = all_texts(model, prompt, stops, new, penalty)
        assert_same(together, expected)
        assert_same(find(model, [prompt], search, stops, max_new_tokens=new)[0], expected)
        assert {one.finish_reason for one in expected} == {"stop", "length"}


@settings(max_examples=15, deadline=None)
@given(beams=st.integers(1, 6), seed=st.integers(0, 50), early=st.sampled_from([False, True, "never"]))
def test_scores_are_those_of_the_texts_and_no_text_comes_twice(beams: int, seed: int, early: Any) -> None:
    model, stops, prompt = tiny(7, seed=seed), [6], [1, 2]
    (found,) = find(model, [prompt], Beam(beams=beams, early_stopping=early), stops, max_new_tokens=6)
    assert 1 <= len(found) <= beams
    assert len({tuple(one.ids) for one in found}) == len(found)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        with torch.no_grad():
            logprobs = model(torch.tensor([[*prompt, *one.ids]]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        mean = float(logprobs.gather(-1, torch.tensor(one.ids)[:, None]).mean())
        assert one.score == pytest.approx(mean, abs=1e-4)
        assert (one.finish_reason == "stop") == (one.ids[-1] == 6)


# ---------------------------------------------------------------- diverse beam search, from the paper


@torch.no_grad()
def diverse(model: Transformer, prompt: list[int], search: Beam, new: int, stops: list[int]) -> list[list[int]]:
    """Algorithm 1 of the paper for one prompt, every beginning scored anew: at each step one group after another takes
    its best beginnings, by log-probabilities less the penalty for each earlier group's beam that says the same."""
    width = search.beams // search.groups
    groups: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in range(search.groups)]
    ended: list[list[tuple[float, list[int]]]] = [[] for _ in range(search.groups)]
    for length in range(1, new + 1):
        said: list[int] = []
        for g, beams in enumerate(groups):
            nexts = []
            for score, ids in beams:
                logprobs = model(torch.tensor([[*prompt, *ids]]))[0, -1].log_softmax(-1)
                for token, logprob in enumerate(logprobs.tolist()):
                    diversity = -sum(token == other for other in said)
                    nexts.append((score + logprob + search.diversity_penalty * diversity, [*ids, token]))
            nexts.sort(key=lambda one: -one[0])
            over = [one for one in nexts[:width] if one[1][-1] in stops or length == new]
            ended[g] += [(score / length**search.length_penalty, ids) for score, ids in over]
            ended[g] = sorted(ended[g], key=lambda one: -one[0])[:width]
            groups[g] = [one for one in nexts if one[1][-1] not in stops][:width] if beams and length < new else []
            said += [ids[-1] for _, ids in over + groups[g]]
            if len(ended[g]) == width:
                best = groups[g][0][0] / length**search.length_penalty if groups[g] else float("-inf")
                if best <= ended[g][-1][0]:
                    groups[g] = []
    return [ids for _, ids in sorted((one for group in ended for one in group), key=lambda one: -one[0])]


@pytest.mark.parametrize(("beams", "groups", "penalty"), [(4, 2, 0.4), (6, 3, 1.5), (3, 3, 50.0)])
def test_diverse_beams_are_those_of_the_paper(beams: int, groups: int, penalty: float) -> None:
    model, stops = tiny(11, seed=4), [3]
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8]]
    search = Beam(beams=beams, groups=groups, diversity_penalty=penalty, length_penalty=0.7)
    found = find(model, prompts, search, stops, max_new_tokens=6)
    for prompt, ours in zip(prompts, found, strict=True):
        assert [one.ids for one in ours] == diverse(model, prompt, search, 6, stops)
    if penalty == 50.0:  # no two groups say the same at the same place
        for prompt in found:
            for place in range(6):
                column = [one.ids[place] for one in prompt if len(one.ids) > place]
                assert len(set(column)) == len(column)


@torch.no_grad()
def test_one_group_is_beam_search_and_groups_differ() -> None:
    model, prompt = tiny(11, seed=4), [1, 2, 3]
    plain = find(model, [prompt], Beam(beams=4), [3], max_new_tokens=8)[0]
    one = Beam(beams=4, groups=1)
    assert [x.ids for x in plain] == diverse(model, prompt, one, 8, [3])
    assert_same(find(model, [prompt], one, [3], max_new_tokens=8)[0], plain)
    apart = find(model, [prompt], Beam(beams=4, groups=4, diversity_penalty=2.0), [3], max_new_tokens=8)[0]
    assert [x.ids for x in apart] != [x.ids for x in plain]
    apart = find(model, [prompt], Beam(beams=4, groups=4, diversity_penalty=50.0), [3], max_new_tokens=8)[0]
    assert len({x.ids[0] for x in apart}) == 4


# ---------------------------------------------------------------- contrastive search, from the paper


@torch.no_grad()
def contrast(model: Transformer, prompt: list[int], search: Contrastive, new: int, stops: list[int]) -> list[int]:
    """Equation 5 of the paper, everything computed anew for each candidate."""
    ids: list[int] = []
    while len(ids) < new and not (ids and ids[-1] in stops):
        text = torch.tensor([[*prompt, *ids]])
        before = model.hidden(text, model.architecture.mask.places(text))[0]
        p = model.logits(before)[-1].softmax(-1).topk(search.top_k)
        best: tuple[float, int] | None = None
        for probability, token in zip(p.values.tolist(), p.indices.tolist(), strict=True):
            longer = torch.tensor([[*prompt, *ids, token]])
            h: Tensor = model.hidden(longer, model.architecture.mask.places(longer))[0, -1]
            alike = max(float(torch.cosine_similarity(h, other, dim=0)) for other in before)
            score = (1 - search.penalty_alpha) * probability - search.penalty_alpha * alike
            best = max(best or (score, token), (score, token))
        assert best is not None
        ids.append(best[1])
    return ids


@pytest.mark.parametrize(("alpha", "k"), [(0.6, 4), (0.3, 8), (1.0, 5)])
def test_contrastive_search_is_that_of_the_paper(alpha: float, k: int) -> None:
    model, search = tiny(), Contrastive(penalty_alpha=alpha, top_k=k)
    free = find(model, PROMPTS, search)
    stop = free[0][0].ids[3]
    for stops in ([], [stop]):
        for prompt, (one,) in zip(PROMPTS, find(model, PROMPTS, search, stops), strict=True):
            assert one.ids == contrast(model, prompt, search, NEW, stops)
            assert (one.finish_reason == "stop") == (one.ids[-1] in stops)
    greedy = [one.ids for one in generate(model, PROMPTS, Sampling(temperature=0, max_new_tokens=NEW), [], [0] * 4)]
    assert [prompt[0].ids for prompt in free] != greedy


# ---------------------------------------------------------------- what all searches are at their simplest


@pytest.mark.parametrize("fields", MIXED, ids=lambda fields: "-".join(map(str, fields.values())) or "rope-gqa")
@pytest.mark.parametrize("search", [Beam(beams=1), Beam(beams=1, early_stopping=True), Contrastive(penalty_alpha=0.0)])
def test_at_its_simplest_a_search_is_greedy(search: SearchPart, fields: dict[str, Any]) -> None:
    """Over any kind of decoder: keys, states, a prefix, an encoder."""
    model = tiny(**fields)
    free = generate(model, PROMPTS, Sampling(temperature=0, max_new_tokens=NEW), [], [0] * 4)
    stop = free[0].ids[4]
    for more in ({}, {"repetition_penalty": 1.5, "min_new_tokens": 6}):
        section = Sampling(temperature=0, max_new_tokens=NEW, **more)
        expected = generate(model, PROMPTS, section, [stop], [0] * 4)
        if isinstance(search, Beam) and "repetition_penalty" in more:
            continue  # a penalty acts on log-probabilities there, as in transformers, on logits in greedy decoding
        for ours, greedy in zip(find(model, PROMPTS, search, [stop], **more), expected, strict=True):
            assert (ours[0].ids, ours[0].finish_reason) == (greedy.ids, greedy.finish_reason)


@pytest.mark.parametrize("fields", MIXED, ids=lambda fields: "-".join(map(str, fields.values())) or "rope-gqa")
@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.kind)
def test_a_batch_finds_what_each_prompt_finds_alone(search: SearchPart, fields: dict[str, Any]) -> None:
    model = tiny(**fields)
    stops = find(model, PROMPTS, search)[1][0].ids[5:6]
    together = find(model, PROMPTS, search, stops)
    for number, (prompt, ours) in enumerate(zip(PROMPTS, together, strict=True)):
        alone = search.find(DecoderFront(model), [prompt], Sampling(max_new_tokens=NEW), stops, [number])
        assert_same(ours, alone[0])
    assert {one.finish_reason for prompt in together for one in prompt} == {"stop", "length"}


def test_best_of_draws_what_the_engine_draws_and_the_likeliest_wins() -> None:
    model, section = tiny(), Sampling(max_new_tokens=NEW, temperature=0.9, top_p=0.9, repetition_penalty=1.2)
    search = BestOf(n=5)
    found = search.find(DecoderFront(model), PROMPTS, section, [3], [7, 8, 9, 7])
    for prompt, seed, ours in zip(PROMPTS, [7, 8, 9, 7], found, strict=True):
        seeds = search.seeds(seed)
        drawn = [row.ids for row in generate(model, [prompt] * 5, section, [3], seeds)]
        assert seeds[0] == seed
        assert len(set(seeds)) == 5
        assert sorted(one.ids for one in ours) == sorted(drawn)
        means = {}
        for ids in drawn:
            with torch.no_grad():
                logprobs = model(torch.tensor([[*prompt, *ids]]))[0, len(prompt) - 1 : -1].log_softmax(-1)
            means[tuple(ids)] = float(logprobs.gather(-1, torch.tensor(ids)[:, None]).mean())
        for one in ours:
            assert one.score == pytest.approx(means[tuple(one.ids)], abs=1e-4)
        assert tuple(ours[0].ids) == max(means, key=lambda ids: means[ids])


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.kind)
def test_the_context_ends_a_text_and_nothing_comes_of_nothing(search: SearchPart) -> None:
    model = tiny()
    prompts = [[1] * (CONTEXT - 3), [2] * 4]
    near, far = find(model, prompts, search, max_new_tokens=9)
    assert {len(one.ids) for one in near} == {3}
    assert {len(one.ids) for one in far} == {9}
    assert search.find(DecoderFront(model), [], Sampling(), [], []) == []
    for wrong, says in (([[]], "is empty"), ([[1] * CONTEXT], "leaves no room")):
        with pytest.raises(InputError, match=says):
            find(model, wrong, search)
    with torch.no_grad():
        model.embedding.weight[3] = torch.nan
    with pytest.raises(LlmlabError, match="not a number"):
        find(model, [[1, 2]], search)


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.kind)
def test_searches_run_over_any_cache(search: SearchPart) -> None:
    model, section = tiny(), Sampling(max_new_tokens=NEW)
    expected = find(model, PROMPTS, search)
    wide = DecoderFront(model, Rolling(window=CONTEXT - 2, sinks=2))  # never full
    for ours, theirs in zip(search.find(wide, PROMPTS, section, [], [0, 1, 2, 3]), expected, strict=True):
        assert_same(ours, theirs)
    small = DecoderFront(model, Rolling(window=6, sinks=1))  # and endless
    long = search.find(small, [[1] * 20, [2]], Sampling(max_new_tokens=CONTEXT + 5), [], [0, 1])
    assert {len(one.ids) for prompt in long for one in prompt} == {CONTEXT + 5}
    assert all(search.find(DecoderFront(model, Int8()), PROMPTS, section, [], [0, 1, 2, 3]))


@pytest.mark.parametrize(
    ("search", "sampling", "says"),
    [
        (Beam(), {"temperature": 0.7}, r"sampling\.temperature: 0\.7 cannot go with beam search"),
        (Beam(), {"top_k": 1}, r"sampling\.top_k: 1 leaves a search nothing"),
        (Contrastive(), {"temperature": 0.7}, r"sampling\.temperature: 0\.7 cannot go with contrastive search"),
        (Contrastive(), {"top_k": 5}, r"sampling\.top_k: 5 cannot go with contrastive search"),
        (Contrastive(), {"top_p": 0.9}, r"sampling\.top_p: 0\.9 cannot go with contrastive search"),
        (BestOf(), {"temperature": 0}, r"sampling\.temperature: 0 draws 4 times the same answer"),
        (BestOf(), {"top_k": 1}, r"sampling\.top_k: 1 draws 4 times the same answer"),
    ],
)
def test_what_cannot_go_together_is_refused_by_name(search: SearchPart, sampling: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        find(tiny(), [[1]], search, **sampling)


def test_top_k_and_top_p_bound_what_may_follow() -> None:
    model = tiny()
    plain = find(model, PROMPTS, Beam(beams=4), [3])
    for bound in ({"top_k": 2}, {"top_p": 0.3}):
        found = find(model, PROMPTS, Beam(beams=4), [3], **bound)
        assert found != plain
        for prompt, beams in zip(PROMPTS, found, strict=True):
            for one in beams:
                with torch.no_grad():
                    logits = model(torch.tensor([[*prompt, *one.ids]]))[0, len(prompt) - 1 : -1]
                rank = (logits > logits.gather(-1, torch.tensor(one.ids)[:, None])).sum(-1)
                before = [float(row.softmax(-1).topk(int(r)).values.sum()) for row, r in zip(logits, rank, strict=True)]
                assert max(rank) < bound.get("top_k", VOCABULARY)
                assert max(before) < bound.get("top_p", 1.0)


def test_bans_that_leave_nothing_are_said() -> None:
    model = tiny(4)
    with pytest.raises(LlmlabError, match="ban every token"):
        find(model, [[1]], Beam(), [0, 1, 2, 3], max_new_tokens=4, min_new_tokens=2)


class Tail:
    """Ends a text that says these two ids one after the other."""

    def __init__(self, ids: tuple[int, int], last: int = -1, stopped: bool = False) -> None:
        self.ids, self.last, self.stopped = ids, last, stopped

    def push(self, token: int) -> None:
        self.stopped |= (self.last, token) == self.ids
        self.last = token

    def copy(self) -> Tail:
        return Tail(self.ids, self.last, self.stopped)


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.kind)
def test_a_watch_ends_a_text(search: SearchPart) -> None:
    model, section = tiny(), Sampling(max_new_tokens=NEW)
    free = find(model, PROMPTS, search)
    ids = free[0][0].ids
    tail = Tail((ids[3], ids[4]))
    found = search.find(DecoderFront(model), PROMPTS, section, [], [0, 1, 2, 3], tail)
    first = next(place for place in range(1, NEW) if (ids[place - 1], ids[place]) == tail.ids)
    assert (ids[: first + 1], "stop") in [(one.ids, one.finish_reason) for one in found[0]]
    for prompt in found:
        for one in prompt:
            pairs = list(zip(one.ids, one.ids[1:], strict=False))
            assert tail.ids not in pairs[:-1]
            assert (one.finish_reason == "stop") == (tail.ids in pairs[-1:])


# ---------------------------------------------------------------- settings of a row


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.kind)
@pytest.mark.parametrize(
    "setting",
    [
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 1},
        {"logit_bias": {3: 60.0}},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_every_setting_of_a_row_is_minded(search: SearchPart, setting: dict[str, Any]) -> None:
    model, sampling = tiny(), Sampling(max_new_tokens=10)
    plain, changed = (
        search.find(DecoderFront(model), [[1, 2]], one, (), [0])[0][0].ids
        for one in (sampling, Sampling.model_validate(sampling.model_dump() | setting))
    )
    assert plain != changed
    if "no_repeat_ngram_size" in setting:
        assert len(set(changed)) == len(changed)


def test_asking_whether_a_text_ends_leaves_it_as_it_is() -> None:
    rules = Rules([[1]], Sampling(), [9], Tail((2, 3)))
    rules.process(torch.zeros(1, 10))
    assert [rules.ends(0, token) for token in (2, 3, 9)] == [False, False, True]
    rules.advance([2, 2, 5], [0, 0, 0])
    assert [rules.ends(row, 3) for row in range(3)] == [True, True, False]


def test_a_stop_token_may_come_when_enough_was_said() -> None:
    rules = Rules([[1]], Sampling(min_new_tokens=2), [0])
    for said in range(4):
        assert bool(rules.process(torch.zeros(1, 3))[0, 0].isinf()) == (said < 2)
        rules.advance([1], [0])


# ---------------------------------------------------------------- texts in pages


@pytest.mark.parametrize(
    "search", [Beam(beams=4), Beam(beams=4, groups=2, diversity_penalty=0.7), BestOf(n=5)], ids=str
)
def test_texts_in_pages_are_searched_as_in_rows(search: SearchPart) -> None:
    """Forks in the middle of a page and at its edge, prompts of several pages, in a pool that others hold pages of."""
    model, pages = tiny(), Pages(60)
    taken = [pages.take() for _ in range(5)]
    prompts = [[1, 2, 3], [4, 5] * 8, [7] * 15, list(range(30))]
    sampling = Sampling(max_new_tokens=NEW, repetition_penalty=1.2)
    want = search.find(DecoderFront(model), prompts, sampling, [9], [0, 1, 2, 3])
    for _ in range(2):  # the second time on pages that were used
        with PagedFront(PlainModel(model, 60), pages).held() as front:
            got = search.find(front, prompts, sampling, [9], [0, 1, 2, 3])
        for these, those in zip(got, want, strict=True):
            assert [one.ids for one in these] == [one.ids for one in those]
            assert [one.score for one in these] == pytest.approx([one.score for one in those], abs=1e-4)
        assert pages.free == 60 - len(taken)


def test_a_search_that_finds_no_room_says_so_and_gives_all_back() -> None:
    pages = Pages(6)
    with (
        pytest.raises(LlmlabError, match="more texts at once than 96 tokens"),
        PagedFront(PlainModel(tiny(), 6), pages).held() as front,
    ):
        BestOf(n=40).find(front, [[1, 2, 3]], Sampling(max_new_tokens=NEW), [], [0])
    assert pages.free == 6


def test_a_search_of_states_needs_a_front_that_tells_them() -> None:
    assert [search.kind for search in SEARCHES if search.states] == ["contrastive"]
