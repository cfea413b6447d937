"""The command line as a newcomer meets it: one clear line for bad input, the right exit code, JSON as the last line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmlab.model.transformer import Architecture
from llmlab.recipe import parse
from llmlab.run import presets, read_recipe
from llmlab.tokenization.train import BPE, train_tokenizer


def llmlab(*arguments: str, stdin: bytes = b"", **kwargs: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "llmlab", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, input=stdin, capture_output=True, env=environment, check=False, **kwargs)  # type: ignore[call-overload]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder small enough to open in a blink."""
    from llmlab.checkpoints.native import save_model

    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = train_tokenizer(BPE(vocab_size=300), iter(["a whale is not a fish " * 20]))
    save_model(folder, parse(Architecture, {"layers": 1, "dim": 32}).build(tokenizer.vocab_size), tokenizer)
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["run"], "Missing argument"),
        (["run", "dmeo"], "unknown value 'dmeo' (did you mean 'demo'?"),
        (["run", "none.yaml"], "none.yaml: no such file"),
        (["run", "smoke", "model.positon=rope"], "did you mean 'position'?"),
        (["run", "smoke", "model.position=rotary"], "allowed: none, sinusoidal, learned, rope"),
        (["run", "smoke", "model.attention.heads=7"], "7 heads do not divide dim"),
        (["run", "smoke", "sft.training.steps=-1"], "recipe.sft.training.steps: got -1"),
        (["run", "smoke", "pretrain=null"], "pretrain is missing"),
        (["generate", "@", "--prompt", "x", "--temperature", "-1"], "generate.temperature: got -1"),
        (["generate", "@", "--prompt", "x", "--top-p", "2"], "generate.top_p: got 2"),
        (["generate", "@", "--prompt", "x", "--max-new-tokens", "0"], "generate.max_new_tokens: got 0"),
        (["generate", "@", "--prompt", "x", "--min-p", "-1"], "generate.min_p: got -1"),
        (["generate", "@", "--prompt", "x", "--typical-p", "0"], "generate.typical_p: got 0"),
        (["chat", "@", "--presence-penalty", "3"], "chat.presence_penalty: got 3"),
        (["generate", "@", "--prompt", "x", "--logit-bias", "a=1"], "--logit-bias: 'a=1' is no ID=VALUE"),
        (["generate", "@", "--prompt", "x", "--logit-bias", "999=1"], "sampling.logit_bias: 999 is outside"),
        (["generate", "@", "--prompt", "x", "--rope", "yarn factor=0.5"], "rope.factor: 0.5 would shorten"),
        (["evaluate", "@", "--rope", "{kind: yran}"], "rope.kind: unknown value 'yran' (did you mean 'yarn'?"),
        (["generate", "@", "--prompt", "x", "--regex", "foo**"], "sampling.constraint: '*' at 4"),
        (["generate", "@", "--prompt", "x", "--json-schema", "{"], "--json-schema: this is no JSON"),
        (["generate", "@", "--prompt", "x", "--grammar", "none.lark"], "none.lark: cannot be read"),
        (["generate", "@", "--prompt", "x", "--regex", "a", "--json-schema", "true"], "an answer has one form"),
        (["generate", "@", "--prompt", ""], "is empty"),
        (["generate", "@", "--prompt", "x", "--search", "bema"], "generate.search: unknown kind 'bema' (did you mean"),
        (["generate", "@", "--prompt", "x", "--search", "{kind: beam"], "search: '{kind: beam' is not a YAML value"),
        (["generate", "@", "--prompt", "x", "--search", "beam", "--temperature", "2"], "cannot go with beam search"),
        (["generate", "@", "--prompt", "x", "--cache", "{kind: rolling, window: -1}"], "generate.cache.window: got -1"),
        (
            ["generate", "@", "--prompt", "x", "--on-loop", "stpo"],
            "generate.on_loop: unknown kind 'stpo' (did you mean",
        ),
        (
            ["generate", "@", "--prompt", "x", "--on-loop", "{kind: stop, repeats: 1}"],
            "generate.on_loop.repeats: got 1",
        ),
        (["generate", "@", "--prompt", "x", "--on-loop", "stop", "--search", "beam"], "on_loop stop watches one text"),
        (["diagnose", "smolm"], "smollm2"),
        (["diagnose", "@", "text=3"], "did you mean 'texts'"),
        (["diagnose", "@", "--data", "none.txt"], "does not exist"),
        (["generate", "smolm", "--prompt", "x"], "smollm2"),
        (["continue", "none.txt", "--model", "@"], "none.txt: cannot be read: No such file"),
        (["continue", "@/model.safetensors", "--model", "@"], "is 0: this is no text"),
        (["continue", "@/config.json", "--model", "@", "--window", "0"], "--window: 0 keeps nothing"),
        (["continue", "@/config.json", "--model", "@", "--window", "999"], "does not fit the context of 256"),
        (["continue", "@/config.json", "--model", "@", "--temperature", "-1"], "continue.temperature: got -1"),
        (["continue", "@/config.json", "--model", "smolm"], "smollm2"),
        (["chat", "@", "--temperature", "abc"], "--temperature"),
        (["chat", "@", "--device", "gpu"], "device: unknown value 'gpu'"),
        (["evaluate", "@", "--device", "cpu:7"], "device: 'cpu:7' is not available on this machine"),
        (["convert", "@", "OUT", "--to", "onnx"], "allowed:"),
        (["convert", "@", "OUT", "--to", "gguf", "--type", "q4_k"], "allowed: f32, f16, q8_0, q4_0, q4_1"),
        (["convert", "@", "OUT", "--type", "f16"], "is a type of gguf files"),
        (["convert", "none", "@/config.json", "--to", "gguf"], "is there already"),
        (["pull", "smolm2"], "smollm2"),
        (["evaluate", "@", "no_such_task"], "no_such_task"),
        (["handbook", "99"], "99"),
        (["handbook", "--lang", "fr"], "fr"),
        (["recipe", "nothing"], "allowed: "),
        (["xray", "smolm"], "smollm2"),
        (["xray", "@/config.json"], "is not a file that holds a model"),
        (["evaluate", "@", "samples", "--limit", "0"], "task samples.limit: got 0"),
        (["run", "smoke", "--out", "@/config.json", "--resume"], "is a file"),
        (["run", "@"], "cannot be read: Is a directory"),
        (["convert", "@", "@/config.json/x"], "config.json"),
        (["run", "smoke", "pretrain.training.steps=true"], "steps is True, where a number belongs"),
        (["run", "smoke", "pretrain.training.ema.decay=1"], "pretrain.training.ema.decay: got 1"),
        (["run", "smoke", "pretrain.training.spikes=rollback"], "did you mean 'roll_back'"),
        (["run", "smoke", "pretrain.training={steps: 9, spikes: roll_back, keep: 1}"], "roll_back needs keep of 2"),
        (["run", "smoke", "track=[mlflow]"], "allowed: tensorboard, wandb"),
        (["search", "smoke"], "--over: names no field to search"),
        (["search", "smoke", "--over", "pretrain.training.optimizer.lr=log(0,1)"], "0 has no logarithm"),
        (["search", "smoke", "--over", "pretrain.z_loss=uniform(0,1)"], "--trials: is missing"),
        (["search", "smoke", "--over", "pretrain.z_loss=0,1", "--halving", "2"], "sft comes after it (sft=null)"),
        (["runs", "nowhere"], "nowhere: is no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_exit_2(tiny: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    given = [str(tmp_path / "out") if word == "OUT" else word.replace("@", str(tiny)) for word in arguments]
    done = llmlab(*given, cwd=tmp_path)
    assert done.returncode == 2, done.stderr.decode()
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("llmlab: ")
    assert says in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["run", "smoke", "--out", b"n\xff"], ["convert", b"n\xff", "out"]])
