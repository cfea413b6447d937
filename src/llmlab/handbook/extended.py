"""A little model trained on short rows and read past them, before and after a short tuning on long ones: its loss, and
whether it finds codes that stand somewhere in the text. The two are measured apart, since a model may survive length
without using it.

The text is the bundled book, one token a byte; half of the rows have four codes in it, tokens of their own, and end
with four marks, each followed by the code that belongs to it. Losses are scored on the last bytes of long
windows: the same tokens at every length, only what stands before them grows. Beside it the same windows' text is scored
whole, cut into pieces that do not overlap: then the early tokens of a longer piece have more before them.

N rows, T queries, S keys, L tokens, C codes, H heads.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.evaluation.rescaled import rescaled
from llmlab.handbook.fitting import fit
from llmlab.handbook.little_model import book, nats, passages
from llmlab.handbook.question import Figures
from llmlab.model.attention import Attention
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.runtime import generator

TRAINED, LONG = 32, 4  # tokens of a row, and how many times that a tuning row and the rescaled angles have
MULTIPLES = (1, 2, 4, 8)
LAYERS, DIM, HEADS = 2, 96, 4
CODES, VALUES = 4, 16  # codes of a row, and how many values each may have: tokens that no byte is
MARKS = 256 + CODES * VALUES  # the first mark
VOCABULARY = MARKS + CODES
EXAM, FEW = 64, 16  # rows of an exam, and where more would tell nothing new
MEASURES = tuple(
    f"{what}@{times}x"
    for what in ("bits", "needle", "beside", "entropy", "tuned bits", "tuned needle")
    for times in MULTIPLES
)


def architecture(position: str) -> Architecture:
    told = {"layers": LAYERS, "dim": DIM, "context": TRAINED, "position": position}
    return parse(Architecture, told | {"attention": {"kind": "mha", "heads": HEADS}})


def with_codes(row_NL: Tensor, source: torch.Generator) -> Tensor:
    """The rows with codes at random places, and at the end each mark with its code; int64 [N, L]. Text makes room."""
    rows, length = row_NL.shape
    code_NC = torch.randint(VALUES, (rows, CODES), generator=source) + 256 + VALUES * torch.arange(CODES)
    end = 2 * CODES
    place_NC = torch.rand(rows, length - end, generator=source).argsort(1)[:, :CODES]
    made = row_NL.scatter(1, place_NC, code_NC)
    made[:, -end::2], made[:, 1 - end :: 2] = torch.arange(CODES) + MARKS, code_NC
    return made


def rows(text: Tensor, count: int, length: int, source: torch.Generator) -> Tensor:
    """int64 [N, L] to learn from: half of them plain, half with a code."""
    plain_NL = passages(text, count, length, source)
    return torch.cat([plain_NL[: count // 2], with_codes(plain_NL[count // 2 :], source)])


@lru_cache(maxsize=1)
def trained(position: str, seed: int, steps: int, count: int, rate: float, adamw_rate: float) -> Transformer:
    """The model that was trained on short rows; arms of one seed share it, none changes it."""
    model = architecture(position).build(VOCABULARY, seed)
    text, source = book()[0], generator(seed, "handbook", "extended")

    def loss(step: int) -> Tensor:
        return nats(model, rows(text, count, TRAINED + 1, source))

    fit(model, loss, steps, rate, adamw_rate)
    return model


def read_by(model: Transformer, way: str | None) -> Transformer:
    """A copy of the model, weights of its own, that reads LONG times its length in a way of `evaluation.rescaled`."""
    made = copy.deepcopy(model)
    return made if way is None else rescaled(made, way, LONG, TRAINED)


@torch.no_grad()
def exams(model: Transformer, seed: int) -> Figures:
    """`bits@kx`: bits a byte of the last TRAINED bytes of windows of k * TRAINED; `needle@kx`: the share of codes that
    are said after their marks, of windows as long."""
    source = generator(seed, "handbook", "extended", "exam")
    plain_NL = _held_out(seed)
    found: Figures = {}
    for times in MULTIPLES:
        row_NL = plain_NL[:, -times * TRAINED - 1 :]
        found[f"bits@{times}x"] = _bits(model, row_NL, TRAINED)
        coded_NL = with_codes(row_NL[:, 1:], source)
        said_NC, code_NC = model(coded_NL)[:, -2 * CODES :: 2].argmax(-1), coded_NL[:, 1 - 2 * CODES :: 2]
        found[f"needle@{times}x"] = float((said_NC == code_NC).double().mean())
    return found


@torch.no_grad()
def protocols(model: Transformer, seed: int) -> Figures:
    """`beside@kx`: bits a byte of whole texts, cut into windows of k * TRAINED that do not overlap; `entropy@kx`: nats
    of the attention of the last TRAINED bytes of such a window, the mean over layers and heads."""
    row_NL = _held_out(seed)[:FEW]
    found: Figures = {}
    for times in MULTIPLES:
        window = times * TRAINED
        cut_NL = row_NL[:, 1:].reshape(-1, window)
        before_N1 = row_NL[:, :-1:window].reshape(-1, 1)
        found[f"beside@{times}x"] = _bits(model, torch.cat([before_N1, cut_NL], 1), window)
        found[f"entropy@{times}x"] = _entropy(model, row_NL[:, -window:])
    return found


def _held_out(seed: int) -> Tensor:
    """int64 [N, L]: the longest windows, and the byte before each."""
    source = generator(seed, "handbook", "extended", "held out")
    return passages(book()[1], EXAM, MULTIPLES[-1] * TRAINED + 1, source)


def _bits(model: Transformer, row_NL: Tensor, scored: int) -> float:
    """Mean bits of the last `scored` tokens of each row."""
    logits = model(row_NL[:, :-1])[:, -scored:]
    return float(F.cross_entropy(logits.flatten(0, 1), row_NL[:, -scored:].flatten())) / math.log(2)


def _entropy(model: Transformer, row_NL: Tensor) -> float:
    """Nats of the weights of the last TRAINED queries."""
    found: list[Tensor] = []

    def look(attention: nn.Module, told: tuple[Any, ...]) -> None:
        assert isinstance(attention, Attention)
        x_BTD, sight, layer = told
        k_BHSK, _ = attention.keys(x_BTD, sight, layer)
        q_BHTK = attention.query(x_BTD).unflatten(2, (HEADS, -1)).transpose(1, 2)
        q_BHTK = sight.position.query(q_BHTK, sight.prepared)[:, :, -TRAINED:]
        scores = q_BHTK @ k_BHSK.mT * attention.scale
        mask = sight.mask[..., -TRAINED:, :]
        scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, float("-inf"))
        weights = scores.softmax(-1)
        found.append(-torch.special.xlogy(weights, weights).sum(-1).mean())

    handles = [module.register_forward_pre_hook(look) for module in model.modules() if isinstance(module, Attention)]
    try:
        model(row_NL)
    finally:
        for handle in handles:
            handle.remove()
    return float(torch.stack(found).mean())


def tuned(model: Transformer, settings: Mapping[str, Any], seed: int) -> None:
    """Learn a little from rows of LONG times the length, in place."""
    text, source = book()[0], generator(seed, "handbook", "extended", "tuning")

    def loss(step: int) -> Tensor:
        return nats(model, rows(text, settings["tuning_rows"], LONG * TRAINED + 1, source))

    fit(model, loss, settings["tuning_steps"], settings["tuning_rate"], settings["tuning_adamw_rate"])


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    """An arm of the race: the exams as the way reads, and again after tuning with it, where any is asked for."""
    how = (settings[name] for name in ("steps", "rows", "rate", "adamw_rate"))
    model = read_by(trained(settings["position"], seed, *how), settings["way"])
    found: dict[str, float | str] = {**exams(model, seed), **protocols(model, seed)}
    if not settings["tuning_steps"]:
        return found | {name: "is not tuned" for name in MEASURES if name.startswith("tuned")}
    tuned(model, settings, seed)
    return found | {f"tuned {name}": value for name, value in exams(model, seed).items()}
