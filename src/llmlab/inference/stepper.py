"""What continuous batching asks of a model: one call for pieces of many texts, whose keys and values lie in pages.

`FastModel` answers with the native step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from llmlab.model.transformer import Architecture


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one text: `ids`, the place of the first, and the pages of the text from its beginning,
    those of the new tokens included."""

    ids: Sequence[int]
    start: int
    pages: Sequence[int]


class Stepper(Protocol):
    """`pages` of 16 tokens are what it holds at most."""

    pages: int

    @property
    def architecture(self) -> Architecture: ...
    @property
    def vocab_size(self) -> int: ...

    def step(self, pieces: Sequence[Piece], ask: Sequence[int]) -> Tensor:
        """float32 [R, V]: the logits after the tokens `ask`, counted through all pieces."""

    def clear(self, page: int) -> None:
        """Zeros on a page that a text begins to write on: a key that is not seen still has weight 0 times its value,
        and an earlier text may have left what is no number."""

    def copy(self, source: int, target: int) -> None:
        """What lies on one page, on another: a text that forks in the middle of a page."""