def test_arguments_that_are_not_utf8_are_refused(tmp_path: Path, arguments: list[str | bytes]) -> None:
    command = [sys.executable, "-m", "llmlab", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert b"is not UTF-8" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_answers_in_a_form(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"enum": ["a whale", "a fish"]}')
    (tmp_path / "g.lark").write_text('start: "fish" | "whale"\n')
    for form, allowed in (
        (["--json-schema", "schema.json"], ['"a whale"', '"a fish"']),
        (["--json-schema", '{"const": "no"}'], ['"no"']),
        (["--regex", "[0-9]{3}", "--logit-bias", "20=100", "--no-repeat-ngram-size", "9"], ["111"]),
        (["--grammar", "g.lark", "--presence-penalty", "1", "--min-p", "0.01"], ["fish", "whale"]),
    ):
        done = llmlab("generate", str(tiny), "--prompt", "x", "--json", *form, cwd=tmp_path)
        assert done.returncode == 0, done.stderr.decode()
        answer = json.loads(done.stdout)
        assert answer["text"] in allowed
        assert answer["finish_reason"] == "stop"


def test_help_imports_no_torch() -> None:
    code = (
        "import sys, contextlib, io\nsys.argv = ['llmlab', '--help']\nfrom llmlab.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main()\n"
        "print(sorted({'torch', 'numpy', 'tokenizers', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.split(b"\n")[-2] == b"[]"


def test_every_preset_is_a_recipe_and_goes_round() -> None:
    assert set(presets()) >= {"demo", "smoke", "scratch-zh", "adapt-smollm2", "extend-smollm2"}
    for name in presets():
        recipe = read_recipe(name)
        assert recipe.name == name
        assert type(recipe).model_validate(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))) == recipe


