"""What an adapter and its frozen base cost, told before any weight is made: for the planner, and for tables of roles.

Models and adapters are built without memory, by the very code that builds them with it.
"""

import torch
from torch import nn

from llmlab.adapters.base import GROUP, BaseWeights
from llmlab.adapters.part import AdapterPart, add_adapter
from llmlab.checkpoints.bundle import Stored
from llmlab.model.groups import Groups
from llmlab.model.linear import Linear
from llmlab.model.transformer import Architecture, Transformer


def trained_parameters(section: AdapterPart | None, architecture: Architecture, vocab_size: int) -> int:
    """How many numbers learn; of None, all of the model's. Errors: InputError where the two cannot go together."""
    model = _empty(architecture, vocab_size)
    if section is not None:
        add_adapter(model, "counted", section, seed=0)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def trained_bytes(section: AdapterPart | None, architecture: Architecture, vocab_size: int) -> int:
    """Their bytes, in float32; gradients take as many again, and so does each moment of the optimizer."""
    return 4 * trained_parameters(section, architecture, vocab_size)


def base_bytes(
    architecture: Architecture, vocab_size: int, weights: BaseWeights = "fp32", source: Stored | None = None
) -> int:
    """Bytes of a base without its adapters, held in `weights`. Of `stored` the file decides: `source` is what was
    opened, of which no weight is made dense."""
    model = _empty(architecture, vocab_size)
    sizes = {name: 4 * parameter.numel() for name, parameter in model.named_parameters()}
    if weights == "fp32":
        return sum(sizes.values())
    linears = {
        f"{path}.weight": module
        for path, module in model.named_modules()
        if isinstance(module, Linear | nn.Embedding) and path.startswith(("blocks.", "head", "embedding"))
    }
    for name, module in linears.items():
        rows, columns = module.weight.shape
        if weights == "stored":
            stored = None if source is None else source.read(name)
            if isinstance(stored, Groups):
                sizes[name] = stored.codes.nbytes + stored.step.nbytes + stored.least.nbytes
        elif weights == "int8" or not name.startswith("blocks."):
            sizes[name] = rows * columns + 4 * rows
        else:
            sizes[name] = rows * columns // 2 + 4 * rows * (columns // GROUP)
    return sum(sizes.values())


def _empty(architecture: Architecture, vocab_size: int) -> Transformer:
    with torch.device("meta"):
        return Transformer(architecture, vocab_size)
