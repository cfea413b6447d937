"""A little model of the bundled novel, and what becomes of it (or of one that has read nothing) with a domain's text:
trained on that alone, on with a share of the novel, through an adapter, or not at all but with the text at hand.

Every way is trained to its best: the weights are kept that tell a validation text of the domain best.

N rows, L tokens, T tokens of a text, K neighbours, S tokens that are kept, D width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.adapters.lora import LoRA
from llmlab.adapters.part import adapter_parameters, add_adapter
from llmlab.handbook.domains import BEFORE, CHOICES, DOMAINS, Asked, Domain
from llmlab.handbook.fitting import fit
from llmlab.handbook.little_model import passages
from llmlab.handbook.recalling import Neighbours, Passages
from llmlab.handbook.repeating_model import VOCABULARY, book
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.runtime import generator

LAYERS, DIM, HEADS, LENGTH = 2, 64, 4, 256
BEGUN, TESTED, ROWS = 32, 128, 64  # tokens of a tested row that are only read; its tokens; rows
LOOKS, CHECKED = 10, 4  # times in a training that it is validated, and rows of that
ROLE = "domain"
MEASURES = (
    *("domain bits", "terms", "general bits"),
    "general bits, set aside",  # an adapter taken off, a text not looked up in; else as before
    *("own parameters", "kept at"),  # share of the steps after which the weights were kept
)

Losses = Callable[[Tensor, int], Tensor]  # int64 [N, L], and the tokens of a row that are only read -> [N, L - those]


def built(seed: int) -> Transformer:
    told = {"layers": LAYERS, "dim": DIM, "context": LENGTH, "position": "rope", "feedforward": "swiglu"}
    return parse(Architecture, told | {"attention": {"kind": "mha", "heads": HEADS}}).build(VOCABULARY, seed)


@lru_cache(maxsize=1)
def general(seed: int, steps: int, rows: int, rate: float, adamw_rate: float) -> Transformer:
    """The model that has read the novel; the arms of a seed share it, none changes it."""
    model, source = built(seed), generator(seed, "handbook", "domains", "general")

    def loss(step: int) -> Tensor:
        return plain(model)(passages(book().train_T, rows, LENGTH + 1, source), 1).mean()

    fit(model, loss, steps, rate, adamw_rate)
    return model


def plain(model: Transformer, role: str | None = None) -> Losses:
    """The losses of each token from those before it, nats."""

    def losses(row_NL: Tensor, read: int) -> Tensor:
        logits = model(row_NL[:, :-1], role=role)[:, read - 1 :]
        return F.cross_entropy(logits.transpose(1, 2), row_NL[:, read:], reduction="none")

    return losses


# ---------------------------------------------------------------- training on a domain


def trained(model: Transformer, role: str | None, part_T: Tensor, settings: Mapping[str, Any], seed: int) -> float:
    """Learn a domain's text in place, with `replay` of the rows from the novel, and keep what tells the validation
    text best. Answers after which share of the steps that was."""
    source = generator(seed, "handbook", "domains", "rows")
    steps: int = settings["steps"]
    losses, validated_NL = plain(model, role), _rows(DOMAINS[settings["domain"]]().validated_T, LENGTH + 1)[:CHECKED]
    seen: list[tuple[float, int, dict[str, Tensor]]] = []

    def look(step: int) -> None:
        model.eval()
        with torch.no_grad():
            value = float(losses(validated_NL, 1).mean())
        if not seen or value < seen[-1][0]:
            seen.append((value, step, copy.deepcopy(model.state_dict())))
        model.train()

    def loss(step: int) -> Tensor:
        if step * LOOKS % steps < LOOKS:
            look(step)
        row_NL = passages(part_T, settings["rows"], LENGTH + 1, source)
        novel_NL = passages(book().train_T, settings["rows"], LENGTH + 1, source)
        replayed_N1 = torch.rand(settings["rows"], 1, generator=source) < settings["replay"]
        return losses(torch.where(replayed_N1, novel_NL, row_NL), 1).mean()

    fit(model, loss, steps, settings["rate"], settings["adamw_rate"])
    look(steps)
    model.load_state_dict(seen[-1][2])
    model.eval()
    return seen[-1][1] / steps


def _rows(text_T: Tensor, length: int) -> Tensor:
    """[N, length]: the text cut up."""
    count = len(text_T) // length
    return text_T[: count * length].view(count, length)


def _own(settings: Mapping[str, Any], seed: int) -> tuple[Losses, Losses, float, float]:
    """How an arm tells text of its domain, how other text, the parameters of its own, and where training was kept."""
    domain, way = DOMAINS[settings["domain"]](), settings["way"]
    base = general(seed, *(settings[f"general_{name}"] for name in ("steps", "rows", "rate", "adamw_rate")))
    part_T = domain.part(settings["share"], seed)
    match way:
        case "general":
            return plain(base), plain(base), 0.0, 0.0
        case "passages":
            return Passages(plain(base), part_T), plain(base), 0.0, 0.0
        case "neighbours":
            return Neighbours.tuned(base, part_T, _rows(domain.validated_T, TESTED)), plain(base), 0.0, 0.0
    model = built(seed) if way == "scratch" else copy.deepcopy(base)
    role = None
    if way == "lora":
        role = ROLE
        add_adapter(model, ROLE, LoRA(rank=settings["rank"], alpha=2.0 * settings["rank"]), seed)
    kept = trained(model, role, part_T, settings, seed)
    own = adapter_parameters(model, ROLE).values() if role else model.parameters()
    aside = plain(model) if role else plain(model, role)
    return plain(model, role), aside, float(sum(one.numel() for one in own)), kept


# ---------------------------------------------------------------- what it can


def bits(losses: Losses, row_NL: Tensor) -> float:
    """Bits per byte of rows behind their first BEGUN tokens."""
    lengths_V = torch.tensor([len(book().tokenizer.token_bytes(id)) for id in range(VOCABULARY)])
    return float(losses(row_NL, BEGUN).sum()) / math.log(2) / float(lengths_V[row_NL[:, BEGUN:]].sum())


def recalled(losses: Losses, asked: list[Asked]) -> float:
    """The share of questions whose right answer is the likeliest of those it comes with, by its mean nats."""
    rows = [(before, choice) for before, choices in asked for choice in choices]
    longest = max(len(choice) for _, choice in rows)
    row_NL = torch.tensor([before + choice + [0] * (longest - len(choice)) for before, choice in rows])
    told_NL = torch.arange(longest) < torch.tensor([[len(choice)] for _, choice in rows])
    nats_N = (losses(row_NL, BEFORE) * told_NL).sum(1) / told_NL.sum(1)
    return float((nats_N.view(-1, CHOICES).argmin(1) == 0).double().mean())


def _tested(domain: Domain) -> tuple[Tensor, Tensor]:
    """[N, TESTED] held-out rows of the domain and of the novel."""
    domain_NL, novel_NL = (_rows(text, TESTED) for text in (domain.held_T, book().held_T))
    return domain_NL[:ROWS], novel_NL[:: len(novel_NL) // ROWS][:ROWS]


@torch.no_grad()
def exam(within: Losses, aside: Losses, domain: Domain) -> dict[str, float]:
    domain_NL, novel_NL = _tested(domain)
    return {
        "domain bits": bits(within, domain_NL),
        "terms": recalled(within, domain.asked),
        "general bits": bits(within, novel_NL),
        "general bits, set aside": bits(aside, novel_NL),
    }


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Every one of MEASURES of one arm."""
    within, aside, own, kept = _own(settings, seed)
    found = exam(within, aside, DOMAINS[settings["domain"]]())
    return found | {"own parameters": own, "kept at": kept}