def test_recipe_prints_a_preset_a_schema_and_explanations() -> None:
    assert yaml.safe_load(llmlab("recipe", "smoke").stdout)["name"] == "smoke"
    schema = json.loads(llmlab("recipe", "--schema", "--json").stdout.splitlines()[-1])
    assert {"model", "pretrain", "ppo"} <= set(schema["properties"])
    fields = json.loads(llmlab("recipe", "--explain", "--json").stdout.splitlines()[-1])["fields"]
    assert all(field["meaning"] for field in fields if "[" not in field["path"] and field["default"] != "as below")


def test_generate_streams_and_reports(tiny: Path) -> None:
    asked = ["generate", str(tiny), "--prompt", "a whale", "--max-new-tokens", "12", "--seed", "3"]
    plain = llmlab(*asked)
    answer = json.loads(llmlab(*asked, "--json").stdout.splitlines()[-1])
    assert {"text", "tokens", "tokens_per_second", "prefill_tokens_per_second", "finish_reason"} <= set(answer)
    assert plain.stdout.decode().rstrip("\n") == answer["text"].rstrip("\n")
    assert answer["finish_reason"] in ("stop", "length")
    piped = llmlab(*asked[:2], *asked[4:], "--json", stdin=b"a whale")
    assert json.loads(piped.stdout.splitlines()[-1])["text"] == answer["text"]
    assert llmlab(*asked[:2], stdin=b"\xff\xfe").returncode == 2


def test_generate_searches_over_a_cache(tiny: Path) -> None:
    asked = ["generate", str(tiny), "--prompt", "a whale", "--max-new-tokens", "8"]
    asked += ["--search", "{kind: beam, beams: 3}", "--cache", "int8"]
    plain, answer = llmlab(*asked), json.loads(llmlab(*asked, "--json").stdout.splitlines()[-1])
    assert plain.stdout.decode().rstrip("\n") == answer["text"].rstrip("\n")
    assert {"score", "tokens", "tokens_per_second", "prefill_tokens_per_second", "finish_reason"} <= set(answer)


def test_continue_goes_on_with_a_file_past_the_context(tiny: Path, tmp_path: Path) -> None:
    (path := tmp_path / "a.txt").write_text("a whale is not a fish " * 200)
    asked = ["continue", str(path), "--model", str(tiny), "--max-new-tokens", "300", "--min-new-tokens", "300"]
    asked += ["--window", "60", "--sinks", "2"]
    plain, answer = llmlab(*asked), json.loads(llmlab(*asked, "--json").stdout.splitlines()[-1])
    assert plain.stdout.decode().rstrip("\n") == answer["text"].rstrip("\n")
    assert {"text", "tokens", "finish_reason", "read_tokens", "read_from_byte", "peak_cache_bytes"} <= set(answer)
    assert answer["tokens"] == 300
    assert 0 < answer["read_tokens"] <= 62
    assert answer["read_from_byte"] > 0
    assert path.read_text() == "a whale is not a fish " * 200


