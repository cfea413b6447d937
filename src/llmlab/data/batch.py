"""Batches: rows of ids, what follows each, and where each stands."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmlab.model.places import Places

IGNORE = -100  # a target where nothing is learnt

Ids = Sequence[int] | npt.NDArray[np.integer]
Learn = Sequence[bool] | npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Batch:
    """`ids_BT`, `targets_BT` int64; `targets[t]` is the id that follows `ids[t]`, or -100 where nothing is learnt.

    `where` says, for an error message, which of the data the rows are; empty where that is not known."""

    ids_BT: Tensor
    targets_BT: Tensor
    at: Places
    where: str = ""

    def to(self, device: torch.device) -> Self:
        return replace(
            self, ids_BT=self.ids_BT.to(device), targets_BT=self.targets_BT.to(device), at=self.at.to(device)
        )

    def part(self, rows: slice, where: str = "") -> Self:
        """Some of its rows."""
        return replace(
            self,
            ids_BT=self.ids_BT[rows],
            targets_BT=self.targets_BT[rows],
            at=self.at[rows],
            where=where or self.where,
        )

    @property
    def learnt(self) -> int:
        """How many targets are learnt."""
        return int((self.targets_BT != IGNORE).sum())

    @property
    def tokens(self) -> int:
        """How many tokens are real, padding not counted."""
        return int(self.at.real.sum())


@dataclass(frozen=True)
class SourceBatch(Batch):
    """What an encoder reads beside what its decoder says: `source_BS` int64, standing at `source_at`. A token of the
    decoder sees the source of its own document."""

    _: KW_ONLY
    source_BS: Tensor
    source_at: Places

    def to(self, device: torch.device) -> Self:
        source, at = self.source_BS.to(device), self.source_at.to(device)
        return replace(super().to(device), source_BS=source, source_at=at)

    def part(self, rows: slice, where: str = "") -> Self:
        return replace(super().part(rows, where), source_BS=self.source_BS[rows], source_at=self.source_at[rows])

    @property
    def tokens(self) -> int:
        return super().tokens + int(self.source_at.real.sum())


@dataclass(frozen=True)
class TextPairBatch(Batch):
    """Two texts a row; `follows_B` is true where the second is what followed the first."""

    _: KW_ONLY
    follows_B: Tensor

    def to(self, device: torch.device) -> Self:
        return replace(super().to(device), follows_B=self.follows_B.to(device))

    def part(self, rows: slice, where: str = "") -> Self:
        return replace(super().part(rows, where), follows_B=self.follows_B[rows])


@dataclass(frozen=True)
class PairBatch(Batch):
    """2B rows: the B chosen ones, then the B rejected ones in the same order. `tags[i]` says what pair i differs in.

    The targets of both sides learn the answer's tokens. `last_B` is the column of each row's last real token.
    """

    tags: tuple[str, ...] = ()

    @property
    def pairs(self) -> int:
        return len(self.ids_BT) // 2

    @property
    def last_B(self) -> Tensor:
        """int64 [2B], whichever the padding side; of an empty row the first column."""
        columns = torch.arange(self.ids_BT.shape[1], device=self.ids_BT.device)
        return torch.where(self.at.real, columns, 0).amax(1)


def collate(
    sequences: Sequence[tuple[Ids, Learn]],
    pad_id: int | None,
    length: int | None = None,
    side: str = "right",
    where: str = "",
) -> Batch:
    """One row a sequence (ids, learn), padded on `side` to `length`, or to the longest row.

    `learn[t]` says whether ids[t] is to be predicted, so targets are shifted by one and a row's first token is never
    one. Padding is known by its document -1, never by its id, so `pad_id` may be any id, or None (then 0).
    """
    lengths = [len(ids) for ids, _ in sequences]
    width = max(lengths, default=0) if length is None else length
    if not sequences or not width:
        raise ValueError("a batch needs at least one token")
    if max(lengths) > width:
        raise ValueError(f"a sequence of {max(lengths)} tokens does not fit into {width}")
    for ids, learn in sequences:
        if len(ids) != len(learn):
            raise ValueError(f"{len(ids)} ids but {len(learn)} learn marks")
    at = Places.of_lengths(lengths, width, side)
    real = at.real.numpy()
    ids_BT = np.full(real.shape, 0 if pad_id is None else pad_id, np.int64)
    learn_BT = np.zeros(real.shape, bool)
    ids_BT[real] = np.concatenate([np.asarray(ids, np.int64) for ids, _ in sequences])
    learn_BT[real] = np.concatenate([np.asarray(learn, bool) for _, learn in sequences])
    targets_BT = np.full(real.shape, IGNORE, np.int64)
    follows = learn_BT[:, 1:] & real[:, :-1]  # the token before must be real too: left padding has none
    targets_BT[:, :-1][follows] = ids_BT[:, 1:][follows]
    return Batch(torch.from_numpy(ids_BT), torch.from_numpy(targets_BT), at, where)


def pack(sequences: Sequence[tuple[Ids, Learn]], pad_id: int | None, where: str = "") -> Batch:
    """Sequences (ids, learn) end to end in rows as wide as the longest, the longest first, each into the first row with
    room. Every one is a document of its own: none sees another and positions restart (Krell et al. 2021, arXiv
    2107.02027), so the sum of losses is that of `collate` and hardly anything is padding.
    """
    lengths = [len(ids) for ids, _ in sequences]
    width = max(lengths, default=0)
    if not width:
        raise ValueError("a batch needs at least one token")
    room, spans = list[int](), list[tuple[int, int, int]]()
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        row = next((row for row, free in enumerate(room) if free >= lengths[number]), len(room))
        if row == len(room):
            room.append(width)
        spans.append((number, row, width - room[row]))
        room[row] -= lengths[number]
    shape = len(room), width
    ids_BT, targets_BT = np.full(shape, 0 if pad_id is None else pad_id, np.int64), np.full(shape, IGNORE, np.int64)
    position_BT, document_BT = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    for number, row, start in spans:
        ids, learn = (np.asarray(part) for part in sequences[number])
        end = start + len(ids)
        ids_BT[row, start:end], document_BT[row, start:end] = ids, number
        position_BT[row, start:end] = np.arange(len(ids))
        targets_BT[row, start : end - 1] = np.where(learn[1:], ids[1:], IGNORE)
    at = Places.in_order(torch.from_numpy(position_BT), torch.from_numpy(document_BT))
    return Batch(torch.from_numpy(ids_BT), torch.from_numpy(targets_BT), at, where)


def collate_pairs(
    chosen: Sequence[tuple[Ids, Learn]],
    rejected: Sequence[tuple[Ids, Learn]],
    pad_id: int | None,
    tags: Sequence[str] = (),
    length: int | None = None,
    side: str = "right",
    where: str = "",
) -> PairBatch:
    """Both sides of B pairs stacked, chosen first, padded alike."""
    if len(chosen) != len(rejected):
        raise ValueError(f"{len(chosen)} chosen but {len(rejected)} rejected")
    both = collate([*chosen, *rejected], pad_id, length, side)
    return PairBatch(both.ids_BT, both.targets_BT, both.at, where, tuple(tags))


def listed(names: Iterable[object], most: int = 40) -> str:
    """Different names in the order in which they come, for one line of a message."""
    different = list(dict.fromkeys(map(str, names)))
    more = f" and {len(different) - most} more" if len(different) > most else ""
    return ", ".join(different[:most]) + more


class Sequences:
    """Rendered sequences (ids, learn), kept flat: 5 bytes a token. `fingerprint` names their content."""

    def __init__(self, sequences: Sequence[tuple[Ids, Learn]]) -> None:
        self._ends = np.cumsum([len(ids) for ids, _ in sequences], dtype=np.int64)
        self._ids = np.concatenate([np.asarray(ids, np.int32) for ids, _ in sequences] or [np.empty(0, np.int32)])
        self._learn = np.concatenate([np.asarray(learn, bool) for _, learn in sequences] or [np.empty(0, bool)])
        content = hashlib.sha256(self._ends.tobytes() + self._ids.tobytes() + self._learn.tobytes())
        self.fingerprint = content.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """(ids int32 [n], learn bool [n]) of one row."""
        cut = slice(self._ends[index - 1] if index else 0, self._ends[index])
        return self._ids[cut], self._learn[cut]
