"""One text or two between the special tokens that an encoder was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from tokenizers import Tokenizer as Backend

_SAMPLES = ("a", "the", "0", ".", "\u4e00")  # some vocabularies have no token for some of these


@dataclass(frozen=True)
class Frame:
    """What stands where: `(text, id, segment)`, text 0 or 1 for the ids of a text, None for the special token `id`."""

    slots: tuple[tuple[int | None, int, int], ...]

    @staticmethod
    def of(backend: Backend, two: bool) -> Frame:
        """Read off the post-processor, whichever kind it is, by letting it frame a sample."""
        for sample in _SAMPLES:
            made = backend.encode(sample, sample if two else None)
            whose = made.sequence_ids
            if set(whose) >= ({0, 1} if two else {0}):
                break
        else:
            return Frame(((0, 0, 0), (1, 0, 1)) if two else ((0, 0, 0),))
        rows = [
            (text, id if text is None else 0, segment)
            for text, id, segment in zip(whose, made.ids, made.type_ids, strict=True)
        ]
        slots: list[tuple[int | None, int, int]] = []
        for row, run in groupby(rows):
            slots += list(run) if row[0] is None else [row]  # a text of several tokens is one slot
        return Frame(tuple(slots))

    @property
    def special(self) -> bool:
        """Whether there is any special token in it."""
        return any(text is None for text, _, _ in self.slots)

    def fill(self, *texts: Sequence[int]) -> tuple[list[int], list[int]]:
        """`(ids, segments)` with the texts' ids in their places."""
        ids, segments = list[int](), list[int]()
        for text, id, segment in self.slots:
            new = [id] if text is None else texts[text]
            ids += new
            segments += [segment] * len(new)
        return ids, segments
