"""The `tokenizer` stage: a tokenizer trained on the training documents, or a base's own, and both splits as token
shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmlab.data.card import card
from llmlab.data.shards import write_shards
from llmlab.data.text import read_texts
from llmlab.errors import Stopped
from llmlab.runtime import atomic_text
from llmlab.stages import Figures, Session
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import TokenizerRecipe, train_tokenizer


def tokenize(section: TokenizerRecipe, text: Path, out: Path, session: Session, special: Sequence[str] = ()) -> Figures:
    """Train on `text/train.jsonl`, encode both splits below `out`. The held-out text is never trained on.

    `special` tokens that the tokenizer lacks get the ids after its last, so text is cut alike with and without them.
    Raises `Stopped` between two documents when the session asks to stop; nothing of it is kept.
    """
    trained = train_tokenizer(section, _until_stopped(read_texts(text / "train.jsonl"), session))
    (trained.extended(special) if special else trained).save(out)
    return _encoded(text, out, session)


def encode(tokenizer: Tokenizer, text: Path, out: Path, session: Session) -> Figures:
    """The same with a tokenizer that there is already."""
    tokenizer.save(out)
    return _encoded(text, out, session)


def _encoded(text: Path, out: Path, session: Session) -> Figures:
    """Both splits by the tokenizer that lies in `out`."""
    tokenizer = Tokenizer.load(out)  # what later stages will read, special tokens and all
    figures: Figures = {"vocab_size": tokenizer.vocab_size}
    for split in ("train", "held_out"):
        texts = _until_stopped(read_texts(text / f"{split}.jsonl"), session)
        shards = write_shards(texts, tokenizer, out / split)
        figures[f"{split}_tokens"] = shards.tokens
        figures[f"{split}_bytes_per_token"] = shards.text_bytes / shards.tokens
    if (funnel := text / "funnel.json").is_file():
        atomic_text(out / "card.md", card(json.loads(funnel.read_text(encoding="utf-8")), figures))
    return figures


def _until_stopped(texts: Iterator[str], session: Session) -> Iterator[str]:
    for text in texts:
        if session.stop.requested:
            raise Stopped("tokenizer: stopped; --resume begins it again")
        yield text
