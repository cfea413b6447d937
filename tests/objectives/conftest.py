"""A tokenizer with every special token that an objective asks for."""

from __future__ import annotations

import pytest

from llmlab.tokenization.special import CLASS, END, MASK, SEPARATOR, START, sentinels
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    trained = train_tokenizer(BPE(vocab_size=270), iter(["the cat sat. on the mat! the dog ran."]))
    return trained.extended([MASK, CLASS, SEPARATOR, START, END, *sentinels(8)])
