"""A budget of tokens spent on little text read often, or on much text read once, and a little model trained on it.

The bundled novel is cut into documents of one row each, which end where the next begins. A corpus is groups of them,
each with how many times a document of the group is met: `[[768, 4]]` is four epochs of 768, `[[21, 50], [2022, 1]]`
has a hundredth of its documents fifty times. The rows that are read are as many whatever the groups. One token is a
piece of a vocabulary of 512, 2.3 bytes on average.

N documents, T tokens, K times, S rows of a whole training.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from llmlab.handbook.fitting import fit
from llmlab.handbook.little_model import nats
from llmlab.handbook.repeating_model import BEGUN, EXTRACTED, VOCABULARY, book
from llmlab.inference.engine import generate
from llmlab.inference.sampling import Sampling
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.runtime import derive, generator

LENGTH = 128  # tokens that are learnt of a document; it has one more, which is only read
POINTS = 16  # times that the held-out loss is taken in a training
WATCHED, TESTED = 64, 256  # held-out documents at each of these times, and at the end
ASKED = 48  # documents whose next tokens are asked for: of the group met most often, and of those held out
RUNGS = (1, 2, 4, 8, 16, 32, 64)  # copies of a document in the corpus that has documents of every count
OF_A_RUNG = 16
EARLY, LATE = slice(0, 16), slice(64, 128)  # tokens of a document: with hardly any context, and with much
GREEDY = Sampling(temperature=0.0, max_new_tokens=EXTRACTED)
CURVE = tuple(f"bits@{point}" for point in range(1, POINTS + 1))
MEASURES = (
    *("bits per byte", "bits per byte, seen", "nats that context saves"),
    *("parameters", "flops a step", "different tokens", "tokens"),
    *("extracted", "copied", "extracted, held out"),
    *CURVE,
    *(f"{what} x{times}" for what in ("extracted", "copied") for times in RUNGS),
)

Groups = Sequence[Sequence[int]]  # documents, and the times each is met


def documents(text: Tensor) -> Tensor:
    """[N, LENGTH + 1]: the text cut up."""
    count = len(text) // (LENGTH + 1)
    return text[: count * (LENGTH + 1)].view(count, LENGTH + 1)


def shuffled(seed: int) -> Tensor:
    """[N]: the order in which documents enter a corpus; smaller corpora of a seed are parts of larger ones."""
    return torch.randperm(len(documents(book().train_T)), generator=generator(seed, "handbook", "epochs", "corpus"))


def reading(groups: Groups, seed: int) -> Tensor:
    """[S]: the number of the document of each row, in the order of training. The k-th of K copies stands anywhere in
    the k-th of K equal parts: what is met as often as all the rest is read in epochs, each shuffled anew."""
    chosen_N, source = shuffled(seed), generator(seed, "handbook", "epochs", "reading")
    when, which = list[Tensor](), list[Tensor]()
    for (count, times), start in zip(groups, _starts(groups), strict=True):
        when.append((torch.arange(times)[:, None] + torch.rand(times, count, generator=source)).flatten() / times)
        which.append(chosen_N[start : start + count].repeat(times))
    return torch.cat(which)[torch.cat(when).argsort(stable=True)]


def _starts(groups: Groups) -> list[int]:
    """Where each group begins among the chosen documents."""
    return [sum(count for count, _ in groups[:place]) for place in range(len(groups))]


def met(groups: Groups, times: int, seed: int) -> Tensor:
    """[N, LENGTH + 1]: at most ASKED documents that are met so many times."""
    at = {group[1]: (start, group[0]) for group, start in zip(groups, _starts(groups), strict=True)}
    start, count = at[times]
    return documents(book().train_T)[shuffled(seed)[start : start + min(count, ASKED)]]


# ---------------------------------------------------------------- training


def built(settings: Mapping[str, Any], seed: int) -> Transformer:
    told = {"layers": settings["layers"], "dim": settings["dim"], "context": LENGTH, "position": "rope"}
    told |= {"attention": {"kind": "mha", "heads": 4}, "feedforward": "swiglu", "dropout": settings["dropout"]}
    return parse(Architecture, told).build(VOCABULARY, seed)


def trained(settings: Mapping[str, Any], seed: int) -> tuple[Transformer, list[float]]:
    """The model, and its held-out bits per byte at POINTS times, the last of them when it is done."""
    model = built(settings, seed)
    document_NT, row_S = documents(book().train_T), reading(settings["groups"], seed)
    rows, curve = settings["rows"], list[float]()
    steps = len(row_S) // rows
    watched_NT = held_out(seed)[:WATCHED]

    def loss(step: int) -> Tensor:
        if step and step * POINTS // steps > (step - 1) * POINTS // steps:
            curve.append(bits(model.eval(), watched_NT))
            model.train()
        # dropout's noise, whatever was drawn before
        torch.manual_seed(derive(seed, "handbook", "epochs", "noise", step))
        return nats(model, document_NT[row_S[step * rows : (step + 1) * rows]])

    fit(model, loss, steps, settings["rate"], settings["adamw_rate"])
    return model, [*curve, bits(model, watched_NT)]


def held_out(seed: int) -> Tensor:
    """[N, LENGTH + 1]: documents from the book's end, which no corpus has."""
    document_NT = documents(book().held_T)
    source = generator(seed, "handbook", "epochs", "held out")
    return document_NT[torch.randperm(len(document_NT), generator=source)[:TESTED]]


