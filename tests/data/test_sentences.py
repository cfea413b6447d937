"""Pairs of texts: framed by hand, half of them of one document, cut where sentences end."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llmlab.data.batch import Batch, TextPairBatch
from llmlab.data.corruption import Corruption, Noise, Rows, batch_of
from llmlab.data.sentences import PLANES, TextPairBatches, TextPairEval, TextPairs, sentence_ends
from llmlab.data.shards import Documents
from llmlab.errors import InputError
from llmlab.tokenization.train import BPE, train_tokenizer

CLS, SEP = 201, 202
ENDS = np.zeros(300, bool)
ENDS[::10] = True  # every tenth id ends a sentence


def _plain(rows: Rows, noise: Noise) -> Batch:
    zero = np.zeros_like(rows.position_BT)
    return batch_of(rows.tokens_BT, rows.tokens_BT, rows.learnt_BT, rows.position_BT, zero, rows.document_BT)


PLAIN = Corruption(_plain, 0, "plain")
# Documents of 13, 5 and 8 tokens, each ending with eos 0; eos itself is in no pair.
TEXTS = [[*range(5, 17), 0], [*range(101, 105), 0], [*range(151, 158), 0]]
CORPUS = Documents(TEXTS, 50, 0, 0)


def pairs(length: int = 11) -> TextPairs:
    return TextPairs(CORPUS, length, ENDS, (CLS, SEP), PLAIN)


def test_pair_by_hand() -> None:
    """Rows of 11 have room for 8 tokens: pieces 5-12, 13-16, 101-104, 151-157."""
    some = pairs()
    assert len(some) == 4
    assert some.documents(np.arange(4)).tolist() == [0, 0, 1, 2]
    noise = np.full((PLANES, 2, 11), 0.5)
    noise[1, :, 0] = 0.0, 0.9  # the other piece: the first of another document; the last
    noise[1, :, 1] = 0.1, 0.9  # follows; does not
    noise[0, 1, 3] = 0.9  # no sentence ends inside 101-104: the cut with the largest number
    noise[2, 1, 4] = 0.9  # and of the other piece
    batch = some.batch(np.array([0, 2]), noise)
    # 5-10 is a sentence, so the cut stands behind it; the other piece, 101-104, has one token before its first cut.
    assert batch.ids_BT.tolist()[0] == [CLS, 5, 6, 7, 8, 9, 10, SEP, 11, 12, SEP]
    assert batch.follows_B.tolist() == [True, False]
    # 101-103, and of the piece drawn (151-157) what stands behind its cut, as short as its own rest, one token.
    assert batch.ids_BT.tolist()[1] == [CLS, 101, 102, 103, SEP, 155, SEP, 0, 0, 0, 0]
    assert batch.at.segments.tolist() == [[0] * 8 + [1] * 3, [0] * 5 + [1] * 2 + [0] * 4]
    assert batch.at.document.tolist() == [[0] * 11, [0] * 7 + [-1] * 4]
    assert batch.at.position.tolist() == [[*range(11)], [*range(7), 0, 0, 0, 0]]
    special = torch.tensor([[1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1]]).bool()
    assert torch.equal(batch.targets_BT == -100, special)


def test_half_follow_and_length_tells_nothing() -> None:
    """Within five standard deviations; the other text is always of another document, what follows always the next."""
    some, n = pairs(), 4000
    noise = np.random.default_rng(0).random((PLANES, n, 11))
    batch = some.batch(np.zeros(n, np.int64) + np.arange(n) % 4, noise)
    assert abs(int(batch.follows_B.sum()) - n / 2) < 5 * math.sqrt(n) / 2
    sizes = batch.at.real.sum(1).double()
    follow, other = sizes[batch.follows_B], sizes[~batch.follows_B]
    spread = math.sqrt(float(follow.var() / len(follow) + other.var() / len(other)))
    assert abs(float(follow.mean() - other.mean())) < 5 * spread
    for row in range(200):
        ids = batch.ids_BT[row][batch.at.real[row]].tolist()
        middle = ids.index(SEP)
        a, b = ids[1:middle], ids[middle + 1 : -1]
        assert a
        assert b
        assert b == list(range(b[0], b[0] + len(b)))
        assert (b[0] == a[-1] + 1) == bool(batch.follows_B[row])
        assert (b[0] // 50 == a[0] // 50) == bool(batch.follows_B[row])


def test_every_piece_begins_one_pair_an_epoch_and_resumes() -> None:
    batches = TextPairBatches(pairs(), 3, 2, seed=1)
    steps = [batches.next() for _ in range(8)]
    first = [ids[1] for step in steps for batch in step for ids in batch.ids_BT.tolist()]
    assert all(sorted(first[epoch : epoch + 4]) == [5, 13, 101, 151] for epoch in range(0, 24, 4))
    for at in range(8):
        early, late = TextPairBatches(pairs(), 3, 2, seed=1), TextPairBatches(pairs(), 3, 2, seed=1)
        for _ in range(at):
            early.next()
        late.load(early.state())
        for step in steps[at:]:
            for one, other in zip(late.next(), step, strict=True):
                assert isinstance(one, TextPairBatch)
                assert isinstance(other, TextPairBatch)
                assert torch.equal(one.ids_BT, other.ids_BT)
                assert torch.equal(one.follows_B, other.follows_B)
                assert one.where == other.where != ""


def test_held_out_pairs_are_the_same_for_all() -> None:
    def asked(size: int) -> list[list[int]]:
        batches = TextPairEval(pairs(), size)
        return [ids[real].tolist() for b in batches for ids, real in zip(b.ids_BT, b.at.real, strict=True)]

    assert asked(1) == asked(4)
    assert len(asked(1)) == 4
    assert len(TextPairEval(pairs(), 3)) == 2


def test_sentences_end_where_they_should() -> None:
    texts = ["One. Two! Three? Four\nfive \u3002 six"]
    tokenizer = train_tokenizer(BPE(vocab_size=265), iter(texts))
    ends = sentence_ends(tokenizer)
    for mark, ends_one in ((".", True), ("!", True), ("?", True), ("\n", True), (",", False), ("a", False)):
        (id,) = tokenizer.encode(mark)
        assert ends[id] == ends_one
    assert not ends[sorted(tokenizer.special_ids)].any()


def test_too_little_is_refused() -> None:
    with pytest.raises(InputError, match=r"pretrain\.length: 4 tokens are too few for a pair"):
        pairs(4)
    with pytest.raises(InputError, match="fewer than two documents of two tokens"):
        TextPairs(Documents([[5, 6, 7, 0], [8, 0]], 4, 0, 0), 11, ENDS, (CLS, SEP), PLAIN)
