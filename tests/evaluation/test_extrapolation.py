"""Loss beyond the trained length: the same tokens at every length, and nothing but the context changes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from llmlab.data.shards import TokenShards, write_shards
from llmlab.errors import InputError
from llmlab.evaluation.extrapolation import MULTIPLES, SCORED, bits_beyond, block_ends
from llmlab.model.attention import MultiHead
from llmlab.model.positions import Alibi, Learned, NoPosition, Position, Rope
from llmlab.model.transformer import Architecture, Transformer
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, train_tokenizer

LENGTH = 4
TEXTS = ["call me ishmael. " * 3, "some years ago, never mind how long precisely", "the whale! the whale! " * 4]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, TokenShards]:
    tokenizer = train_tokenizer(BPE(vocab_size=270), iter(TEXTS))
    return tokenizer, write_shards(iter(TEXTS), tokenizer, tmp_path_factory.mktemp("shards") / "held_out")


def build(tokenizer: Tokenizer, position: Position, window: int | None = None, layers: int = 2) -> Transformer:
    """With weights so large that context matters."""
    attention = MultiHead(heads=2, window=window)
    shape = Architecture(layers=layers, dim=16, context=LENGTH, position=position, attention=attention, initial_std=0.4)
    return shape.build(tokenizer.vocab_size, 1).eval()


@pytest.mark.parametrize("position", [Rope(), Alibi(), NoPosition()], ids=lambda position: position.kind)
def test_against_one_window_at_a_time(corpus: tuple[Tokenizer, TokenShards], position: Position) -> None:
    tokenizer, shards = corpus
    model = build(tokenizer, position)
    found = bits_beyond(model, tokenizer, shards, LENGTH)
    for multiple in MULTIPLES:
        nats = size = 0.0
        for number in range(shards.documents):
            ids = shards.document(number)
            inputs = np.concatenate([[shards.begin_id], ids[:-1]])
            for end in range(max(MULTIPLES) * LENGTH, len(ids) + 1, LENGTH):
                row = torch.from_numpy(inputs[end - multiple * LENGTH : end])[None]
                with torch.no_grad():
                    logprobs = model(row)[0, -LENGTH:].log_softmax(-1)
                scored = ids[end - LENGTH : end]
                nats -= float(logprobs[torch.arange(LENGTH), torch.from_numpy(scored)].sum())
                size += sum(len(tokenizer.token_bytes(int(i))) for i in scored if i != tokenizer.eos_id)
        assert found[multiple] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert len({round(float(value), 6) for value in found.values() if isinstance(value, float)}) == len(MULTIPLES)


def test_what_sees_no_further_than_a_window_is_not_moved_by_length(corpus: tuple[Tokenizer, TokenShards]) -> None:
    """One layer that sees 1 token, itself, and no position: any figure that changes would be the measure's own."""
    tokenizer, shards = corpus
    found = bits_beyond(build(tokenizer, NoPosition(), window=1), tokenizer, shards, LENGTH)
    assert list(found.values()) == [pytest.approx(found[1], rel=1e-6)] * len(MULTIPLES)


def test_learned_positions_end_with_their_table(corpus: tuple[Tokenizer, TokenShards]) -> None:
    tokenizer, shards = corpus
    found = bits_beyond(build(tokenizer, Learned()), tokenizer, shards, LENGTH)
    assert isinstance(found[1], float)
    refusals = [value for multiple, value in found.items() if multiple > 1]
    assert len(refusals) == 3
    assert all(isinstance(value, InputError) and "past the learnt table of 4" in value.problem for value in refusals)


def test_blocks_depend_on_the_text_alone_and_have_a_bound(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(BPE(vocab_size=260), iter(["x"]))
    shards = write_shards(iter(["ab " * 8000, "c" * 40]), tokenizer, tmp_path / "held_out")
    ends = block_ends(shards, 8)
    assert len(ends) == SCORED // 8
    assert len(set(ends.tolist())) == len(ends)
    assert (ends[0], ends[-1]) == (64, 24000)  # from the first whole window to the end: spread over the text
    with pytest.raises(InputError, match=r"longest document has 24001 tokens, 8 times the trained length are 40000"):
        block_ends(shards, 5000)
