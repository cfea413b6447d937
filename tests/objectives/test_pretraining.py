"""Every objective of pretraining on a real model: what it sees, what it learns, what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmlab.data.batch import IGNORE, Batch, SourceBatch
from llmlab.data.corruption import FOLLOWING, Rows
from llmlab.data.pack import Isolated, Mixed
from llmlab.data.sentences import TextPairs, sentence_ends
from llmlab.data.shards import Documents
from llmlab.errors import InputError
from llmlab.model.transformer import Architecture, Transformer
from llmlab.objectives.kind import Kind, Seen, Setting, byte_lengths, look
from llmlab.objectives.pretraining import Blanks, Causal, Masked, Permutation, Prefix, Spans, made_for
from llmlab.objectives.streams import QueryStream
from llmlab.recipe import parse
from llmlab.tokenization.special import CLASS, MASK, SEPARATOR, START
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, train_tokenizer

SIZES = [[9, 5], [6, 8, 2]]
WIDTH = 17


Suited = Callable[..., Architecture]
Making = Callable[..., Setting]


@pytest.fixture
def setting(suited: Suited, tokenizer: Tokenizer) -> Making:
    """setting(objective, **parts) on a model that suits it."""
    return lambda objective, **parts: Setting(suited(objective, **parts), tokenizer, 32)


def on_two_axes(tokenizer: Tokenizer, **mask: Any) -> Architecture:
    """An architecture that counts blanks on two axes."""
    found = {"kind": "blank", "start_id": tokenizer.token_id(START), "blank_ids": [tokenizer.token_id(MASK)]} | mask
    return parse(Architecture, {"dim": 32, "context": 32, "position": {"kind": "rope", "axes": 2}, "mask": found})


def rows_of(sizes: list[list[int]], width: int) -> Rows:
    """Rows of documents of these sizes, each ending with eos (id 0), the words 10, 11, ... in the order of reading."""
    shape = len(sizes), width
    document, tokens, position = np.full(shape, -1), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, lengths in enumerate(sizes):
        total = sum(lengths)
        document[row, :total] = np.repeat(np.arange(len(lengths)), lengths)
        position[row, :total] = np.concatenate([np.arange(size) for size in lengths])
        tokens[row, :total] = 10 + np.arange(total) + 50 * row
        tokens[row, np.cumsum(lengths) - 1] = 0
    before = np.where(position == 0, 0, np.roll(tokens, 1, 1))
    return Rows(before, tokens, position, document, document >= 0)


def model_of(architecture: Architecture, tokenizer: Tokenizer) -> Transformer:
    parts = {"initial_std": 0.3}
    return architecture.model_copy(update=parts).build(tokenizer.vocab_size, 1)


def pairs_of(objective: Masked, at: Setting) -> TextPairs:
    documents = [[*range(10, 19), 0], [*range(30, 42), 0], [*range(50, 55), 0]]
    corpus = Documents(documents, 30, 0, 0)
    frame = at.tokenizer.token_id(CLASS), at.tokenizer.token_id(SEPARATOR)
    return TextPairs(corpus, 16, sentence_ends(at.tokenizer), frame, objective.corruption(at))  # type: ignore[arg-type]


def batch_of(objective: Kind, at: Setting, seed: int = 0) -> Batch:
    """One step's rows: two documents or three, and padding."""
    noise = np.random.default_rng(seed)
    if isinstance(objective, Masked) and objective.next_sentence:
        pairs = pairs_of(objective, at)
        return pairs.batch(np.array([0, 2]), noise.random((pairs.planes, 2, 16)))
    corruption = objective.corruption(at)
    return corruption.learn(rows_of(SIZES, WIDTH), noise.random((corruption.planes, len(SIZES), WIDTH)))


def ordinary(cases: list[Kind]) -> list[Kind]:
    return [case for case in cases if not (isinstance(case, Masked) and case.next_sentence)]


# ---------------------------------------------------------------- who sees whom


