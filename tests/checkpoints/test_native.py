"""llmlab's own model folder."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.native import load_model, plain_state, save_model
from llmlab.errors import InputError
from llmlab.model.transformer import Architecture
from llmlab.runtime import write_safetensors


def test_a_model_comes_back_bit_for_bit(tmp_path: Path, make: Callable[..., Bundle], family_kind: str) -> None:
    bundle = make(family_kind)
    save_model(tmp_path / "m", bundle.model, bundle.tokenizer)
    again = load_model(tmp_path / "m")
    assert again.architecture == bundle.architecture
    state = again.model.state_dict()
    assert state.keys() == bundle.model.state_dict().keys()
    assert all(torch.equal(state[name], weights) for name, weights in bundle.model.state_dict().items())
    assert not again.model.training
    assert all(parameter.requires_grad and parameter.data_ptr() % 64 == 0 for parameter in again.model.parameters())
    text = "the 文字 🙂 <|im_end|>"
    assert again.tokenizer.encode(text) == bundle.tokenizer.encode(text)
    assert again.tokenizer.chat_template == bundle.tokenizer.chat_template


def test_every_part_survives_the_config(
    tmp_path: Path, position_kind: type, norm_kind: type, feedforward_kind: type
) -> None:
    architecture = Architecture(
        layers=1, dim=16, context=8, position=position_kind(), norm=norm_kind(), feedforward=feedforward_kind()
    )
    model = architecture.build(11, seed=3)
    save_model(tmp_path / "m", model, None)
    again = load_model(tmp_path / "m")
    assert again.architecture == architecture
    assert again.tokenizer is None
    ids = torch.arange(8)[None]
    assert torch.equal(again.model(ids), model.eval()(ids))


def test_equal_weights_give_equal_bytes_and_a_tied_head_is_stored_once(
    tmp_path: Path, make: Callable[..., Bundle]
) -> None:
    for name in ("a", "b"):
        bundle = make("llama-tied")
        save_model(tmp_path / name, bundle.model, bundle.tokenizer)
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in (tmp_path / "a").iterdir())
    assert set(files) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    with safe_open(tmp_path / "a" / "model.safetensors", "pt") as file:
        assert file.metadata() is None
        assert "head.weight" not in file.keys()  # noqa: SIM118


def test_a_failed_save_leaves_the_older_folder(
    tmp_path: Path, make: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "m", make(seed=0).model, None)
    before = (tmp_path / "m" / "model.safetensors").read_bytes()

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmlab.runtime.save_file", no_space)
    with pytest.raises(OSError, match="No space"):
        save_model(tmp_path / "m", make(seed=1).model, None)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    bundle = make()
    small = bundle.architecture.build(100)
    with pytest.raises(InputError, match=r"261 tokens.*100 rows"):
        save_model(tmp_path / "m", small, bundle.tokenizer)
    save_model(tmp_path / "m", small, None)
    bundle.tokenizer.save(tmp_path / "m")
    with pytest.raises(InputError, match=r"261 tokens.*100 rows"):
        load_model(tmp_path / "m")


def test_a_model_with_something_put_on_it_is_not_saved_as_plain(make: Callable[..., Bundle]) -> None:
    model = make().model
    model.blocks[0].attention.query.lora = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="lora"):
        plain_state(model)


def saved(tmp_path: Path, make: Callable[..., Bundle]) -> Path:
    save_model(tmp_path / "m", make().model, None)
    return tmp_path / "m"


def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path: Path, make: Callable[..., Bundle]) -> None:
    folder = saved(tmp_path, make)
    weights = folder / "model.safetensors"
    state = load_file(weights)
    name = "blocks.1.attention.key.weight"
    save_file({key: value for key, value in state.items() if key != name}, weights)
    with pytest.raises(InputError, match=f"{name}.*missing"):
        load_model(folder)
    save_file(state | {name: torch.zeros(3, 32)}, weights)
    with pytest.raises(InputError, match=rf"{name}.*\[3, 32\].*\[16, 32\]"):
        load_model(folder)
    save_file(state | {"blocks.7.extra": torch.zeros(1)}, weights)
    with pytest.raises(InputError, match=r"blocks\.7\.extra.*unknown"):
        load_model(folder)
    save_file(state | {"a\n\x1b[31mb": torch.zeros(1)}, weights)
    with pytest.raises(InputError, match=r"'a\\n\\x1b\[31mb'"):
        load_model(folder)
    save_file(state | {name: torch.zeros(16, 32, dtype=torch.int8)}, weights)
    with pytest.raises(InputError, match=f"{name}.*int8"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "other"}, "format"),
        ({"version": 2}, "version '2'"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"vocab_size": 10**30}, "beyond any memory"),
        ({"architecture": None}, "architecture"),
        ({"architecture": {"layers": 10**9}}, "1000000000 layers"),
        ({"architecture": {"position": "spiral"}}, "spiral"),
        ({"architecture": {"dim": 7, "attention": {"kind": "mha", "heads": 2}}}, "divide"),
    ],
)
def test_a_wrong_config_is_one_clear_line(
    tmp_path: Path, make: Callable[..., Bundle], change: dict[str, object], says: str
) -> None:
    folder = saved(tmp_path, make)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=says) as caught:
        load_model(folder)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", "\ud800", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"config\.json"):
        load_model(tmp_path)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_safetensors_are_read_or_refused_by_name(
    tmp_path: Path, make: Callable[..., Bundle], data: st.DataObject
) -> None:
    folder = tmp_path / "m"
    if not folder.exists():
        save_model(folder, make().model, None)
        (tmp_path / "whole").write_bytes((folder / "model.safetensors").read_bytes())
    content = bytearray((tmp_path / "whole").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 600))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    (folder / "model.safetensors").write_bytes(content)
    try:
        load_model(folder)
    except InputError as error:
        assert "model.safetensors" in str(error)
        assert "\n" not in str(error)


def test_a_file_that_cannot_grow_is_an_error_with_its_number(tmp_path: Path) -> None:
    """A full disk is told by errno; here a limit on the size of files stands for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_safetensors(tmp_path / "w.safetensors", {"w": torch.zeros(100, 100)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "w.safetensors"))
