"""lm-evaluation-harness by HTTP: its `local-completions` scores a model here as its `hf` class scores the exported
folder, choice by choice. No network: the task is a file, the tokenizer a folder."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from llmlab.checkpoints.convert import convert
from llmlab.inference.batching import Batching
from llmlab.inference.plain_step import PlainModel
from llmlab.language_model import LanguageModel
from llmlab.tokenization.tokenizer import Tokenizer

from .conftest import CONTEXT, KEY, NAME, model_of, running

ITEMS = [
    {"question": "The whale is in the", "choices": ["sea", "ship and the sea", "三国", "x"], "answer": 0},
    {"question": "And the ship", "choices": ["and the whale and the sea", "!", "is é"], "answer": 1},
    {"question": "What says 😀?", "choices": ["nothing", "everything and the sea", "a  b"], "answer": 2},
    {"question": "<|im_end|>", "choices": ["the", "an end"], "answer": 1},
    {"question": "the " * 30, "choices": ["whale", "sea", "ship"], "answer": 2},
]


def task(folder: Path) -> dict[str, Any]:
    file = folder / "items.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in ITEMS), encoding="utf-8")
    return {
        "task": "by_http",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }


# aiohttp, datasets and multiprocess warn of Python's own next versions, transformers of its own
@pytest.mark.filterwarnings("ignore")
def test_the_harness_scores_a_model_by_http_as_its_folder(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    look_up = socket.getaddrinfo

    def here(host: Any, *args: Any, **kwargs: Any) -> Any:
        assert host in ("127.0.0.1", "localhost"), f"the harness asks for {host}"
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", here)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    bundle = model_of(tokenizer)
    folder = tmp_path / "hf"
    convert(bundle, folder, "hf")
    config = task(tmp_path)

    def samples(model: Any) -> list[list[float]]:
        done = simple_evaluate(
            model,
            tasks=[config],
            task_manager=TaskManager(include_defaults=False),  # the thousands that it brings take half a minute to list
            bootstrap_iters=0,
            verbosity="ERROR",
        )
        assert done is not None
        rows = sorted(done["samples"]["by_http"], key=lambda row: row["doc_id"])
        for row in rows:
            assert all(len(one) == 2 for (one, *_) in row["resps"])  # the score, and whether it was the likeliest
        return [
            [*(float(part) for (one, *_) in row["resps"] for part in one), row["acc"], row["acc_norm"]] for row in rows
        ]

    by_folder = samples(HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1))
    exact = LanguageModel(bundle, Batching(PlainModel(bundle.model, 64)), "fp32 weights")
    with running(exact) as found:
        client = LocalCompletionsAPI(
            model=NAME,
            base_url=f"{found.url}/v1/completions",
            tokenizer=str(folder),
            tokenizer_backend="huggingface",
            batch_size=3,
            max_length=CONTEXT,
        )
        by_http = samples(client)
    assert [len(row) for row in by_http] == [2 * len(item["choices"]) + 2 for item in ITEMS]
    for ours, theirs in zip(by_http, by_folder, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
    assert len({score for row in by_http for score in row[:-2:2]}) > 10  # and they are no constants
