"""The native step: a small C++ source, compiled on first use for the CPU at hand and kept in the cache.

`available()` says why not, where a machine has no compiler or not the instructions; all then take the plain path.
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

from llmlab.runtime import cache_folder

FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC", "-pthread")
NEEDED = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "f16c"})
SOURCE = Path(__file__).with_name("step.cpp")


def cpu_flags() -> frozenset[str]:
    """The instruction sets of this CPU as Linux names them; empty where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


@cache
def available() -> str | None:
    """None where the native step can be used, else the reason in a few words."""
    if missing := sorted(NEEDED - cpu_flags()):
        return f"this CPU has no {', '.join(missing)}"
    try:
        library()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"the native step did not compile: {error}"
    return None


@cache
def library() -> ctypes.CDLL:
    """The compiled step. Raises OSError or CalledProcessError where it cannot be made."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    identity = hashlib.sha256(SOURCE.read_bytes() + repr((FLAGS, sorted(cpu_flags()))).encode()).hexdigest()[:16]
    path = cache_folder() / "native" / f"step-{identity}.so"
    if not path.exists():
        if compiler is None:
            raise OSError("no C++ compiler was found")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            subprocess.run([compiler, *FLAGS, "-o", str(made), str(SOURCE)], check=True, capture_output=True)
            made.replace(path)
    return ctypes.CDLL(str(path))
