"""What a layer's mixing of tokens costs as the text grows: operations, as counted, and bytes kept for the next token.

T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmlab.inference.cache import DenseCache
from llmlab.inference.rolling_cache import RollingCache
from llmlab.model.attention import LinearAttention, MultiHead
from llmlab.model.places import Places
from llmlab.model.recurrent import GRU
from llmlab.model.transformer import Architecture

LENGTHS = (256, 512, 1024, 2048)
DIM, HEADS, WINDOW, SINKS = 16, 2, 64, 4
KINDS: dict[str, Any] = {
    "full": MultiHead(heads=HEADS),
    "window": MultiHead(heads=HEADS, window=WINDOW, sinks=SINKS),
    "linear": LinearAttention(heads=HEADS),
    "recurrent": GRU(),
}


def mixed(kind: str, tokens: int) -> tuple[float, float]:
    """Operations of the mixer over so many tokens, its projections included, and the bytes of what it keeps. A window
    is read in blocks of its own width, everything else at once."""
    a = Architecture(layers=1, dim=DIM, context=tokens, position="none", attention=KINDS[kind])
    model = a.build(8).double()  # for the CPU's fused kernels, which the counter does not know, have no double form
    block = WINDOW if kind == "window" else tokens
    cache = RollingCache(WINDOW, SINKS, WINDOW) if kind == "window" else DenseCache(tokens)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for start in range(0, tokens, block):
            model.hidden(torch.zeros(1, block, dtype=torch.int64), Places.causal(1, block, start=start), cache)
    operations = sum(counter.get_flop_counts()["Block.attention"].values())
    return float(operations), float(kept(cache))


def kept(cache: DenseCache) -> int:
    """Bytes of keys and values, or of states."""
    keyed = [*cache._keys.values(), *cache._values.values()]
    return sum(tensor.nbytes for tensor in keyed + [part for state in cache._states.values() for part in state])
