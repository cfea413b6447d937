"""One `Batching` in several hands at once: streams beside each other, threads, a worker that steps for all."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from llmlab.errors import InputError, LlmlabError
from llmlab.inference.batching import Batching, Request
from llmlab.inference.plain_step import PlainModel
from llmlab.inference.sampling import Sampling
from llmlab.inference.speculative import Draft
from llmlab.model.transformer import Architecture

DRAWN = Sampling(max_new_tokens=12)
REQUESTS = [Request([1 + seed, 2, 3], DRAWN, seed=seed) for seed in range(6)]


def made() -> Batching:
    return Batching(PlainModel(Architecture(dim=32, context=64, layers=2, initial_std=0.3).build(64, seed=5), 40))


def alone(request: Request) -> list[int]:
    return made().generate([request])[0].ids


def test_two_streams_go_on_beside_each_other() -> None:
    batching = made()
    pairs = list(zip(batching.stream(REQUESTS[0]), batching.stream(REQUESTS[1]), strict=True))
    assert [one.id for one, _ in pairs] == alone(REQUESTS[0])
    assert [other.id for _, other in pairs] == alone(REQUESTS[1])
    assert not batching.busy


def test_an_open_stream_loses_nothing_to_who_generates() -> None:
    batching = made()
    stream = batching.stream(REQUESTS[0])
    first = next(stream).id
    assert batching.generate(REQUESTS[1:3])[0].ids == alone(REQUESTS[1])
    assert [first, *(token.id for token in stream)] == alone(REQUESTS[0])


def test_threads_may_share_it_with_a_worker() -> None:
    """One thread steps for what was submitted, as the server's does, while others generate."""
    batching, found, done = made(), list[int](), threading.Event()
    number = batching.submit(Request([7, 8], Sampling(max_new_tokens=50), seed=9))

    def work() -> None:
        while not done.is_set() or batching.busy:
            found.extend(token.id for token in batching.step() if token.row == number)

    worker = threading.Thread(target=work)
    worker.start()
    with ThreadPoolExecutor(len(REQUESTS)) as pool:
        ids = [one.ids for one in pool.map(lambda request: batching.generate([request])[0], REQUESTS)]
    done.set()
    worker.join()
    assert ids == [alone(request) for request in REQUESTS]
    assert found == alone(Request([7, 8], Sampling(max_new_tokens=50), seed=9))


def test_a_request_that_is_refused_leaves_nothing_of_those_before_it() -> None:
    batching = made()
    with pytest.raises(InputError, match="999"):
        batching.generate([REQUESTS[0], Request([999], DRAWN)])
    assert not batching.busy


def test_a_step_that_is_broken_off_ends_who_was_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while one stream is read: the other says so, instead of waiting for ever; who comes next is served."""
    batching = made()
    one, other = batching.stream(REQUESTS[0]), batching.stream(REQUESTS[1])
    next(one), next(other)
    while batching._boxes[0]:
        next(one)

    def interrupted(asked: Sequence[object], logits_RV: Tensor) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(batching, "_answers", interrupted)
        next(one)
    with pytest.raises(LlmlabError, match="broken off"):
        list(other)
    assert not batching.busy
    assert batching.generate([REQUESTS[2]])[0].ids == alone(REQUESTS[2])


@pytest.mark.parametrize("guessed", [False, True])
@pytest.mark.parametrize("draws", [False, True])
def test_who_meets_what_is_no_number_fails_alone_and_by_name(draws: bool, guessed: bool) -> None:
    """A weight of one token is NaN. Whoever has it fails, be it that he draws or has his prompt scored only."""
    model = Architecture(dim=32, context=64, layers=2, initial_std=0.3, tied=False).build(64, seed=5)
    guesser = Draft(PlainModel(model, 16)) if guessed else None
    good = Request([1, 2, 3], Sampling(max_new_tokens=12, logit_bias={63: -100}), seed=1)
    whole = Batching(PlainModel(model, 16)).generate([good])[0].ids
    with torch.no_grad():
        model.embedding.weight[63] = torch.nan
    batching = Batching(PlainModel(model, 16), guesser=guesser)
    number = batching.submit(good)
    bad = batching.submit(Request([4, 63, 5], DRAWN, likeliest=2, echo=True, draws=draws))
    tokens = [token for _ in range(40) for token in batching.step()]
    (failed,) = (token for token in tokens if token.row == bad)
    assert failed.finish_reason == "error"
    assert "not a number" in failed.error
    assert [token.id for token in tokens if token.row == number] == whole
    assert not batching.busy
    assert batching.pages.free == 16
