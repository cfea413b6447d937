"""How an answer comes about, beside what `Sampling` says of each token."""

from __future__ import annotations

from pydantic import Field, model_validator

from llmlab.inference.caches import CacheKind
from llmlab.inference.on_loop import OnLoop
from llmlab.inference.search import Search
from llmlab.inference.speculative import Speculation
from llmlab.recipe import Section


class Ways(Section):
    """How an answer comes about, beside `Sampling`: what is left null is drawn, token by token, over a dense cache."""

    search: Search | None = Field(None, description="what is looked for instead of one token after another")
    cache: CacheKind | None = Field(None, description="what keys and values are kept in")
    on_loop: OnLoop | None = Field(None, description="what is done where the text repeats itself; null: nothing")

    @model_validator(mode="after")
    def _watched_while_drawn(self) -> Ways:
        if self.search is not None and self.on_loop is not None:
            raise ValueError(
                f"on_loop {self.on_loop.kind} watches one text while it is drawn, {self.search.kind} search knows its "
                "text at the end only: leave one of them out"
            )
        return self


class Speculating(Section):
    """Where guesses come from that save steps."""

    speculate: Speculation = Field(description="where guesses at the next tokens come from")
