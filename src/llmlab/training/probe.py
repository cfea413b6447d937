"""What pretraining looks at while it runs: bits per byte of text that nothing was trained on."""

import math

from torch import nn

from llmlab.data.pack import EvalBatches
from llmlab.objectives.language import NextToken


def bits_per_byte(model: nn.Module, batches: EvalBatches) -> float:
    """Bits that `model` needs for a byte of the corpus behind `batches`, in float32; compares across tokenizers.

    Call it without gradient and in evaluation mode, as `train` calls its probes.
    """
    objective = NextToken()
    nats = sum(float(objective(model, batch).sums["cross_entropy"]) for batch in batches)
    return nats / math.log(2) / batches.text_bytes
