"""`llmlab serve` as a process: what it says, how it ends, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.native import save_model
from llmlab.cli import main
from llmlab.errors import InputError
from llmlab.inference import native
from llmlab.language_model import LanguageModel
from llmlab.model.transformer import Architecture
from llmlab.serving.api import create
from llmlab.tokenization.tokenizer import Tokenizer

from .conftest import model_of

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LLMLAB_API_KEY"} | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "tiny"
    save_model(path, model_of(tokenizer).model, tokenizer)
    return path


@pytest.fixture
def llmlab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: (exit code, standard output, standard error)."""

    def call(*arguments: str, **environment: str) -> tuple[int, str, str]:
        monkeypatch.delenv("LLMLAB_API_KEY", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["llmlab", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, said.out, said.err

    return call


@pytest.fixture
def process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "llmlab", "serve", str(folder), "--port", "0", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as running:
        try:
            yield running
        finally:
            running.kill()


@pytest.mark.skipif(native.missing() is not None, reason=f"no native step: {native.missing()}")
def test_a_server_says_where_it_is_and_ends_by_ctrl_c(process: subprocess.Popen[str], folder: Path) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    said = json.loads(process.stdout.readline())
    assert set(said) == {"host", "port", "url", "model", "weights"}
    assert (said["host"], said["model"]) == ("127.0.0.1", "tiny")
    assert said["url"] == f"http://127.0.0.1:{said['port']}"
    line = process.stderr.readline()
    assert line.startswith("API key: ")
    headers = {"Authorization": f"Bearer {line.split()[-1]}"}
    assert httpx.get(f"{said['url']}/health").status_code == 401
    assert httpx.get(f"{said['url']}/health", headers=headers).status_code == 200
    body = {"prompt": "x", "max_tokens": 3}
    assert httpx.post(f"{said['url']}/v1/completions", headers=headers, json=body).status_code == 200
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert time.monotonic() - began < 5
    assert process.stdout.read() == ""
    assert process.stderr.read() == "llmlab: stopped\n"


def test_why_says_why_and_leaves(folder: Path, llmlab: Callable[..., tuple[int, str, str]]) -> None:
    code, plain, errors = llmlab("serve", str(folder), "--why")
    assert (code, errors) == (0, "")
    code, told, errors = llmlab("serve", str(folder), "--why", "--json")
    assert (code, errors) == (0, "")
    said = json.loads(told)
    assert (said["model"], said["explained"]) == (str(folder), plain.splitlines())
    assert said["why"] == plain.splitlines()[0]
    assert "weights" in said["why"]


def test_what_cannot_be_served_is_one_line(folder: Path, llmlab: Callable[..., tuple[int, str, str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused: list[tuple[list[str], dict[str, str], str]] = [
            (["--port", port], {}, "cannot be listened at"),
            (["--port", "70000"], {}, "70000 is no port"),
            (["--host", "no such host"], {}, "cannot be listened at"),
            (["--host", "0.0.0.0", "--no-api-key"], {}, "loopback"),
            (["--no-api-key"], {"LLMLAB_API_KEY": "mine"}, "LLMLAB_API_KEY"),
            (["--api-key", ""], {}, "api-key"),
        ]
        for arguments, environment, says in refused:
            code, out, errors = llmlab("serve", str(folder), *arguments, **environment)
            assert (code, out) == (2, ""), arguments
            assert says in errors
            assert errors.count("\n") == 1


@pytest.mark.parametrize("missing", ["uvicorn", "fastapi", "prometheus_client"])
def test_a_missing_extra_is_named(missing: str) -> None:
    call = f"import sys\nsys.modules[{missing!r}] = None\nsys.argv = ['llmlab', 'serve', 'x']\n"
    command = [sys.executable, "-c", f"{call}from llmlab.cli import main\nmain()"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"llmlab: serve: needs {missing} (pip install 'llmlab[serving]')\n"


def test_a_model_without_continuous_batching_is_refused_by_name(tokenizer: Tokenizer) -> None:
    architecture = Architecture.model_validate({"layers": 1, "dim": 32, "attention": "lstm", "position": "none"})
    bundle = Bundle(architecture.build(tokenizer.vocab_size), tokenizer, architecture, "tiny")
    with pytest.raises(InputError, match="tiny: cannot be served: lstm keeps a state and no keys"):
        create(LanguageModel(bundle), "tiny", None)


def test_exact_weights_are_served_by_the_plain_step(tokenizer: Tokenizer) -> None:
    create(LanguageModel(model_of(tokenizer)), "tiny", None)