def jacobian(objective: Kind, model: Transformer, batch: Batch) -> list[Tensor]:
    """bool [B, T, S] for each text that the model embeds: whether the output at t, from which the target there is
    predicted, changes with the input at s."""
    leaves: list[Tensor] = []

    def fresh(module: Any, args: tuple[Tensor], out: Tensor) -> Tensor:
        leaf = torch.randn(out.shape, generator=torch.Generator().manual_seed(len(leaves) + 1)).requires_grad_()
        leaves.append(leaf)
        return leaf

    hook = model.embedding.register_forward_hook(fresh)
    try:
        hidden = objective.predictor().hidden(model, batch)
    finally:
        hook.remove()
    direction = torch.randn(hidden.shape[-1], generator=torch.Generator().manual_seed(9))
    said = hidden @ direction
    seen = [torch.zeros(*said.shape, leaf.shape[1], dtype=torch.bool) for leaf in leaves]
    for column in range(said.shape[1]):
        parts = torch.autograd.grad(said[:, column].sum(), leaves, retain_graph=True, allow_unused=True)
        for number, part in enumerate(parts):
            if part is not None:
                seen[number][:, column] = part.abs().sum(-1) > 0
    return seen


def declared(objective: Kind, batch: Batch) -> list[Tensor]:
    """The mask rule of the batch's own places, in the order in which the texts are embedded."""
    if isinstance(batch, SourceBatch):
        return [batch.at.shares_document(batch.source_at), batch.at.sees(batch.at)]
    return [batch.at.sees(batch.at, strict=isinstance(objective.predictor(), QueryStream))]


def test_jacobian_is_the_mask(objective: Kind, setting: Making, tokenizer: Tokenizer) -> None:
    """Cell by cell, for every objective, padding included."""
    at = setting(objective, layers=1)
    model, batch = model_of(at.model, tokenizer), batch_of(objective, at)
    for found, rule in zip(jacobian(objective, model, batch), declared(objective, batch), strict=True):
        assert found.shape == rule.shape
        assert torch.equal(found, rule)


def by_definition(objective: Kind, document: np.ndarray, i: int, j: int, **known: Any) -> bool:
    """Whether i sees j, from what the paper says and nothing of the code: `P` the prefix, `rank` the permutation."""
    if document[i] != document[j]:
        return False
    match objective.kind:
        case "causal":
            return j <= i
        case "prefix":
            return j <= i or j - known["start"][j] < known["P"][j]
        case "masked":
            return True
        case "permutation":
            return bool(known["rank"][j] < known["rank"][i])
    raise AssertionError


@pytest.mark.parametrize("kind", [Causal(), Prefix(), Prefix(length=3), Masked(), Permutation()], ids=lambda k: k.kind)
def test_the_mask_is_the_papers(kind: Kind, setting: Making) -> None:
    """The rule itself against the definition, cell by cell."""
    at, rows = setting(kind), rows_of(SIZES, WIDTH)
    corruption = kind.corruption(at)
    noise = np.random.default_rng(4).random((corruption.planes, 2, WIDTH))
    (rule,) = declared(kind, corruption.learn(rows, noise))
    for row, document in enumerate(rows.document_BT):
        start = np.array([np.flatnonzero(document == d)[0] for d in document])
        size = np.array([(document == d).sum() for d in document])
        known: dict[str, Any] = {"start": start}
        if isinstance(kind, Prefix):
            drawn = 1 + np.floor(noise[0, row, start] * size)
            known["P"] = drawn if kind.length is None else np.full(WIDTH, kind.length)
        if isinstance(kind, Permutation):
            inside = [noise[0, row][document == d] for d in document]
            known["rank"] = [(inside[i] < noise[0, row, i]).sum() for i in range(WIDTH)]
        for i in range(WIDTH):
            for j in range(WIDTH):
                if document[i] >= 0 or document[j] >= 0:
                    assert rule[row, i, j] == by_definition(kind, document, i, j, **known), (row, i, j)


def test_encoder_and_decoder_by_definition(setting: Making) -> None:
    """The decoder sees what it said before and all of its own document's source; the encoder all of its document."""
    kind = Spans()
    at = setting(kind, layers=1)
    batch = batch_of(kind, at)
    assert isinstance(batch, SourceBatch)
    assert batch.source_at.bidirectional().order.eq(batch.source_at.order).all()
    across, own = declared(kind, batch)
    t, s = batch.at.document, batch.source_at.document
    line = torch.arange(t.shape[1])
    assert torch.equal(across, t[:, :, None] == s[:, None, :])
    real = batch.at.real
    assert torch.equal(own[real], ((t[:, :, None] == t[:, None, :]) & (line[:, None] >= line))[real])


def test_blanks_by_definition(setting: Making) -> None:
    """The text sees itself; what is said sees the text and what was said before it, of its own document."""
    kind = Blanks(rate=0.4, mean=2.0)
    batch = batch_of(kind, setting(kind))
    (rule,) = declared(kind, batch)
    said, document = batch.at.order > 0, batch.at.document
    line = torch.arange(document.shape[1])
    same = document[:, :, None] == document[:, None, :]
    wanted = same & (~said[:, None, :] | (said[:, :, None] & (line[:, None] >= line)))
    real = batch.at.real
    assert torch.equal(rule[real], wanted[real])
    assert said[batch.targets_BT != IGNORE].all()


