"""Layouts of questions, and the likelihood of each answer."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llmlab.errors import InputError
from llmlab.evaluation.choices import Item, likelihoods, read_items
from llmlab.model.transformer import Architecture
from llmlab.tokenization.train import BPE, train_tokenizer


def file_of(tmp_path, *rows):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "item"),
    [
        ({"question": "2+2?", "choices": ["3", "4"], "answer": 1}, Item("Question: 2+2?\nAnswer:", (" 3", " 4"), 1)),
        ({"question": "2+2?", "choices": ["3", "4"], "answer": "B"}, Item("Question: 2+2?\nAnswer:", (" 3", " 4"), 1)),
        ({"question": "2+2?", "choices": ["3", "4"], "answer": "4"}, Item("Question: 2+2?\nAnswer:", (" 3", " 4"), 1)),
        ({"goal": "g", "sol1": "a", "sol2": "b", "label": 0}, Item("Question: g\nAnswer:", (" a", " b"), 0)),
        (
            {"question": "何者?", "A": "胸", "B": "腹", "C": "腿", "answer": "C", "subject": "农"},
            Item("何者?\n答案：", ("胸", "腹", "腿"), 2, "农"),
        ),
        ({"sentence_good": "He is.", "sentence_bad": "He are.", "UID": "u"}, Item("", ("He is.", "He are."), 0, "u")),
        (
            {"examples": [{"input": "q", "target_scores": {"a": 0, "b": 1}}]},
            Item("Question: q\nAnswer:", (" a", " b"), 1),
        ),
    ],
)
def test_each_layout_is_read(tmp_path, row, item):
    assert read_items(file_of(tmp_path, row)) == [item]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "q", "choices": ["a"], "answer": 0}, "fewer than two answers"),
        ({"question": "q", "choices": ["a", " "], "answer": 0}, "an empty one"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "the right answer is 2 .a number from 0 to 1"),
        ({"question": "q", "choices": ["a", "b"], "answer": "Z"}, "the right answer is 'Z'"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "the right answer is True"),
        ({"text": "q"}, "is in no layout of questions: its fields are text"),
        ([1], "is no object"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path, row, told):
    good = {"question": "q", "choices": ["a", "b"], "answer": 0}
    with pytest.raises(InputError, match=rf"questions\.jsonl:2: .*{told}"):
        read_items(file_of(tmp_path, good, row))


def test_no_question_and_no_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no question"):
        read_items(file_of(tmp_path))
    with pytest.raises(InputError, match="no such file"):
        read_items(tmp_path / "nothing.jsonl")


def test_a_limit_takes_the_first(tmp_path):
    rows = [{"question": f"{n}", "choices": ["a", "b"], "answer": 0} for n in range(5)]
    assert [item.prompt for item in read_items(file_of(tmp_path, *rows), 2)] == [
        "Question: 0\nAnswer:",
        "Question: 1\nAnswer:",
    ]


@pytest.mark.parametrize(
    ("name", "count", "choices"), [("piqa_valid", 1838, 2), ("cmmlu_dev", 335, 4), ("blimp_7x300", 2100, 2)]
)
def test_the_published_files_are_read(shared, name, count, choices):
    items = read_items(shared / f"{name}.jsonl")
    assert len(items) == count
    assert {len(item.choices) for item in items} == {choices}
    assert len(read_items(shared / "bigbench" / "date_understanding.json")) == 369


def test_a_choice_is_as_likely_as_its_tokens_behind_the_prompt():
    tokenizer = train_tokenizer(BPE(vocab_size=280), iter(["the cat sat on the mat"] * 3))
    model = Architecture(layers=1, dim=32, context=64, initial_std=0.4).build(280).eval()
    items = [Item("the cat", (" sat", " on the mat"), 0), Item("", ("cat", "mat the"), 1)]
    found = likelihoods(model, tokenizer, items)
    for item, answer in zip(items, found, strict=True):
        for choice, logprob, size in zip(item.choices, answer.logprobs, answer.bytes, strict=True):
            before = [tokenizer.eos_id, *tokenizer.encode(item.prompt)]
            ids = before + tokenizer.encode(choice)
            with torch.no_grad():
                nats = F.cross_entropy(model(torch.tensor([ids[:-1]]))[0], torch.tensor(ids[1:]), reduction="none")
            assert logprob == pytest.approx(-float(nats[len(before) - 1 :].sum()), rel=1e-4)
            assert size == len(choice.encode())
    assert np.all(found[0].tokens > 0)
