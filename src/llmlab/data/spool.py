"""The text stage's lines on the disk: written once, then taken out by their numbers."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from llmlab.data.words import Int


def write_lines(spool: Path, path: Path, often: Int) -> None:
    """Each spooled line as often as wanted, a second time after all of the first."""
    with whole(path) as file:
        for turn in range(int(often.max(initial=0))):
            for _, line in lines_of(spool, np.flatnonzero(often > turn)):
                file.write(line)


def lines_of(spool: Path, wanted: Iterable[int]) -> Iterator[tuple[int, str]]:
    """The spooled lines of these numbers, which ascend."""
    left = iter(wanted)
    following = next(left, None)
    with spool.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if following is None:
                return
            if number == following:
                yield number, line
                following = next(left, None)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[IO[str]]:
    """A file to write that takes its name when it is whole."""
    work = path.with_name(f".{path.name}.tmp")
    with work.open("w", encoding="utf-8") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(work, path)
