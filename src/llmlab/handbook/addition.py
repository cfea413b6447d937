"""Addition digit by digit, the last one first: an ability of many steps, of which each can be scored by itself.

A row is a1 b1 s1 a2 b2 s2 ..., two numbers of 8 digits and their sum, whose last carry is dropped. The first L digits
of the sum are the sum of the last L digits, so one and the same answer is scored as one of 2, of 4 and of 8 digits.

N problems, T tokens, L digits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.evaluation.metrics import edit_distance
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.runtime import generator
from llmlab.training.muon import Muon
from llmlab.training.schedules import WarmupStableDecay

DIGITS, BASE = 8, 10
LENGTHS = (2, 4, 8)
COLUMNS = range(1, 3 * DIGITS, 3)  # of the second summand's digits, behind which the sum's are predicted
LAYERS, HEADS, ROWS = 2, 4, 64
TESTED = 1000
OPTIMIZER = Muon(lr=0.02, adamw_lr=0.005, weight_decay=0.0)
SCHEDULE = WarmupStableDecay(warmup=0.0, decay=0.5)
SETTINGS = {"addition": [DIGITS, LAYERS, HEADS, ROWS, TESTED, OPTIMIZER.lr, OPTIMIZER.adamw_lr, SCHEDULE.decay]}

# What one problem and one length are scored by. All but the last ask for all digits at once or none.
MEASURES = (
    *(f"{name}_{length}" for name in ("exact", "digit", "product") for length in LENGTHS),
    *(f"digit_at_{place}" for place in range(1, DIGITS + 1)),
    *("nll", "brier", "edits", "parameters"),
)


def numbers(count: int, source: torch.Generator) -> Tensor:
    """int64 [N, L, 2]: the digits of two numbers each, the last digit first."""
    return torch.randint(BASE, (count, DIGITS, 2), generator=source)


def sums(numbers_NL2: Tensor, sign: int = 1) -> Tensor:
    """int64 [N, L]: the digits of a + sign b modulo 10^L."""
    digits, carry = [], torch.zeros(len(numbers_NL2), dtype=torch.int64)
    for pair_N2 in numbers_NL2.unbind(1):
        total = pair_N2[:, 0] + sign * pair_N2[:, 1] + carry
        digits.append(total % BASE)
        carry = total.div(BASE, rounding_mode="floor")
    return torch.stack(digits, 1)


def rows(numbers_NL2: Tensor, sums_NL: Tensor) -> Tensor:
    """int64 [N, T]: a1 b1 s1 a2 b2 s2 ... without the last s, which nothing follows."""
    return torch.cat([numbers_NL2, sums_NL[..., None]], 2).flatten(1)[:, :-1]


def untrained(settings: Mapping[str, Any], seed: int) -> Transformer:
    """Two layers of width `dim`; a recurrent net in attention's place, and no positions, where `mixer` names one."""
    mixer = settings.get("mixer", "mha")
    attends = mixer == "mha"
    told = {"layers": LAYERS, "dim": settings["dim"], "context": 3 * DIGITS}
    attention = {"kind": mixer, "heads": HEADS} if attends else mixer
    told |= {"position": "learned" if attends else "none", "attention": attention, "initial_std": None}
    return parse(Architecture, told).build(BASE, seed)


def answered(model: Transformer, ids_NT: Tensor) -> Tensor:
    """[N, L, V]: the logits of the sums' digits, each with the right ones before it given."""
    hidden_NTD = model.hidden(ids_NT, model.architecture.mask.places(ids_NT))
    return model.logits(hidden_NTD[:, COLUMNS.start :: COLUMNS.step])


def train(
    model: Transformer,
    seed: int,
    steps: int,
    few: int | None = None,
    sign: int = 1,
    after: Callable[[int], None] = lambda done: None,
) -> None:
    """`steps` steps on fresh problems, or on the same `few` ones over and over. With `sign` -1 it subtracts. `after`
    is told how many steps are done, after each."""
    optimizer = OPTIMIZER.build(model)
    known = None if few is None else numbers(few, generator(seed, "handbook", "addition", "few"))
    for step in range(steps):
        source = generator(seed, "handbook", "addition", sign, step)
        if known is None:
            numbers_NL2 = numbers(ROWS, source)
        else:
            numbers_NL2 = known[torch.randint(len(known), (ROWS,), generator=source)]
        sums_NL = sums(numbers_NL2, sign)
        logits = answered(model, rows(numbers_NL2, sums_NL))
        loss = F.cross_entropy(logits.flatten(0, 1), sums_NL.flatten())
        optimizer.set_scale(SCHEDULE.scale(step, steps))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        after(step + 1)


@torch.no_grad()
def generated(model: Transformer, numbers_NL2: Tensor) -> Tensor:
    """int64 [N, L]: the sums that the model writes, each digit with its own before it."""
    sums_NL = torch.zeros(numbers_NL2.shape[:2], dtype=torch.int64)
    for place in range(DIGITS):
        sums_NL[:, place] = answered(model, rows(numbers_NL2, sums_NL))[:, place].argmax(-1)
    return sums_NL


def exam(seed: int, count: int) -> Tensor:
    """int64 [N, L, 2]: problems that no model was trained on."""
    return numbers(count, generator(seed, "handbook", "addition", "test"))


@torch.no_grad()
def scored(model: Transformer, seed: int, count: int) -> dict[str, float]:
    """Every one of `MEASURES` on the problems of `exam`: shares, but for `nll` and `brier`, means a
    digit (nats; sum of squares over the vocabulary), `edits`, a written answer's mean edit distance over its length."""
    numbers_NL2 = exam(seed, count)
    sums_NL = sums(numbers_NL2)
    logits_NLV = answered(model, rows(numbers_NL2, sums_NL)).double()
    right_NL = (logits_NLV.argmax(-1) == sums_NL).double()
    at_L = right_NL.mean(0)
    chances_NLV = logits_NLV.softmax(-1)
    truth_NLV = F.one_hot(sums_NL, BASE)
    written = ["".join(map(str, row)) for row in generated(model, numbers_NL2).tolist()]
    wanted = ["".join(map(str, row)) for row in sums_NL.tolist()]
    edits = sum(edit_distance(ours, theirs) for ours, theirs in zip(written, wanted, strict=True))
    return {
        **{f"exact_{length}": float(right_NL[:, :length].prod(1).mean()) for length in LENGTHS},
        **{f"digit_{length}": float(right_NL[:, :length].mean()) for length in LENGTHS},
        **{f"product_{length}": float(at_L[:length].prod()) for length in LENGTHS},
        **{f"digit_at_{place}": float(share) for place, share in enumerate(at_L, 1)},
        "nll": float(F.cross_entropy(logits_NLV.flatten(0, 1), sums_NL.flatten())),
        "brier": float((chances_NLV - truth_NLV).square().sum(-1).mean()),
        "edits": edits / (count * DIGITS),
        "parameters": float(sum(parameter.numel() for parameter in model.parameters())),
    }


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """An arm of the race: pre-trained on subtraction for `before` steps where given, trained on addition, scored."""
    model = untrained(settings, seed)
    if before := settings.get("before"):
        train(model, seed, before, sign=-1)
    train(model, seed, settings["steps"], settings.get("few"))
    return scored(model.eval(), seed, TESTED)