def test_the_query_stream_does_not_leak(setting: Making, tokenizer: Tokenizer) -> None:
    """However deep: another token at t leaves what is said of t, and of all before it in the order, exactly as it was;
    and moves everything after."""
    kind = Permutation()
    at = setting(kind, layers=3)
    model, batch = model_of(at.model, tokenizer).eval(), batch_of(kind, at)
    before = model.queries(batch.ids_BT, batch.at)
    for column in range(WIDTH):
        ids = batch.ids_BT.clone()
        ids[:, column] += 7
        after = model.queries(ids, batch.at)
        order, document = batch.at.order, batch.at.document
        moved = (document == document[:, column : column + 1]) & (order > order[:, column : column + 1])
        assert torch.equal(before[~moved], after[~moved])
        assert (before[moved] != after[moved]).any(-1).all()


@pytest.mark.parametrize("position", ["rope", "alibi", "t5", "none", "learned"])
def test_no_prefix_is_causal_bit_for_bit(setting: Making, tokenizer: Tokenizer, position: str) -> None:
    at = setting(Prefix(), position=position)
    model, rows = model_of(at.model, tokenizer), rows_of(SIZES, WIDTH)
    noise = np.random.default_rng(0).random((1, 2, WIDTH))
    ours, plain = Prefix(length=0).corruption(at).learn(rows, noise), FOLLOWING.learn(rows, noise)
    for part in ("ids_BT", "targets_BT"):
        assert torch.equal(getattr(ours, part), getattr(plain, part))
    assert torch.equal(ours.at.order[ours.at.real], plain.at.order[plain.at.real])
    sums = [Causal().predictor()(model, batch).sums["cross_entropy"] for batch in (ours, plain)]
    gradients = [torch.autograd.grad(total, list(model.parameters())) for total in sums]
    assert torch.equal(*sums)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# ---------------------------------------------------------------- what is learnt


def test_prefix_learns_what_it_does_not_see(setting: Making) -> None:
    """A prefix of three: inputs 0 to 2 see each other, so the first target is the one behind the third input."""
    at, rows = setting(Prefix()), rows_of([[6, 2]], 9)
    batch = Prefix(length=3).corruption(at).learn(rows, np.zeros((1, 1, 9)))
    assert batch.ids_BT.tolist() == [[0, 10, 11, 12, 13, 14, 0, 16, 0]]
    assert batch.at.order.tolist() == [[0, 0, 0, 1, 2, 3, 0, 0, 0]]
    i = IGNORE
    assert batch.targets_BT.tolist() == [[i, i, 12, 13, 14, 0, i, 0, i]]
    both = Prefix(length=3, learn="all").corruption(at).learn(rows, np.zeros((1, 1, 9)))
    assert both.targets_BT.tolist() == [[10, 11, 12, 13, 14, 0, 16, 0, i]]


def test_held_out_text_is_asked_in_the_standard_way(objective: Kind, setting: Making) -> None:
    """Figures of one name are of like things, however a model was trained."""
    at = setting(objective)
    usual = type(objective).model_validate(
        {"next_sentence": True} if getattr(objective, "next_sentence", False) else {}
    )
    assert objective.standard == usual
    ours, theirs = objective.asked(at), usual.asked(at)
    assert (ours.name, ours.planes) == (theirs.name, theirs.planes)
    documents = [[*range(10, 10 + size), 0] for size in (19, 25, 12)]
    corpus = Documents(documents, 56, 0, 0)
    for one, other in zip(objective.held(corpus, at, 2), usual.held(corpus, at, 2), strict=True):
        assert torch.equal(one.ids_BT, other.ids_BT)
        assert torch.equal(one.targets_BT, other.targets_BT)


def test_permutation_learns_the_last_of_the_order(setting: Making) -> None:
    kind = Permutation(predict=3)
    at, rows = setting(kind), rows_of([[7, 2]], 10)
    noise = np.array([[[0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.7, 0.9, 0.1, 0.0]]])
    batch = kind.corruption(at).learn(rows, noise)
    assert batch.ids_BT.tolist() == rows.tokens_BT.tolist()
    assert batch.at.order.tolist() == [[3, 0, 6, 2, 1, 5, 4, 1, 0, 0]]
    assert batch.targets_BT.tolist() == [[IGNORE, IGNORE, 12, IGNORE, IGNORE, 15, IGNORE, 17, IGNORE, IGNORE]]
    asked = kind.asked(at).learn(rows, noise)
    assert asked.targets_BT.tolist() == [[*rows.tokens_BT[0, :9].tolist(), IGNORE]]
    assert asked.at.order.tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 0]]


