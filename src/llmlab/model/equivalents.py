"""Other architectures that compute the same: each function answers a new model, the given one stays as it is.

What a conversion cannot express is refused by name. All of them are exact up to rounding, `grouped` where it says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.model.attention import GroupedQuery, MultiHead
from llmlab.model.heads import PlainHead
from llmlab.model.norms import LayerNorm, RMSNorm
from llmlab.model.transformer import Architecture, Transformer

State = dict[str, Tensor]


def fold_gains(model: Transformer) -> Transformer:
    """Every gain 1 and every norm's bias 0: both move into the linears that read the norm's output.

    So a missing gain costs a pre-norm model nothing, except at the final norm of a tied head; the answer is untied.
    """
    a, state = _pre(model), _untied(model)
    a = _with_biases(a) if isinstance(a.norm, LayerNorm) and a.norm.bias else a
    state = _filled(a, model.vocab_size, state)
    for norm, readers in _readers(a):
        gain = state[f"{norm}.weight"] + getattr(a.norm, "offset", 0.0)
        bias = state.get(f"{norm}.bias")
        for reader, bias_of in readers:
            if bias is not None:
                state[bias_of] = state[bias_of] + state[reader] @ bias
            state[reader] = state[reader] * gain
        state[f"{norm}.weight"] = torch.ones_like(gain) - getattr(a.norm, "offset", 0.0)
        if bias is not None:
            state[f"{norm}.bias"] = torch.zeros_like(bias)
    return _made(a, model.vocab_size, state)


def to_rmsnorm(model: Transformer) -> Transformer:
    """A pre-LayerNorm model as a pre-RMSNorm one (Jiang et al. 2023, arXiv 2305.14858): once all that is written into
    the residual stream has mean 0, the mean that LayerNorm subtracts is 0 and RMSNorm is the same function."""
    a = _pre(model)
    if not isinstance(a.norm, LayerNorm):
        raise InputError("model.norm", f"{a.norm.kind} is no layernorm")
    if a.position.kind == "sinusoidal":
        raise InputError("model.position", "sinusoidal adds what is not centred", "learned positions can be centred")
    eps = a.norm.eps
    folded = fold_gains(model)
    a, state = folded.architecture, dict(folded.state_dict())
    state["embedding.weight"] = _centred(state["embedding.weight"], 1)
    if a.position.kind == "learned":
        state["position.weight"] = _centred(state["position.weight"], 1)
    for name in state:
        if name.endswith(("attention.output.weight", "feedforward.down.weight")):
            state[name] = _centred(state[name], 0)
        if name.endswith(("attention.output.bias", "feedforward.down.bias")):
            state[name] = _centred(state[name], 0)
    state = {name: tensor for name, tensor in state.items() if not name.endswith("norm.bias")}
    return _made(a.model_copy(update={"norm": RMSNorm(eps=eps)}), model.vocab_size, state)


def to_multihead(model: Transformer) -> Transformer:
    """Grouped or multi-query attention with its key/value heads written out, one a query head."""
    a = model.architecture
    part, state = a.keyed, dict(model.state_dict())
    times, width = part.heads // part.key_heads, part.width(a.dim)
    for name, tensor in state.items():
        if _of_keys(name):
            by_head = tensor.view(part.key_heads, width, *tensor.shape[1:])
            state[name] = by_head.repeat_interleave(times, 0).flatten(0, 1)
    return _made(a.model_copy(update={"attention": MultiHead(**_shared(part))}), model.vocab_size, state)


def grouped(model: Transformer, kv_heads: int) -> Transformer:
    """Multi-head attention with the key/value heads of each group averaged (Ainslie et al. 2023, arXiv 2305.13245):
    exact where the heads of a group are equal, a start for further training where they are not."""
    a = model.architecture
    part, state = a.keyed, dict(model.state_dict())
    if part.key_heads % kv_heads:
        raise InputError("kv_heads", f"{kv_heads} does not divide {part.key_heads} key/value heads")
    for name, tensor in state.items():
        if _of_keys(name):
            by_group = tensor.view(kv_heads, part.key_heads // kv_heads, part.width(a.dim), *tensor.shape[1:])
            state[name] = by_group.mean(1).flatten(0, 1)
    attention = GroupedQuery(kv_heads=kv_heads, **_shared(part))
    return _made(a.model_copy(update={"attention": attention}), model.vocab_size, state)


# ---------------------------------------------------------------- help


def _pre(model: Transformer) -> Architecture:
    a = model.architecture
    plain = isinstance(a.head, PlainHead) and not a.encoder_layers and not a.shared and not a.embedding.norm
    if a.wiring.kind not in ("pre", "parallel") or not plain or a.embedding.dim or a.embedding.scale != 1:
        what = f"wiring {a.wiring.kind}" if a.wiring.kind not in ("pre", "parallel") else "these surroundings"
        raise InputError("model", f"{what} cannot be converted exactly", "plain pre-norm decoders can")
    _ = a.keyed
    return a.model_copy(update={"tied": False})


def _untied(model: Transformer) -> State:
    state = dict(model.state_dict())
    if model.head is None:
        state["head.weight"] = state["embedding.weight"]
    return state


def _with_biases(a: Architecture) -> Architecture:
    attention: Any = a.attention
    return a.model_copy(
        update={
            "attention": attention.model_copy(update={"bias": True, "output_bias": attention.biased_output}),
            "feedforward": a.feedforward.model_copy(update={"bias": True}),
            "head": PlainHead(bias=True, scale=a.head.scale if isinstance(a.head, PlainHead) else 1.0),
        }
    )


def _readers(a: Architecture) -> Iterator[tuple[str, Sequence[tuple[str, str]]]]:
    """Each norm with the (weight, bias) names of the linears that read its output."""
    into = ["up", "gate"] if "gate" in dict(a.feedforward.build(4).named_children()) else ["up"]
    for layer in range(a.layers):
        block = f"blocks.{layer}"
        readers = [f"{block}.attention.{name}" for name in ("query", "key", "value")]
        yield f"{block}.attention_norm", [(f"{name}.weight", f"{name}.bias") for name in readers]
        yield (
            f"{block}.feedforward_norm",
            [(f"{block}.feedforward.{name}.weight", f"{block}.feedforward.{name}.bias") for name in into],
        )
    yield "final_norm", [("head.weight", "head_bias")]


def _filled(a: Architecture, vocab_size: int, state: State) -> State:
    """Zeros for the biases that the new architecture has and the old one had not."""
    with torch.device("meta"):
        wanted = Transformer(a, vocab_size).state_dict()
    return {name: state.get(name, torch.zeros(tensor.shape)) for name, tensor in wanted.items()}


def _made(a: Architecture, vocab_size: int, state: State) -> Transformer:
    with torch.device("meta"):
        model = Transformer(Architecture.model_validate(a.model_dump()), vocab_size)
    copies = {name: nn.Parameter(tensor.detach().clone()) for name, tensor in state.items()}
    model.load_state_dict(copies, assign=True)
    return model.eval()


def _shared(part: Any) -> dict[str, Any]:
    return {name: getattr(part, name) for name in MultiHead.model_fields if name != "kind"}


def _of_keys(name: str) -> bool:
    return any(f"attention.{part}." in name for part in ("key", "value"))


def _centred(tensor: Tensor, axis: int) -> Tensor:
    """In float64, so that a mean of 0 is one."""
    wide = tensor.double()
    return (wide - wide.mean(axis, keepdim=True)).to(tensor.dtype)
