"""What a teacher adds to the loss."""

from typing import Any

import pytest
import torch

from llmlab.data.batch import IGNORE, Batch
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.objectives.distill import Distilled, divergence
from llmlab.objectives.language import NextToken
from llmlab.runtime import generator

V = 11


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(5, V, generator=generator(seed, "distill test"))


def model(seed: int, **fields: Any) -> Transformer:
    given = {"layers": 1, "dim": 16, "context": 8, "attention": {"kind": "mha", "heads": 2}} | fields
    return Architecture.model_validate(given).build(V, seed)


def batch() -> Batch:
    ids = torch.randint(V, (3, 9), generator=generator(0, "distill test"))
    targets = ids[:, 1:].clone()
    targets[0, 3:] = IGNORE
    return Batch(ids[:, :-1], targets, Places.causal(3, 8))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_divergence_is_that_of_the_two_softened_distributions(temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    wanted, given = (torch.softmax(x.double() / temperature, -1) for x in (teacher, student))
    expected = temperature**2 * (wanted * (wanted / given).log()).sum(-1)
    torch.testing.assert_close(divergence(student, teacher, temperature).double(), expected, rtol=1e-5, atol=1e-6)
    assert (divergence(student, student, temperature).abs() < 1e-6).all()


def test_hot_it_is_half_the_squared_distance_of_centred_logits() -> None:
    """Hinton et al., section 2.1: in the limit its gradient is that of matching logits."""
    student, teacher = logits(0), logits(1)
    apart = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    torch.testing.assert_close(divergence(student, teacher, 300.0), apart.square().mean(-1) / 2, rtol=0.02, atol=0.0)


def test_a_model_that_is_its_own_teacher_has_nothing_to_learn_from_it() -> None:
    student, teacher = model(0), model(0)
    objective = Distilled(teacher, share=1.0)
    terms = objective(student, batch())
    assert terms.sums.keys() == objective.counts(batch()).keys() == {"cross_entropy", "divergence"}
    assert terms.sums["divergence"].abs() < 1e-5
    terms.sums["divergence"].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in teacher.parameters())
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-5


def test_only_what_is_learnt_is_taught_and_the_plain_loss_stays_what_it_was() -> None:
    student, teacher, given = model(0), model(1, dim=32), batch()
    terms = Distilled(teacher)(student, given)
    torch.testing.assert_close(terms.sums["cross_entropy"], NextToken()(student, given).sums["cross_entropy"])
    learnt = given.targets_BT != IGNORE
    with torch.no_grad():
        both = [m.logits(m.hidden(given.ids_BT, given.at))[learnt] for m in (student, teacher)]
    torch.testing.assert_close(terms.sums["divergence"], divergence(*both).sum())


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(ValueError, match=f"share is {share}"):
        Distilled(model(0), share)
