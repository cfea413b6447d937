"""A small tokenizer and its renderer, shared by the tests of chats, pairs and prompts."""

from __future__ import annotations

import pytest

from llmlab.tokenization.chat import Renderer
from llmlab.tokenization.train import BPE, train_tokenizer


@pytest.fixture(scope="session")
def renderer() -> Renderer:
    words = "Repeat these words: sea ship whale. Happy to help! user assistant How many words are here? 很高兴帮到你！"
    return Renderer(train_tokenizer(BPE(vocab_size=400, min_frequency=1), iter([words] * 3)))
