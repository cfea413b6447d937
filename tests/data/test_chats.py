"""Chats: every layout gives the messages it means, broken rows are named, batches resume to the bit."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.data.batch import Batch
from llmlab.data.chats import (
    BundledChats,
    Chat,
    ChatBatches,
    FileChats,
    TaskChats,
    read_chats,
    split_chats,
)
from llmlab.data.layouts import chat_of_row
from llmlab.data.messages import first_question
from llmlab.data.rows import Problem
from llmlab.data.sources import Reading
from llmlab.errors import InputError
from llmlab.recipe import parse
from llmlab.tokenization.chat import Renderer

Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
S = {"role": "system", "content": "S"}


def _chat(question: str, answer: str) -> Chat:
    return Chat([{"role": "user", "content": question}, {"role": "assistant", "content": answer}], question)


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [Q, A]}, [Q, A]),
        ({"messages": [S, Q, A, Q]}, [S, Q, A]),  # a question at the end that nobody answers
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"}, [S, Q, A]),
        ({"conversations": [{"role": "User", "content": "Q"}, {"role": "Assistant", "content": "A"}]}, [Q, A]),
        ({"turns": ["Q", "A", "another A"], "topic": "t"}, [Q, A]),
        ({"instruction": "Q", "input": "", "output": "A"}, [Q, A]),
        ({"instruction": "Q", "output": "A", "input": None}, [Q, A]),
        ({"instruction": "Q", "input": "I", "output": "A"}, [{**Q, "content": "Q\n\nI"}, A]),
        ({"instruction": "Q", "output": "A", "history": [["Q", "A"]], "system": "S"}, [S, Q, A, Q, A]),
        ({"prompt": "Q", "completion": "A"}, [Q, A]),
        ({"prompt": [S, Q], "completion": [A]}, [S, Q, A]),
        ({"question": "Q", "answer": "A"}, [Q, A]),
        ({"messages": [Q, Q, A]}, [{**Q, "content": "Q\n\nQ"}, A]),  # one speaker in a row
        ({"messages": [Q, {**A, "content": ""}]}, [Q, {**A, "content": ""}]),  # an empty answer is one
    ],
)
def test_layouts(row: dict[str, Any], expected: list[Any]) -> None:
    assert chat_of_row(row) == expected


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({}, "none of the known fields"),
        ({"messages": []}, "no list of messages"),
        ({"messages": "Q"}, "no list of messages"),
        ({"messages": [Q, {"role": "assistant"}]}, "has a message that has no field 'content'"),
        ({"messages": [Q, {"role": "assistant", "content": 3}]}, "field 'content' is int, not text"),
        ({"messages": [Q, "A"]}, "a message that is str, not an object"),
        ({"messages": [{"role": "narrator", "content": "x"}, A]}, "a message by 'narrator'"),
        ({"messages": [Q]}, "no question that is answered"),
        ({"messages": [A]}, "no question that is answered"),
        ({"messages": [{**Q, "content": "\ud800"}, A]}, "half of a surrogate pair"),
        ({"turns": ["Q"]}, "fewer than two turns"),
        ({"turns": ["Q", None]}, "field 'answer' is NoneType"),
        ({"instruction": "Q", "output": None}, "field 'output' is NoneType"),
        ({"instruction": "Q", "output": "A", "history": ["x"]}, "no list of .question, answer"),
        ({"prompt": ["x"], "completion": "A"}, "field 'prompt' is list"),
        ({"question": "", "answer": "A"}, "no question that is answered"),
    ],
)
def test_rows_that_mean_nothing(row: dict[str, Any], says: str) -> None:
    problem = chat_of_row(row)
    assert isinstance(problem, Problem)
    assert says.replace(".question", "[question") in problem.what


def test_a_named_layout_reads_only_that() -> None:
    row = {"messages": [Q, A], "question": "other", "answer": "B"}
    assert chat_of_row(row, "question") == [{**Q, "content": "other"}, {**A, "content": "B"}]
    assert chat_of_row({"question": "x", "answer": "y"}, "alpaca") == Problem("has no field 'instruction'")


@pytest.mark.parametrize(
    ("name", "rows", "turns"),
    [
        ("llamafactory/alpaca_en_demo.json", 999, {2}),
        ("llamafactory/identity.json", 91, {2}),
        ("llamafactory/kto_en_demo.json", 150, None),
        ("medicalgpt/medical_sft_1k.jsonl", 1000, {2}),
        ("medicalgpt/sharegpt_zh_200.jsonl", 200, None),
        ("gsm8k_train.jsonl", 7473, {2}),
        ("rasbt/instruction_data.json", 1100, {2}),
    ],
)
def test_real_files(shared: Path, name: str, rows: int, turns: set[int] | None) -> None:
    reading = Reading()
    chats = read_chats([FileChats(path=str(shared / name))], 0, reading)
    bad = 150 if "kto" in name else 0  # answers marked bad
    assert (len(chats), reading.rows, reading.skipped, reading.files) == (rows, rows + bad, 0, 1)
    assert all(chat.messages[-1]["role"] == "assistant" for chat in chats)
    assert turns is None or {len(chat.messages) for chat in chats} == turns


def test_bundled_pairs_and_their_prompts() -> None:
    chats = read_chats([BundledChats()], 0)
    assert len(chats) == 2026
    assert len({first_question(chat.messages) for chat in chats}) == 749
    train, held = split_chats(chats, 0.1, 0)
    assert {first_question(chat.messages) for chat in train}.isdisjoint(first_question(c.messages) for c in held)
    assert 50 < len({first_question(chat.messages) for chat in held}) < 105
    assert len(read_chats([BundledChats(name="chatterbot_zh")], 0)) == 467


# ---------------------------------------------------------------- files


def _rows(n: int) -> list[dict[str, str]]:
    return [{"ask": f"Q{i}", "say": f"A{i}"} for i in range(n)]


def _write(folder: Path, kind: str, rows: list[dict[str, str]]) -> Path:
    path = folder / f"data.{kind}"
    match kind:
        case "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)) + "\n")
        case "jsonl.gz":
            path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
        case "json":
            path.write_text(json.dumps(rows))
        case "csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case "parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
def test_every_format_with_the_users_own_names(tmp_path: Path, kind: str) -> None:
    _write(tmp_path, kind, _rows(5))
    source = parse(FileChats, {"path": str(tmp_path), "columns": {"prompt": "ask", "completion": "say"}, "system": "S"})
    chats = read_chats([source], 0)
    assert chats[3].messages == [S, {**Q, "content": "Q3"}, {**A, "content": "A3"}]
    first = {"csv": 2}.get(kind, 1)
    assert [chat.source for chat in chats] == [f"data.{kind}:{first + i}" for i in range(5)]
    limited = source.model_copy(update={"limit": 2})
    assert [chat.source for chat in read_chats([limited], 0)] == [chat.source for chat in chats[:2]]


def test_broken_lines_are_counted_named_and_bounded(tmp_path: Path) -> None:
    good = [json.dumps({"question": f"Q{i}", "answer": "A"}) for i in range(199)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*good[:7], '{"question": "Q"', *good[7:]]))
    reading = Reading()
    assert len(read_chats([FileChats(path=str(path))], 0, reading)) == 199
    assert (reading.rows, reading.skipped) == (200, 1)
    assert reading.examples[0].startswith("rows.jsonl:8 is not JSON")
    path.write_text("\n".join([*good[:7], "{", '{"question": 1, "answer": "A"}', "[]", *good[7:]]))
    with pytest.raises(InputError, match=r"3 of 202 rows cannot .* line 8 is not JSON.*line 9 field 'question' is"):
        read_chats([FileChats(path=str(path))], 0)
    assert len(read_chats([FileChats(path=str(path), bad_rows=0.02)], 0)) == 199


@pytest.mark.parametrize(
    ("content", "fields", "says"),
    [
        ('{"ask": "Q", "say": "A"}', {}, "the columns are ask, say; name yours by columns"),
        ('{"ask": "Q", "say": "A"}', {"columns": {"prompt": "asks", "completion": "say"}}, "did you mean 'ask'"),
        ("", {}, "holds no rows"),
        ("\x00\x01", {}, "binary file"),
    ],
)
def test_files_that_cannot_be_meant(tmp_path: Path, content: str, fields: dict[str, Any], says: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(InputError, match=says):
        read_chats([FileChats(path=str(tmp_path / "x.jsonl"), **fields)], 0)


def test_other_paths_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(InputError, match="has no file with rows"):
        read_chats([FileChats(path=str(tmp_path / "notes.txt"))], 0)
    with pytest.raises(InputError, match="no such file"):
        read_chats([FileChats(path=str(tmp_path / "nowhere.jsonl"))], 0)
    (tmp_path / "half.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="no whole parquet file"):
        read_chats([FileChats(path=str(tmp_path / "half.parquet"))], 0)


# ---------------------------------------------------------------- batches


def _batches(renderer: Renderer, n: int = 10, **changed: Any) -> ChatBatches:
    chats = [_chat(f"sea {i}", "ship " * (i % 4)) for i in range(n)]
    settings = {"context": 64, "batch_size": 4, "micro_batch": 3, "seed": 0} | changed
    return ChatBatches(chats, renderer, **settings)


def test_what_is_learnt_in_a_batch(renderer: Renderer) -> None:
    tokenizer = renderer.tokenizer
    [batch] = _batches(renderer, 4, micro_batch=4).once()
    for i in range(4):
        mine = batch.at.document == i
        targets = batch.targets_BT[mine]
        assert tokenizer.decode(targets[targets != -100].tolist()) == "ship " * i + "<|im_end|>"
        assert batch.ids_BT[mine][-1] == tokenizer.token_id("<|im_end|>")  # nothing after the stop
    assert [_chats(b) for b in _batches(renderer).next()] == [3, 1]
    assert sum(map(_chats, _batches(renderer).once())) == 10


def _chats(batch: Batch) -> int:
    return len(set(batch.at.document[batch.at.real].tolist()))


def _ids(batches: list[Any]) -> list[Any]:
    return [(batch.ids_BT.tolist(), batch.targets_BT.tolist()) for batch in batches]


def test_stopped_at_every_step_equals_unbroken(renderer: Renderer) -> None:
    """Over three epochs of ten rows in steps of four: edges within a step included (traps 36, 37)."""
    whole = _batches(renderer)
    unbroken = [_ids(whole.next()) for _ in range(8)]
    saved, resumed = _batches(renderer).state(), []
    for _ in range(8):
        again = _batches(renderer)
        again.load(saved)
        resumed.append(_ids(again.next()))
        saved = again.state()
    assert resumed == unbroken
    assert whole.order.epochs == 3.2


def test_resume_with_other_chats_is_refused(renderer: Renderer) -> None:
    saved = _batches(renderer).state()
    for other in (_batches(renderer, 11), _batches(renderer, context=63, refused=1.0)):
        if len(other.rows) == 10 and other.rows.fingerprint == _batches(renderer).rows.fingerprint:
            other.load(saved)  # a context that cuts nothing changes nothing
        else:
            with pytest.raises(InputError, match="resume with the same data"):
                other.load(saved)


def test_answers_cut_away_are_counted_and_bounded(renderer: Renderer) -> None:
    """Traps 5 and 6: a row without a target never reaches the loss."""
    long = _chat("sea " * 60, "never seen")
    cut = _chat("sea", "ship " * 60)
    chats = [_chat("sea", "ship")] * 18 + [cut, long]
    batches = ChatBatches(chats, renderer, 40, 4, 4, 0)
    assert batches.fit.figures() | {"tokens": 0, "learnt": 0} == {
        "rows": 19,
        "cut": 1,
        "refused": 1,
        "tokens": 0,
        "learnt": 0,
    }
    assert all((batch.targets_BT != -100).any(1).all() for batch in batches.once())
    assert max(batch.ids_BT.shape[1] for batch in batches.once()) == 40
    with pytest.raises(InputError, match=r"2 of 20 answers are cut away entirely .* 40 tokens, as in sea"):
        ChatBatches([*chats[1:], long], renderer, 40, 4, 4, 0)
    with pytest.raises(InputError, match="there are none"):
        ChatBatches([], renderer, 40, 4, 4, 0)


def test_a_template_that_never_stops_is_refused(renderer: Renderer) -> None:
    from llmlab.tokenization.tokenizer import Tokenizer

    tokenizer = Tokenizer(renderer.tokenizer._marking, eos="<|endoftext|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    with pytest.raises(InputError, match="nothing would teach it to stop"):
        ChatBatches([_chat("a", "b")], Renderer(tokenizer), 40, 4, 4, 0)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.text("ship 鲸<|im_end>")), min_size=1))
def test_any_text_is_learnt_as_it_is(renderer: Renderer, pairs: list[tuple[str, str]]) -> None:
    batches = ChatBatches([_chat(q, a) for q, a in pairs], renderer, 4000, 2, 2, 0)
    packed = [(batch, number) for batch in batches.once() for number in range(_chats(batch))]
    learnt = [(t := batch.targets_BT[batch.at.document == number])[t != -100] for batch, number in packed]
    stop = torch.tensor([renderer.tokenizer.token_id("<|im_end|>")])
    for (_, answer), targets in zip(pairs, learnt, strict=True):
        assert renderer.tokenizer.decode(targets[:-1].tolist()) == answer
        assert torch.equal(targets[-1:], stop)


def test_tasks_come_in_two_manners_and_split_alike() -> None:
    source = parse(TaskChats, {"n": 300, "kinds": ["copy", "count"], "courteous": 0.5})
    chats = read_chats([source], 0)
    polite = sum(chat.messages[-1]["content"].endswith("Happy to help!") for chat in chats)
    assert 110 < polite < 190
    assert {chat.source for chat in chats} == {"tasks:copy", "tasks:count"}
    assert source.files() == []
    with pytest.raises(InputError, match=r"kinds.*did you mean 'spell'"):
        parse(TaskChats, {"kinds": ["spel"]})


def test_a_batch_says_which_chats_it_holds(renderer: Renderer) -> None:
    chats = [Chat(_chat(f"sea {i}", "ship").messages, f"my.jsonl:{i + 1}") for i in range(5)]
    long = Chat(_chat("sea " * 100, "ship").messages, "my.jsonl:99")  # cut away, so the rows after it move up
    batches = ChatBatches([*chats[:1], long, *chats[1:]], renderer, 64, 4, 3, 0, refused=0.5)
    assert [batch.where for batch in batches.once()] == ["my.jsonl:1, my.jsonl:2, my.jsonl:3", "my.jsonl:4, my.jsonl:5"]