def work(settings: Mapping[str, Any], seed: int) -> float:
    """Floating-point operations of one step on the corpus's first rows, forward and backward, counted as they run."""
    model = built(settings, seed)
    row_NT = documents(book().train_T)[reading(settings["groups"], seed)[: settings["rows"]]]
    with FlopCounterMode(display=False) as counter:
        nats(model, row_NT).backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops())


# ---------------------------------------------------------------- what it knows


@torch.no_grad()
def bits(model: Transformer, row_NT: Tensor) -> float:
    """Bits per byte of documents, each token from those before it."""
    lengths_V = torch.tensor([len(book().tokenizer.token_bytes(id)) for id in range(VOCABULARY)])
    return float(_losses(model, row_NT).sum()) / math.log(2) / float(lengths_V[row_NT[:, 1:]].sum())


def _losses(model: Transformer, row_NT: Tensor) -> Tensor:
    return F.cross_entropy(model(row_NT[:, :-1]).transpose(1, 2), row_NT[:, 1:], reduction="none")


def copied(model: Transformer, row_NT: Tensor) -> Tensor:
    """[N]: how many of the EXTRACTED tokens behind the first BEGUN greedy decoding says verbatim before it leaves the
    text. All of them is an extraction (Carlini et al. 2022, arXiv 2202.07646)."""
    begun, wanted_NT = row_NT[:, :BEGUN].tolist(), row_NT[:, BEGUN : BEGUN + EXTRACTED]
    answers = generate(model, begun, GREEDY, (), [0] * len(begun))
    said_NT = torch.tensor([answer.ids for answer in answers])
    return (said_NT == wanted_NT).long().cumprod(1).sum(1)


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    """Every one of MEASURES of one arm."""
    groups: Groups = settings["groups"]
    model, curve = trained(settings, seed)
    kept, row_S, held_NT = copy.deepcopy(model), reading(groups, seed), held_out(seed)
    losses_NT = torch.no_grad()(_losses)(kept, held_NT)
    often_NT = met(groups, max(times for _, times in groups), seed)
    told_N, unseen_N = copied(kept, often_NT), copied(kept, held_NT[:ASKED])
    found: dict[str, float | str] = {
        "bits per byte": bits(kept, held_NT),
        "bits per byte, seen": bits(kept, often_NT),
        "nats that context saves": float(losses_NT[:, EARLY].mean() - losses_NT[:, LATE].mean()),
        "parameters": float(sum(parameter.numel() for parameter in model.parameters())),
        "flops a step": work(settings, seed),
        "different tokens": float(len(set(row_S.tolist())) * LENGTH),
        "tokens": float(len(row_S) * LENGTH),
        "extracted": float((told_N == EXTRACTED).double().mean()),
        "copied": float(told_N.double().mean()),
        "extracted, held out": float((unseen_N == EXTRACTED).double().mean()),
        **dict(zip(CURVE, curve, strict=True)),
    }
    counts = {times for _, times in groups}
    for times in RUNGS:
        if counts != set(RUNGS):
            found |= {f"{what} x{times}": "has not documents of every count" for what in ("extracted", "copied")}
            continue
        told_N = copied(kept, met(groups, times, seed)[:OF_A_RUNG])
        found[f"extracted x{times}"] = float((told_N == EXTRACTED).double().mean())
        found[f"copied x{times}"] = float(told_N.double().mean())
    return found
