"""Pages of keys and values: who holds which, which beginnings of texts they hold, and which may be taken again.

A full page is known by the tokens it holds and by the page before it, exactly: no hash that two texts could share. It
stays known when nobody needs it any more, until the room is wanted; the page unused longest goes first (Kwon et al.
2023, PagedAttention, arXiv 2309.06180).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from llmlab.model.transformer import Architecture

PAGE = 16
BF16 = 2  # bytes of a number, as the native step holds it
Key = tuple[int, tuple[int, ...]]  # (serial of the page before, 0 at the start; its tokens)


def nbytes(architecture: Architecture, pages: int, number: int = BF16) -> int:
    """Bytes of the keys and values of so many pages, in numbers of so many bytes: all that a pool ever takes. Errors:
    InputError for a model that keeps no keys."""
    a = architecture
    return pages * PAGE * a.layers * 2 * a.keyed.key_heads * a.keyed.width(a.dim) * number


class Pages:
    """A pool of `count` pages, numbered from 0."""

    def __init__(self, count: int) -> None:
        self._users = [0] * count
        self._idle: OrderedDict[int, None] = OrderedDict((page, None) for page in range(count))  # longest unused first
        self._known: dict[Key, int] = {}
        self._keys: list[Key | None] = [None] * count
        self._serials = [0] * count
        self._next = 1

    @property
    def free(self) -> int:
        """Pages that nobody uses, known or not."""
        return len(self._idle)

    def share(self, ids: Sequence[int]) -> list[int]:
        """The pages that hold the beginning of `ids`, now used once more. At least one token is left to be read: what
        comes next is told by the output of the last one, which no page holds."""
        found: list[int] = []
        serial = 0
        for start in range(0, len(ids) - PAGE, PAGE):
            page = self._known.get((serial, tuple(ids[start : start + PAGE])))
            if page is None:
                break
            found.append(page)
            serial = self._serials[page]
        return self.use(found)

    def use(self, pages: Sequence[int]) -> list[int]:
        """These pages, now used once more."""
        for page in pages:
            self._users[page] += 1
            self._idle.pop(page, None)
        return list(pages)

    def take(self) -> int | None:
        """A page to write on, None where all are in use. What it held is forgotten."""
        if not self._idle:
            return None
        page, _ = self._idle.popitem(last=False)
        key = self._keys[page]
        if key is not None:
            del self._known[key]
            self._keys[page] = None
        self._users[page] = 1
        return page

    def give_back(self, pages: Sequence[int]) -> None:
        """One user fewer. The last pages of a text are the first to be taken again."""
        for page in reversed(pages):
            self._users[page] -= 1
            if not self._users[page]:
                self._idle[page] = None

    def name(self, page: int, before: int | None, ids: Sequence[int]) -> None:
        """Make a full page known as these tokens after the page `before`. A twin that is known already stays so."""
        key = (0 if before is None else self._serials[before], tuple(ids))
        if self._keys[page] is None and key not in self._known and (before is None or self._keys[before] is not None):
            self._known[key], self._keys[page] = page, key
            self._serials[page], self._next = self._next, self._next + 1
