"""The frozen base in few bits: QLoRA (Dettmers et al. 2023, arXiv 2305.14314).

    fp32     as ever
    stored   the codes and scales of the file, as they are: nothing is quantised, nothing is lost
    int8     quantised here, a scale each row
    int4     quantised here, a scale and a least value a group of 32; embedding and head int8

The matrix of a layer is made of the codes in the forward pass, again in the backward pass, and is never kept: see
`model.quantized`. The paper's NF4 and its quantised scales are left out: what is shipped is Q4_0 and Q4_1, and a
group's two halves are 1 bit a weight. A saved adapter names its base and how it was held; opened, the base is made
dense as it was computed with, so that merging in float32 is exact.
"""

from collections.abc import Iterator
from dataclasses import replace as changed
from typing import Literal

import torch
from torch import Tensor, nn

from llmlab.adapters.adapted import replace
from llmlab.checkpoints.bundle import Bundle, Stored, skeleton
from llmlab.errors import InputError
from llmlab.model.groups import Groups, Weight, dense
from llmlab.model.linear import Linear
from llmlab.model.quantized import Int4Linear, Int8Embedding, Int8Linear, QuantizedLinear, quantize_rows
from llmlab.model.stored import StoredEmbedding, StoredLinear
from llmlab.model.transformer import Transformer

BaseWeights = Literal["fp32", "stored", "int8", "int4"]
MEANING = "what the frozen base is held in: fp32; stored (a GGUF's own 4 or 8 bits); int8 or int4, quantised here"
GROUP = 32


def check_base(weights: BaseWeights, apart: bool) -> None:
    """ValueError where the base that is to be held in few bits is to learn."""
    if weights != "fp32" and not apart:
        raise ValueError(f"base_weights {weights}: codes cannot learn (choose an adapter that lies beside the base)")


def hold(bundle: Bundle, weights: BaseWeights) -> Bundle:
    """The same model with its frozen matrices held so; the given bundle stays as it is, and is not made dense.

    Errors: InputError for `stored` of a base that has no quantised matrices, and for a width that has no whole groups.
    """
    if weights == "fp32":
        return bundle
    source = bundle.made if isinstance(bundle.made, Stored) else Stored.of(bundle.model)
    made = _made(source, weights)
    if weights == "stored" and not any(isinstance(module, StoredLinear) for module in made.modules()):
        hint = "a GGUF in q4_0, q4_1 or q8_0 has; int8 and int4 quantise any base"
        raise InputError("base_weights", f"{bundle.origin} holds no quantised matrix", hint)
    return changed(bundle, made=made)


def rounded(bundle: Bundle, weights: BaseWeights) -> Bundle:
    """The base as an adapter was trained on it, dense: of int8 and int4 the numbers that their codes stand for."""
    if weights in ("fp32", "stored"):  # a stored base is opened to the very numbers of its codes
        return bundle
    return changed(bundle, made=undone(hold(bundle, weights).model))


def undone(model: Transformer) -> Transformer:
    """The model in place, its quantised matrices made dense; a head that was the embedding's is so again."""
    for path, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear) and path != "head" and not path.startswith("embedding."):
            replace(model, path, _linear(module.weight, module.bias))
    if isinstance(model.embedding, Int8Embedding | StoredEmbedding):
        table = model.embedding.weight
        model.embedding = nn.Embedding(table.shape[0], table.shape[1], _weight=table)
        if model.architecture.tied:
            model.head = None
    if isinstance(model.head, QuantizedLinear):
        model.head = _linear(model.head.weight, model.head.bias)
    return model.requires_grad_()


def held_bytes(model: nn.Module) -> int:
    """Bytes of everything that does not learn, codes and scales too; what two modules share counts once."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    tensors = {tensor.data_ptr(): tensor for tensor in (*frozen, *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


# ---------------------------------------------------------------- making


def _made(source: Stored, weights: BaseWeights) -> Transformer:
    """A frozen model of the source's weights, read one at a time."""
    model = skeleton(source.skeleton.architecture, source.skeleton.vocab_size, source.skeleton.state_dict(), "base")
    # A base that keeps adapters, or is quantised already, is no plain model.
    if model.state_dict().keys() != source.skeleton.state_dict().keys():
        problem = "the base keeps an adapter or is quantised already"
        raise InputError("base_weights", f"{weights} needs plain weights: {problem}", "use fp32")
    kind = _stored if weights == "stored" else _int8 if weights == "int8" else _int4
    for path, linear in list(_linears(model)):
        bias = None if linear.bias is None else _own(source.read(f"{path}.bias"))
        held = (_int8 if path == "head" and weights == "int4" else kind)(source.read(f"{path}.weight"), bias, path)
        if held is not None:
            replace(model, path, held)
    table = source.read("embedding.weight")
    if weights != "stored":
        codes, scale = quantize_rows(dense(table).float(), "embedding")
        model.embedding = Int8Embedding(codes, scale)  # type: ignore[assignment]
        tied: nn.Module = Int8Linear(codes, scale)
    elif isinstance(table, Groups):
        tied = StoredLinear.of(table)
        model.embedding = StoredEmbedding(tied)  # type: ignore[assignment]
    if not isinstance(model.embedding, nn.Embedding) and model.head is None:
        model.head = tied
    rest = {name: _own(source.read(name)) for name, tensor in model.state_dict().items() if tensor.is_meta}
    model.load_state_dict(rest, strict=False, assign=True)
    return model.requires_grad_(False).eval()


def _linears(model: Transformer) -> Iterator[tuple[str, Linear]]:
    """The linears of the blocks, and a head of its own."""
    for path, module in model.named_modules():
        if isinstance(module, Linear) and (path == "head" or path.startswith("blocks.")):
            yield path, module


def _stored(weight: Weight, bias: Tensor | None, name: str) -> QuantizedLinear | None:
    return StoredLinear.of(weight, bias) if isinstance(weight, Groups) else None


def _int8(weight: Weight, bias: Tensor | None, name: str) -> QuantizedLinear | None:
    return Int8Linear.of(dense(weight).float(), bias, name)


def _int4(weight: Weight, bias: Tensor | None, name: str) -> QuantizedLinear | None:
    return Int4Linear.of(dense(weight).float(), GROUP, bias, name)


def _own(weight: Weight) -> Tensor:
    return torch.empty(weight.shape).copy_(weight) if isinstance(weight, Tensor) else dense(weight)


def _linear(weight: Tensor, bias: Tensor | None) -> Linear:
    with torch.device("meta"):
        linear = Linear(weight.shape[1], weight.shape[0], bias is not None)
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear
