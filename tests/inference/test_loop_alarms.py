"""How often the watch over loops is wrong about text that people wrote, poems, plays and lists included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmlab
from llmlab.inference.loops import Looping, alarms

TOKENS = 20_000  # of each source
# Sources by which the defaults of `Looping` were chosen; the other half only tests them.
CHOSEN_BY = ("moby_dick", "tinyshakespeare", "c4", "song_lyrics", "chatterbot_en", "instructions", "alpaca")
TESTED_BY = ("sanguo_yanyi", "wiki", "gsm8k", "tang_poems", "chatterbot_zh", "instructions_zh", "analects", "dialogues")


def _texts(shared: Path, source: str) -> Iterator[str]:
    def lines(name: str) -> Iterator[Any]:
        return map(json.loads, (shared / name).read_text(encoding="utf-8").splitlines())

    def whole(name: str) -> Any:
        return json.loads((shared / name).read_text(encoding="utf-8"))

    def tasks(name: str) -> Iterator[str]:
        for row in lines(name):
            yield "\n".join([row["instruction"], *(f"{one['input']}\n{one['output']}" for one in row["instances"])])

    match source:
        case "moby_dick" | "sanguo_yanyi" | "tinyshakespeare":
            yield (shared / f"{source}.txt").read_text(encoding="utf-8")[: 4 * TOKENS]
        case "c4":
            yield from (row["text"] for row in lines("llamafactory/c4_demo.jsonl"))
        case "wiki":
            yield from (shared / "llamafactory/wiki_demo.txt").read_text(encoding="utf-8").splitlines()
        case "song_lyrics" | "tang_poems" | "analects":
            names = {"song_lyrics": "songci_300", "tang_poems": "poet_tang_0", "analects": "lunyu"}
            yield from ("\n".join(row["paragraphs"]) for row in whole(f"chinese_poetry/{names[source]}.json"))
        case "chatterbot_en" | "chatterbot_zh":
            yield from ("\n".join(row["turns"]) for row in lines(f"{source}.jsonl"))
        case "instructions" | "instructions_zh":
            yield from tasks(
                "self_instruct_seed_tasks.jsonl" if source == "instructions" else "belle_zh_seed_tasks.jsonl"
            )
        case "alpaca":
            yield from (f"{row['instruction']}\n{row['output']}" for row in whole("llamafactory/alpaca_en_demo.json"))
        case "gsm8k":
            yield from (f"{row['question']}\n{row['answer']}" for row in lines("gsm8k_train.jsonl"))
        case _:
            yield from (row["chosen"] for row in lines("hh_rlhf/harmless_base_1500.jsonl"))


@pytest.fixture(scope="module")
def rows(shared: Path, smollm2: Path) -> dict[str, list[int]]:
    """Of each source its first documents in SmolLM2's tokens, between them an id that comes once."""
    tokenizer, found = llmlab.load(smollm2).tokenizer, dict[str, list[int]]()
    for source in (*CHOSEN_BY, *TESTED_BY):
        ids = list[int]()
        for number, text in enumerate(_texts(shared, source)):
            ids += [*tokenizer.encode(text), -1 - number]
            if len(ids) > TOKENS:
                break
        found[source] = ids[:TOKENS]
    return found


def test_false_alarms_are_rarer_than_one_in_a_hundred_thousand_tokens(rows: dict[str, list[int]]) -> None:
    found = {source: len(alarms(ids)) for source, ids in rows.items()}
    for half in (CHOSEN_BY, TESTED_BY):
        tokens = sum(len(rows[source]) for source in half)
        assert sum(found[source] for source in half) <= tokens / 100_000, found
    soon = {source: len(alarms(ids, Looping(repeats=2, tokens=12))) for source, ids in rows.items()}
    assert sum(soon.values()) > 10, "the bound says something: twelve tokens that stand there twice are common"


def test_a_loop_put_into_real_text_is_found_with_its_third_saying(rows: dict[str, list[int]]) -> None:
    looping = Looping()
    for source, ids in rows.items():
        for period in np.geomspace(1, looping.longest, 6).astype(int).tolist():
            first = max(looping.tokens - period, 2 * period)
            text = [*ids[:1000], *(list(range(10**6, 10**6 + period)) * (2 + looping.tokens // period + 1))]
            assert alarms(text)[-1] == 1000 + period + first - 1, source
