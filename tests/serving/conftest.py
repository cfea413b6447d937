"""A real server on a free port: uvicorn in a thread, a tiny model with a chat template, clients with a key."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

from llmlab.checkpoints.bundle import Bundle
from llmlab.inference import native
from llmlab.inference.batching import Batching
from llmlab.inference.fast import FastModel
from llmlab.inference.plain_step import PlainModel
from llmlab.language_model import LanguageModel
from llmlab.model.transformer import Architecture
from llmlab.serving.api import create
from llmlab.serving.keys import Keys
from llmlab.serving.serve import Server, bind
from llmlab.serving.worker import WAITING, Worker
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, train_tokenizer

CONTEXT, KEY, NAME = 256, "a-key-for-tests", "tiny"


def model_of(tokenizer: Tokenizer, **fields: Any) -> Bundle:
    sizes: dict[str, Any] = {"layers": 2, "dim": 64, "context": CONTEXT, "initial_std": 0.3}
    sizes["attention"] = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 32}
    sizes["feedforward"] = {"kind": "swiglu", "width": 96}
    architecture = Architecture.model_validate(sizes | fields)
    return Bundle(architecture.build(tokenizer.vocab_size, seed=5), tokenizer, architecture, "tiny")


def served(
    tokenizer: Tokenizer, pages: int = 400, step_rows: int = 64, step_tokens: int = 256, **fields: Any
) -> LanguageModel:
    """A model with continuous batching: native where this machine can, else plain."""
    bundle = model_of(tokenizer, **fields)
    stepper = PlainModel(bundle.model, pages) if native.missing() else FastModel(bundle.model, "bf16", pages)
    return LanguageModel(bundle, Batching(stepper, step_tokens, step_rows), "tiny weights")


@dataclass
class Running:
    """A server and how to reach it. `lm` is the model served, or better a twin of it that tests may ask themselves: the
    batching of the model served belongs to the worker's thread."""

    url: str
    lm: LanguageModel
    worker: Worker
    app: Any
    http: httpx.Client  # with the key

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=20)

    def asynchronous(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=30)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)


@contextlib.contextmanager
def running(lm: LanguageModel, waiting: int = WAITING, keys: Sequence[str] | None = (KEY,)) -> Iterator[Running]:
    app = create(lm, NAME, None if keys is None else Keys(keys), (), waiting)
    bound, address = bind("127.0.0.1", 0)
    ready = threading.Event()
    server = Server(app, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        assert ready.wait(10)
        with httpx.Client(base_url=address.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=20) as http:
            yield Running(address.url, lm, app.state.worker, app, http)
    finally:
        server.should_exit = True
        thread.join(15)
        with contextlib.suppress(OSError):
            bound.shutdown(socket.SHUT_RDWR)
        bound.close()
        assert not thread.is_alive()


@pytest.fixture(scope="package")
def tokenizer() -> Tokenizer:
    """Every byte a token, a few pairs, and ChatML; whole tiles of 16, as the native step wants them."""
    return train_tokenizer(BPE(vocab_size=272), iter(["the whale and the sea and the ship " * 20]))


@pytest.fixture(scope="package")
def server(tokenizer: Tokenizer) -> Iterator[Running]:
    """One server for all tests that leave it as it was."""
    with running(served(tokenizer)) as found:
        found.lm = served(tokenizer)
        yield found


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.openai() as found:
        yield found
