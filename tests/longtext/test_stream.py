"""Endless texts: the same losses as any other way to read, memory that stands still, and what a sink is for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, cycle, islice

import pytest
import torch
import torch.nn.functional as F

from llmlab.errors import InputError
from llmlab.evaluation import statistics
from llmlab.inference.caches import Dense, Int8, Rolling
from llmlab.longtext.stream import Block, encoded, recomputed, stream
from llmlab.model.attention import MultiHead
from llmlab.model.block import Block as Layer
from llmlab.model.positions import NoPosition
from llmlab.model.transformer import Architecture, Transformer
from llmlab.tokenization.train import BPE

VOCABULARY, CONTEXT = 24, 32


def tiny() -> Transformer:
    return Architecture(layers=2, dim=32, context=CONTEXT, initial_std=0.2).build(VOCABULARY, seed=1).eval()


def leaning() -> Transformer:
    """A model made by hand that counts 1, 2, ... and around; its attention has nothing to add. A softmax must go
    somewhere: it goes to token 0, which stands at the beginning and says nothing; of the others it takes noise."""
    part = Architecture(
        layers=1, dim=VOCABULARY, context=CONTEXT, position=NoPosition(), attention=MultiHead(heads=1), tied=False
    )
    model = part.build(VOCABULARY, seed=2).eval()
    layer = model.blocks[0]
    assert isinstance(layer, Layer)
    assert model.head is not None
    query, key, value, output = (layer.get_parameter(f"attention.{name}.weight") for name in NAMES)
    with torch.no_grad():
        model.embedding.weight.copy_(torch.eye(VOCABULARY))
        for weight in (query, key, *layer.feedforward.parameters(), model.head.weight):
            weight.zero_()
        query[0, 1:], key[0, 0] = 2.0, 2.0
        value.normal_(0, 3, generator=torch.Generator().manual_seed(0))
        value[:, 0] = 0
        output.copy_(torch.eye(VOCABULARY))
        after = torch.arange(1, VOCABULARY)
        model.head.weight[after % (VOCABULARY - 1) + 1, after] = 4.0
    return model


NAMES = ("query", "key", "value", "output")


def counting() -> Iterator[int]:
    yield 0
    yield from cycle(range(1, VOCABULARY))


def test_a_hundred_thousand_tokens_cost_the_same_with_sinks_and_break_without() -> None:
    """The claim of StreamingLLM, on a model that is known to lean on its first token: memory and loss stand still;
    where that token leaves the cache the loss leaps, on the same tokens."""
    model, tokens = leaning(), 100_000
    kept, forgotten = Rolling(window=28, sinks=4), Rolling(window=32, sinks=0)
    blocks = list(stream(model, counting(), kept, tokens))
    assert {block.cache_bytes for block in blocks} == {kept.nbytes(model.architecture, 1, 0)}
    losses = torch.stack([block.nats.mean() for block in blocks[1:-1]]).double()
    found = statistics.slope(torch.arange(len(losses)), losses)
    assert abs(found.value) * len(losses) < 1e-3 or found.low <= 0 <= found.high
    assert float(losses.mean()) < 0.1
    without = torch.cat([block.nats for block in stream(model, counting(), forgotten, 2000)])
    assert float(without[1:32].mean()) < 0.1  # the first token is there
    assert float(without[32:].mean()) > float(losses.mean()) + 1
    dense = torch.cat([block.nats for block in stream(model, counting(), Dense(), 2000)])
    assert float(dense[1:].mean()) < 0.1  # nothing but the missing token is to blame


@pytest.mark.parametrize("block", [1, 7, 512])
def test_losses_are_those_of_the_text_read_at_once(block: int) -> None:
    model, ids = tiny(), torch.randint(VOCABULARY, (30,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="none")
    for cache in (Dense(), Rolling(window=28, sinks=2)):
        blocks = list(stream(model, ids.tolist(), cache, 29, block))
        torch.testing.assert_close(torch.cat([one.nats for one in blocks]), expected, rtol=1e-4, atol=1e-4)
        assert [one.first for one in blocks] == list(range(1, 30, block))
    near = torch.cat([one.nats for one in stream(model, ids.tolist(), Int8(), 29, block)])
    torch.testing.assert_close(near, expected, rtol=0, atol=0.1)


def test_blocks_change_nothing_past_the_window() -> None:
    model, ids = tiny(), torch.randint(VOCABULARY, (150,), generator=torch.Generator().manual_seed(0)).tolist()
    roll = Rolling(window=9, sinks=3)
    alone, together = (torch.cat([one.nats for one in stream(model, ids, roll, block=size)]) for size in (1, 64))
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


def test_an_endless_text_is_read_as_it_is_asked_for() -> None:
    taken = count()
    source = (number % VOCABULARY for number in taken)
    blocks: list[Block] = list(islice(stream(tiny(), source, Rolling(window=20, sinks=2), block=16), 50))
    assert blocks[-1].first == 49 * 16 + 1
    assert next(taken) == 50 * 16 + 1  # and not a token more


def test_what_is_recomputed_sees_its_window_alone() -> None:
    model, ids = tiny(), torch.randint(VOCABULARY, (60,), generator=torch.Generator().manual_seed(0))
    places = [8, 33, 59]
    with torch.inference_mode():
        logits = [model(ids[None, place - 8 : place])[0, -1] for place in places]
        expected = torch.stack([F.cross_entropy(row, ids[place]) for row, place in zip(logits, places, strict=True)])
    for rows in (1, 2, 8):
        torch.testing.assert_close(recomputed(model, ids.tolist(), places, 8, rows), expected)
    with pytest.raises(InputError, match="7 has 7 tokens before it"):
        recomputed(model, ids.tolist(), [7], 8)


def test_texts_are_encoded_one_after_another() -> None:
    tokenizer = BPE(vocab_size=261).train(iter(["ab ab ab"]))
    read = encoded(tokenizer, (f"a{number} " for number in count()))
    assert list(islice(read, 9)) == tokenizer.encode("a0 ") + tokenizer.encode("a1 ") + tokenizer.encode("a2 ")


@pytest.mark.parametrize("ids", [[], [3]])
def test_too_short_a_text_is_refused(ids: list[int]) -> None:
    with pytest.raises(InputError, match=f"has {len(ids)} tokens"):
        list(stream(tiny(), ids, Rolling(window=4, sinks=1)))


def test_a_cache_that_ends_asks_for_an_end() -> None:
    with pytest.raises(InputError, match="must be said for a dense cache"):
        list(stream(tiny(), [1, 2], Dense()))
    with pytest.raises(InputError, match="does not fit the context of 32"):
        list(stream(tiny(), [1, 2], Rolling(window=40)))
