"""The next token from those before it, asked of models of every objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from llmlab.data.corruption import Rows
from llmlab.data.pack import Isolated
from llmlab.data.shards import Documents
from llmlab.errors import InputError
from llmlab.evaluation.onward import bits_onward, last_hidden
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture
from llmlab.objectives.kind import Kind, Setting
from llmlab.objectives.pretraining import Blanks, Causal, Masked, Spans
from llmlab.recipe import parse
from llmlab.tokenization.special import CLASS, END, MASK, SEPARATOR, START, sentinels, special_ids
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, train_tokenizer

Suited = Callable[..., Architecture]
LENGTH = 16


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(BPE(vocab_size=260), iter(["a"])).extended(
        [MASK, CLASS, SEPARATOR, START, END, *sentinels(9)]
    )


def text_of(tokenizer: Tokenizer, seed: int = 0) -> Documents:
    rows = [np.append(np.random.default_rng(seed + n).integers(4, 260, 60), tokenizer.eos_id) for n in range(3)]
    assert tokenizer.eos_id is not None
    return Documents(rows, 180, tokenizer.eos_id, tokenizer.eos_id)


def model_of(objective: Kind, suited: Suited, tokenizer: Tokenizer, **parts: Any) -> Any:
    objective.check(architecture := suited(objective, initial_std=0.3, **parts), Isolated())
    return objective.settled(architecture, tokenizer).build(tokenizer.vocab_size, 1).eval()


@torch.no_grad()
def test_every_objective_says_the_next_token_from_all_of_the_context_and_nothing_else(
    objective: Kind, suited: Suited, tokenizer: Tokenizer
) -> None:
    """Any token before counts; what is asked for and what follows was never given."""
    model = model_of(objective, suited, tokenizer)
    context = torch.arange(10, 18)[None]
    said = last_hidden(model, tokenizer, objective, context)
    assert said.shape == (1, 32)
    for place in range(8):
        edited = context.clone()
        edited[0, place] = 99
        assert (last_hidden(model, tokenizer, objective, edited) - said).abs().max() > 1e-6


@torch.no_grad()
def test_a_causal_model_is_asked_as_it_reads(suited: Suited, tokenizer: Tokenizer) -> None:
    """Against the log-likelihood written out, over all tokens that have the context."""
    model, corpus = model_of(Causal(), suited, tokenizer), text_of(tokenizer)
    nats, size = 0.0, 0
    for start in corpus.starts[:-1]:
        for at in range(start + 8, start + 60):
            ids = torch.from_numpy(corpus.take(np.arange(at - 8, at + 1)))
            nats -= float(model(ids[None, :-1])[0, -1].log_softmax(-1)[ids[-1]])
            size += len(tokenizer.token_bytes(int(ids[-1])))
    assert size == 156
    assert bits_onward(model, tokenizer, Causal(), corpus, LENGTH) == pytest.approx(nats / math.log(2) / size, rel=1e-5)


@pytest.mark.parametrize("axes", [1, 2])
@torch.no_grad()
def test_a_blank_at_the_end_stands_as_in_training(axes: int, suited: Suited, tokenizer: Tokenizer) -> None:
    """GLM's layout of a row whose last token is the one blank, found among what the objective makes of noise."""
    mask, start = special_ids(tokenizer, [MASK, START], "blanks")
    parts: dict[str, Any] = {"position": {"kind": "rope", "axes": axes}, "initial_std": 0.3, "dim": 32, "context": 32}
    parts["mask"] = "prefix" if axes == 1 else {"kind": "blank", "start_id": start, "blank_ids": [mask]}
    architecture = parse(Architecture, parts)
    model = architecture.build(tokenizer.vocab_size, 1).eval()
    context = torch.arange(10, 16)[None]
    said = last_hidden(model, tokenizer, Blanks(), context)
    tokens = np.array([[*range(10, 16), 77]])
    line = np.arange(7)[None]
    rows = Rows(np.roll(tokens, 1), tokens, line, np.zeros_like(line), np.ones_like(line, bool))
    corruption = Blanks().corruption(Setting(architecture, tokenizer, 32))
    for seed in range(200):
        batch = corruption.learn(rows, np.random.default_rng(seed).random((corruption.planes, 1, 7)))
        if batch.ids_BT[0].tolist() == [*range(10, 16), mask, start, 77]:
            break
    else:
        raise AssertionError("no row has its blank at the end")
    assert batch.targets_BT[0, 7] == 77
    assert (model.hidden(batch.ids_BT, batch.at)[:, 7] - said).abs().max() < 1e-5


@torch.no_grad()
def test_a_span_at_the_end_stands_as_in_training(suited: Suited, tokenizer: Tokenizer) -> None:
    model = model_of(Spans(), suited, tokenizer)
    first, begin = special_ids(tokenizer, sentinels(1), "spans")[0], model.architecture.start_id
    context = torch.arange(10, 16)[None]
    memory = model.encode(torch.tensor([[*range(10, 16), first]]), Places.causal(1, 7))
    expected = model.hidden(torch.tensor([[begin, first]]), Places.causal(1, 2), memory=memory)[:, -1]
    assert torch.equal(last_hidden(model, tokenizer, Spans(), context), expected)


def test_too_short_a_text_is_refused(suited: Suited, tokenizer: Tokenizer) -> None:
    corpus = Documents([[5, 6, 7, 0]], 3, 0, 0)
    with pytest.raises(InputError, match="held-out text: no document has more than 8 tokens"):
        bits_onward(model_of(Masked(), suited, tokenizer), tokenizer, Masked(), corpus, LENGTH)
