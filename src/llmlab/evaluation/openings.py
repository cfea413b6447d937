"""Beginnings of texts that people wrote, with how these went on: what a model's own continuation is held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmlab.data.batch import Ids
from llmlab.data.sources import Bundled, Files, Reading, texts_of
from llmlab.errors import InputError
from llmlab.tokenization.tokenizer import Tokenizer


class Opening(NamedTuple):
    """The ids that a model starts from, and the human ids after them."""

    prompt: list[int]
    human: list[int]


def fitting(context: int, prompt_tokens: int, new_tokens: int) -> tuple[int, int]:
    """Lengths of prompt and continuation that a context holds: a prompt of a quarter of it at most."""
    prompt_tokens = max(1, min(prompt_tokens, context // 4))
    return prompt_tokens, min(new_tokens, context - prompt_tokens)


def openings(documents: Sequence[Ids], prompt_tokens: int, new_tokens: int, most: int) -> list[Opening]:
    """Up to `most` of them, in pieces of documents that do not overlap, spread evenly over the text."""
    size = prompt_tokens + new_tokens
    places = [(row, at) for row, ids in enumerate(documents) for at in range(0, len(ids) - size + 1, size)]
    chosen = places if len(places) <= most else [places[n * len(places) // most] for n in range(most)]
    pieces = [[int(id) for id in documents[row][at : at + size]] for row, at in chosen]
    return [Opening(piece[:prompt_tokens], piece[prompt_tokens:]) for piece in pieces]


def human_openings(
    tokenizer: Tokenizer,
    held_out: Sequence[Ids] | None,
    path: str | None,
    prompt_tokens: int,
    new_tokens: int,
    most: int,
) -> list[Opening]:
    """Of the user's own text, else of what a run held out, else, where there is none of these lengths, of Moby-Dick.

    Errors: InputError where the user's text has no document that long.
    """
    if path is not None:
        found = openings(tokenizer.encode_batch(texts_of(Files(path=path))), prompt_tokens, new_tokens, most)
        if not found:
            size = prompt_tokens + new_tokens
            raise InputError(path, f"has no document of {size} tokens", "ask for fewer new tokens, or give longer text")
        return found
    documents = [[id for id in ids if id not in tokenizer.special_ids] for ids in map(list, held_out or ())]
    found = openings(documents, prompt_tokens, new_tokens, most)
    return (
        found if len(found) > 1 else openings(bundled_documents(tokenizer, 4 * most), prompt_tokens, new_tokens, most)
    )


def bundled_documents(tokenizer: Tokenizer, most: int) -> list[list[int]]:
    """Pieces of Moby-Dick of some thousand letters, spread evenly over it."""
    texts = [document.text for document in Bundled().read(Reading())]
    return tokenizer.encode_batch(texts[:: max(1, len(texts) // most)][:most])
