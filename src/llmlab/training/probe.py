"""What pretraining looks at while it runs: how well its objective is met on text that nothing was trained on."""

import math

from torch import nn

from llmlab.data.pack import EvalBatches
from llmlab.data.shards import Corpus
from llmlab.objectives.kind import Kind, Seen, Setting, byte_lengths, look
from llmlab.objectives.language import NextToken
from llmlab.training.loop import Probe


def held_out(objective: Kind, corpus: Corpus, setting: Setting, rows: int) -> Probe:
    """The objective's figures of this corpus, each with `held_out_` before its name; `rows` go through at once.
    InputError for figures by bytes where the tokenizer does not keep them."""
    if objective.in_bytes:
        setting.tokenizer.require_lossless("figures by bytes")
    batches, lengths_V = objective.held(corpus, setting, rows), byte_lengths(setting.tokenizer)
    predictor = objective.standard.predictor()

    def probe(model: nn.Module) -> dict[str, float]:
        seen = Seen.sum(look(predictor, model, batch, lengths_V) for batch in batches)
        if objective.whole_text:  # a token's bytes may hold a space that only its spelling has
            seen = seen._replace(bytes=corpus.text_bytes)
        return {f"held_out_{name}": value for name, value in objective.figures(seen).items()}

    return probe


def bits_per_byte(model: nn.Module, batches: EvalBatches) -> float:
    """Bits that `model` needs for a byte of the corpus behind `batches`, in float32; compares across tokenizers.

    Call it without gradient and in evaluation mode, as `train` calls its probes.
    """
    predictor = NextToken()
    nats = sum(float(predictor(model, batch).sums["cross_entropy"]) for batch in batches)
    return nats / math.log(2) / batches.text_bytes
