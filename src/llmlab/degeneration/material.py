"""What a diagnosis has at hand: texts of people, the text that the model was trained on, or a part of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from llmlab.checkpoints.bundle import Bundle
from llmlab.data.batch import Ids
from llmlab.data.shards import TokenShards
from llmlab.data.sources import Files, Reading, read
from llmlab.errors import InputError
from llmlab.evaluation.harness import around, held_out_beside
from llmlab.evaluation.openings import Opening, human_openings
from llmlab.tokenization.tokenizer import Tokenizer

_TOGETHER = 256  # documents encoded at a time


@dataclass(frozen=True)
class Material:
    """`openings` are texts that the model was not trained on, as far as is known. `training` are documents in ids, each
    with the token that ends it where the run put one, or None; `held_out` those of a run that no stage saw, or None."""

    openings: list[Opening]
    training: list[Ids] | None
    held_out: list[Ids] | None
    source: str


def gather(
    bundle: Bundle, data: Path | None, prompt_tokens: int, new_tokens: int, texts: int, most_tokens: int
) -> Material:
    """Of the user's file, else of the run that made the model, else the bundled text alone.

    Errors: InputError for a model without a tokenizer, and for a file that is missing, empty or no text.
    """
    tokenizer = bundle.tokenizer
    if tokenizer is None:
        raise InputError(bundle.origin, "has no tokenizer", "put tokenizer.json beside the weights")
    held_out = held_out_beside(bundle)
    openings = human_openings(tokenizer, held_out, None, prompt_tokens, new_tokens, texts)
    if data is not None:
        return Material(openings, _of_file(data, tokenizer, most_tokens), held_out, data.name)
    shards = _trained_on(bundle)
    if shards is None:
        return Material(openings, None, held_out, "")
    documents = (shards.document(number) for number in range(shards.documents))
    return Material(openings, list(_up_to(documents, most_tokens)), held_out, "the run's training text")


def _of_file(data: Path, tokenizer: Tokenizer, most_tokens: int) -> list[Ids]:
    if not data.exists():
        raise InputError("--data", f"{str(data)!r} does not exist")
    texts = (document.text for document in read((Files(path=str(data)),), Reading()))
    found = list(_up_to(_encoded(texts, tokenizer), most_tokens))
    if not any(map(len, found)):
        raise InputError(str(data), "holds no text")
    return found


def _encoded(texts: Iterator[str], tokenizer: Tokenizer) -> Iterator[Ids]:
    while group := list(islice(texts, _TOGETHER)):
        yield from tokenizer.encode_batch(group)


def _up_to(documents: Iterable[Ids], most: int) -> Iterator[Ids]:
    """The first documents, `most` tokens of them."""
    left = most
    for ids in documents:
        if left <= 0:
            return
        yield ids[:left]
        left -= len(ids)


def _trained_on(bundle: Bundle) -> TokenShards | None:
    """The corpus of the run whose stage this model was read from."""
    if held_out_beside(bundle) is None:  # another tokenizer, or no run
        return None
    folders = [parent / "tokenizer" / "train" for parent in around(bundle)]
    return next((TokenShards(folder) for folder in folders if (folder / "index.json").is_file()), None)


def without(ids: Ids, special: frozenset[int]) -> list[int]:
    return [int(id) for id in ids if int(id) not in special]
