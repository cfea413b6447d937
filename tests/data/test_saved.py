"""Folders that Hugging Face datasets saved, made here as that library lays them out, and by the library itself."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pytest

from llmlab.data.chats import FileChats, read_chats
from llmlab.data.files import find
from llmlab.data.sources import Files, Reading, read
from llmlab.errors import InputError


def save(folder: Path, shards: list[list[str]]) -> None:
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, texts in zip(names, shards, strict=True):
        table = pyarrow.table({"text": texts})
        with pyarrow.ipc.new_stream(folder / name, table.schema) as file:
            file.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


def texts(folder: Path) -> list[str]:
    return [document.text for document in read([Files(path=str(folder))], Reading())]


def test_the_shards_that_the_state_lists_are_read_in_order(tmp_path: Path) -> None:
    save(tmp_path / "set", [["a", "b"], ["c"]])
    (tmp_path / "set" / "cache-1f.arrow").write_bytes((tmp_path / "set" / "data-00001-of-00002.arrow").read_bytes())
    assert texts(tmp_path / "set") == ["a", "b", "c"]
    assert texts(tmp_path) == ["a", "b", "c"]
    (tmp_path / "more.jsonl").write_text('{"text": "d"}')
    assert sorted(texts(tmp_path)) == ["a", "b", "c", "d"]


def test_one_split_is_read_and_of_several_one_must_be_named(tmp_path: Path) -> None:
    save(tmp_path / "set" / "train", [["a"]])
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert texts(tmp_path / "set") == ["a"]
    save(tmp_path / "set" / "test", [["b"]])
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputError, match=r"holds the splits train, test \(name one, as in .*set/train\)"):
        texts(tmp_path / "set")
    assert texts(tmp_path / "set" / "train") == ["a"]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save(tmp_path / "set", [["a"], ["b"]])
    (tmp_path / "set" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(InputError, match=r"names data-00001-of-00002.arrow, which is not there"):
        find(str(tmp_path / "set"))


def test_a_json_file_of_that_name_elsewhere_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('[{"text": "of a state"}]')
    (tmp_path / "dataset_info.json").write_text('[{"text": "b"}]')
    assert sorted(texts(tmp_path)) == ["b", "of a state"]


def test_what_the_library_itself_saves(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs Hugging Face datasets")
    turns = [[{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": f"A{n}"}] for n in range(30)]
    datasets.disable_progress_bars()
    whole = datasets.Dataset.from_dict({"messages": turns})
    whole.save_to_disk(str(tmp_path / "set"), num_shards=3)
    assert texts(tmp_path / "set") == [f"Q{n}\n\nA{n}" for n in range(30)]
    assert len(read_chats([FileChats(path=str(tmp_path / "set"))], 0)) == 30