@pytest.mark.parametrize("span", [None, 2.0])
def test_masked_hides_words_only(setting: Making, tokenizer: Tokenizer, span: float | None) -> None:
    """Of the end of a document nothing is asked, and no special token comes by chance."""
    kind = Masked(rate=0.9, mask=0.0, random=1.0, span=span)
    at, rows = setting(kind), rows_of([[9, 5]] * 50, 17)
    batch = kind.corruption(at).learn(rows, np.random.default_rng(0).random((3, 50, 17)))
    asked = batch.targets_BT != IGNORE
    assert asked.float().mean() > 0.5
    assert not asked[torch.from_numpy(rows.tokens_BT == 0)].any()
    assert not set(batch.ids_BT[asked].tolist()) & tokenizer.special_ids
    assert torch.equal(batch.ids_BT[~asked & batch.at.real], torch.from_numpy(rows.tokens_BT)[~asked & batch.at.real])


@pytest.mark.parametrize("axes", [1, 2])
def test_blanks_count_as_the_positions_do(setting: Making, tokenizer: Tokenizer, axes: int) -> None:
    """Training stands where the mask of the architecture puts generation; on one axis with the text as its prompt."""
    kind = Blanks(rate=0.2, mean=5.0)
    model = on_two_axes(tokenizer) if axes == 2 else setting(kind).model
    kind.check(model, Isolated())
    batch = kind.corruption(Setting(model, tokenizer, 32)).learn(rows_of([[9]], 9), np.full((2, 1, 9), 0.5))
    places = model.mask.places(batch.ids_BT)
    if axes == 1:
        places = places.prefix([int((batch.at.order == 0).sum())])
    assert batch.at.position.ndim == axes + 1
    assert torch.equal(batch.at.position, places.position)
    assert torch.equal(batch.at.order, places.order)


def nats(objective: Kind, model: Transformer, batch: Batch) -> float:
    return float(objective.predictor()(model, batch).sums["cross_entropy"].detach())


def alone(batch: Batch) -> Iterator[Batch]:
    """Each document of a batch in a row of its own."""

    def cut(row: int, keep: Tensor, ids: Tensor, at: Any) -> tuple[Tensor, Any]:
        return ids[row : row + 1, keep], at[row : row + 1, keep]

    for row in range(len(batch.ids_BT)):
        for number in set(batch.at.document[row].tolist()) - {-1}:
            keep = batch.at.document[row] == number
            ids, at = cut(row, keep, batch.ids_BT, batch.at)
            changes: dict[str, Any] = {"ids_BT": ids, "targets_BT": batch.targets_BT[row : row + 1, keep], "at": at}
            if isinstance(batch, SourceBatch):
                read = batch.source_at.document[row] == number
                changes["source_BS"], changes["source_at"] = cut(row, read, batch.source_BS, batch.source_at)
            yield replace(batch, **changes)


def test_packed_is_separate(objective: Kind, setting: Making, tokenizer: Tokenizer) -> None:
    """Traps 15 and 16: the loss of packed documents is the sum of theirs."""
    at = setting(objective)
    model, batch = model_of(at.model, tokenizer), batch_of(objective, at)
    if isinstance(objective, Masked) and objective.next_sentence:
        parts = [batch.part(slice(row, row + 1)) for row in range(2)]
    else:
        parts = list(alone(batch))
        assert len(parts) == 5 - (objective.kind == "spans" and not batch.at.document.eq(2).any())
    assert sum(part.learnt for part in parts) == batch.learnt > 0
    assert nats(objective, model, batch) == pytest.approx(sum(nats(objective, model, part) for part in parts), rel=1e-5)


def gradients(objective: Kind, model: Transformer, parts: list[Batch]) -> list[Tensor]:
    """As the loop has it: sums divided once, by the count over all parts."""
    predictor = objective.predictor(z_loss=0.1)
    counts = [predictor.counts(part) for part in parts]
    model.zero_grad()
    for part, count in zip(parts, counts, strict=True):
        if any(count.values()):
            sums = predictor(model, part).sums
            assert sums.keys() == count.keys()
            whole = {name: sum(each[name] for each in counts) for name in sums}
            sum(predictor.weights[name] * sums[name] / whole[name] for name in sums if whole[name]).backward()
    return [torch.zeros(()) if p.grad is None else p.grad.clone() for p in model.parameters()]


