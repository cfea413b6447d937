"""A small C++ source, compiled on first use for the CPU at hand and kept in the cache.

`available()` says why not, where a machine has no compiler or not the instructions; all then take the plain path. So
they do with `LLMLAB_NATIVE=0` in the environment, for whoever wants to compare.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache, cached_property
from pathlib import Path

from llmlab.runtime import cache_folder, instruction_sets

FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC")
NEEDED = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "f16c"})
SWITCH = "LLMLAB_NATIVE"


def missing(needed: frozenset[str] = NEEDED) -> str | None:
    """What this machine lacks for compiled code, in a few words; None where it has all."""
    if os.environ.get(SWITCH) == "0":
        return f"switched off by {SWITCH}=0"
    if lacking := sorted(needed - instruction_sets()):
        return f"this CPU has no {', '.join(lacking)}"
    return None if compiler() else "this machine has no C++ compiler"


@cache
def compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


class Compiled:
    """The library made of one source file; `name` is what it is called in reasons, `needed` are the instructions that
    it cannot do without."""

    def __init__(self, source: Path, name: str, *flags: str, needed: frozenset[str] = NEEDED) -> None:
        self.source, self.name, self.flags, self.needed = source, name, (*FLAGS, *flags), needed

    def available(self) -> str | None:
        """None where it can be used, else the reason in a few words."""
        return missing(self.needed) or self.unusable

    @cached_property
    def unusable(self) -> str | None:
        """Why it could not be made or loaded, once that was tried."""
        try:
            _ = self.library
        except subprocess.CalledProcessError as error:
            return f"{self.name} did not compile: {error.stderr.decode(errors='replace').strip()[:200]}"
        except OSError as error:
            return f"{self.name} could not be loaded: {error}"
        return None

    @property
    def identity(self) -> str:
        """Changes with the source, how it is compiled, and what this CPU can do."""
        how = repr((self.flags, sorted(instruction_sets()))).encode()
        return hashlib.sha256(self.source.read_bytes() + how).hexdigest()[:16]

    @cached_property
    def library(self) -> ctypes.CDLL:
        """The compiled source. Raises OSError or CalledProcessError where it cannot be made."""
        path = cache_folder() / "native" / f"{self.source.stem}-{self.identity}.so"
        if not path.exists():
            found = compiler()
            if found is None:
                raise OSError("no C++ compiler was found")
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                made = Path(folder) / path.name
                command = [found, *self.flags, "-o", str(made), str(self.source)]
                subprocess.run(command, check=True, capture_output=True)
                made.replace(path)
        return ctypes.CDLL(str(path))
