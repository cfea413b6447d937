"""A life of a fraction of a second."""

from pathlib import Path

import pytest

from llmlab.recipe import parse
from llmlab.run import Run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    file: Path = tmp_path_factory.mktemp("text") / "words.txt"
    file.write_text("the white whale is no fish. " * 2000)
    values = {
        "name": "tiny",
        "dtype": "fp32",
        "text": {"sources": [{"kind": "files", "path": str(file), "piece": 2000}], "held_out": 0.2, "dedup": False},
        "tokenizer": {"vocab_size": 270},
        "model": {"layers": 1, "dim": 16, "context": 8, "attention": {"kind": "mha", "heads": 2}},
        "pretrain": {"batch_size": 8, "training": {"steps": 6, "evaluate_every": 3, "log_every": 2}},
    }
    return parse(Run, values)
