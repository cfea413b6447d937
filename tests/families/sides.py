"""The reference and ours side by side: what each says of the same texts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from llmlab.families import mapping
from llmlab.model.places import Places
from llmlab.model.transformer import Transformer

from .references import VOCAB

os.environ["HF_HUB_OFFLINE"] = "1"

LENGTHS, WIDTH = [9, 4, 7], 9
TOLERANCE = 1e-4


def opened(name: str, theirs: Any) -> Transformer:
    """Ours, with the reference's weights."""
    family = mapping.family(name)
    architecture, vocab_size = family.read_config(mapping.settled(family, theirs.config.to_dict(), theirs.state_dict()))
    ours: Transformer = architecture.build(vocab_size).eval()
    ours.load_state_dict(mapping.from_hf(family, ours, theirs.state_dict()))
    return ours


def texts() -> Tensor:
    """int64 [B, T]: ids of real texts, none of them a special one."""
    return torch.randint(4, VOCAB, (len(LENGTHS), WIDTH), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(theirs: Any, ours: Transformer) -> float:
    """The largest difference of an output of the two over texts padded on either side."""
    worst = 0.0
    for at in (Places.of_lengths(LENGTHS, WIDTH, side) for side in ("left", "right")):
        for expected, got in outputs(theirs, ours, texts(), at):
            worst = max(worst, float((got - expected).abs().max()))
    return worst


def outputs(theirs: Any, ours: Transformer, ids: Tensor, at: Places) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of what the reference and ours say of the real tokens of these texts."""
    a, xlnet = ours.architecture, theirs.config.model_type == "xlnet"
    if a.encoder_layers:
        yield from _answers(theirs, ours, ids, at)
    elif xlnet and a.mask.kind == "causal" and len(ids) > 1:
        for row in range(len(ids)):  # the reference cannot add this mask to that of several rows
            yield from outputs(theirs, ours, ids[row : row + 1], at[row : row + 1])
    else:
        segment = torch.arange(WIDTH).expand_as(ids) // 4 % 2 * int(a.embedding.segments != 1)
        at = at if a.mask.kind == "causal" else at.bidirectional()
        at = Places(at.position, at.order, at.document, segment)
        placed = {} if xlnet else {"position_ids": at.position + getattr(a.position, "offset", 0)}
        said = theirs(ids, attention_mask=at.real.long(), token_type_ids=segment, **placed)
        yield from _read(said, ours, ours.hidden(ids, at), at)


def _read(said: Any, ours: Transformer, hidden: Tensor, at: Places) -> Iterator[tuple[Tensor, Tensor]]:
    """Whatever heads the reference has: of tokens, of pairs, none."""
    pairs = [said[key] for key in ("seq_relationship_logits", "sop_logits") if key in said]
    tokens = [said[key] for key in ("prediction_logits", "logits") if key in said]
    if tokens and tokens[0].ndim == 2:  # the logits of a class that has nothing but pairs
        pairs, tokens = tokens, []
    assert bool(tokens) == (ours.architecture.head.kind != "none")
    for logits in tokens:
        yield logits[at.real], ours.logits(hidden)[at.real]
    if ours.pooler is not None and bool(at.real[:, 0].all()):  # the first column is the first token
        for logits in pairs:
            yield logits, ours.pooler(hidden)
        if "pooler_output" in said:
            yield said.pooler_output, ours.pooler.pooled(hidden)
    if "last_hidden_state" in said:
        yield said.last_hidden_state[at.real], hidden[at.real]


def _answers(theirs: Any, ours: Transformer, ids: Tensor, at: Places) -> Iterator[tuple[Tensor, Tensor]]:
    """An encoder-decoder's, for answers padded on either side."""
    answers = texts().flip(1)[:, :6]
    for side in ("left", "right"):
        after = Places.of_lengths([3, 6, 2], 6, side)
        said = theirs(
            ids,
            attention_mask=at.real.long(),
            decoder_input_ids=answers,
            decoder_attention_mask=after.real.long(),
        )
        memory = ours.encode(ids, at)
        yield said.encoder_last_hidden_state[at.real], memory.states[at.real]
        yield said.logits[after.real], ours(answers, after, memory=memory)[after.real]
