"""What keys and values may be kept in while a text grows, by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmlab.errors import InputError
from llmlab.inference.cache import DenseCache, RowCache
from llmlab.inference.int8_cache import Int8Cache
from llmlab.inference.rolling_cache import RollingCache
from llmlab.model.masks import Causal
from llmlab.model.transformer import Architecture, positions_of
from llmlab.recipe import KINDS, Section

_WHOLE = 8  # bytes of a whole number, of which places are made


class _Kind(Section, ABC):
    endless: ClassVar[bool] = False  # whether texts may grow past the context
    _places: ClassVar[int] = 1  # how often the places are held

    @abstractmethod
    def build(self, capacity: int, architecture: Architecture) -> RowCache:
        """An empty cache for texts of `capacity` tokens. Errors: InputError for a model that it cannot serve."""

    def nbytes(self, architecture: Architecture, rows: int, capacity: int, number: int = 4) -> int:
        """What that cache takes for so many texts, in bytes, where the model computes in numbers of so many: known
        before there is a model, and to the byte (`RowCache.nbytes`). Errors: as `build`."""
        a, columns = architecture, self._columns(capacity, architecture)
        held = a.attention.held(a.dim)
        keys = 2 * held.heads * columns * self._vector(held.width, number)
        state = held.state * number + _WHOLE if held.state else 0  # and the document that it is of
        axes = max(getattr(position, "axes", 1) for position in positions_of(a))
        places = self._places * columns * (axes + 2) * _WHOLE  # positions, order and document
        return rows * (a.layers * (keys + state) + places)

    def _columns(self, capacity: int, architecture: Architecture) -> int:
        return capacity

    def _vector(self, width: int, number: int) -> int:
        """Bytes of one token's key or value of one head."""
        return width * number


class Dense(_Kind):
    """Every key and value as the model computed it."""

    kind: Literal["dense"] = "dense"

    def build(self, capacity: int, architecture: Architecture) -> DenseCache:
        return DenseCache(capacity)


class Rolling(_Kind):
    """The newest tokens and the first few: memory does not grow, texts need not end (Xiao et al. 2023, StreamingLLM,
    arXiv 2309.17453). Prompts past `sinks + window` are read in blocks, each token as if it had come alone."""

    kind: Literal["rolling"] = "rolling"
    endless: ClassVar[bool] = True
    window: int | None = Field(
        None,
        gt=0,
        description="how many of the newest tokens are kept, the one at hand included; null: what fits the context",
    )
    sinks: int = Field(4, ge=0, description="how many of the first tokens are kept")

    def build(self, capacity: int, architecture: Architecture) -> RollingCache:
        a = architecture
        if not a.attention.scores:
            raise InputError("cache", f"rolling has nothing to do for {a.attention.kind}, which keeps no keys", "dense")
        if not isinstance(a.mask, Causal):
            raise InputError("cache", f"rolling cannot go with mask {a.mask.kind}", "causal models, or dense")
        for position in positions_of(a):
            if not position.moves:
                problem = (
                    f"rolling gives tokens new places, but {position.kind} positions are told once, with the token"
                )
                raise InputError("cache", problem, "dense")
        window = self._window(a)
        if window < 1 or self.sinks + window > a.context:
            told = f"sinks {self.sinks}" if self.window is None else f"window {window} and sinks {self.sinks}"
            raise InputError("cache", f"rolling with {told} does not fit the context of {a.context}", "take fewer")
        return RollingCache(window, self.sinks)

    def _window(self, a: Architecture) -> int:
        return a.context - self.sinks if self.window is None else self.window

    def _columns(self, capacity: int, architecture: Architecture) -> int:
        return self._window(architecture) + self.sinks


class Int8(_Kind):
    """Keys and values in eight bits, a half-precision scale a token and head: about a quarter of the memory of fp32,
    half of bf16, for a small error."""

    kind: Literal["int8"] = "int8"
    _places: ClassVar[int] = 2  # beside the codes, and beside the scales

    def build(self, capacity: int, architecture: Architecture) -> Int8Cache:
        return Int8Cache(capacity)

    def _vector(self, width: int, number: int) -> int:
        return width + 2  # a code each, and a scale


CacheKind = Annotated[Dense | Rolling | Int8, *KINDS]
