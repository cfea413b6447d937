"""Training a tokenizer of one's own: byte-level BPE that llama.cpp, Hugging Face and we cut alike."""

from collections.abc import Iterator
from itertools import chain
from typing import Literal

from pydantic import Field
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from llmlab.errors import InputError
from llmlab.recipe import Section
from llmlab.tokenization.pieces import pre_tokenizer
from llmlab.tokenization.tokenizer import Tokenizer

END, START_TURN, END_TURN, PAD = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")

# ChatML, without a system message of its own: what is not said is not there.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class TokenizerRecipe(Section):
    """A byte-level BPE (Sennrich et al. 2016; on bytes: Radford et al. 2019) trained on the corpus."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: int = Field(4096, ge=1, description="Ids in all: 4 special tokens, 256 bytes, the rest merges.")
    min_frequency: int = Field(2, ge=1, description="How often a pair must stand in the corpus to be merged.")
    pre: Literal["gpt-2", "smollm"] = Field(
        "smollm", description="How text is cut before merging, by llama.cpp's name; smollm keeps every digit apart."
    )


def train_tokenizer(section: TokenizerRecipe, texts: Iterator[str]) -> Tokenizer:
    """A tokenizer from `texts`; the same texts in the same order give the same one.

    Ids 0 to 3 are `<|endoftext|>` (eos, and what separates documents), `<|im_start|>`, `<|im_end|>`, `<|pad|>`; then
    come the 256 bytes, then the merges. A text too small for `vocab_size` gives fewer merges: `vocab_size` of the
    result says how many there are. Errors: no text, or a vocabulary smaller than bytes and special tokens.
    """
    smallest = 256 + len(SPECIAL)
    if section.vocab_size < smallest:
        problem = f"{section.vocab_size} ids cannot hold 256 bytes and {len(SPECIAL)} special tokens"
        raise InputError("tokenizer.vocab_size", problem, f"at least {smallest}")
    filled = (text for text in texts if text)
    first = next(filled, None)
    if first is None:
        raise InputError("tokenizer", "there is no text to learn from", "the corpus is empty after cleaning")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizer(section.pre)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=section.vocab_size,
        min_frequency=section.min_frequency,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    try:
        backend.train_from_iterator(chain([first], filled), trainer)
    except (TypeError, UnicodeEncodeError):
        raise InputError("tokenizer", "the corpus holds half of a surrogate pair, which is no Unicode text") from None
    return Tokenizer(backend, eos=END, pad=PAD, chat_template=CHAT_TEMPLATE)


def tokenizer_figures(section: TokenizerRecipe, tokenizer: Tokenizer, sample: str) -> dict[str, int | float]:
    """What was asked for and got, and how many bytes of `sample` a token holds."""
    return {
        "vocab_size_asked": section.vocab_size,
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": len(sample.encode()) / max(len(tokenizer.encode(sample)), 1),
    }
