"""What comes next, asked of any pretrained model: the next token of held-out text from those before it and no other.

Each objective has a way to say it. A model of the next token reads it off the last one; a masked model off a mask put
behind the text; a permutation model off the query stream; T5 and GLM are asked for a blank that ends the text. So
models that give no likelihood of a text can be set beside those that do, as generators: it costs them a pass a token.

B rows, C tokens of context, T tokens that the model reads, D width.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.data.shards import Corpus
from llmlab.errors import InputError
from llmlab.inference.engine import without_dropout
from llmlab.model.places import Places
from llmlab.model.rotary import Rope, RopeInterleaved
from llmlab.model.transformer import Transformer
from llmlab.objectives.hiding import Blanks, Masked, Spans
from llmlab.objectives.kind import Kind, byte_lengths
from llmlab.objectives.pretraining import Permutation, Prefix
from llmlab.tokenization.special import MASK, START, sentinels, special_ids
from llmlab.tokenization.tokenizer import Tokenizer

ASKED = 1024  # tokens, spread evenly over the text
_ROWS = 64


@torch.inference_mode()
def bits_onward(model: Transformer, tokenizer: Tokenizer, objective: Kind, held_out: Corpus, length: int) -> float:
    """Bits per byte of up to `ASKED` tokens of text, each from the `length` // 2 before it in its document.

    Errors: InputError where no document is as long as that.
    """
    lengths_V = byte_lengths(tokenizer)
    at = _asked(held_out, length // 2, lengths_V)
    nats, size = 0.0, 0
    with without_dropout(model):
        for start in range(0, len(at), _ROWS):
            cut_B = at[start : start + _ROWS, None]
            context_BC = torch.from_numpy(held_out.take(cut_B + np.arange(-(length // 2), 0)))
            wanted_B = torch.from_numpy(held_out.take(cut_B[:, 0]))
            logits_BV = model.logits(last_hidden(model, tokenizer, objective, context_BC)).float()
            nats += float(F.cross_entropy(logits_BV, wanted_B, reduction="sum"))
            size += int(lengths_V[wanted_B.numpy()].sum())
    return nats / math.log(2) / size


def last_hidden(model: Transformer, tokenizer: Tokenizer, objective: Kind, context_BC: Tensor) -> Tensor:
    """[B, D], off which the token after the context is read."""
    rows, size = context_BC.shape

    def behind(*ids: int) -> Tensor:
        return torch.cat([context_BC, torch.tensor(ids).expand(rows, -1)], 1)

    at = Places.causal(rows, size + 1)
    match objective:
        case Masked():
            (mask,) = special_ids(tokenizer, [MASK], objective.kind)
            hidden_BTD = model.hidden(behind(mask), at.bidirectional())
        case Permutation():
            hidden_BTD = model.queries(behind(0), at)  # the last of the order, itself not seen
        case Spans():
            (blank,) = special_ids(tokenizer, sentinels(1), objective.kind)
            begin = model.architecture.start_id
            assert begin is not None
            memory = model.encode(behind(blank), at)
            said_BT = torch.tensor([begin, blank]).expand(rows, -1)
            hidden_BTD = model.hidden(said_BT, Places.causal(rows, 2), memory=memory)
        case Blanks():
            hidden_BTD = model.hidden(
                behind(*special_ids(tokenizer, [MASK, START], "blanks")), _blank(model, rows, size)
            )
        case Prefix():
            hidden_BTD = model.hidden(context_BC, Places.causal(rows, size).prefix([size] * rows))
        case _:
            hidden_BTD = model.hidden(context_BC, Places.causal(rows, size))
    return hidden_BTD[:, -1]


def _blank(model: Transformer, rows: int, size: int) -> Places:
    """Of a text with a blank behind it, and the start of what fills it."""
    line = torch.arange(size + 2).expand(rows, -1)
    order, position = (line - size).clamp(min=0), line
    if isinstance(part := model.architecture.position, Rope | RopeInterleaved) and part.axes == 2:
        position = torch.stack([line.clamp(max=size), order], -1)
    return Places(position, order, torch.zeros_like(line))


def _asked(corpus: Corpus, context: int, lengths_V: np.ndarray) -> np.ndarray:
    """int64: where in the corpus the tokens stand, all of them text with `context` before them in their document."""
    within = np.arange(corpus.tokens) - np.repeat(corpus.starts[:-1], np.diff(corpus.starts))
    there = np.flatnonzero(within >= context)
    there = there[lengths_V[corpus.take(there)] > 0]
    if not len(there):
        raise InputError("held-out text", f"no document has more than {context} tokens", "hold out longer documents")
    return np.asarray(there[np.linspace(0, len(there) - 1, min(ASKED, len(there))).round().astype(np.int64)])
