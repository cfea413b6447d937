"""How likely a question is behind a passage, against the plain model's own logits; and passages ordered by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmlab.errors import InputError
from llmlab.language_model import LanguageModel, load
from llmlab.longtext.likelihood import BEFORE, BETWEEN, question_likelihood
from llmlab.longtext.read import Reader
from llmlab.longtext.retrievers import standard

PASSAGES = [
    "The mate of the Halcyon was born in Bergen, and went to sea at twelve.",
    "Oil is kept in casks below, which must be wetted twice a week.",
    "A ship of that kind carries three boats, each with a mate and a harpooneer, and two to spare.",
]
QUESTION = "Where was the mate of the Halcyon born?"


@pytest.fixture(scope="module")
def lm(smollm2: Path) -> LanguageModel:
    return load("smollm2")


def test_it_is_what_the_logits_say(lm: LanguageModel) -> None:
    found = question_likelihood(lm, QUESTION, PASSAGES)
    for passage, likelihood in zip(PASSAGES, found, strict=True):
        before = lm.tokenizer.encode(BEFORE) + lm.tokenizer.encode(passage) + lm.tokenizer.encode(BETWEEN)
        asked = lm.tokenizer.encode(f" {QUESTION}")
        logprobs = lm.logits(torch.tensor([before + asked]))[0, len(before) - 1 : -1].log_softmax(-1)
        want = float(logprobs[torch.arange(len(asked)), torch.tensor(asked)].mean())
        assert likelihood == pytest.approx(want, abs=1e-3)
    assert found.argmax() == 0


def test_a_question_that_leaves_no_room_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(InputError, match=r"question: has \d+ tokens .*holds 8192"):
        question_likelihood(lm, "why " * (lm.context + 1), PASSAGES)


def test_long_passages_are_cut_to_what_fits(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LanguageModel, "context", 48)
    (likelihood,) = question_likelihood(lm, QUESTION, ["word " * 400])
    assert likelihood < 0


def test_passages_are_ordered_anew(smollm2: Path, minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("\n\n".join(PASSAGES), encoding="utf-8")
    found = Reader(tmp_path / "notes.txt", "reranked", size=80, overlap=0).ask(QUESTION)
    assert found.retriever == "reranked" == standard()[0].kind
    assert PASSAGES[0] in found.sources[0].text
    assert [source.score for source in found.sources] == sorted((s.score for s in found.sources), reverse=True)
