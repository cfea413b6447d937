"""Decontamination against a plain search, and on the real evaluation sets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.data.decontaminate import Decontaminate
from llmlab.data.rules.view import strings
from llmlab.errors import InputError
from llmlab.recipe import parse


def batch_of(texts: list[str]) -> pyarrow.RecordBatch:
    columns = [
        strings(texts),
        pyarrow.array([str(n) for n in range(len(texts))]),
        pyarrow.array([0] * len(texts), pyarrow.int32()),
    ]
    return pyarrow.record_batch(columns, names=["text", "source", "origin"])


def bare(text: str) -> list[str]:
    return re.findall("[一-鿿]|[a-z0-9]+", text.lower())


TEXTS = st.lists(
    st.lists(st.sampled_from(["a", "B", "c.", "大", "海"]), max_size=9).map(" ".join), min_size=1, max_size=5
)


@settings(deadline=None, max_examples=60)
@given(TEXTS, TEXTS)
def test_against_a_plain_search(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], questions: list[str]
) -> None:
    path = tmp_path_factory.mktemp("q") / "q.jsonl"
    path.write_text("\n".join(json.dumps({"deep": [{"q": question}]}) for question in [*questions, "z z z z z"]))
    section = Decontaminate(paths=(str(path),), words=4, shortest=2)
    runs = set[tuple[str, ...]]()
    for question in map(bare, questions):
        n = min(4, len(question))
        runs |= {tuple(question[at : at + n]) for at in range(len(question) - n + 1) if n >= 2}

    def clean(text: str) -> bool:
        words = bare(text)
        return not any(tuple(words[a:b]) in runs for a in range(len(words)) for b in range(a + 2, len(words) + 1))

    kept, funnel = section.build().clear(batch_of(texts))
    assert kept["text"].to_pylist() == [text for text in texts if clean(text)]
    assert funnel.steps[0].documents_out == len(kept)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("piqa_valid.jsonl", "goal"),
        ("blimp_7x300.jsonl", "sentence_good"),
        ("cmmlu_dev.jsonl", "question"),
    ],
)
def test_questions_in_a_document_are_found_and_a_book_is_clean(shared: Path, name: str, field: str) -> None:
    section = Decontaminate(paths=(str(shared / name),))
    rows = [json.loads(line)[field] for line in (shared / name).read_text("utf-8").splitlines()]
    asked = [text for text in rows if len(bare(text)) >= section.shortest]
    book = (shared / "moby_dick.txt").read_text("utf-8")[:200_000]
    texts = [f"Before it. {text.upper()} After it." for text in asked[:50]] + [
        book[at : at + 4000] for at in range(0, 200_000, 4000)
    ]
    kept, funnel = section.build().clear(batch_of(texts))
    assert len(asked) > 50
    assert kept["text"].to_pylist() == texts[50:]
    assert funnel.dropped[f"decontaminate {name}"][0]["source"] == "0"


def test_a_list_of_paths_is_enough_and_nothing_to_find_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("too short\n")
    section = parse(Decontaminate, [str(tmp_path / "q.txt")])
    assert section.files() == [tmp_path / "q.txt"]
    with pytest.raises(InputError, match="has no text of 6 words"):
        section.build()
