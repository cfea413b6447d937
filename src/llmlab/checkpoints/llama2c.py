"""llama2.c's checkpoints (Karpathy 2023, github.com/karpathy/llama2.c, the float32 format of version 0).

model       int32 dim, hidden, layers, heads, kv_heads, vocab (negative: free head), context; then float32, layer
            by layer within each group: embedding, attention norms, wq, wk, wv, wo, feed-forward norms, w1, w2, w3,
            final norm, two rotary tables that are derived, not learnt, and a free head if there is one
tokenizer   int32 longest token; then per token float32 score, int32 length, bytes
"""

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmlab.checkpoints.bundle import Bundle, fill, matching, skeleton
from llmlab.errors import InputError
from llmlab.families.mapping import pair_halves
from llmlab.model.attention import GroupedQuery
from llmlab.model.feedforward import SwiGLU
from llmlab.model.norms import RMSNorm
from llmlab.model.rotary import Rope
from llmlab.model.transformer import Architecture
from llmlab.tokenization.tokenizer import Tokenizer

HEADER = struct.Struct("<7i")
ENTRY = struct.Struct("<fi")
UNKNOWN_ID, BOS_ID, EOS_ID = 0, 1, 2


def read(model_bin: Path, tokenizer_bin: Path) -> Bundle:
    """A llama2.c model and its tokenizer. Rotary rows come out halves-paired, as everywhere else here.

    Errors: InputError for a file whose size is not what its header promises.
    """
    architecture, vocab_size, groups = _layout(model_bin)
    place = str(model_bin)
    tokenizer = matching(_tokenizer(tokenizer_bin, vocab_size), vocab_size, str(tokenizer_bin))
    state: dict[str, Tensor] = {}
    values = np.memmap(model_bin, "<f4", "r", HEADER.size)
    start = 0
    for name, shape in groups:
        size = int(np.prod(shape, dtype=np.int64))
        group = torch.empty(shape).copy_(torch.from_numpy(values[start : start + size].reshape(shape).copy()))
        start += size
        if "*" in name:
            state |= {name.replace("*", str(layer)): part.clone() for layer, part in enumerate(group)}
        elif name:
            state[name] = group
    a = architecture.keyed
    for name in state:
        for part, heads in ((".query.", a.heads), (".key.", a.key_heads)):
            if part in name:
                state[name] = pair_halves(state[name], heads)
    model = fill(skeleton(architecture, vocab_size, state, place), state, place)
    return Bundle(model, tokenizer, architecture, place)


def _layout(path: Path) -> tuple[Architecture, int, list[tuple[str, tuple[int, ...]]]]:
    """The architecture, the vocabulary, and the groups of weights in their order: our name (`*` the layer), shape."""
    place = str(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(HEADER.size)
    except OSError as error:
        raise InputError(place, f"cannot be read: {error.strerror}") from None
    if len(header) < HEADER.size:
        raise InputError(place, f"{size} bytes are no llama2.c checkpoint")
    dim, hidden, layers, heads, kv_heads, signed_vocab, context = HEADER.unpack(header)
    vocab = abs(signed_vocab)
    if min(dim, hidden, layers, heads, kv_heads, vocab - EOS_ID, context) < 1 or dim % heads or heads % kv_heads:
        raise InputError(place, f"no llama2.c checkpoint: its header is {list(HEADER.unpack(header))}")
    keys = dim // heads * kv_heads
    block = "blocks.*."
    groups = [
        ("embedding.weight", (vocab, dim)),
        (block + "attention_norm.weight", (layers, dim)),
        (block + "attention.query.weight", (layers, dim, dim)),
        (block + "attention.key.weight", (layers, keys, dim)),
        (block + "attention.value.weight", (layers, keys, dim)),
        (block + "attention.output.weight", (layers, dim, dim)),
        (block + "feedforward_norm.weight", (layers, dim)),
        (block + "feedforward.gate.weight", (layers, hidden, dim)),
        (block + "feedforward.down.weight", (layers, dim, hidden)),
        (block + "feedforward.up.weight", (layers, hidden, dim)),
        ("final_norm.weight", (dim,)),
        ("", (2, context, dim // heads // 2)),
    ]
    if signed_vocab < 0:
        groups.append(("head.weight", (vocab, dim)))
    promised = HEADER.size + 4 * sum(_product(shape) for _, shape in groups)
    if promised != size:
        raise InputError(place, f"{size} bytes, where its header promises {promised}", "truncated, or not llama2.c")
    architecture = Architecture(
        layers=layers,
        dim=dim,
        context=context,
        position=Rope(base=10_000.0),
        norm=RMSNorm(eps=1e-5),
        attention=GroupedQuery(heads=heads, kv_heads=kv_heads),
        feedforward=SwiGLU(width=hidden),
        tied=signed_vocab > 0,
    )
    return architecture, vocab, groups


def _product(shape: tuple[int, ...]) -> int:
    """Exact, where a numpy product of hostile sizes would wrap."""
    product = 1
    for size in shape:
        product *= size
    return product


def _tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    place = str(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(place, f"cannot be read: {error.strerror}") from None
    tokens: list[str] = []
    scores: list[float] = []
    position = 4
    while position < len(content) and len(tokens) < vocab_size:
        if position + ENTRY.size > len(content):
            raise InputError(place, f"truncated after {len(tokens)} tokens")
        score, length = ENTRY.unpack_from(content, position)
        position += ENTRY.size
        if not 0 <= length <= len(content) - position:
            raise InputError(place, f"truncated or damaged: token {len(tokens)} has {length} bytes")
        try:
            tokens.append(content[position : position + length].decode("utf-8"))
        except UnicodeDecodeError:
            raise InputError(place, f"damaged: token {len(tokens)} is not UTF-8") from None
        scores.append(score)
        position += length
    if len(tokens) != vocab_size:
        raise InputError(place, f"{len(tokens)} tokens for a model of {vocab_size}", "a tokenizer of another model?")
    return Tokenizer.from_sentencepiece(tokens, scores, bos=BOS_ID, eos=EOS_ID, unk=UNKNOWN_ID)
