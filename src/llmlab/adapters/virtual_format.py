"""Virtual tokens as files: one tensor of vectors, as peft's `prompt_embeddings` where peft computes the same.

peft moves a text by the virtual tokens before it, llmlab does not: for rotary angles that is one and the same, and for
nothing else. Keys of a model that pairs neighbours are stored with halves paired, as the family's key projection is.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from llmlab.adapters.beginning import VirtualAdapter, sizes
from llmlab.adapters.prefix import Prefix
from llmlab.adapters.prompt import PTuning
from llmlab.errors import InputError
from llmlab.families.mapping import family_of, pair_halves, pair_neighbours
from llmlab.model.rotary import DynamicNTK, LogN, Rope, RopeInterleaved
from llmlab.model.transformer import Architecture, positions_of

VECTORS, THEIRS = "vectors", "prompt_embeddings"


def in_peft(a: Architecture) -> str | None:
    """Why peft would compute something else, in a few words; None where it does not."""
    positions = positions_of(a)
    wanted = [
        (all(isinstance(one, Rope | RopeInterleaved) for one in positions), "it would move positions that are no rope"),
        (
            not any(isinstance(getattr(one, "scaling", None), DynamicNTK | LogN) for one in positions),
            "its angles follow the length of the text",
        ),
        (a.local is None and getattr(a.attention, "window", None) is None, "a window would forget them"),
        (a.embedding.scale == 1 and not a.embedding.norm and not a.embedding.dim, "its embedding is no plain table"),
    ]
    return next((reason for fine, reason in wanted if not fine), None)


def tensors_of(flat_PN: Tensor, a: Architecture, section: VirtualAdapter, rotary: int) -> dict[str, Tensor]:
    """As peft has them."""
    if isinstance(section, Prefix) and rotary:
        flat_PN = _paired(flat_PN, a, halves=True)
    return {THEIRS: flat_PN}


def vectors_of(
    tensors: Mapping[str, Tensor], a: Architecture, section: VirtualAdapter, in_theirs: bool
) -> dict[str, Tensor]:
    """{parameter of ours: tensor} of a folder. Errors: InputError for other tensors, and for a base whose texts peft
    would move."""
    name = THEIRS if in_theirs else VECTORS
    if tensors.keys() != {name}:
        raise InputError("adapter", f"holds {', '.join(sorted(tensors))}", f"virtual tokens are one tensor, {name}")
    flat = tensors[name]
    if in_theirs:
        if (reason := in_peft(a)) is not None:
            raise InputError("adapter", f"peft's virtual tokens cannot go with this base: {reason}")
        names = {ours: entry for entry in family_of(a).names(a) for ours in entry.ours}
        whole = flat.shape[1:] == (2 * a.layers * sizes(a)[1] * sizes(a)[2],)
        if isinstance(section, Prefix) and whole and names["blocks.0.attention.key.weight"].rotary:
            flat = _paired(flat, a, halves=False)
    return {f"beginning.{VECTORS}": flat}


def described(section: VirtualAdapter, a: Architecture) -> dict[str, Any]:
    """peft's fields."""
    layers, heads, width = sizes(a)
    fields: dict[str, Any] = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "num_transformer_submodules": 1,
        "num_layers": layers,
        "num_virtual_tokens": section.tokens,  # type: ignore[attr-defined]
        "num_attention_heads": a.attention.heads,
        "token_dim": a.dim,
    }
    if isinstance(section, Prefix):
        fields |= {"peft_type": "PREFIX_TUNING", "num_attention_heads": heads, "token_dim": heads * width}
        fields |= {"prefix_projection": False, "encoder_hidden_size": heads * width}
    elif isinstance(section, PTuning):
        fields |= {"peft_type": "P_TUNING", "encoder_reparameterization_type": "MLP"}
        fields |= {"encoder_hidden_size": section.hidden}
    else:
        fields |= {"prompt_tuning_init": "RANDOM"}
    return fields


def _paired(flat_PN: Tensor, a: Architecture, halves: bool) -> Tensor:
    """The keys among the numbers of a prefix, from one rotary layout to the other."""
    layers, heads, width = sizes(a)
    parts = flat_PN.reshape(-1, layers, 2, heads * width).clone()
    rows = parts[:, :, 0].reshape(-1, heads * width).T.contiguous()
    rows = pair_halves(rows, heads) if halves else pair_neighbours(rows, heads)
    parts[:, :, 0] = rows.T.reshape(parts[:, :, 0].shape)
    return parts.reshape(flat_PN.shape)
