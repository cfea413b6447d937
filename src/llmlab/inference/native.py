"""The native step: a small C++ source, compiled on first use for the CPU at hand and kept in the cache.

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
from functools import cache
from pathlib import Path

from llmlab.runtime import cache_folder, instruction_sets

FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC", "-pthread")
NEEDED = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "f16c"})
SOURCE = Path(__file__).with_name("step.cpp")
SWITCH = "LLMLAB_NATIVE"


def missing() -> str | None:
    """What this machine lacks for the native step, in a few words; None where it has all."""
    if os.environ.get(SWITCH) == "0":
        return f"switched off by {SWITCH}=0"
    if lacking := sorted(NEEDED - instruction_sets()):
        return f"this CPU has no {', '.join(lacking)}"
    return None if _compiler() else "this machine has no C++ compiler"


def available() -> str | None:
    """None where the native step can be used, else the reason in a few words."""
    return missing() or _unusable()


@cache
def _unusable() -> str | None:
    try:
        library()
    except subprocess.CalledProcessError as error:
        return f"the native step did not compile: {error.stderr.decode(errors='replace').strip()[:200]}"
    except OSError as error:
        return f"the native step could not be loaded: {error}"
    return None


def _compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def identity() -> str:
    """Changes with the source, how it is compiled, and what this CPU can do."""
    return hashlib.sha256(SOURCE.read_bytes() + repr((FLAGS, sorted(instruction_sets()))).encode()).hexdigest()[:16]


@cache
def library() -> ctypes.CDLL:
    """The compiled step. Raises OSError or CalledProcessError where it cannot be made."""
    path = cache_folder() / "native" / f"step-{identity()}.so"
    if not path.exists():
        compiler = _compiler()
        if compiler is None:
            raise OSError("no C++ compiler was found")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            subprocess.run([compiler, *FLAGS, "-o", str(made), str(SOURCE)], check=True, capture_output=True)
            made.replace(path)
    return ctypes.CDLL(str(path))