def test_any_split_gives_the_same_gradient(objective: Kind, setting: Making, tokenizer: Tokenizer) -> None:
    """Traps 1 to 8, with a part in which nothing is learnt, every term, and the second loss of pairs."""
    at = setting(objective)
    model, batch = model_of(at.model, tokenizer), batch_of(objective, at)
    empty = replace(batch, targets_BT=torch.full_like(batch.targets_BT, IGNORE))
    whole = gradients(objective, model, [batch])
    parts = [batch.part(slice(0, 1)), batch.part(slice(1, 2))]
    if not (isinstance(objective, Masked) and objective.next_sentence):  # whose pairs would count
        parts.insert(1, empty)
    for one, other in zip(whole, gradients(objective, model, parts), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert all(gradient.abs().sum() > 0 for gradient in whole[:1])


def test_a_row_that_says_nothing_is_harmless(setting: Making, tokenizer: Tokenizer) -> None:
    """A decoder's padding sees no source at all where that row has no padding of its own."""
    kind = Spans()
    at = setting(kind)
    batch = kind.corruption(at).learn(rows_of([[9, 5], [1] * 14], 14), np.random.default_rng(0).random((1, 2, 14)))
    assert not batch.at.real[1].any()
    assert batch.source_at.real[1].all()
    for gradient in gradients(kind, model_of(at.model, tokenizer), [batch]):
        assert bool(gradient.isfinite().all())


def test_every_parameter_learns(objective: Kind, setting: Making, tokenizer: Tokenizer) -> None:
    """What `check` lets through has no part that the objective leaves as it was."""
    at = setting(objective)
    model, batch = model_of(at.model, tokenizer), batch_of(objective, at)
    gradients(objective, model, [batch])
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


# ---------------------------------------------------------------- how well


def test_figures_bear_names_of_their_own(objective: Kind) -> None:
    """Only the likelihood of a whole text is called bits per byte."""
    names = set(objective.ratios(Seen()))
    assert objective.best in names
    assert ("bits_per_byte" in names) == objective.whole_text == isinstance(objective, Causal | Permutation)


def test_figures_by_hand(setting: Making, tokenizer: Tokenizer) -> None:
    """Of a model that knows nothing: log2 V bits for each of what is asked, by the bytes of what is asked."""
    lengths, bits = byte_lengths(tokenizer), math.log2(tokenizer.vocab_size)
    documents = [[*tokenizer.encode("the cat sat. on the mat!"), 0], [*tokenizer.encode("the dog ran."), 0]]
    corpus = Documents(documents, 36, 0, 0)
    for kind in (Causal(), Prefix(), Masked(), Permutation(), Spans(), Blanks()):
        at = setting(kind)
        model = at.model.build(tokenizer.vocab_size).requires_grad_(False).eval()
        model.embedding.weight.zero_()
        batches = list(kind.held(corpus, at, 2))
        seen = Seen.sum(look(kind.predictor(), model, batch, lengths) for batch in batches)
        targets = torch.cat([batch.targets_BT[batch.targets_BT != IGNORE] for batch in batches])
        found = kind.figures(seen)[kind.best]
        if kind.kind == "masked":
            assert found == pytest.approx(math.log(tokenizer.vocab_size))
        else:
            assert found == pytest.approx(bits * len(targets) / lengths[targets].sum())
        if kind.whole_text:
            assert len(targets) == corpus.tokens
            assert seen.bytes == corpus.text_bytes


def test_nothing_to_ask_is_said(setting: Making, tokenizer: Tokenizer) -> None:
    kind = Spans()
    at = setting(kind)
    model = model_of(at.model, tokenizer).requires_grad_(False)
    corpus = Documents([[10, 0]], 1, 0, 0)
    seen = Seen.sum(look(kind.predictor(), model, batch, byte_lengths(tokenizer)) for batch in kind.held(corpus, at, 1))
    with pytest.raises(InputError, match="held-out text: holds nothing to take spans_bits_per_hidden_byte from"):
        kind.figures(seen)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("kind", "parts", "says"),
    [
        (Causal(), {"mask": "bidirectional"}, r"model\.mask: bidirectional cannot go with .* causal \(use causal"),
        (Causal(), {"encoder_layers": 1, "position": "t5"}, r"model\.encoder_layers: 1 cannot .* belongs to spans"),
        (Causal(), {"streams": 2}, r"model\.streams: 2 cannot go with the objective causal \(two streams belong to"),
        (Causal(), {"head": "none"}, r"model\.head: none cannot go with the objective causal"),
        (Prefix(), {}, r"model\.mask: causal cannot go with the objective prefix \(use prefix"),
        (Masked(), {}, r"model\.mask: causal cannot go with the objective masked \(use bidirectional"),
        (Masked(), {"mask": "bidirectional", "pooled": 2}, r"model\.pooled: 2 cannot .* without next_sentence"),
        (Masked(next_sentence=True), {"mask": "bidirectional"}, r"model\.pooled: null cannot go with .* set 2"),
        (Masked(next_sentence=True), {"mask": "bidirectional", "pooled": 2}, r"model\.embedding\.segments: 0"),
        (Permutation(), {"mask": "bidirectional"}, r"model\.streams: 1 cannot .* permutation .* set 2"),
        (Permutation(), {"streams": 2}, r"model\.mask: causal cannot go with the objective permutation"),
        (Spans(), {}, r"model\.encoder_layers: 0 cannot go with the objective spans \(set it to the encoder's blocks"),
        (Blanks(), {"position": {"kind": "rope", "axes": 2}, "mask": "prefix"}, r"model\.mask: prefix .* \(use blank"),
        (Blanks(), {"mask": {"kind": "blank", "start_id": 1, "blank_ids": [2]}}, r"model\.mask: blank .* \(use prefix"),
    ],
)  # fmt: skip
def test_what_an_architecture_lacks_is_refused_by_name(kind: Kind, parts: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        kind.check(parse(Architecture, {"dim": 32} | parts), Isolated())


def test_other_refusals(suited: Suited, tokenizer: Tokenizer) -> None:
    for kind in (Spans(), Blanks()):
        with pytest.raises(InputError, match=r"pretrain\.packing: mixed cannot go with the objective"):
            kind.check(suited(kind), Mixed())
    with pytest.raises(InputError, match=r"pretrain\.length: 3 tokens are too few for a blank"):
        Blanks().reading(3)
    wrong = Setting(on_two_axes(tokenizer, start_id=5), tokenizer, 32)
    with pytest.raises(InputError, match=r"model\.mask\.start_id: is 5, the tokenizer's .* has the id \d+ \(set"):
        Blanks().corruption(wrong)
    with pytest.raises(ValueError, match=r"mask 0.8 and random 0.3 are more than 1"):
        Masked(random=0.3)


def test_what_a_tokenizer_lacks_is_refused_by_name(objective: Kind, suited: Suited) -> None:
    bare = train_tokenizer(BPE(vocab_size=270), iter(["the cat sat."]))
    at = Setting(suited(objective), bare, 32)
    corpus = Documents([[10, 11, 12, 0], [13, 14, 15, 0]], 6, 0, 0)
    if needed := objective.special(32):
        with pytest.raises(
            InputError, match=rf"has no token (.*), which the objective {objective.kind} needs"
        ) as refused:
            objective.held(corpus, at, 1)
        assert any(token in str(refused.value) for token in needed)
    else:
        assert len(objective.held(corpus, at, 1)) == 1


USUAL, HALF, FEW = Blanks(), Blanks(rate=0.5, mean=1.0), Blanks(rate=0.01)


@pytest.mark.parametrize("kind", [USUAL, HALF, FEW], ids=["usual", "half", "few"])
def test_blanks_fit_into_the_row(kind: Blanks, setting: Making) -> None:
    """A document that fills a row has its spans behind it within the length; three tokens more, and it would not."""
    learn = kind.corruption(setting(kind)).learn

    def width(size: int) -> int:
        noise = np.random.default_rng(size).random((2, 1, size))
        return learn(rows_of([[size]], size), noise).ids_BT.shape[1]

    for length in (4, 7, 16, 33, 64):
        assert width(kind.reading(length)) <= length < width(kind.reading(length) + 3)


def test_what_a_model_is_made_for(objective: Kind, suited: Suited, tokenizer: Tokenizer) -> None:
    made = made_for(suited(objective), tokenizer)
    assert made.kind == ("blanks" if objective.kind == "prefix" else objective.kind)  # the tokenizer knows their start
    made.check(suited(objective), Isolated())
    bare = train_tokenizer(BPE(vocab_size=270), iter(["the cat sat."]))
    assert made_for(suited(Prefix()), bare) == Prefix()
