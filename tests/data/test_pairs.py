"""Preference pairs: one form out of every layout in use, equal sides refused, only the last answer learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmlab.data.messages import first_question
from llmlab.data.pair_rows import Pair, pair_of_row
from llmlab.data.pairs import FilePairs, PairBatches, TaskPairs, pair_files, read_pairs, split_pairs
from llmlab.data.rows import Problem
from llmlab.data.sources import Reading
from llmlab.errors import InputError
from llmlab.tokenization.chat import Renderer

Q = {"role": "user", "content": "Q"}
A, B = ({"role": "assistant", "content": content} for content in "AB")
S = {"role": "system", "content": "S"}
GPT_A, GPT_B = ({"from": "gpt", "value": content} for content in "AB")
HUMAN = {"from": "human", "value": "Q"}


@pytest.mark.parametrize(
    ("row", "before"),
    [
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, [Q]),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "system": "S"}, [S, Q]),
        ({"question": "Q", "chosen": "A", "rejected": "B"}, [Q]),
        ({"instruction": "Q", "input": "", "output": "x", "chosen": "A", "rejected": "B"}, [Q]),
        ({"conversations": [HUMAN], "chosen": GPT_A, "rejected": GPT_B}, [Q]),
        ({"conversations": [HUMAN, GPT_B, HUMAN], "chosen": "A", "rejected": "B"}, [Q, B, Q]),
        ({"messages": [S, Q], "chosen": "A", "rejected": "B"}, [S, Q]),
        ({"prompt": [S, Q], "chosen": [A], "rejected": [B]}, [S, Q]),
        ({"chosen": [S, Q, A], "rejected": [S, Q, B]}, [S, Q]),
        ({"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"}, [Q]),
        (
            {
                "chosen": "\n\nHuman: Q\n\nAssistant: B\n\nHuman: Q\n\nAssistant: A",
                "rejected": "\n\nHuman: Q\n\nAssistant: B\n\nHuman: Q\n\nAssistant: B",
            },
            [Q, B, Q],
        ),
    ],
)
def test_layouts(row: dict[str, Any], before: list[Any]) -> None:
    assert pair_of_row(row) == Pair(before, "A", "B")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "Q", "chosen": "A"}, "has no field 'rejected'"),
        ({"prompt": "Q", "chosen": "A", "rejected": "A"}, "two equal sides"),
        ({"prompt": "Q", "chosen": "A", "rejected": " A\n"}, "two equal sides"),
        ({"prompt": "Q", "chosen": "A", "rejected": ""}, "empty answer"),
        ({"prompt": "Q", "chosen": 1, "rejected": "A"}, "side that is int, not text"),
        ({"prompt": "Q", "chosen": [], "rejected": "A"}, "empty side"),
        ({"prompt": "", "chosen": "A", "rejected": "B"}, "no question before the answers"),
        ({"chosen": "A", "rejected": "B"}, "no question before the answers"),
        ({"chosen": [Q, A], "rejected": [{**Q, "content": "other"}, B]}, "differ before the last answer"),
        ({"chosen": [Q, A], "rejected": [Q, A, Q]}, "does not end with an answer"),
        ({"conversations": [HUMAN], "chosen": {"from": "who", "value": "A"}, "rejected": GPT_B}, "message by 'who'"),
        ({"messages": [Q], "chosen": "A\ud800", "rejected": "B"}, "surrogate"),
    ],
)
def test_rows_that_are_no_pairs(row: dict[str, Any], says: str) -> None:
    problem = pair_of_row(row)
    assert isinstance(problem, Problem)
    assert says in problem.what


@pytest.mark.parametrize(
    ("name", "pairs", "skipped", "why"),
    [
        ("hh_rlhf/harmless_base_1500.jsonl", 1496, 4, "has an empty answer"),
        ("llamafactory/dpo_en_demo.json", 300, 0, ""),
        ("llamafactory/dpo_zh_demo.json", 300, 0, ""),
        ("medicalgpt/dpo_zh_500.jsonl", 500, 0, ""),
        ("rasbt/instruction_data_with_preference.json", 1094, 6, "has two equal sides"),
    ],
)
def test_real_files(shared: Path, name: str, pairs: int, skipped: int, why: str) -> None:
    reading = Reading()
    found = read_pairs([FilePairs(path=str(shared / name))], 0, reading)
    assert (len(found), reading.skipped) == (pairs, skipped)
    assert all(why in example for example in reading.examples)
    assert all(pair.messages[-1]["role"] == "user" and pair.chosen != pair.rejected for pair in found)


def test_too_many_equal_sides_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        "\n".join(json.dumps({"prompt": f"Q{i}", "chosen": "A", "rejected": "AB"[i > 1]}) for i in range(50))
    )
    with pytest.raises(InputError, match="2 of 50 rows cannot be used: line 1 has two equal sides"):
        read_pairs([FilePairs(path=str(path))], 0)
    source = FilePairs(path=str(path), bad_rows=0.1)
    assert len(read_pairs([source], 0)) == 48
    assert pair_files([source, TaskPairs()]) == [path]


def test_tasks_are_tagged_and_split_by_prompt() -> None:
    pairs = read_pairs([TaskPairs(n=400)], 0)
    assert {pair.tag for pair in pairs} == {"correct", "manner"}
    train, held = split_pairs(pairs, 0.2, 0)
    assert len(train) + len(held) == 400
    assert {first_question(pair.messages) for pair in train}.isdisjoint(first_question(p.messages) for p in held)


# ---------------------------------------------------------------- batches


def _batches(renderer: Renderer, n: int = 7, context: int = 80) -> PairBatches:
    history = [Q, {"role": "assistant", "content": "earlier"}]
    pairs = [Pair([*history, Q], f"ship {i}", f"sea sea {i}", tag=f"t{i}") for i in range(n)]
    return PairBatches(pairs, renderer, context, batch_size=3, micro_batch=2, seed=0)


def test_only_the_two_last_answers_are_learnt(renderer: Renderer) -> None:
    tokenizer = renderer.tokenizer
    first, *_ = _batches(renderer).once()
    assert first.tags == ("t0", "t1")
    learnt = [tokenizer.decode(targets[targets != -100].tolist()) for targets in first.targets_BT]
    assert learnt == [f"{answer}<|im_end|>" for answer in ("ship 0", "ship 1", "sea sea 0", "sea sea 1")]
    # A reward is read at the stop token, where a generated answer ends too.
    stop = tokenizer.token_id("<|im_end|>")
    assert first.ids_BT[torch.arange(4), first.last_B].tolist() == [stop] * 4
    assert "earlier" in tokenizer.decode(first.ids_BT[0].tolist())


def test_stopped_at_every_step_equals_unbroken(renderer: Renderer) -> None:
    whole = _batches(renderer)
    unbroken = [[(b.ids_BT.tolist(), b.tags) for b in whole.next()] for _ in range(8)]
    saved, resumed = _batches(renderer).state(), []
    for _ in range(8):  # three epochs of seven in steps of three
        again = _batches(renderer)
        again.load(saved)
        resumed.append([(b.ids_BT.tolist(), b.tags) for b in again.next()])
        saved = again.state()
    assert resumed == unbroken
    assert [len(step) for step in unbroken] == [2] * 8
    with pytest.raises(InputError, match="resume with the same data"):
        _batches(renderer, 8).load(saved)


def test_pairs_that_are_cut_are_refused(renderer: Renderer) -> None:
    with pytest.raises(InputError, match="7 of 7 do not fit into the context of 20 tokens"):
        _batches(renderer, context=20)
    short = [Pair([Q], "A", "B", "good")] * 19
    long = Pair([Q], "A", "ship " * 80, "p.jsonl:20")
    batches = PairBatches([*short, long], renderer, 60, 2, 2, 0)
    assert (batches.refused, len(batches.tags)) == (1, 19)
    with pytest.raises(InputError, match=r"2 of 20 do not fit .*as in p.jsonl:20"):
        PairBatches([*short[1:], long, long], renderer, 60, 2, 2, 0)
    with pytest.raises(InputError, match="there are none"):
        PairBatches([], renderer, 60, 2, 2, 0)
