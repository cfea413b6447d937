"""What an adapter costs, told before any weight is made: for the planner, and for the tables of what roles cost.

The model and the adapter are built without memory, by the very code that builds them with it.
"""

import torch

from llmlab.adapters.part import AdapterPart, add_adapter
from llmlab.model.transformer import Architecture, Transformer


def trained_parameters(section: AdapterPart | None, architecture: Architecture, vocab_size: int) -> int:
    """How many numbers learn; of None, all of the model's. Errors: InputError where the two cannot go together."""
    with torch.device("meta"):
        model = Transformer(architecture, vocab_size)
    if section is not None:
        add_adapter(model, "counted", section, seed=0)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def trained_bytes(section: AdapterPart | None, architecture: Architecture, vocab_size: int) -> int:
    """Their bytes, in float32; gradients take as many again, and so does each moment of the optimizer."""
    return 4 * trained_parameters(section, architecture, vocab_size)
