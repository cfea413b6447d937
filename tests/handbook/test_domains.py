"""Question 10's instruments: the domains' texts, the ways to learn from them, and the ways to look things up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.handbook import domain_model as little
from llmlab.handbook.domains import BEFORE, CHOICES, DATA, DOMAINS, NAMES, Asked, runs
from llmlab.handbook.races import domains as race
from llmlab.handbook.recalling import PASSAGE, Neighbours, Passages
from llmlab.handbook.repeating_model import VOCABULARY, book

TINY = {"rows": 1, "general_steps": 2, "general_rows": 1, "general_rate": 0.02, "general_adamw_rate": 0.01}
LEARNT = {"domain": "dialogues", "share": 0.01, "steps": 2, "replay": 0.0, "rate": 0.02, "adamw_rate": 0.01}

each_domain = pytest.mark.parametrize("name", DOMAINS)


@each_domain
def test_a_domain_is_tested_on_what_it_does_not_teach(name: str) -> None:
    domain = DOMAINS[name]()
    assert abs(len(domain.train_T) - DATA) < 100
    part_T = domain.part(0.01, 3)
    assert len(part_T) == round(len(domain.train_T) / 100)
    assert not torch.equal(part_T, domain.part(0.01, 4))
    trained = runs(domain.train_T.tolist())
    shared = trained & runs(domain.held_T.tolist())
    assert len(shared) < len(domain.held_T) / 100
    assert not set(race.NAMES) ^ set(DOMAINS)


@each_domain
def test_what_is_asked_has_one_right_answer(name: str) -> None:
    domain = DOMAINS[name]()
    decode = book().tokenizer.decode
    text = decode(domain.train_T.tolist())
    for before, choices in domain.asked:
        assert len(before) == BEFORE
        assert len({tuple(choice) for choice in choices}) == len(choices) == CHOICES
        if name == "dialogues":  # learnt from, word for word
            assert decode(before).lstrip("\n") + decode(choices[0]) in text
        else:
            assert {decode(choice) for choice in choices} <= set(NAMES)
    assert len(domain.asked) == 64


def test_the_likeliest_of_four_is_counted() -> None:
    """Losses that are low for one token, which stands in the right answer or in a wrong one."""
    before = [1] * BEFORE
    asked = [Asked(before, ([7, 7], [8], [8, 8, 8], [9])), Asked(before, ([8], [7], [9], [9, 9]))]

    def losses(row_NL: Tensor, read: int) -> Tensor:
        return torch.where(row_NL[:, read:] == 7, 0.0, 1.0)

    assert little.recalled(losses, asked) == 0.5
    assert little.recalled(losses, asked[:1]) == 1.0


@pytest.mark.parametrize("way", ["scratch", "continued", "replay", "lora"])
def test_each_way_learns_and_leaves_the_general_model_alone(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(little, "ROWS", 2)
    monkeypatch.setattr(little, "CHECKED", 1)
    monkeypatch.setattr(little, "recalled", lambda losses, asked: 0.25)
    settings: dict[str, Any] = TINY | LEARNT | {"way": way, "replay": 0.5 if way == "replay" else 0.0}
    settings |= {"rank": 2} if way == "lora" else {}
    base = little.run(settings | {"way": "general"}, 3)
    found = little.run(settings, 3)
    assert set(found) == set(little.MEASURES) == set(race.MEASURES)
    assert found["domain bits"] != base["domain bits"]
    assert little.run(settings | {"way": "general"}, 3) == base
    assert little.run(settings, 3) == found
    if way == "lora":
        assert found["general bits, set aside"] == base["general bits"] != found["general bits"]
        assert 0 < found["own parameters"] < sum(one.numel() for one in little.built(3).parameters()) / 2
    else:
        assert found["general bits, set aside"] == found["general bits"]


def test_the_weights_that_tell_the_validation_text_best_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate so high that nothing is learnt: what was there before is kept, wholly."""
    monkeypatch.setattr(little, "LOOKS", 2)
    model = little.built(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = TINY | LEARNT | {"steps": 4, "rate": 5.0, "adamw_rate": 5.0}
    part_T = torch.randint(4, VOCABULARY, (600,), generator=torch.Generator().manual_seed(0))
    assert little.trained(model, None, part_T, settings, 3) == 0.0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_passage_that_is_spoken_of_is_put_in_front() -> None:
    tokenizer = book().tokenizer
    texts = ["a whale of the sea and its oil " * 8, "kettles and needles and thread " * 8]
    text_T = torch.tensor([id for text in texts for id in tokenizer.encode(text)])
    row_NL = torch.tensor([tokenizer.encode(f"the {word} of it all here and now")[:8] for word in ("needles", "whale")])
    seen = list[tuple[Tensor, int]]()

    def losses(row_NL: Tensor, read: int) -> Tensor:
        seen.append((row_NL, read))
        return torch.zeros(len(row_NL), row_NL.shape[1] - read)

    assert Passages(losses, text_T)(row_NL, 6).shape == (2, 2)
    ((told_NL, read),) = seen
    assert read == PASSAGE + 6
    assert torch.equal(told_NL[:, PASSAGE:], row_NL)
    fronts = [tokenizer.decode(ids) for ids in told_NL[:, :PASSAGE].tolist()]
    assert "needles" in fronts[0]
    assert "whale" in fronts[1]


def test_neighbours_are_mixed_into_probabilities() -> None:
    """Over all tokens they come to one; without a share the model's own are left; what followed grows likelier."""
    model = little.built(3).eval()
    text_T = DOMAINS["dialogues"]().part(0.01, 3)
    made = Neighbours.tuned(model, text_T, text_T[:256].view(2, 128))
    context = text_T[40:60]
    row_NL = torch.cat([context.expand(VOCABULARY, -1), torch.arange(VOCABULARY)[:, None]], 1)
    with torch.no_grad():
        mixed_V = made(row_NL, len(context))[:, 0]
        own_V = F.cross_entropy(model(row_NL[:, :-1])[:, -1], row_NL[:, -1], reduction="none")
        alone = Neighbours(model, made.key_SD, made.next_S, 0.0, made.warmth)(row_NL, len(context))[:, 0]
    assert float((-mixed_V).exp().sum()) == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(alone, own_V)
    assert made.share > 0
    assert mixed_V[text_T[60]] < own_V[text_T[60]]
