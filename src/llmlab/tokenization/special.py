"""Special tokens by the names that the objectives of pretraining were published with.

A tokenizer file of the family has them; one trained here gets those that its recipe's objective asks for, after all
other ids. None is ever made from text.
"""

from collections.abc import Sequence

from llmlab.errors import InputError
from llmlab.tokenization.tokenizer import Tokenizer

MASK, CLASS, SEPARATOR = "[MASK]", "[CLS]", "[SEP]"  # BERT (Devlin et al. 2018); GLM marks its blanks by the first
START, END = "<|startofpiece|>", "<|endofpiece|>"  # GLM (Du et al. 2021)
SENTINEL = "<extra_id_{}>"  # T5 (Raffel et al. 2019)


def sentinels(count: int) -> tuple[str, ...]:
    """The first sentinels, in the order in which they are used."""
    return tuple(map(SENTINEL.format, range(count)))


def special_ids(tokenizer: Tokenizer, tokens: Sequence[str], objective: str) -> list[int]:
    """Their ids. InputError where the tokenizer lacks one, by name."""
    ids = [tokenizer.token_id(token) for token in tokens]
    if None in ids:
        missing = tokens[ids.index(None)]
        problem = f"has no token {missing}, which the objective {objective} needs"
        raise InputError("tokenizer", problem, "a tokenizer that is trained in the same run gets it")
    return [id for id in ids if id is not None]
