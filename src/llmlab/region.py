"""Memory of tensors that is kept between steps, and given back between stages.

`keep_freed_memory` puts large tensors into a region of their own (`region.cpp`), where the C library's heap cannot be
torn by the small objects between them. A machine without a compiler keeps them in the heap.
"""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path

import torch

from llmlab.compiled import Compiled

_TORCH = Path(torch.__file__).parent
REGION = Compiled(
    Path(__file__).with_name("region.cpp"),
    "the region of tensors",
    *(f"-I{_TORCH / 'include'}", f"-L{_TORCH / 'lib'}", "-Wl,--no-as-needed", "-lc10"),
    needed=frozenset(),
)
LEAST = 16 << 10  # bytes of a tensor in the region
ADDRESSES = 8  # times the machine's memory: holes cost none
MAPPED = 1 << 30  # bytes of a block that the heap maps by itself all the same


def keep_freed_memory() -> str | None:
    """Let this process keep what its tensors free. By default each large tensor is mapped anew and handed back, and its
    pages are cleared on first touch, every step again: a tenth of a training step's time.

    Answers None, or why tensors stay in the heap, which grows while a training runs (LOG.md, 2026-11-28).
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(-3, MAPPED)  # M_MMAP_THRESHOLD
        library.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD, as good as never
    if (reason := REGION.available()) is not None:
        return reason
    begin = REGION.library.region_begin
    begin.argtypes = [ctypes.c_size_t]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    failed: int = begin(ADDRESSES * memory)
    return os.strerror(failed) if failed else None


def give_back() -> None:
    """Memory that nobody holds goes back to the system, where the C library can: what comes next finds the process as
    small as it can be, whatever went before."""
    gc.collect()
    if hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
    if "library" in vars(REGION):  # it was begun, or at least tried
        REGION.library.region_trim()
