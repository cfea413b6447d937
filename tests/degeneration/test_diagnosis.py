"""A diagnosis: models made for one cause each, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from llmlab.checkpoints.bundle import Bundle
from llmlab.data import bundled
from llmlab.degeneration import causes, duplicates
from llmlab.degeneration.diagnosis import Diagnosing, diagnose
from llmlab.degeneration.remedies import SETTINGS, Remedy, best
from llmlab.degeneration.table import table
from llmlab.degeneration.voice import Said, Voice
from llmlab.errors import InputError
from llmlab.evaluation.statistics import Estimate
from llmlab.inference.sampling import Sampling
from llmlab.language_model import LanguageModel, load
from llmlab.model.transformer import Architecture
from llmlab.recipe import parse
from llmlab.run import Run, run
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, train_tokenizer

SMALL = Diagnosing(texts=6, new_tokens=24, free_texts=8, free_tokens=32, asked=10, searched=2)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(BPE(vocab_size=300), iter(["the whale swims in the wide sea " * 20]))


def tiny(tokenizer: Tokenizer | None, **fields: Any) -> LanguageModel:
    architecture = Architecture.model_validate({"layers": 1, "dim": 32, "context": 96, "initial_std": 0.3} | fields)
    size = 300 if tokenizer is None else tokenizer.vocab_size
    return LanguageModel(Bundle(architecture.build(size, seed=1), tokenizer, architecture, "tiny"))


def test_every_part_is_there_and_is_the_same_twice(tokenizer: Tokenizer) -> None:
    lm = tiny(tokenizer)
    found = diagnose(lm, settings=SMALL)
    assert json.loads(json.dumps(found, allow_nan=False)) == found == diagnose(lm, settings=SMALL)
    assert set(found) == {"model", "measures", "causes", "likely", "remedies", "helps"}
    assert {row["remedy"] for row in found["remedies"]} == {*SETTINGS, "on_loop_resample", "contrastive_search"}
    assert found["likely"] == [
        cause["cause"] for cause in sorted(found["causes"], key=lambda one: -(one["strength"] or 0)) if cause["likely"]
    ]
    text = table(found)
    assert all(row["measure"] in text for row in found["measures"])
    assert text.splitlines()[-1].endswith(".")


def test_a_model_without_keys_is_diagnosed_too(tokenizer: Tokenizer) -> None:
    found = diagnose(tiny(tokenizer, attention="linear", position="none"), settings=SMALL)
    assert "contrastive_search" not in {row["remedy"] for row in found["remedies"]}


# ---------------------------------------------------------------- planted causes


def run_of(folder: Path, planted: int, copies: int, seed: int = 0) -> Path:
    """A life on the book, some passages of which stand in many documents more."""
    chance = random.Random(seed)
    book = bundled.path("moby_dick").read_text(encoding="utf-8")[20_000:120_000]
    texts = [book[at : at + 400] for at in range(0, len(book), 400)]
    texts += chance.sample(texts, planted) * copies
    chance.shuffle(texts)
    folder.mkdir()
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = {
        "text": {"sources": [{"kind": "files", "path": str(folder / "text.jsonl")}], "dedup": False, "held_out": 0.1},
        "tokenizer": {"vocab_size": 400},
        "model": {"layers": 2, "dim": 64, "context": 64, "position": "rope", "attention": {"kind": "mha", "heads": 2}},
        "pretrain": {
            "batch_size": 16,
            "training": {"steps": 80, "optimizer": {"kind": "muon"}, "evaluate_every": 80, "checkpoint_every": 80},
        },
        "seed": seed,
    }
    run(parse(Run, settings, "recipe"), folder / "run", quiet=True)
    return folder / "run"


def test_planted_duplicates_are_named_and_only_they(tmp_path: Path) -> None:
    planted = diagnose(load(run_of(tmp_path / "planted", planted=12, copies=20)), settings=SMALL)
    assert duplicates.NAME in planted["likely"]
    plain = diagnose(load(run_of(tmp_path / "plain", planted=0, copies=0)), settings=SMALL)
    assert duplicates.NAME not in plain["likely"]
    names = {cause["cause"] for cause in plain["causes"]}
    assert names >= {duplicates.NAME, "small_data", "repetition_in_documents", "end_token", "self_reinforcement"}
    # The text of another run: what the model has never seen is no reason for anything.
    voice, text = Voice(load(tmp_path / "plain" / "run"), 0), tmp_path / "planted" / "text.jsonl"
    documents = voice.lm.tokenizer.encode_batch(
        [json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()]
    )
    cause = duplicates.in_training(voice, duplicates.Counted(documents), SMALL.asked, 0)
    assert cause.figures["duplicated_share"] > duplicates.SHARE
    assert not cause.likely


def test_free_texts_that_share_a_passage_accuse_and_others_do_not() -> None:
    chance = random.Random(1)

    def said(sure: bool, shared: bool) -> Said:
        ids = [chance.randrange(1000) for _ in range(20)] + (list(range(24)) if shared else [])
        return Said(ids + [chance.randrange(1000) for _ in range(44 - len(ids))], [0.01 if sure else 3.0] * 44)

    human = [said(sure=False, shared=False) for _ in range(40)]
    for sure, shared in ((True, False), (False, True), (False, False)):
        free = [said(sure, shared) if row < 12 else said(sure=False, shared=False) for row in range(64)]
        assert duplicates.in_free_texts(free, human, 24).likely == (sure or shared)
    loops = [Said([1, 2, 3, 4] * 11, [0.01] * 44)] * 1 + human
    assert not duplicates.in_free_texts(loops, human, 24).likely, "a loop is sure of itself and no duplicate"


def test_text_that_repeats_itself_is_found() -> None:
    chance = random.Random(1)
    plain = [[chance.randrange(50) for _ in range(60)] for _ in range(20)]
    looping = [ids[:20] * 3 for ids in plain]
    assert causes.within_documents(looping, plain).likely
    assert not causes.within_documents(plain, plain).likely


def test_a_model_that_draws_evenly_is_not_maximising() -> None:
    loops, plain = [Said([1, 2, 3] * 20, [])] * 8, [Said(list(range(60)), [])] * 8
    assert causes.maximising(loops, plain, 0).likely
    assert not causes.maximising(plain, plain, 0).likely


# ---------------------------------------------------------------- the voice, and the choice


def test_the_voice_says_and_reads_what_the_model_thinks(tokenizer: Tokenizer) -> None:
    for fields in ({}, {"attention": "linear", "position": "none"}):
        voice = Voice(tiny(tokenizer, **fields), 0)
        prompts = [[5, 6, 7], [8, 9]]
        said = voice.say(prompts, Sampling(temperature=2.0, max_new_tokens=5), "test")
        for prompt, one in zip(prompts, said, strict=True):
            (nats,) = voice.read([[*prompt, *one.ids]])
            assert len(nats) == len(prompt) + 4
            assert nats[len(prompt) - 1 :] == pytest.approx(one.nats, abs=1e-4)


def test_the_best_remedy_is_no_wilder_than_people() -> None:
    def remedy(name: str, rep_4: float, nats: float, helps: bool = True) -> Remedy:
        return Remedy(name, rep_4, Estimate(-0.3, -0.4, -0.2, 9), 0.5, nats, helps)

    dull, good, left = remedy("dull", 0.0, 1.0), remedy("good", 0.0, 2.9), remedy("left", 0.2, 3.0)
    assert best([dull, good, left], 0.01, 3.0) == "good"
    assert best([remedy("wild", 0.0, 9.0, helps=False)], 0.01, 3.0) is None


# ---------------------------------------------------------------- bad input


def test_what_cannot_be_diagnosed_is_refused_by_name(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for fields, says in (
        ({"mask": "bidirectional"}, "fills blanks"),
        ({"mask": "prefix"}, "has mask prefix"),
        ({"encoder_layers": 1, "position": "t5"}, "an encoder and a decoder"),
        ({"context": 8}, "has a context of 8 tokens"),
    ):
        with pytest.raises(InputError, match=says):
            diagnose(tiny(tokenizer, **fields), settings=SMALL)
    with pytest.raises(InputError, match="without a tokenizer"):
        diagnose(tiny(None), settings=SMALL)
    lm = tiny(tokenizer)
    with pytest.raises(InputError, match=r"none\.txt' does not exist"):
        diagnose(lm, data=tmp_path / "none.txt", settings=SMALL)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match=r"empty\.txt"):
        diagnose(lm, data=tmp_path / "empty.txt", settings=SMALL)
    (tmp_path / "binary.txt").write_bytes(bytes(range(128, 256)) * 40)
    with pytest.raises(InputError, match=r"binary\.txt"):
        diagnose(lm, data=tmp_path / "binary.txt", settings=SMALL)
