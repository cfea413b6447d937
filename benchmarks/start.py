"""Seconds from the command to the first token of `llmlab chat smollm2`, ours against llama-cpp-python on the same file.

Each start is a process of its own with one message on its standard input, timed until the first byte of an answer, then
ended. Weights, compiled step and its check are on the disk and in the page cache: one start of each goes before. The
peer loads the shipped Q4_1 file and answers the same message by the file's chat template. Beside them: `llmlab --help`,
and a start with exact weights. Rates are starts a second, so that bigger is better.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from paired import measure, report

from llmlab.checkpoints.pull import pull

MESSAGE = b"Name three large animals of the sea.\n"
LIMIT = 3.0  # seconds to the first token, on two cores
HELP_LIMIT = 0.3
STARTS = 7
THREADS = 2
OURS = [sys.executable, "-m", "llmlab"]
PEER = """
import sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=8192, n_threads=int(sys.argv[2]), n_threads_batch=int(sys.argv[2]), verbose=False)
message = {"role": "user", "content": sys.stdin.readline().strip()}
for piece in model.create_chat_completion([message], stream=True, temperature=0.7, top_p=0.95, max_tokens=512):
    print(piece["choices"][0]["delta"].get("content", ""), end="", flush=True)
"""


def first_token(command: Sequence[str]) -> float:
    """Seconds from the command to the first byte of its answer."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(MESSAGE)
        process.stdin.flush()
        first = os.read(process.stdout.fileno(), 1)
        seconds = time.perf_counter() - began
        assert first, f"{command} answered nothing"
    finally:
        process.kill()
        process.communicate()
    return seconds


def whole(command: Sequence[str]) -> float:
    """Seconds until the command is done."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def timed(run: Callable[[], float]) -> dict[str, Any]:
    run()
    seconds = sorted(run() for _ in range(STARTS))
    return {"median": round(statistics.median(seconds), 3), "spread": [round(seconds[0], 3), round(seconds[-1], 3)]}


def main() -> None:
    path = str(pull("smollm2"))
    chat = [*OURS, "chat", "smollm2", "--seed", "0"]
    claims = {}
    if importlib.util.find_spec("llama_cpp") is not None:
        peer = [sys.executable, "-c", PEER, path, str(THREADS)]
        claims["first_token_over_llamacpp"] = measure(
            lambda: 1 / first_token(chat), lambda: 1 / first_token(peer), pairs=STARTS
        )
    seconds = {
        "first_token": timed(lambda: first_token(chat)),
        "first_token_fp32": timed(lambda: first_token([*chat, "--weights", "fp32"])),
        "help": timed(lambda: whole([*OURS, "--help"])),
    }
    holds = {
        "first_token": seconds["first_token"]["median"] <= LIMIT,
        "help": seconds["help"]["median"] <= HELP_LIMIT,
    }
    report(
        "start",
        "starts/s",
        claims,
        ("torch", "numpy", "tokenizers", "pydantic", "llama-cpp-python"),
        {"seconds": seconds, "limits": {"first_token": LIMIT, "help": HELP_LIMIT}, "holds": holds},
    )


if __name__ == "__main__":
    main()
