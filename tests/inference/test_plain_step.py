"""The plain step against the whole text at once, and batching over it against the engine."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from llmlab.inference.batching import Batching, Request
from llmlab.inference.engine import generate
from llmlab.inference.pages import PAGE
from llmlab.inference.plain_step import PlainModel, unpaged
from llmlab.inference.sampling import Sampling
from llmlab.inference.stepper import Piece
from llmlab.model.transformer import Architecture, Transformer

VOCABULARY, CONTEXT = 61, 96


def tiny(**fields: Any) -> Transformer:
    sizes: dict[str, Any] = {"layers": 2, "dim": 32, "context": CONTEXT, "initial_std": 0.3}
    return Architecture.model_validate(sizes | fields).build(VOCABULARY, seed=5).eval()


def _mixed(position: dict[str, Any], attention: dict[str, Any]) -> Transformer:
    return tiny(position=position, attention=attention)


def test_pieces_of_many_texts_say_what_each_whole_text_says(mixing: tuple[dict[str, Any], dict[str, Any]]) -> None:
    model = _mixed(*mixing)
    if unpaged(model):
        with pytest.raises(ValueError, match=unpaged(model) or "no reason"):
            PlainModel(model, 4)
        return
    draw = random.Random(0)
    texts = [[draw.randrange(VOCABULARY) for _ in range(length)] for length in (5, 17, 33, 40)]
    with torch.inference_mode():
        want = [model(torch.tensor([text]))[0] for text in texts]
    stepper = PlainModel(model, 20)
    free = list(range(20))
    draw.shuffle(free)
    pages = [[free.pop() for _ in range(-(-len(text) // PAGE))] for text in texts]
    done = [0] * len(texts)
    while any(done[row] < len(text) for row, text in enumerate(texts)):
        rows = [row for row, text in enumerate(texts) if done[row] < len(text) and draw.random() < 0.8]
        if not rows:
            continue
        ends = {row: min(len(texts[row]), done[row] + draw.choice([1, 1, 4, 9])) for row in rows}
        pieces = [Piece(texts[row][done[row] : ends[row]], done[row], pages[row]) for row in rows]
        places = [(row, place) for row in rows for place in range(done[row], ends[row])]
        ask = sorted(draw.sample(range(len(places)), draw.randint(1, len(places))))
        got = stepper.step(pieces, ask)
        for logits, index in zip(got, ask, strict=True):
            row, place = places[index]
            torch.testing.assert_close(logits, want[row][place], atol=2e-4, rtol=2e-4)
        for row in rows:
            done[row] = ends[row]


@pytest.mark.parametrize("fields", [{}, {"position": "alibi"}, {"shared": True}, {"norm": "layernorm"}], ids=str)
def test_batching_over_it_answers_as_the_engine_does(fields: dict[str, Any]) -> None:
    model = tiny(**fields)
    prompts = [[1, 2, 3], [4] * 20, [5, 6] * 9, [7]]
    sampling = Sampling(max_new_tokens=20, temperature=0.8, top_k=20, repetition_penalty=1.1)
    want = generate(model, prompts, sampling, [9], [0, 1, 2, 3])
    batching = Batching(PlainModel(model, 30), step_tokens=16)
    got = batching.generate([Request(prompt, sampling, [9], seed) for seed, prompt in enumerate(prompts)])
    assert [one.ids for one in got] == [one.ids for one in want]
    for one, other in zip(got, want, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_what_is_no_number_does_not_reach_who_comes_next() -> None:
    """A broken text leaves NaN in its pages, and unseen keys count with weight zero."""
    model = tiny()
    stepper = PlainModel(model, 1)
    want = stepper.step([Piece([1, 2], 0, [0])], [1])
    with torch.inference_mode():
        for keys, values in stepper._pools.values():
            keys.fill_(float("nan"))
            values.fill_(float("nan"))
    assert stepper.step([Piece([1, 2], 0, [0])], [1]).isnan().any()
    stepper.clear(0)
    assert torch.equal(stepper.step([Piece([1, 2], 0, [0])], [1]), want)


def test_half_precision_keeps_half_precision_keys() -> None:
    stepper = PlainModel(tiny().to(torch.bfloat16), 2)
    logits = stepper.step([Piece([1, 2, 3], 0, [0])], [2])
    assert logits.dtype is torch.float32
    assert stepper._pools[0][0].dtype is torch.bfloat16


UNPAGED: list[dict[str, Any]] = [
    {"attention": "lstm", "position": "none"},
    {"attention": "linear", "position": "none"},
    {"mask": "prefix"},
    {"mask": "bidirectional"},
    {"mask": "bidirectional", "streams": 2},
    {"encoder_layers": 1, "position": "t5"},
    {"head": "none"},
    {"position": {"kind": "rope", "scaling": {"kind": "dynamic", "trained": 32}}},
]


@pytest.mark.parametrize("fields", UNPAGED, ids=str)
def test_a_model_whose_past_is_no_keys_is_refused_with_a_reason(fields: dict[str, Any]) -> None:
    model = tiny(**fields)
    assert unpaged(model)
    with pytest.raises(ValueError, match=unpaged(model) or "no reason"):
        PlainModel(model, 4)