def test_chat_from_a_pipe(tiny: Path) -> None:
    done = llmlab("chat", str(tiny), "--max-new-tokens", "5", stdin="hello\n/reset\n你好\n".encode())
    assert done.returncode == 0, done.stderr.decode()
    done.stdout.decode("utf-8")


def test_convert_and_evaluate(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "hf"
    answer = json.loads(llmlab("convert", str(tiny), str(out), "--to", "hf", "--json").stdout.splitlines()[-1])
    assert answer["format"] == "hf"
    assert answer["parity"] < 1e-4
    assert llmlab("convert", str(tiny), str(out), "--to", "hf").returncode == 2
    file = tmp_path / "m.gguf"
    answer = json.loads(llmlab("convert", str(tiny), str(file), "--type", "q8_0", "--json").stdout.splitlines()[-1])
    assert (answer["path"], answer["format"], answer["type"], answer["kept_f16"]) == (str(file), "gguf", "q8_0", [])
    assert llmlab("generate", str(file), "--prompt", "a whale", "--max-new-tokens", "3").returncode == 0
    text = tmp_path / "text.txt"
    text.write_text("a whale is not a fish " * 30)
    done = llmlab("evaluate", str(out), "bits_per_byte", "--data", str(text), "--json")
    (task,) = json.loads(done.stdout.splitlines()[-1])["tasks"]
    assert {"name", "metric", "value", "interval", "n"} <= set(task)


def test_handbook_answers_in_json_and_in_chinese() -> None:
    questions = json.loads(llmlab("handbook", "--json").stdout.splitlines()[-1])["questions"]
    assert [question["n"] for question in questions] == list(range(1, 55))
    assert sum(question["verdict"] is not None for question in questions) >= 10
    assert any("\u4e00" <= letter <= "\u9fff" for letter in llmlab("handbook", "50", "--lang", "zh").stdout.decode())


def test_a_reader_that_leaves_is_no_error(tiny: Path) -> None:
    for words in (["recipe", "--schema"], ["generate", str(tiny), "--prompt", "a", "--max-new-tokens", "40"]):
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "llmlab", *words]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
        os.close(write)
        assert (done.returncode, done.stderr) == (0, b"")


def test_streams_that_are_closed_or_speak_ascii(tiny: Path) -> None:
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "llmlab", "handbook", "50", "--lang", "zh"]
    done = subprocess.run(command, capture_output=True, env=ascii_only, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    words = " ".join([sys.executable, "-m", "llmlab"])
    assert subprocess.run(f"{words} recipe --list >&-", shell=True, check=False).returncode == 0
    closed = subprocess.run(f"{words} generate {tiny} <&-", shell=True, capture_output=True, check=False)
    assert (closed.returncode, len(closed.stderr.splitlines())) == (2, 1)


def test_quantised_folders_are_used_as_they_are_or_refused(tiny: Path, tmp_path: Path) -> None:
    from llmlab.checkpoints.native import load_model
    from llmlab.compression.quantize import Int8, quantize_model, save_quantized

    bundle, folder = load_model(tiny), tmp_path / "int8"
    save_quantized(folder, quantize_model(bundle.model, Int8()), bundle.tokenizer, Int8())
    assert llmlab("generate", str(folder), "--prompt", "a", "--max-new-tokens", "2").returncode == 0
    done = llmlab("convert", str(folder), str(tmp_path / "out"))
    assert done.returncode == 2
    assert b"holds quantised weights" in done.stderr
    assert not (tmp_path / "out").exists()


def test_xray_prints_a_table_and_json(tiny: Path) -> None:
    read = llmlab("xray", str(tiny))
    assert read.returncode == 0
    assert b"\nposition  " in read.stdout
    told = llmlab("xray", str(tiny), "--json")
    findings = json.loads(told.stdout.splitlines()[-1])["findings"]
    assert (findings["position"]["found"], findings["norm"]["found"]) == ("rope", "rmsnorm")
    assert findings["norm"]["evidence"]
