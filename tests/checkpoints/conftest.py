"""Small models and a small tokenizer, shared by the formats."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmlab.checkpoints.bundle import Bundle
from llmlab.model.attention import GroupedQuery, MultiHead
from llmlab.model.feedforward import GELUTanh, SwiGLU
from llmlab.model.norms import LayerNorm, RMSNorm
from llmlab.model.positions import Learned, Rope
from llmlab.model.transformer import Architecture
from llmlab.tokenization.pieces import byte_letters
from llmlab.tokenization.tokenizer import Tokenizer

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_letters(), "th", "the"]
VOCAB = 264

SHAPES = {
    "llama": {"position": Rope(base=5_000.0), "norm": RMSNorm(eps=1e-6), "feedforward": SwiGLU(width=40)},
    "qwen2": {"position": Rope(base=5_000.0), "norm": RMSNorm(eps=1e-6), "feedforward": SwiGLU(width=40)},
    "gpt2": {"position": Learned(), "norm": LayerNorm(), "feedforward": GELUTanh(width=48, bias=True)},
}
ATTENTION = {
    "llama": GroupedQuery(heads=4, kv_heads=2),
    "llama-mha": MultiHead(heads=4),
    "llama-wide": GroupedQuery(heads=4, kv_heads=2, head_dim=16),
    "llama-bias": GroupedQuery(heads=4, kv_heads=1, bias=True),
    "qwen2": GroupedQuery(heads=4, kv_heads=2, bias=True, output_bias=False),
    "gpt2": MultiHead(heads=4, bias=True),
}
FAMILY_KINDS = [f"{name}-{head}" for name in ATTENTION for head in ("tied", "free")]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level, 261 tokens, a chat template in which a turn ends otherwise than a text."""
    return Tokenizer.from_bpe(
        TOKENS, ["t h", "th e"], pre="gpt-2", types=[3, 3, 3, *[1] * 258], bos=0, eos=0, chat_template=TEMPLATE
    )


@pytest.fixture(params=FAMILY_KINDS)
def family_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(tokenizer: Tokenizer) -> Callable[..., Bundle]:
    """A small model of a kind such as `llama-wide-free`, its weights large enough to tell wrong layouts apart."""

    def build(kind: str = "llama-tied", seed: int = 0) -> Bundle:
        name, _, head = kind.rpartition("-")
        architecture = Architecture(
            layers=2,
            dim=32,
            context=64,
            attention=ATTENTION[name],
            tied=head == "tied",
            initial_std=0.2,
            dropout=0.0,
            **SHAPES[name.partition("-")[0]],
        )
        model = architecture.build(VOCAB, seed)
        for parameter in model.parameters():  # gains and biases too
            if parameter.ndim == 1:
                parameter.data += 0.1 * parameter.data.new_tensor(range(len(parameter))).sin()
        return Bundle(model.eval(), tokenizer, architecture, "made here")

    return build
