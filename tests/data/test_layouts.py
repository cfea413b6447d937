"""Layouts: each file of real data is told by its fields, read by who can use it and refused by name by who cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmlab.data.chats import FileChats, read_chats
from llmlab.data.layouts import LAYOUTS, chat_of_row, layout_of, layout_of_file
from llmlab.data.pairs import FilePairs, read_pairs
from llmlab.data.sources import Files, Reading, read
from llmlab.errors import InputError

REAL = {
    "llamafactory/c4_demo.jsonl": ("text", 300),
    "chinese_poetry/lunyu.json": ("text", 20),
    "chinese_poetry/poet_tang_0.json": ("text", 1000),
    "chinese_poetry/songci_300.json": ("text", 280),
    "chinese_poetry/tangshi_300.json": ("text", 366),
    "llamafactory/alpaca_en_demo.json": ("alpaca", 999),
    "llamafactory/alpaca_zh_demo.json": ("alpaca", 1000),
    "llamafactory/identity.json": ("alpaca", 91),
    "rasbt/instruction_data.json": ("alpaca", 1100),
    "medicalgpt/medical_sft_1k.jsonl": ("sharegpt", 1000),
    "medicalgpt/sharegpt_zh_200.jsonl": ("sharegpt", 200),
    "gsm8k_train.jsonl": ("question", 7473),
    "self_instruct_seed_tasks.jsonl": ("self_instruct", 175),
    "belle_zh_seed_tasks.jsonl": ("self_instruct", 175),
    "chatterbot_en.jsonl": ("chatterbot", 2026),
    "chatterbot_zh.jsonl": ("chatterbot", 467),
    "llamafactory/dpo_en_demo.json": ("dpo", 300),
    "llamafactory/dpo_zh_demo.json": ("dpo", 300),
    "medicalgpt/dpo_zh_500.jsonl": ("dpo", 500),
    "rasbt/instruction_data_with_preference.json": ("dpo", 1094),
    "hh_rlhf/harmless_base_1500.jsonl": ("hh", 1496),
    "llamafactory/kto_en_demo.json": ("kto", 150),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_told_and_become_plain_text(shared: Path, name: str) -> None:
    layout, documents = REAL[name]
    assert layout_of_file(shared / name).name == layout
    found = list(read([Files(path=str(shared / name), bad_rows=0.02)], Reading()))
    assert len(found) == documents
    assert all(document.text for document in found)


@pytest.mark.parametrize("name", ["piqa_valid.jsonl", "blimp_7x300.jsonl", "cmmlu_dev.jsonl"])
def test_evaluation_sets_are_no_training_text(shared: Path, name: str) -> None:
    assert layout_of_file(shared / name).use == "evaluation"
    with pytest.raises(InputError, match="it belongs to an evaluation set"):
        list(read([Files(path=str(shared / name))], Reading()))
    with pytest.raises(InputError, match="it belongs to an evaluation set"):
        read_chats([FileChats(path=str(shared / name))], 0)


def test_where_no_layout_fits_the_columns_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, {"id": 1, "body": "B"})
    with pytest.raises(InputError, match=r"is in no known layout: its columns are id, body \(known: text; question"):
        layout_of_file(Path(path))


def write(folder: Path, *rows: dict[str, Any]) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"text": "a", "messages": []}, "text"),  # a column of text goes before all
        ({"messages": [Q, A], "label": True}, "kto"),
        ({"messages": [Q, A], "label": "harmless"}, "messages"),  # no truth value: some other label
        ({"prompt": "Q", "completion": "A", "label": False}, "kto"),
        ({"instruction": "Q", "output": "A", "chosen": "A", "rejected": "B"}, "dpo"),
        ({"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"}, "hh"),
        ({"label": True}, None),
    ],
)
def test_one_order_of_layouts(row: dict[str, Any], name: str | None) -> None:
    found = layout_of(row)
    assert (found and found.name) == name


def test_dialogues_as_text(tmp_path: Path) -> None:
    def texts(*rows: dict[str, Any]) -> list[str]:
        return [document.text for document in read([Files(path=write(tmp_path, *rows))], Reading())]

    assert texts({"instruction": "Q", "input": "I", "output": "A"}) == ["Q\n\nI\n\nA"]
    assert texts({"prompt": "Q", "chosen": "A", "rejected": "B"}) == ["Q\n\nA"]
    marked = [{"messages": [Q, {**A, "content": word}], "label": word == "good"} for word in ("good", "bad")]
    assert texts(*marked) == ["Q\n\ngood"]


def test_kto_rows_teach_what_is_marked_good_and_are_refused_as_pairs(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"messages": [Q, A], "label": True},
        {"messages": [Q, {**A, "content": "bad"}], "label": False},
        {"prompt": "Q", "completion": "B", "label": True},
    )
    reading = Reading()
    found = [chat.messages[-1]["content"] for chat in read_chats([FileChats(path=path)], 0, reading)]
    assert (found, reading.skipped) == (["A", "B"], 0)
    with pytest.raises(InputError, match=r"it is a row of KTO: .*no preference stage learns yet; sft learns"):
        read_pairs([FilePairs(path=path)], 0)


def test_rows_in_the_wrong_place_are_told_where_they_belong(tmp_path: Path) -> None:
    pair = write(tmp_path, {"prompt": "Q", "chosen": "A", "rejected": "B"})
    with pytest.raises(InputError, match="it is a row of dpo: reward and dpo read it"):
        read_chats([FileChats(path=pair)], 0)
    chat = write(tmp_path, {"messages": [Q, A]})
    with pytest.raises(InputError, match="it is a row of messages: sft reads it"):
        read_pairs([FilePairs(path=chat)], 0)


def test_rows_without_a_target_are_named(tmp_path: Path) -> None:
    path = write(
        tmp_path, {"instruction": "Q", "output": "A"}, {"instruction": "Q"}, {"instruction": "Q", "output": None}
    )
    with pytest.raises(InputError, match=r"2 of 3 rows .*: line 2 has none .*; line 3 field 'output'"):
        read_chats([FileChats(path=path)], 0)


def test_every_layout_of_chats_can_be_named() -> None:
    for layout in LAYOUTS:
        if layout.use == "chats":
            assert not isinstance(chat_of_row({}, layout.name), list)
