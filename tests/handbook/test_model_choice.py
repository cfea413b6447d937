"""Question 9: its tasks and readers, what its trial would have to say, and models chosen by what was measured."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from llmlab.handbook import choosing, label_tasks, q09_which_model, readers
from llmlab.handbook.choosing import KINDS, MEASURES, choose
from llmlab.handbook.label_tasks import FIRST, LABELS, LAST, TESTED, Example, sentences, task
from llmlab.handbook.question import Figures, Verdict, load
from llmlab.handbook.raced import Told, race
from llmlab.handbook.readers import Reader, balanced, probe, trained_here, tuned
from llmlab.handbook.runner import shipped
from llmlab.inference import engine
from llmlab.language_model import load as load_model
from llmlab.tokenization.tokenizer import Tokenizer

SEEDS = range(5)


def recorded() -> Figures:
    record = shipped(9)
    assert record is not None
    return dict(record["figures"])


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize("name", LABELS)
def test_tasks_have_all_classes_from_the_first_ten_labels_on(name: str) -> None:
    given = task(name, 3)
    assert len(given.test) == TESTED[name]
    assert len(given.train) >= max(LABELS[name])
    assert not set(given.train) & set(given.test)
    for count in LABELS[name]:
        assert min(Counter(one.label for one in given.train[:count])[label] for label in range(given.classes)) >= 2
    assert task(name, 3) == given
    assert task(name, 4) != given


def test_a_name_is_told_by_its_own_side_alone() -> None:
    """The clause of the first name stands behind it, that of the second before it, and each is of its class."""
    drawn = sentences(300, 5)
    for first, second in drawn:
        assert first.before == ""
        assert second.after == "."
        assert [any(f" {says} " in first.after for says in some) for some in FIRST].index(True) == first.label
        assert [any(second.before.endswith(f" {says}") for says in some) for some in LAST].index(True) == second.label
        assert f"{first.word}{first.after}" == f"{second.before} {second.word}."


def test_what_is_tested_is_no_text_to_pretrain_on() -> None:
    openings = {one.before for one in task("topics", 0).test}
    assert not openings & set(label_tasks.replies())
    asked = {f"{one.before} {one.word}{one.after}".strip() for one in task("entities", 0).test}
    assert not asked & set(label_tasks.log())


def test_a_name_that_was_met_before_says_nothing() -> None:
    """Names recur now and then; then their kinds agree as often as chance has it."""
    met = {one.word: one.label for pair in sentences(8000, 1) for one in pair}
    again = [met[one.word] == one.label for pair in sentences(4000, 2) for one in pair if one.word in met]
    assert len(again) > 300
    assert abs(sum(again) / len(again) - 1 / 3) < 0.1


# ---------------------------------------------------------------- readers


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_word_is_read_at_its_last_token(kind: str) -> None:
    reader = trained_here(kind, 0, 0)
    example = Example("the gale sank the", "pequod", " and her crew.", 2)
    ids, place = reader.row(example)
    assert place is not None
    assert reader.tokenizer.decode(ids[: place + 1]) == "the gale sank the pequod"
    assert reader.tokenizer.decode(ids) == "the gale sank the pequod and her crew."
    together = reader.read(
        [example, Example("", "x", " is a much longer text than that of the others, so they are padded.", 0)]
    )
    assert (together[:1] - reader.read([example])).abs().max() < 1e-5


def test_encoder_and_decoder_differ_in_who_sees_whom_alone() -> None:
    encoder, decoder = trained_here("encoder", 0, 1).model, trained_here("decoder", 0, 1).model
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), decoder.parameters(), strict=True))
    left, right = Example("a b", "c", " d.", 0), Example("a b", "c", " e.", 0)
    for kind, heard in (("encoder", True), ("decoder", False)):
        vectors_ND = trained_here(kind, 0, 1).read([left, right])
        assert ((vectors_ND[0] - vectors_ND[1]).abs().max() > 1e-6) == heard


def test_pretraining_moves_the_weights_and_is_repeatable() -> None:
    first, second = trained_here("encoder", 2, 0).model, trained_here("encoder", 2, 0).model
    start = trained_here("encoder", 0, 0).model
    pairs = zip(first.parameters(), second.parameters(), start.parameters(), strict=True)
    moved = [(torch.equal(a, b), torch.equal(a, c)) for a, b, c in pairs]
    assert all(same for same, _ in moved)
    assert not all(same for _, same in moved)


def test_a_probe_against_ridge_regression_written_out() -> None:
    source = torch.Generator().manual_seed(0)
    x_ND, test_ND = (torch.randn(n, 4, generator=source, dtype=torch.float64) for n in (30, 12))
    examples = [Example("a", "", "", int(row.argmax()) % 3) for row in x_ND]
    said = probe(x_ND, examples, test_ND, 3)
    mean, std = x_ND.mean(0), x_ND.std(0, unbiased=False) + 1e-6
    z, t = (x_ND - mean) / std, (test_ND - mean) / std
    y = torch.nn.functional.one_hot(torch.tensor([one.label for one in examples]), 3).double()
    y = y / y.sum(0)
    inner = z.T @ z + readers.RIDGE * 4 * torch.eye(4, dtype=torch.float64)
    assert torch.equal(said, (t @ torch.linalg.solve(inner, z.T @ (y - y.mean(0)))).argmax(-1))


def test_tuning_learns_and_leaves_the_reader_alone() -> None:
    reader = trained_here("encoder", 0, 0)
    before = [parameter.clone() for parameter in reader.model.parameters()]
    examples = [Example(text, "", "", label) for label, text in enumerate(("whales and ships", "code and loops"))] * 8
    assert tuned(reader, examples, examples, 2, 0).tolist() == [0, 1] * 8
    assert all(torch.equal(a, b) for a, b in zip(before, reader.model.parameters(), strict=True))


def test_balanced_accuracy_is_the_mean_of_the_recalls() -> None:
    examples = [Example("", "", "", label) for label in (0, 0, 0, 1)]
    assert balanced(torch.tensor([0, 0, 0, 0]), examples) == 0.5
    assert balanced(torch.tensor([0, 0, 1, 1]), examples) == pytest.approx(5 / 6)


def test_pulled_models_put_their_own_tokens_around(minilm: Any) -> None:
    lm = load_model("minilm")
    reader = Reader(lm.model, lm.tokenizer)
    ids, place = reader.row(Example("the gale sank", "pequod", ".", 2))
    assert place is not None
    assert ids == lm.tokenizer.pair(lm.tokenizer.encode("the gale sank pequod."))[0]
    assert lm.tokenizer.decode(ids[1 : place + 1]) == "the gale sank pequod"
    vectors_ND = reader.read([Example("a ship at sea", "", "", 0)]).float()
    unit_ND = torch.nn.functional.normalize(vectors_ND, dim=-1)
    assert (unit_ND - lm.embed(["a ship at sea"])).abs().max() < 1e-5


def test_a_prompted_model_is_asked_for_the_likeliest_topic(smollm2: Any) -> None:
    """What prompts share is computed once: each answer is that of the whole prompt alone."""
    lm = load_model("smollm2")
    examples = task("topics", 0).test[::40]
    asking = choosing._Asking(lm, choosing._question)
    assert len({id for ids in asking.ids for id in ids}) == sum(map(len, asking.ids))  # no token speaks for two
    score = asking.told(examples)
    said = []
    for one in examples:
        logits_V = lm.logits(torch.tensor([lm.prompt(choosing._question(one.before))]))[0, -1]
        said.append(max(range(3), key=lambda c: float(logits_V[asking.ids[c]].max())))
    assert score == balanced(torch.tensor(said), examples)


# ---------------------------------------------------------------- the trial


def test_measures_are_said_once_in_both_places() -> None:
    """The race file is read without torch, so it says them itself."""
    assert race("readers").measures == MEASURES
    assert tuple(race("readers").arms) == KINDS


EXPECTED: dict[str, dict[str, float]] = {
    "encoder": {"entities tuned@1000": 0.97, "first names tuned@1000": 0.95, "entities tuned@100": 0.66},
    "decoder": {"entities tuned@1000": 0.68, "first names tuned@1000": 0.35, "entities tuned@100": 0.6},
    "untrained": {"entities tuned@1000": 0.6},
    "minilm": {"topics probe@100": 0.94, "megaflops": 200.0, "megabytes": 90.0},
    "smollm2": {"topics zero-shot": 0.7, "prompt megaflops": 9000.0, "english tokens": 90.0, "chinese tokens": 250.0},
}


def told(values: dict[str, dict[str, float]]) -> Told:
    def row(kind: str, measure: str) -> list[Any]:
        mean = values[kind].get(measure, 0.5)
        return [mean + 1e-3 * math.sin(seed + len(kind)) for seed in SEEDS]

    rows = {measure: {kind: row(kind, measure) for kind in KINDS} for measure in MEASURES}
    return Told({"name": "readers", "seeds": list(SEEDS), "arms": {kind: {} for kind in KINDS}, "rows": rows})


def raced(values: dict[str, dict[str, float]]) -> Figures:
    question = load(9)
    assert question.raced is not None
    return recorded() | question.raced({"readers": told(values)})


def test_a_trial_as_expected_decides_all_claims() -> None:
    question, figures = load(9), raced(EXPECTED)
    assert set(question.decided(figures)) == set(question.claims)
    assert [check.figure for _, check in question.checks if not check.passed(figures)] == []
    assert question.verdict(figures) is Verdict.CORRECTED
    for spoken in question.evidence(figures):
        assert "nan" not in spoken


def test_a_trial_in_which_nothing_differs_decides_nothing() -> None:
    figures = raced({kind: {} for kind in KINDS})
    judged = {claim.name: claim.judged(figures) for claim in load(9).claims if claim.race}
    assert judged == {"an encoder reads better": Verdict.REFUTED, "what decides": Verdict.NOT_REPRODUCED}


def test_a_model_is_chosen_by_its_row() -> None:
    figures = raced(EXPECTED)
    assert choose(figures, "entities", 1000)[:2] == ("encoder", "tuned@1000")
    assert choose(figures, "topics", 100)[:2] == ("minilm", "probe@100")
    assert choose(figures, "topics", 100, 100.0).model != "minilm"  # too dear
    assert choose(figures, "topics", 0)[:2] == ("smollm2", "zero-shot")
    with pytest.raises(ValueError, match="nothing was measured for poems with 10 labels"):
        choose(figures, "poems", 10)


# ---------------------------------------------------------------- figures, and experiments that can fail


def test_numbers_of_the_specification() -> None:
    figures = recorded()
    assert figures["chinese_per_character"] == pytest.approx(3.0, abs=0.2)  # UTF-8 has three bytes a character
    assert figures["chinese_over_english"] > 2


def test_chinese_under_the_vocabulary_of_smollm2(smollm2: Any) -> None:
    tokenizer = load_model("smollm2").tokenizer
    english, chinese = (sum(len(tokenizer.encode(said[side])) for said in choosing.PARALLEL) for side in (0, 1))
    characters = [sum(len(said[side]) for said in choosing.PARALLEL) for side in (0, 1)]
    assert chinese / english > 1.5
    assert chinese / characters[1] > 3 * english / characters[0]


def test_an_encoder_that_goes_on_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "require_continuing", lambda architecture: None)
    assert load(9).verdict(recorded() | q09_which_model._abilities(0)) is Verdict.NOT_REPRODUCED


def test_a_vocabulary_that_loses_chinese_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids, skip_special=False: "?")
    assert load(9).verdict(recorded() | q09_which_model._tokens()) is Verdict.NOT_REPRODUCED
