"""Packing: every token a target once an epoch, documents apart, the same batches after any stop (traps 15, 16, 36)."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.data.batch import IGNORE, Batch
from llmlab.data.pack import EvalBatches, Isolated, Mixed, PackedBatches
from llmlab.data.shards import TokenShards, write_shards
from llmlab.data.state import State
from llmlab.errors import InputError
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.objectives.language import NextToken, token_logprobs
from llmlab.recipe import Section, parse

EOS, BOS = 0, 127


class Letters:
    """A tokenizer of one id a letter; every document below uses letters of its own."""

    vocab_size, bos_id, eos_id = 128, BOS, EOS

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [list(map(ord, text)) for text in texts]

    def token(self, id: int) -> str:
        return chr(id)


def corpus(folder: Path, lengths: list[int], shard_tokens: int = 1 << 24) -> TokenShards:
    """Documents of these lengths in ids (eos the last); document i counts up from letter 1 + 20 i."""
    texts = ["".join(chr(1 + (20 * n + at) % 120) for at in range(length - 1)) for n, length in enumerate(lengths)]
    return write_shards(texts, Letters(), folder / "s", shard_tokens)  # type: ignore[arg-type]


LENGTHS = st.lists(st.integers(2, 25), min_size=1, max_size=12)


def pairs(batch: Batch) -> list[tuple[int, int]]:
    learnt = batch.targets_BT != IGNORE
    return list(zip(batch.ids_BT[learnt].tolist(), batch.targets_BT[learnt].tolist(), strict=True))


def all_pairs(shards: TokenShards) -> Counter[tuple[int, int]]:
    documents = [shards.document(n).tolist() for n in range(shards.documents)]
    return Counter(pair for ids in documents for pair in zip([BOS, *ids[:-1]], ids, strict=True))


def stack(batches: list[Batch]) -> torch.Tensor:
    at = [torch.stack([b.ids_BT, b.targets_BT, b.at.position, b.at.order, b.at.document]) for b in batches]
    return torch.cat(at, 1)


# ---------------------------------------------------------------- what is in a batch


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 12), st.integers(0, 3), st.sampled_from([Isolated(), Mixed()]), st.integers(1, 50))
def test_every_token_is_a_target_once_an_epoch(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    length: int,
    seed: int,
    packing: Isolated | Mixed,
    shard_tokens: int,
) -> None:
    shards = corpus(tmp_path_factory.mktemp("corpus"), lengths, shard_tokens)
    if shards.tokens < length:
        with pytest.raises(InputError, match=f"{shards.tokens} tokens of training text are less than one context"):
            PackedBatches(shards, length, 1, 1, seed, packing)
        return
    batches = PackedBatches(shards, length, 1, 1, seed, packing)
    for _ in range(2):
        epoch = [batches.next()[0] for _ in range(batches.rows)]
        assert Counter(pair for batch in epoch for pair in pairs(batch)) == all_pairs(shards)
        padded = sum(int((~batch.at.real).sum()) for batch in epoch)
        assert padded == batches.rows * length - shards.tokens < length


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 12), st.integers(0, 3))
def test_isolated_documents_restart(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, seed: int
) -> None:
    """Against a walk over every row, token by token."""
    shards = corpus(tmp_path_factory.mktemp("corpus"), lengths)
    length = min(length, shards.tokens)
    batches = PackedBatches(shards, length, 4, 4, seed)
    for _ in range(4):
        (batch,) = batches.next()
        assert batch.at.order[batch.at.real].equal(batch.at.position[batch.at.real])
        for row in range(4):
            position, document = -1, 0
            for column in range(length):
                id, target = int(batch.ids_BT[row, column]), int(batch.targets_BT[row, column])
                if not batch.at.real[row, column]:
                    assert (target, int(batch.at.position[row, column])) == (IGNORE, 0)
                    continue
                begins = id == BOS  # the begin token stands at the start of a document and nowhere else
                position, document = (0, document + (column > 0)) if begins else (position + 1, document)
                assert int(batch.at.position[row, column]) == position
                assert int(batch.at.document[row, column]) == document
                assert target == EOS or target == id % 120 + 1 or begins  # the end of a document predicts eos only


def test_mixed_is_one_stream(tmp_path: Path) -> None:
    shards = corpus(tmp_path, [5, 5, 5, 5, 5])
    isolated, mixed = (PackedBatches(shards, 7, 4, 4, 0, packing).next()[0] for packing in (Isolated(), Mixed()))
    assert mixed.ids_BT.equal(isolated.ids_BT)
    assert mixed.targets_BT.equal(isolated.targets_BT)
    real = mixed.at.real
    assert mixed.at.position[real].equal(torch.arange(7).expand(4, 7)[real])
    assert set(mixed.at.document[real].tolist()) == {0}
    assert len(set(isolated.at.document[real].tolist())) > 1


def test_neighbours_of_a_long_document_do_not_share_a_step(tmp_path: Path) -> None:
    batches = PackedBatches(corpus(tmp_path, [1000, 1000]), 10, 20, 20, 0)
    firsts = [batches.next()[0].ids_BT[:, 0].tolist() for _ in range(2)]
    assert firsts[0] != sorted(firsts[0])
    assert firsts[0] != firsts[1]


def test_micro_batches_are_the_step(tmp_path: Path) -> None:
    shards = corpus(tmp_path, [9, 30, 7, 18])
    whole, split = PackedBatches(shards, 8, 7, 7, 3), PackedBatches(shards, 8, 7, 3, 3)
    for _ in range(5):
        parts = split.next()
        assert [len(part.ids_BT) for part in parts] == [3, 3, 1]
        assert stack(parts).equal(stack(whole.next()))


# ---------------------------------------------------------------- order and resume


@settings(deadline=None, max_examples=25)
@given(LENGTHS, st.integers(2, 12), st.integers(1, 9), st.data())
def test_stopped_anywhere_goes_on_the_same(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, batch_size: int, data: st.DataObject
) -> None:
    """Three epochs; stopped at every step, and at drawn ones, edges of epochs among them (trap 36)."""
    shards = corpus(tmp_path_factory.mktemp("corpus"), lengths)
    length = min(length, shards.tokens)
    unbroken = PackedBatches(shards, length, batch_size, 2, 5)
    steps = math.ceil(3 * unbroken.rows / batch_size) + 1
    expected = [stack(unbroken.next()) for _ in range(steps)]
    stops = set(data.draw(st.lists(st.integers(0, steps)))) | set(range(min(steps, 6)))
    batches = PackedBatches(shards, length, batch_size, 2, 5)
    for step in range(steps):
        if step in stops:
            saved = json.loads(json.dumps(batches.state().values))
            batches = PackedBatches(shards, length, batch_size, 2, 5)
            batches.load(State(values=saved))
        assert stack(batches.next()).equal(expected[step])
    assert batches.epochs == unbroken.epochs >= 3


def test_epochs_and_seeds_differ(tmp_path: Path) -> None:
    shards = corpus(tmp_path, [9, 30, 7, 18, 12])
    orders = []
    for seed in (0, 1):
        batches = PackedBatches(shards, 8, 1, 1, seed)
        epochs = [stack([batches.next()[0] for _ in range(batches.rows)]) for _ in range(2)]
        orders += [epoch.flatten().tolist() for epoch in epochs]
        rows = [sorted(map(tuple, epoch[0].tolist())) for epoch in epochs]
        assert rows[0] != rows[1]  # the documents are shuffled before the cut, so the rows themselves differ
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_the_state_of_something_else_is_refused(tmp_path: Path) -> None:
    shards = corpus(tmp_path, [40, 40])
    state = PackedBatches(shards, 8, 1, 1, 0).state()
    (tmp_path / "other").mkdir()
    other = corpus(tmp_path / "other", [41, 39])
    for batches in (
        PackedBatches(other, 8, 1, 1, 0),
        PackedBatches(shards, 9, 1, 1, 0),
        PackedBatches(shards, 8, 1, 1, 0, Mixed()),
    ):
        with pytest.raises(InputError, match="the saved run had"):
            batches.load(state)


# ---------------------------------------------------------------- held-out text


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 14), st.integers(1, 5), st.data())
def test_evaluation_covers_every_token_once(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, rows: int, data: st.DataObject
) -> None:
    shards = corpus(tmp_path_factory.mktemp("corpus"), lengths)
    overlap = data.draw(st.integers(0, length - 1))
    batches = EvalBatches(shards, length, rows, overlap=overlap)
    found = list(batches)
    assert len(found) == len(batches)
    targets = torch.cat([batch.targets_BT[batch.targets_BT != IGNORE] for batch in found])
    assert targets.tolist() == shards.take(np.arange(shards.tokens)).tolist()  # each once, in the corpus's order
    assert batches.tokens == shards.tokens
    assert batches.text_bytes == shards.text_bytes
    assert stack(found).equal(stack(list(batches)))
    columns = torch.arange(found[0].ids_BT.shape[1])
    for row in torch.cat([batch.targets_BT for batch in found])[1:]:
        learnt = columns[row != IGNORE]
        assert int(learnt.min()) == min(overlap, len(columns) - 1)


def test_an_overlap_of_a_whole_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="overlap: 8 is not below the length of a row, 8"):
        EvalBatches(corpus(tmp_path, [20]), 8, 1, overlap=8)


# ---------------------------------------------------------------- with the model


def model(position: str) -> Transformer:
    settings = {"layers": 2, "dim": 32, "context": 64, "initial_std": 0.2, "position": position}
    return parse(Architecture, settings).build(128).eval()


@torch.no_grad()
def test_the_loss_of_a_pack_is_the_sum_of_its_documents(tmp_path: Path, position_kind: type[Section]) -> None:
    """Trap 15."""
    shards = corpus(tmp_path, [6, 9, 5])
    net, loss = model(position_kind.model_fields["kind"].default), NextToken()
    (packed,) = EvalBatches(shards, 20, 1)
    apart = 0.0
    for n in range(3):
        ids = torch.tensor([BOS, *shards.document(n).tolist()])[None]
        alone = Batch(ids[:, :-1], ids[:, 1:], Places.causal(1, ids.shape[1] - 1))
        apart += float(loss(net, alone).sums["cross_entropy"])
    assert float(loss(net, packed).sums["cross_entropy"]) == pytest.approx(apart, rel=1e-5)


@torch.no_grad()
def test_a_document_does_not_change_its_neighbour_unless_mixed(tmp_path: Path) -> None:
    """Trap 16: the first token of b is predicted from the begin token alone, never from the end of a."""
    (tmp_path / "x").mkdir()
    net = model("rope")
    for packing, same in ((Isolated(), True), (Mixed(), False)):
        scores = []
        for folder, a in ((tmp_path, "abcd"), (tmp_path / "x", "dcba")):
            shards = write_shards([a, "wxyz"], Letters(), folder / packing.kind)  # type: ignore[arg-type]
            (batch,) = EvalBatches(shards, 10, 1, packing)
            assert batch.ids_BT[0, 5:].tolist() == [BOS, *map(ord, "wxyz")]
            scores.append(token_logprobs(net, batch)[0, 5:])
        assert torch.equal(*scores) == same


@torch.no_grad()
def test_a_row_without_padding_and_one_of_padding_only_are_finite(tmp_path: Path) -> None:
    batches = PackedBatches(corpus(tmp_path, [9]), 8, 2, 2, 0)
    (batch,) = batches.next()
    assert sorted(batch.at.real.sum(1).tolist()) == [1, 8]
    assert torch.isfinite(NextToken()(model("rope"), batch).sums["cross_entropy"])


@settings(deadline=None, max_examples=30)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 5), st.integers(1, 3))
def test_a_batch_says_which_documents_it_holds(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, rows: int, micro: int
) -> None:
    """Each document is told by its own ids: those named are exactly those that the rows hold."""
    lengths = [min(size, 20) for size in lengths][:6]
    shards = corpus(tmp_path_factory.mktemp("where"), lengths)
    length = min(length, shards.tokens)
    for batch in (batch for _ in range(3) for batch in PackedBatches(shards, length, rows, micro, 0).next()):
        held = {(target - 1) // 20 + 1 for _, target in pairs(batch) if target != EOS}
        named = set(map(int, batch.where.removeprefix("training documents ").split(", ")))
        assert held <= named <= set(range(1, len(lengths) + 1))
        ends = sum(target == EOS for _, target in pairs(batch))
        assert len(named) <= len(held) + ends
