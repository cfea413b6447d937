"""Texts without end: read in blocks through a cache that forgets, each token's loss told as it goes by.

T tokens of a block, N tokens asked for, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.errors import InputError
from llmlab.inference.caches import CacheKind
from llmlab.inference.engine import Decoder, without_dropout
from llmlab.model.places import Places
from llmlab.tokenization.tokenizer import Tokenizer

BLOCK = 512  # tokens that are read at once


@dataclass(frozen=True)
class Block:
    """The tokens from number `first` of the text on: what each cost, float32 [T] in nats, and the bytes of keys and
    values that the cache held once they were read."""

    first: int
    nats: Tensor
    cache_bytes: int


def encoded(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[int]:
    """The ids of texts one after another, each encoded when its turn comes: of a text without end no more is held than
    the piece at hand. Pieces should end where words do."""
    for text in texts:
        yield from tokenizer.encode(text)


def stream(
    model: Decoder, ids: Iterable[int], cache: CacheKind, tokens: int | None = None, block: int = BLOCK
) -> Iterator[Block]:
    """Read a text, however long, and say what each of its tokens cost, the first excepted, which nothing predicts.

    With a rolling cache memory is bounded by its window, its sinks and one `block`, and the text may be endless; with
    any other `tokens` says how many are read at most. Who keeps all losses copies them into one tensor: a small one
    kept of every block lies among what that block needed, which the allocator then cannot use again.

    Errors: InputError for a cache that the model cannot go with, a text shorter than two tokens, or an endless text for
    a cache that is not.
    """
    if tokens is None and not cache.endless:
        raise InputError("tokens", f"must be said for a {cache.kind} cache, which holds every token", "or use rolling")
    source, device = islice(iter(ids), None if tokens is None else tokens + 1), next(model.parameters()).device
    keys, first = cache.build(tokens or 0, model.architecture), 0
    piece = list(islice(source, 1))
    while fresh := list(islice(source, max(1, min(block, keys.room())))):
        piece += fresh
        read_T = torch.tensor(piece, device=device)
        at = Places.causal(1, len(fresh), device, start=first)
        with torch.inference_mode(), without_dropout(model):
            hidden_1TD = model.hidden(read_T[None, :-1], at, keys)
            nats_T = F.cross_entropy(model.logits(hidden_1TD)[0].float(), read_T[1:], reduction="none")
        yield Block(first + 1, nats_T.cpu(), keys.nbytes)
        piece, first = piece[-1:], first + len(fresh)
    if not first:
        raise InputError("text", f"has {len(piece)} tokens", "the first is predicted by nothing: two at least")


def recomputed(model: Decoder, ids: Sequence[int], places: Sequence[int], window: int, rows: int = 1) -> Tensor:
    """float32 [N]: what the tokens of these numbers cost in nats where, for each of them, the `window` tokens before it
    are read anew: exact and dear, `window` tokens for one. `rows` of them are read at once.

    Errors: InputError for a token that has fewer before it.
    """
    if places and (least := min(places)) < window:
        raise InputError("places", f"{least} has {least} tokens before it", f"{window} are read")
    text, device = torch.tensor(ids, device=next(model.parameters()).device), next(model.parameters()).device
    found = []
    for start in range(0, len(places), rows):
        place_N = torch.tensor(places[start : start + rows], device=device)
        read_NT = text[place_N[:, None] + torch.arange(-window, 0, device=device)]
        with torch.inference_mode(), without_dropout(model):
            hidden_ND = model.hidden(read_NT, Places.causal(len(place_N), window, device))[:, -1]
            found.append(F.cross_entropy(model.logits(hidden_ND).float(), text[place_N], reduction="none").cpu())
    return torch.cat(found) if found else torch.zeros(0)
