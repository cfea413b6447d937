"""Loops of a running answer: what is given out, what is cut off, and how it goes on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import count
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.checkpoints.bundle import Bundle
from llmlab.errors import InputError
from llmlab.inference.engine import Token, stream
from llmlab.inference.loops import Looping, loop_in
from llmlab.inference.on_loop import OnLoop, Resample, Stop, Warn, Watched
from llmlab.inference.sampling import Sampling
from llmlab.language_model import LanguageModel, Ways
from llmlab.model.transformer import Architecture
from llmlab.recipe import parse
from llmlab.talk import ChatSession
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, train_tokenizer

SOON = {"repeats": 3, "tokens": 6, "longest": 8}
LOOPING = Looping(**SOON)


class Letters:
    """A spelling in which 0 is a full stop and every other id a letter."""

    def token_bytes(self, id: int) -> bytes:
        return b"." if id == 0 else bytes([97 + id])


def watched(how: OnLoop, say: Callable[[list[int], Sampling], int], most: int) -> tuple[list[int], list[int], Watched]:
    """What is given out, all that was drawn, and the watch. `say` is the next id after those of the answer."""
    drawn = []

    def draw(said: Sequence[int], sampling: Sampling) -> Generator[Token]:
        ids = list(said)
        while len(ids) < most:
            ids.append(say(ids, sampling))
            drawn.append(ids[-1])
            yield Token(0, ids[-1], 0.0, "length" if len(ids) == most else None)

    answer = Watched(how, draw, Sampling(max_new_tokens=most), Letters())
    return list(answer.ids()), drawn, answer


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 2), min_size=1, max_size=60))
def test_stop_gives_what_comes_before_the_first_copy_and_warn_gives_all(ids: list[int]) -> None:
    first = loop_in(ids, LOOPING)
    given_, drawn, answer = watched(Stop(**SOON), lambda said, _: ids[len(said)], len(ids))
    if first is None:
        assert (given_, answer.finish_reason, answer.loops) == (ids, "length", [])
    else:
        end = first.start + first.period
        assert given_[:end] == ids[:end]
        assert set(given_[end:]) <= {0}, "a full stop that ends the first saying may stay"
        assert len(given_) < end + first.period
        assert loop_in(given_, LOOPING) is None
        assert (answer.finish_reason, answer.loops) == ("loop", [(first.start, ids[first.start : end])])
        assert loop_in(drawn[:-1], LOOPING) is None, "not a token is drawn after it was found"
    told, drawn, answer = watched(Warn(**SOON), lambda said, _: ids[len(said)], len(ids))
    assert told == drawn == ids
    assert answer.finish_reason == "length"
    assert bool(answer.loops) == (first is not None)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), tries=st.integers(1, 4), most=st.integers(1, 80))
def test_resample_gives_no_loop_and_its_work_is_bounded(seed: int, tries: int, most: int) -> None:
    noise = torch.Generator().manual_seed(seed)

    def say(said: list[int], sampling: Sampling) -> int:
        """The last two ids again, mostly."""
        chance, id = torch.rand(2, generator=noise).tolist()
        return said[-2] if len(said) > 2 and chance < 0.9 else int(id * 3)

    given_, drawn, answer = watched(Resample(tries=tries, **SOON), say, most)
    assert loop_in(given_, LOOPING) is None
    assert given_ == answer.said
    assert len(drawn) <= (tries + 1) * most
    assert len(answer.loops) <= tries + 1
    assert answer.finish_reason == ("loop" if len(answer.loops) == tries + 1 else "length")
    assert len(given_) == most or answer.finish_reason == "loop"


def test_the_way_out_of_a_loop_is_hot_and_not_the_copy_again() -> None:
    asked = []

    def say(said: list[int], sampling: Sampling) -> int:
        asked.append((len(said), sampling.temperature, sampling.top_k, dict(sampling.logit_bias), sampling.seed))
        return 1 + len(said) % 2 if len(asked) < 7 else len(said)

    answer = Watched(
        Resample(temperature=1.5, **SOON),
        _drawing(say, 12),
        Sampling(temperature=0, top_k=1, logit_bias={9: 1.0}),
        Letters(),
    )
    assert list(answer.ids()) == [1, 2, *range(2, 12)]
    assert [place for place, *_ in asked] == [*range(6), *range(2, 12)]
    assert {tuple(map(str, rest)) for _, *rest in asked[:6]} == {("0.0", "1", "{9: 1.0}", "0")}
    assert asked[6][1:4] == (1.5, None, {9: 1.0, 1: -100.0})
    assert [one[1:4] for one in asked[7:10]] == [(1.5, None, {9: 1.0})] * 3, "as long as what was thrown away"
    assert {one[1:4] == (0.0, 1, {9: 1.0}) for one in asked[10:]} == {True}
    assert len({one[4] for one in asked}) == 2, "fresh noise"


def _drawing(say: Callable[[list[int], Sampling], int], most: int) -> Any:
    def draw(said: Sequence[int], sampling: Sampling) -> Generator[Token]:
        ids = list(said)
        for place in count(len(ids)):
            ids.append(say(ids, sampling))
            yield Token(0, ids[-1], 0.0, "length" if place == most - 1 else None)
            if place == most - 1:
                return

    return draw


# ---------------------------------------------------------------- a model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(BPE(vocab_size=260), iter(["a"]))


def tiny(tokenizer: Tokenizer, seed: int = 2, **fields: Any) -> LanguageModel:
    sizes = {"layers": 2, "dim": 32, "context": 160, "initial_std": 0.3}
    architecture = Architecture.model_validate(sizes | fields)
    return LanguageModel(Bundle(architecture.build(tokenizer.vocab_size, seed=seed), tokenizer, architecture, "tiny"))


GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 100, "logit_bias": dict.fromkeys(range(4), -100.0)}


def test_a_stream_is_what_is_returned_at_once_and_the_seed_decides(tokenizer: Tokenizer) -> None:
    lm = tiny(tokenizer)
    plain = lm.generate("hello", **GREEDY)
    assert lm.generate("hello", on_loop={"kind": "warn", **SOON}, **GREEDY) == plain
    said = {}
    for how in ("stop", "resample"):
        way = {"kind": how, **SOON}
        reply = lm.stream("hello", on_loop=way, **GREEDY)
        assert "".join(list(reply)) == reply.text == lm.generate("hello", on_loop=way, **GREEDY)
        assert reply.loops
        assert reply.drawn > len(reply.ids), "greedy, a random model repeats itself at once"
        assert loop_in(reply.ids, LOOPING) is None
        said[how] = reply.text
    assert plain.startswith(said["stop"])
    assert said["resample"].startswith(said["stop"])
    assert len(said["resample"]) > len(said["stop"])
    assert lm.generate("hello", on_loop={"kind": "resample", **SOON}, seed=1, **GREEDY) != said["resample"]


@pytest.mark.parametrize(
    "changes", [{}, {"presence_penalty": -0.5, "frequency_penalty": -0.1}, {"repetition_penalty": 0.5}]
)
def test_the_engine_and_batching_go_on_alike(tokenizer: Tokenizer, changes: dict[str, Any]) -> None:
    lm = tiny(tokenizer)
    ways = Ways.model_validate({"on_loop": Resample(tries=3, **SOON)})
    sampling = Sampling(**GREEDY, **changes)
    plain = lm.reply(lm.prompt("hello"), sampling, ways=ways)
    lm.speculate("lookup")  # from now on single texts are made in pages
    paged = lm.reply(lm.prompt("hello"), sampling, ways=ways)
    assert plain.read() == paged.read()
    assert plain.loops == paged.loops != []


@settings(max_examples=20, deadline=None)
@given(
    cut=st.integers(1, 11),
    seed=st.integers(0, 99),
    penalties=st.sampled_from(
        [{}, {"presence_penalty": 2.0}, {"frequency_penalty": -2.0}, {"no_repeat_ngram_size": 2}]
    ),
    least=st.integers(0, 12),
)
def test_an_answer_that_is_read_again_goes_on_as_it_would_have(
    tokenizer: Tokenizer, cut: int, seed: int, penalties: dict[str, Any], least: int
) -> None:
    lm = tiny(tokenizer)
    sampling = Sampling(max_new_tokens=12, min_new_tokens=least, **penalties)
    stops = frozenset(range(64))
    whole = [token.id for token in stream(lm.model, [300 % 260, 7], sampling, stops, seed)]
    first = whole[:cut]
    if len(first) < len(whole):
        rest = stream(lm.model, [300 % 260, 7, *first], sampling, stops, seed, said=len(first))
        assert [token.id for token in rest] == whole[cut:]


def test_a_stop_text_ends_the_answer_before_a_loop_is_made_of_it(tokenizer: Tokenizer) -> None:
    lm = tiny(tokenizer)
    plain = lm.generate("hello", **GREEDY)
    stop = plain[3:5]
    for how in ("stop", "resample", "warn"):
        reply = lm.stream("hello", on_loop={"kind": how, **SOON}, stop=stop, **GREEDY)
        assert reply.read() == lm.generate("hello", stop=stop, **GREEDY)
        assert reply.finish_reason == "stop"


def test_a_form_is_kept_on_another_way(tokenizer: Tokenizer) -> None:
    pytest.importorskip("llguidance")
    lm = tiny(tokenizer)
    form = {"kind": "regex", "pattern": "[ab ]{60}"}
    reply = lm.stream("hello", on_loop={"kind": "resample", "tries": 30, **SOON}, constraint=form, **GREEDY)
    text = reply.read()
    assert reply.loops
    assert set(text) <= set("ab ")
    assert len(text) == 60 or reply.finish_reason == "loop"
    assert loop_in(reply.ids, LOOPING) is None


def test_a_conversation_goes_on_after_a_loop(tokenizer: Tokenizer) -> None:
    session = ChatSession(tiny(tokenizer), Sampling(temperature=0, max_new_tokens=40), ways=Ways(on_loop=Stop(**SOON)))
    for question in ("hello", "and?"):
        text = "".join(session.say(question))
        assert session.turns[-1][1]["content"] == text
        assert session.reply is not None
        assert session.reply.finish_reason in ("loop", "stop", "length")
        assert loop_in(session.reply.ids, LOOPING) is None


def test_what_cannot_go_together_is_refused_by_name(tokenizer: Tokenizer) -> None:
    lm = tiny(tokenizer)
    for search in ("beam", "contrastive", "best_of"):
        with pytest.raises(InputError, match=f"on_loop stop watches one text while it is drawn, {search} search"):
            lm.generate("hello", search=search, on_loop="stop")
    with pytest.raises(InputError, match=r"on_loop: resample reads its answer again .* mask prefix"):
        tiny(tokenizer, mask="prefix").generate("hello", on_loop="resample")
    both = tiny(tokenizer, encoder_layers=1, position="t5", start_id=1)
    with pytest.raises(InputError, match=r"on_loop: resample .* an encoder and a decoder"):
        both.generate("hello", on_loop="resample")
    assert both.generate("hello", on_loop={"kind": "stop", **SOON}, **GREEDY) is not None
    with pytest.raises(InputError, match="did you mean 'resample'"):
        parse(Ways, {"on_loop": "resampel"}, "generate")


def test_a_report_lists_the_loops_and_what_they_cost(tokenizer: Tokenizer) -> None:
    lm = tiny(tokenizer)
    for how in (Stop(**SOON), Resample(tries=2, **SOON), Warn(**SOON)):
        said = lm.report("hello", Sampling(**GREEDY), ways=Ways(on_loop=how))
        first = said["loops"][0]
        assert first["text"] == lm.tokenizer.decode(lm.tokenizer.encode(first["text"])) != ""
        assert first["start"] + first["period"] <= 100
        assert (said["thrown_away"] > 0) == (how.kind != "warn")
    assert "loops" not in lm.report("hello", Sampling(**GREEDY))
