"""What lies between llmlab and the machine: seeds, devices, atomic files, locks, signals, memory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from llmlab.errors import InputError, unknown


def cache_folder() -> Path:
    """Where what can be fetched or made again is kept: $LLMLAB_HOME, else ~/.cache/llmlab."""
    home = os.environ.get("LLMLAB_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "llmlab"


# ---------------------------------------------------------------- seeds


def derive(seed: int, *purpose: object) -> int:
    """A seed for one purpose, in [0, 2**63). Arms that differ in one purpose share all other randomness."""
    text = json.dumps([seed, *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator keyed by (seed, purpose)."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


def make_deterministic() -> None:
    """The same inputs give the same bytes, at no cost for memory that is written before it is read."""
    torch.use_deterministic_algorithms(True, warn_only=False)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


# ---------------------------------------------------------------- devices


DEVICES = ("auto", "cpu", "cuda", "mps")


def device(name: str) -> torch.device:
    """`auto` takes cuda, then mps, then cpu; `cuda:1` is the second card. Only the CPU is tested by this project's CI.

    Errors: InputError for a name that is none, and for a device that is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    kind, _, index = name.partition(":")
    if kind not in there or (index and not index.isdecimal()):
        raise unknown("device", name, DEVICES)
    many = torch.cuda.device_count() if kind == "cuda" else 1
    if not there[kind] or int(index or 0) >= many:
        raise InputError("device", f"{name!r} is not available on this machine", "use auto or cpu")
    return torch.device(name)


def autocast_dtype(name: str, on: torch.device) -> torch.dtype | None:
    """The dtype of matrix products, None for plain float32. `auto` takes bfloat16 where the hardware has it."""
    if name == "fp32":
        return None
    if name == "bf16":
        return torch.bfloat16
    if on.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    native = on.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else None


# ---------------------------------------------------------------- versions

PACKAGES = ("llmlab", "torch", "numpy", "tokenizers", "safetensors", "pydantic")


def versions() -> dict[str, str]:
    """Of Python and of the packages that figures depend on, those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


# The instruction sets that change speed or rounding of what this project measures.
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "f16c")


def instruction_sets() -> frozenset[str]:
    """All that this CPU has, by Linux's names; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []))


def cpu_name() -> str:
    """As Linux tells it, else the kind of processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Those of CPU_FLAGS that this machine has."""
    has = instruction_sets()
    return [flag for flag in CPU_FLAGS if flag in has]


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute on so many threads for a while. Tiny matrices wait for a second thread longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------- files that are whole or not there


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling to write; at the end it is synced and becomes `path`, replacing an older file.

    A reader sees the old file or the new one, whatever happens in between. If the body raises, nothing has changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(descriptor)
    try:
        yield Path(name)
        _fsync(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    _fsync(path.parent)


def atomic_bytes(path: Path, content: bytes) -> None:
    with atomic_file(path) as work:
        work.write_bytes(content)


def atomic_text(path: Path, content: str) -> None:
    atomic_bytes(path, content.encode())


def atomic_json(path: Path, value: Any) -> None:
    atomic_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def atomic_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Equal tensors give equal bytes: sorted names, no metadata."""
    with atomic_file(path) as work:
        write_safetensors(work, tensors)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """From where the tensors lie, without a copy. At most one metadata key: the library writes several in an order that
    changes from run to run."""
    assert len(metadata or {}) <= 1
    try:
        save_file({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}, path, metadata)
    except SafetensorError as error:  # of an operating system's error the library keeps only the text
        if (number := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    path.chmod(0o644)  # the library makes files that only their owner may read


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling to write in; at the end its files are synced and it becomes `path`.

    An older folder at `path` is replaced. If the body raises, nothing at `path` has changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    os.chmod(work, 0o755)
    try:
        yield work
        for entry in sorted(work.rglob("*"), reverse=True):
            _fsync(entry)
        _fsync(work)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old.tmp", dir=path.parent))
            os.rename(path, old / path.name)
            os.rename(work, path)
            shutil.rmtree(old)
        else:
            os.rename(work, path)
        _fsync(path.parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Temporary names that a killed process left behind."""
    for entry in folder.glob(".*.tmp"):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def disk_full(error: OSError) -> bool:
    """Whether this says that the disk, or the user's share of it, has no space left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """One process a folder. The kernel frees the lock when its holder dies, however it dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                str(folder), "another process is at work in this folder", "wait, or give another --out"
            ) from None
        yield


# ---------------------------------------------------------------- signals


class StopFlag:
    """Raised by the first Ctrl-C or SIGTERM, read by whoever can save."""

    def __init__(self) -> None:
        self.requested = False


@contextlib.contextmanager
def interruptible() -> Iterator[StopFlag]:
    """The first Ctrl-C or SIGTERM raises the flag; the second Ctrl-C interrupts at once."""
    flag = StopFlag()

    def ask(number: int, frame: FrameType | None) -> None:
        if flag.requested:
            raise KeyboardInterrupt
        flag.requested = True

    if threading.current_thread() is not threading.main_thread():
        yield flag  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- memory


KERNELS_KEPT = 64  # shapes of bfloat16 products; a training step has about 20


def keep_few_kernels() -> None:
    """Let oneDNN and torch's cache in front of it keep the kernels of so many shapes, unless the user says otherwise.
    They keep 1024, 0.65 MB each, and rows of many widths come to hundreds of MB; a kernel that is made again takes
    half a millisecond. Read at the process's first product. No number changes."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS_KEPT))


def resident_bytes() -> int:
    """Resident memory of this process, 0 where /proc is missing."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


class PeakMemory:
    """Samples resident memory in a thread; `bytes` is the largest value seen (the interpreter included)."""

    def __init__(self, every_seconds: float = 0.02) -> None:
        self.bytes = resident_bytes()
        self._every = every_seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(self._every):
            self.bytes = max(self.bytes, resident_bytes())

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.bytes, resident_bytes())
