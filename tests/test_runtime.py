"""Atomic files, locks, keyed seeds, signals."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmlab import runtime
from llmlab.errors import InputError


def test_seeds_are_keyed_by_purpose() -> None:
    assert runtime.derive(1, "a", 2) == runtime.derive(1, "a", 2)
    seeds = {runtime.derive(seed, purpose, n) for seed in range(5) for purpose in "abc" for n in range(5)}
    assert len(seeds) == 75
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_failure_in_the_middle_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    with runtime.atomic_folder(target) as work:
        (work / "a").write_text("old")
    with pytest.raises(RuntimeError), runtime.atomic_folder(target) as work:
        (work / "a").write_text("new")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]
    with runtime.atomic_folder(target) as work:
        (work / "b").write_text("new")
    assert [entry.name for entry in target.iterdir()] == ["b"]


def test_a_file_that_was_not_finished_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    with runtime.atomic_file(target) as work:
        work.write_text("old")
        assert not target.exists()
    with pytest.raises(RuntimeError), runtime.atomic_file(target) as work:
        work.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("moment", ["write", "rename"])
def test_kill_9_while_saving_leaves_the_old_file(tmp_path: Path, moment: str) -> None:
    """Trap 41. The child kills itself in the middle of the write, or between write and rename."""
    target = tmp_path / "state.json"
    runtime.atomic_json(target, {"good": 1})
    hook = {"write": "os.fsync", "rename": "os.replace"}[moment]
    code = (
        "import os, signal; from pathlib import Path; from llmlab import runtime\n"
        f"{hook} = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"runtime.atomic_json(Path({str(target)!r}), {{'good': 2}})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert target.read_text() == '{\n "good": 1\n}\n'
    runtime.remove_leftovers(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_equal_tensors_give_equal_bytes(tmp_path: Path) -> None:
    a, b = torch.arange(6.0).view(2, 3), torch.ones(4, dtype=torch.bfloat16)
    runtime.atomic_safetensors(tmp_path / "1", {"a": a, "b": b})
    runtime.atomic_safetensors(tmp_path / "2", {"b": b.clone(), "a": a.T.contiguous().T})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_one_process_a_folder(tmp_path: Path) -> None:
    with runtime.lock(tmp_path), pytest.raises(InputError, match="another process"), runtime.lock(tmp_path):
        pass
    with runtime.lock(tmp_path):
        pass


def test_first_signal_raises_the_flag_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with runtime.interruptible() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_devices_and_dtypes() -> None:
    assert runtime.device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="not available"):
            runtime.device("cuda")
    for name in ("tpu", "meta", "cuda:x", ""):
        with pytest.raises(InputError, match="allowed: auto, cpu, cuda, mps"):
            runtime.device(name)
    assert runtime.autocast_dtype("fp32", torch.device("cpu")) is None
    assert runtime.autocast_dtype("bf16", torch.device("cpu")) is torch.bfloat16


def test_peak_memory_sees_a_large_block() -> None:
    with runtime.PeakMemory() as peak:
        before = runtime.resident_bytes()
        block = mmap.mmap(-1, 64 << 20)  # fresh pages: what an allocator kept from before would not show
        block.write(b"x" * (64 << 20))
    assert peak.bytes - before > 48 << 20
    block.close()
