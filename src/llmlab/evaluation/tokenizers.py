"""Which tokenizer: how many bytes of text its tokens hold, on text that none of them was trained on.

Bytes a token say how long a text becomes; they do not say which model is better. That is a race at equal FLOPs, in bits
per byte, which no tokenizer changes the meaning of: `llmlab compare race-tokenizers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.data.dedup import key
from llmlab.data.sources import Bundled, Files, Reading, read
from llmlab.data.split import held_out
from llmlab.errors import InputError, unknown
from llmlab.tokenization.train import BPE, Unigram, WordPiece, train_tokenizer

KINDS: dict[str, type[BPE | Unigram | WordPiece]] = {"bpe": BPE, "unigram": Unigram, "wordpiece": WordPiece}
HELD = 0.1  # share of each text that is measured


def compare_tokenizers(
    texts: Mapping[str, Sequence[str]], kinds: Sequence[str], sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """Train each kind at each size on 90 % of all texts, measure it on the rest of each.

    `texts` are documents by the name under which they are measured (a language, say). Each answer: kind, vocab_size (as
    asked), ids (that it got), lossless (a kind that loses text may look better than it is), and bytes_per_token by
    name. Errors: InputError for an unknown kind, a size that is too small, a text of one document.
    """
    train, held = list[str](), dict[str, list[str]]()
    for name, documents in texts.items():
        sides = _split(name, documents)
        train += sides[0]
        held[name] = sides[1]
    rows = []
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("tokenizer", kind, list(KINDS))
        for size in sizes:
            tokenizer = train_tokenizer(KINDS[kind](vocab_size=size), iter(train))
            tokens = {name: sum(map(len, tokenizer.encode_batch(sample))) for name, sample in held.items()}
            size_of = {name: sum(len(text.encode()) for text in sample) for name, sample in held.items()}
            rows.append(
                {
                    "kind": kind,
                    "vocab_size": size,
                    "ids": tokenizer.vocab_size,
                    "lossless": KINDS[kind].lossless,
                    "bytes_per_token": {name: size_of[name] / max(1, tokens[name]) for name in held},
                }
            )
    return rows


def read_texts(paths: Sequence[str]) -> dict[str, list[str]]:
    """Documents by file; without paths the bundled books, English and Chinese."""
    sources: dict[str, Bundled | Files] = {"en": Bundled(), "zh": Bundled(name="sanguo_yanyi")}
    if paths:
        sources = {path: Files(path=path) for path in paths}
    return {name: [document.text for document in read((source,), Reading())] for name, source in sources.items()}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a tokenizer."""
    names = list(rows[0]["bytes_per_token"]) if rows else []
    head = f"{'tokenizer':<12}{'asked':>8}{'ids':>8}  " + "".join(f"{name[-20:]:>22}" for name in names)
    lines = [
        f"{row['kind']:<12}{row['vocab_size']:>8}{row['ids']:>8}  "
        + "".join(f"{row['bytes_per_token'][name]:>22.3f}" for name in names)
        + ("" if row["lossless"] else "  loses text: no bits per byte")
        for row in rows
    ]
    return "\n".join(["bytes of held-out text per token", head, *lines])


def _split(name: str, documents: Sequence[str]) -> tuple[list[str], list[str]]:
    if len(documents) < 2:
        raise InputError(name, "is one document: nothing could be held out", "smaller pieces, or more text")
    out = held_out([key(text) for text in documents], [len(text.encode()) for text in documents], HELD)
    pairs = list(zip(documents, out.tolist(), strict=True))
    return [text for text, held in pairs if not held], [text for text, held in pairs if held]
