"""How an answer comes about, beside what `Sampling` says of each token."""

from pydantic import Field

from llmlab.inference.caches import CacheKind
from llmlab.inference.search import Search
from llmlab.inference.speculative import Speculation
from llmlab.recipe import Section


class Ways(Section):
    """How an answer comes about, beside `Sampling`: what is left null is drawn, token by token, over a dense cache."""

    search: Search | None = Field(None, description="what is looked for instead of one token after another")
    cache: CacheKind | None = Field(None, description="what keys and values are kept in")


class Speculating(Section):
    """Where guesses come from that save steps."""

    speculate: Speculation = Field(description="where guesses at the next tokens come from")
