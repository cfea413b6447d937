"""A recipe so small that an arm lives for a fraction of a second."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from llmlab.recipe import parse
from llmlab.run import Run


def words(count: int, seed: int = 0) -> str:
    """Text with something to learn: few words, of which some like to follow others."""
    chance, vocabulary = random.Random(seed), ["whale", "ship", "sea", "captain", "harpoon", "the", "of", "white"]
    return "".join(chance.choice(vocabulary) + chance.choice([" ", " ", ". ", "\n\n"]) for _ in range(count))


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Run:
    file: Path = tmp_path_factory.mktemp("text") / "words.txt"
    file.write_text(words(3000))
    values: dict[str, Any] = {
        "name": "tiny",
        "dtype": "fp32",
        "text": {"sources": [{"kind": "files", "path": str(file), "piece": 2000}], "held_out": 0.2},
        "tokenizer": {"vocab_size": 280},
        "model": {"layers": 1, "dim": 16, "context": 8, "attention": {"kind": "mha", "heads": 2}},
        "pretrain": {
            "batch_size": 8,
            "training": {
                "steps": 6, "optimizer": {"kind": "adamw", "lr": 0.01}, "evaluate_every": 6, "checkpoint_every": 2
            },
        },
    }  # fmt: skip
    return parse(Run, values)
