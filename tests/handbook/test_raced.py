"""Races of the handbook: every arm can be built and learns, records speak of the races as they are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from llmlab.checkpoints.native import load_model, save_model
from llmlab.errors import InputError, LlmlabError
from llmlab.handbook.literal import blind, feedforward, norms, positions
from llmlab.handbook.question import Text
from llmlab.handbook.raced import SHIPPED, Race, Told, known, race, save, shipped
from llmlab.handbook.trials import Trial
from llmlab.model.transformer import Architecture
from llmlab.recipe import parse
from llmlab.runtime import generator

RECORDS = sorted(path.stem.removeprefix("race_") for path in SHIPPED.glob("race_*.json"))


@pytest.mark.parametrize("name", known())
def test_every_race_can_be_run(name: str) -> None:
    which = race(name)
    assert which.name == name
    # Three give intervals too wide to order anything; one gives none, of what nothing random enters.
    assert which.seeds >= 5 or (which.seeds == 1 and which.name in ("long_text", "endless_text", "rank_bytes"))
    which.check()


def test_records_belong_to_races() -> None:
    assert set(RECORDS) <= set(known())


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_of_the_races_as_they_are(name: str) -> None:
    told = shipped(name)
    assert told is not None
    assert race(name).stale(told.record) is None
    assert told.record["seeds"][0] == race(name).first
    for measure in race(name).measures:
        for arm in race(name).arms:
            assert told.fails(arm, measure) is not None or len(told.values(arm, measure)) == len(told.record["seeds"])


LITERAL = [
    *(
        ("position", part)
        for part in (positions.RotatedVectors, positions.MultipliedWeights, positions.MultipliedScores)
    ),
    ("position", blind.Blind),
    *(("norm", part) for part in (norms.NoGain, norms.WholeInput, norms.Batch)),
    *(
        ("feedforward", part)
        for part in (
            feedforward.GELUWithoutCube,
            feedforward.OneMatrixGLU,
            feedforward.OneMatrixGEGLU,
            feedforward.NoFeedForward,
        )
    ),
]


@pytest.mark.parametrize(
    ("field", "part"), LITERAL, ids=lambda value: value if isinstance(value, str) else value.__name__
)
def test_literal_parts_learn_and_are_kept(field: str, part: Any, tmp_path: Path) -> None:
    kind = part.model_fields["kind"].default
    shape = {"layers": 2, "dim": 32, "context": 16, "attention": {"kind": "mha", "heads": 4}}
    model = parse(Architecture, {**shape, field: kind}).build(30)
    ids = torch.randint(30, (2, 12), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    save_model(tmp_path / "model", model, None)
    kept = load_model(tmp_path / "model").model
    assert getattr(kept.architecture, field).kind == kind
    with torch.no_grad():
        assert torch.equal(kept(ids), model.eval()(ids))


def test_multiplied_weights_are_what_they_say() -> None:
    """softmax(q k) * matrix, then v: against the formula written out."""
    shape = {"layers": 1, "dim": 8, "context": 16, "attention": {"kind": "mha", "heads": 2}, "norm": "layernorm"}
    for kind, after in (("MultipliedWeights", True), ("MultipliedScores", False)):
        name = f"llmlab.handbook.literal.positions:{kind}"
        model = parse(Architecture, {**shape, "position": name, "initial_std": 0.5}).build(9)
        ids = torch.arange(6)[None]
        attention, x = model.blocks[0].attention, model.blocks[0].attention_norm(model.embedding(ids))
        q, k, v = (part(x).view(6, 2, 4).transpose(0, 1) for part in (attention.query, attention.key, attention.value))
        far = (torch.arange(6)[:, None] - torch.arange(6)).abs()
        matrix = -far * torch.tensor([2.0**-4, 2.0**-8])[:, None, None]
        scores = q @ k.transpose(1, 2) / 2 * (1 if after else matrix)
        weights = scores.masked_fill(torch.ones(6, 6).triu(1) > 0, float("-inf")).softmax(-1)
        expected = attention.output(((weights * matrix if after else weights) @ v).transpose(0, 1).flatten(1))
        seen: list[torch.Tensor] = []
        attention.register_forward_hook(lambda module, given, out, seen=seen: seen.append(out))
        model(ids)
        torch.testing.assert_close(seen[0][0], expected, atol=1e-5, rtol=1e-4)


def test_turned_by_their_own_angle_vectors_are_all_the_same() -> None:
    vectors = positions.RotatedVectorsEncoding(16).vectors(torch.arange(50)[None])[0]
    assert (vectors - vectors[0]).abs().max() < 1e-6
    assert vectors[0].unique().tolist() == [0.0, 1.0]


TINY = Race(
    name="tiny",
    title=Text("tiny", "小"),
    preset="race-positions",
    common={
        "model.layers": 1,
        "model.dim": 16,
        "pretrain.training.steps": 2,
        "pretrain.training.evaluate_every": 2,
        "pretrain.batch_size": 2,
        "pretrain.micro_batch": 2,
        "text.sources": [{"kind": "bundled", "name": "moby_dick", "piece": 16000}],
    },
    arms={"rope": {"model.position": "rope"}, "learned": {"model.position": "learned"}},
    measures=("parameters", "bits_per_byte"),
)


def test_a_record_goes_stale_by_settings_and_not_by_new_fields(tmp_path: Path) -> None:
    record = TINY.train(tmp_path / "race", seeds=2, quiet=True)
    told = Told(record)
    assert told.difference("learned", "rope", "parameters").mean == 128 * 16
    save(record, tmp_path)
    again = shipped("tiny", tmp_path)
    assert again is not None
    assert json.loads(json.dumps(record)) == again.record
    assert TINY.stale(again.record) is None
    older = {**again.record, "recipe": {k: v for k, v in again.record["recipe"].items() if k != "model.dropout"}}
    assert TINY.stale(older) is None  # a field that came later holds its default
    wider = dataclasses.replace(TINY, common={**TINY.common, "model.dim": 32})
    assert wider.stale(again.record) == "arm rope: model.dim was 16 and is 32"
    more = dataclasses.replace(TINY, arms={**TINY.arms, "none": {"model.position": "none"}})
    assert more.stale(again.record) == "arm none was never run"
    assert "version" in str(dataclasses.replace(TINY, version=2).stale(again.record))
    with pytest.raises(InputError, match="did you mean 'rope'"):
        told.mean("rop", "parameters")
    with pytest.raises(LlmlabError, match="learned has no"):
        Told({**record, "rows": {"parameters": {"learned": ["lies past"], "rope": [1.0]}}}).mean(
            "learned", "parameters"
        )


def _coin(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    CALLS.append((settings["bias"], seed))
    drawn = torch.rand(100, generator=generator(seed, "coin"))
    return {"heads": float((drawn < settings["bias"]).float().mean()), "sides": settings["sides"], "edge": "never seen"}


CALLS: list[tuple[float, int]] = []
COIN = Trial(
    name="coin",
    title=Text("a coin", "硬币"),
    common={"sides": 2},
    arms={"fair": {"bias": 0.5}, "bent": {"bias": 0.9}},
    measures=("heads", "sides", "edge"),
    run=_coin,
)


def test_a_trial_keeps_its_arms_and_goes_on_with_what_is_new(tmp_path: Path) -> None:
    CALLS.clear()
    COIN.check()
    record = COIN.train(tmp_path / "coin", seeds=2, quiet=True)
    assert CALLS == [(0.5, 0), (0.9, 0), (0.5, 1), (0.9, 1)]
    save(record, tmp_path)
    again = shipped("coin", tmp_path)
    assert again is not None
    assert json.loads(json.dumps(record)) == again.record
    assert again.difference("bent", "fair", "heads").low > 0
    assert again.fails("bent", "edge") == "never seen"
    CALLS.clear()
    afresh = dataclasses.replace(COIN, first=1).train(tmp_path / "coin", seeds=2, quiet=True)
    assert (afresh["seeds"], CALLS) == ([1, 2], [(0.5, 2), (0.9, 2)])  # seed 1 was kept
    CALLS.clear()
    wider = dataclasses.replace(COIN, arms={**COIN.arms, "two heads": {"bias": 1.0}})
    more = wider.train(tmp_path / "coin", seeds=2, quiet=True)
    assert CALLS == [(1.0, 0), (1.0, 1)]
    assert more["rows"]["heads"]["two heads"] == [1.0, 1.0]
    assert more["rows"]["heads"]["fair"] == record["rows"]["heads"]["fair"]
    assert COIN.stale(record) is None
    assert wider.stale(record) == "arm two heads was never run"
    assert dataclasses.replace(COIN, common={"sides": 3}).stale(record) == "arm fair: sides was 2 and is 3"
    assert "version" in str(dataclasses.replace(COIN, version=2).stale(record))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"run": lambda settings, seed: {"heads": 1.0}},
            r"fair, seed 0: measures and figures differ in \['edge'",
        ),
        ({"run": lambda settings, seed: {"heads": float("nan"), "sides": 2, "edge": ""}}, "fair, seed 0: heads is nan"),
        ({"arms": {"fair": {"bias": (0.5, 0.5)}}}, "settings of fair are not plain JSON"),
        ({"arms": {"fair": {"bias": 0.5}, "same": {"bias": 0.5}}}, "two arms have the same settings"),
    ],
)
def test_a_trial_that_cannot_be_right_is_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(LlmlabError, match=told):
        dataclasses.replace(COIN, **changes).train(tmp_path / "coin", seeds=2, quiet=True)
    assert not list(tmp_path.glob("coin/arms/*"))
