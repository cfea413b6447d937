"""A long text read once, piece by piece, so that memory follows the text and not its square.

B rows, T tokens, S tokens of a piece, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.data import bundled
from llmlab.data.batch import Ids
from llmlab.data.sources import Files, texts_of
from llmlab.errors import InputError
from llmlab.inference.cache import DenseCache
from llmlab.inference.engine import without_dropout
from llmlab.model.places import Places
from llmlab.model.rotary import DynamicNTK
from llmlab.model.transformer import Transformer, positions_of
from llmlab.runtime import derive
from llmlab.tokenization.tokenizer import Tokenizer

PIECE = 512
CHARACTERS = 12  # of a text, more than a token has on average


def whole_text(path: str | None, column: str) -> str:
    """The user's own text, documents one after another; without a path the bundled book."""
    if path is None:
        return bundled.path("moby_dick").read_text(encoding="utf-8")
    return "\n\n".join(texts_of(Files(path=path, text=column), None))


def stretch(text: str, tokenizer: Tokenizer, length: int, seed: int, place: str) -> Ids:
    """At least `length` tokens of a text, from a place that the seed chooses. InputError for a text that is shorter."""
    size = min(len(text), length * CHARACTERS)
    start = derive(seed, "start") % (len(text) - size + 1)
    ids = tokenizer.encode(text[start : start + size])
    if len(ids) < length:
        raise InputError(place, f"{length} tokens are more than the text has ({len(ids)})", "a longer --data FILE")
    return ids


def hidden_by_piece(model: Transformer, ids_T: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The hidden states [1, S, D] of one text, each piece with the place of its first token. Angles that follow the
    length turn every key anew as the text grows, so such a model reads it in one pass, by the length of the whole."""
    count = len(ids_T)
    if any(isinstance(getattr(position, "scaling", None), DynamicNTK) for position in positions_of(model.architecture)):
        hidden_BTD = model.hidden(ids_T[None], Places.causal(1, count))
        yield from ((first, hidden_BTD[:, first : first + PIECE]) for first in range(0, count, PIECE))
        return
    cache = DenseCache(count)
    for first in range(0, count, PIECE):
        ids_BS = ids_T[None, first : first + PIECE]
        yield first, model.hidden(ids_BS, Places.causal(1, ids_BS.shape[1], start=first), cache)


@torch.inference_mode()
def nats_by_token(model: Transformer, ids: Sequence[int]) -> Tensor:
    """Negative log-likelihood of ids[1:] from all before each, float64 [T - 1], however long the text: past the context
    too, where the model takes such places. Errors: InputError for a model that refuses them."""
    ids_T = torch.as_tensor(ids, dtype=torch.int64)
    found = []
    with without_dropout(model):
        for first, hidden_BSD in hidden_by_piece(model, ids_T[:-1]):
            answers_S = ids_T[first + 1 : first + 1 + hidden_BSD.shape[1]]
            logits_SV = model.logits(hidden_BSD)[0].float()
            found.append(F.cross_entropy(logits_SV, answers_S, reduction="none").double())
    return torch.cat(found)
