"""Question 11's parts: attention by tiles, blocks over a window, documents with facts, and what reading them costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.checkpoints.where import open_model
from llmlab.handbook.mixing_costs import KINDS, mixed
from llmlab.handbook.needle_readers import Reader, Work, ends
from llmlab.handbook.needle_ways import CHUNK, OVERLAP, WAYS, sentences
from llmlab.handbook.needles import STEMS, Document, Fact, document, recalled
from llmlab.handbook.races import needles, needles_past
from llmlab.handbook.smollm2_shape import SMOLLM2
from llmlab.handbook.tiled_attention import tiled
from llmlab.longtext.chunk import spans, whole
from llmlab.tokenization.tokenizer import Tokenizer

# ---------------------------------------------------------------- attention by tiles


@settings(deadline=None, max_examples=60)
@given(
    queries=st.integers(1, 70),
    before=st.integers(0, 70),
    tile=st.integers(1, 80),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 90),
    seed=st.integers(0, 99),
)
def test_tiles_are_the_softmax_of_the_whole(
    queries: int, before: int, tile: int, causal: bool, window: int | None, seed: int
) -> None:
    draws = torch.Generator().manual_seed(seed)
    keys = queries + before
    q, k, v = (torch.randn(2, 3, tokens, 8, generator=draws) for tokens in (queries, keys, keys))
    back = torch.arange(before, keys)[:, None] - torch.arange(keys)
    sees = ((back >= 0) | (not causal)) & (back < (window or keys))
    assert torch.allclose(
        tiled(q, k, v, causal, window, tile), F.scaled_dot_product_attention(q, k, v, sees), atol=1e-5
    )


def test_large_scores_do_not_overflow_in_tiles() -> None:
    q = 1e3 * torch.ones(1, 1, 9, 4)
    v = torch.arange(9.0)[None, None, :, None].expand(1, 1, 9, 4)
    assert torch.allclose(tiled(q, q, v, tile=2)[0, 0, :, 0], torch.arange(9) / 2)


# ---------------------------------------------------------------- a window in blocks


def test_only_full_attention_pays_for_pairs() -> None:
    grown = {kind: mixed(kind, 256)[0] / mixed(kind, 128)[0] for kind in KINDS}
    assert grown["full"] > 3
    assert all(grown[kind] < 2.5 for kind in ("window", "linear", "recurrent"))


# ---------------------------------------------------------------- documents


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    found = open_model("smollm2").tokenizer
    assert found is not None
    return found


@pytest.mark.parametrize("edges", [None, CHUNK])
def test_a_document_is_as_long_as_asked_and_says_every_fact(tokenizer: Tokenizer, edges: int | None) -> None:
    read = document(tokenizer, needles.TOKENS, 0, edges)
    assert len(read.ids) == needles.TOKENS
    assert {fact.stem for fact in read.facts} == {stem for stem, _ in STEMS}
    for fact in read.facts:
        told = tokenizer.decode(read.ids[fact.place : fact.place + fact.width])
        assert told == f"{fact.stem} {fact.answer}."
    assert [read.fifth(fact) for fact in read.facts] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert document(tokenizer, needles.TOKENS, 0, edges) == read
    assert document(tokenizer, needles.TOKENS, 1, edges) != read


def test_facts_on_edges_are_split_without_overlap_and_whole_with_it(tokenizer: Tokenizer) -> None:
    read = document(tokenizer, needles.TOKENS, 0, CHUNK)
    for fact in read.facts:
        place = torch.tensor([fact.place]).numpy()
        assert not whole(spans(needles.TOKENS, CHUNK), place, fact.width).any()
        assert whole(spans(needles.TOKENS, CHUNK, OVERLAP), place, fact.width).all()


def test_recall_is_counted_by_fifth() -> None:
    facts = [Fact("The code is", "71", 5, 4), Fact("The dog is", "Rex", 15, 4), Fact("The cat is", "Tom", 95, 4)]
    told = recalled(Document([0] * 100, facts), [" 71.", " Max", " called Tom."])
    assert told["recall"] == pytest.approx(2 / 3)
    assert [told[f"recall_{fifth}"] for fifth in range(1, 6)] == [0.5, -1, -1, -1, 1]


def test_sentences_are_cut_at_marks_and_paragraphs() -> None:
    assert sentences("One. Two?\n\nThree; four") == ["One.", "Two?", "Three;", "four"]


# ---------------------------------------------------------------- work


def test_work_is_that_of_weights_and_of_pairs() -> None:
    """Two more tokens after ten: each meets every weight twice, and the tokens before it."""
    work, weights = Work(), 30 * (576 * 64 * 24 + 3 * 576 * 1536)
    work.read(SMOLLM2, 10, 12)
    assert (work.tokens, work.held) == (2, 12)
    assert work.operations == 2 * weights * 2 + 4 * 30 * 576 * (11 + 12)
    near = Work()
    near.read(SMOLLM2, 10, 12, reach=4)
    assert (near.held, work.operations - near.operations) == (4, 4 * 30 * 576 * (7 + 8))


def test_an_answer_ends_with_its_sentence(tokenizer: Tokenizer) -> None:
    marks = set(ends(tokenizer))
    assert {tokenizer.encode(".")[0], tokenizer.encode("\n")[0], tokenizer.eos_id} <= marks
    assert not set(tokenizer.encode(" lighthouse 7")) & marks


def test_a_fact_is_found_in_a_short_text_and_its_reading_counted(tokenizer: Tokenizer) -> None:
    reader = Reader(1024)
    first = tokenizer.encode("A quiet street.\n\nThe password of the bakery is ginger.\n\nIt was late and it rained.")
    other = tokenizer.encode("A quiet street. It was late and it rained.")
    found = reader.ask([other, first], ["The password of the bakery is", "On that evening it"])
    assert [row[0].text.strip(" .") == "ginger" for row in found] == [False, True]
    assert found[1][0].score > found[0][0].score
    assert reader.work.passes == 2
    shared = reader.batching.counts.shared_tokens
    assert shared == sum(len(context) // 16 * 16 for context in (first, other))


def test_every_arm_names_a_way() -> None:
    for race in (needles.RACE, needles_past.RACE):
        race.check()
        assert {arm["way"] for arm in race.arms.values()} <= WAYS.keys()
    assert {arm["way"] for race in (needles.RACE, needles_past.RACE) for arm in race.arms.values()} == WAYS.keys()
