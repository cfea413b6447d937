"""A tiny model with random weights to decode with, and what must hold whatever it says: the identities of question 16.

B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor

from llmlab.handbook.measures import draw, filled, gap
from llmlab.handbook.question import Figures
from llmlab.handbook.toy_beam import beam, beam_to_stop, exhaustive, exhaustive_to_stop
from llmlab.inference.beam import Beam
from llmlab.inference.contrastive import Contrastive
from llmlab.inference.engine import Completion, generate
from llmlab.inference.front import DecoderFront
from llmlab.inference.processors import penalise_repetition, temper
from llmlab.inference.sampling import Sampling, choose, key_of, process
from llmlab.inference.search import Search
from llmlab.inference.text import TextStream
from llmlab.model.attention import MultiHead
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer

VOCABULARY, PROMPT, ANSWER = 24, 5, 12
TINY = Architecture(layers=2, dim=32, context=PROMPT + ANSWER + 1, attention=MultiHead(heads=4))
TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0)
COLD = 1e-6
DRAWS, FACES = 5_000, 8
STOPS = (3, 4, 5, 6)
TOY, TOY_LENGTH, TOY_PROMPTS = 5, 4, 24  # a vocabulary whose texts can all be tried: 5^4
NUCLEUS, FIRST = 0.9, 5  # top-p and top-k of which it is asked how many tokens they keep
LENGTH_PENALTIES, TOY_STOP = (-2.0, 0.0, 0.5, 1.0, 2.0, 4.0), 0
OMITTED: dict[str, dict[str, Any]] = {
    "top_k": {"top_k": 2},
    "top_p": {"top_p": 0.3},
    "min_p": {"min_p": 0.3},
    "typical_p": {"typical_p": 0.3},
    "repetition_penalty": {"repetition_penalty": 2.0},
    "presence_penalty": {"presence_penalty": 2.0},
    "frequency_penalty": {"frequency_penalty": 2.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "logit_bias": {"logit_bias": {STOPS[0]: 5.0}},
    "total length": {"max_new_tokens": TINY.context},  # it is the context that ends such a text
    "stop texts": {"stop": ("h", "i", "j", "k")},
}
WIDTH = 4
GROUPED = Beam(beams=WIDTH, groups=WIDTH, diversity_penalty=1.0)
APART = Beam(beams=WIDTH, groups=WIDTH, diversity_penalty=100.0)  # more than any two log-probabilities differ
# A setting of a search, and what it is set against.
SEARCHES: dict[str, tuple[Search, Search]] = {
    "beams": (Beam(beams=WIDTH), Beam(beams=1)),
    "groups": (GROUPED, Beam(beams=WIDTH)),
    "length_penalty": (Beam(beams=WIDTH, length_penalty=-1.0), Beam(beams=WIDTH, length_penalty=2.0)),
    "early_stopping": (
        Beam(beams=WIDTH, length_penalty=2.0, early_stopping=True),
        Beam(beams=WIDTH, length_penalty=2.0, early_stopping="never"),
    ),
    "contrastive": (Contrastive(), Contrastive(penalty_alpha=0.0)),
}


class Letters:
    """A token is a letter: 0 is a."""

    special_ids: frozenset[int] = frozenset()

    def token_bytes(self, id: int) -> bytes:
        return bytes([ord("a") + id])


class Desk:
    """A tiny model with random weights and a prompt, to decode with one setting or another."""

    def __init__(self, seed: int) -> None:
        model = filled(TINY.build(VOCABULARY, seed), seed, "q16.model").float()
        assert isinstance(model, Transformer)
        self.model, self.seed = model, seed
        self.prompts = [[(3 * row + 5 * column + 1) % VOCABULARY for column in range(PROMPT - row)] for row in range(4)]

    def texts(self, *, stops: tuple[int, ...] = (), seed: int | None = None, **settings: Any) -> list[list[int]]:
        return [completion.ids for completion in self.completions(stops=stops, seed=seed, **settings)]

    def completions(self, *, stops: tuple[int, ...] = (), seed: int | None = None, **settings: Any) -> list[Completion]:
        sampling = Sampling(**{"max_new_tokens": ANSWER, **settings})
        seeds = [self.seed if seed is None else seed] * len(self.prompts)
        watches = [TextStream(Letters(), sampling.stop) for _ in self.prompts]

        def stopped(row: int, token: int) -> bool:
            watches[row].push(token)
            return watches[row].stopped

        return generate(self.model, self.prompts, sampling, stops, seeds, on_token=stopped if sampling.stop else None)

    def searched(self, search: Search, *, stops: tuple[int, ...] = ()) -> list[list[list[int]]]:
        """All texts that are found for each prompt, best first."""
        found = search.find(
            DecoderFront(self.model),
            self.prompts,
            Sampling(max_new_tokens=ANSWER),
            stops,
            [self.seed] * len(self.prompts),
        )
        return [[one.ids for one in own] for own in found]


@torch.no_grad()
def identities(seed: int) -> Figures:
    """All figures of this file."""
    desk = Desk(seed)
    logits_BV = desk.model(torch.tensor([desk.prompts[0]]))[0]
    parts = (
        *(_greedy(desk, logits_BV), _distribution(desk, logits_BV), _kept(logits_BV)),
        *(_limits(desk), _omitted(desk), _padding(desk), _beams(seed), _penalised(seed), _searches(desk)),
    )
    return {name: value for part in parts for name, value in part.items()}


def _differing(a: Sequence[object], b: Sequence[object]) -> float:
    """How many texts are not the same."""
    return float(sum(x != y for x, y in zip(a, b, strict=True)))


def _greedy(desk: Desk, logits_BV: Tensor) -> Figures:
    greedy = desk.texts(temperature=0.0)
    moved = [float(temper(logits_BV, t).argmax(-1).ne(logits_BV.argmax(-1)).sum()) for t in TEMPERATURES]
    return {
        "cold_differs": _differing(desk.texts(temperature=COLD), greedy),
        "top_k_1_differs": max(_differing(desk.texts(top_k=1, temperature=t), greedy) for t in TEMPERATURES[::4]),
        "argmax_moves": max(moved),
    }


def _distribution(desk: Desk, logits_BV: Tensor) -> Figures:
    """Entropy over temperature, frequencies against softmax, and the log-probabilities the engine reports."""
    entropies = []
    for t in TEMPERATURES:
        logprobs_BV = process(logits_BV, Sampling(temperature=t)).log_softmax(-1)
        entropies.append(float(-(logprobs_BV.exp() * logprobs_BV).sum(-1).mean()))
    die = draw(desk.seed, "q16.die", 1, FACES).float()
    ids = choose(die.expand(DRAWS, FACES), False, [key_of(desk.seed)] * DRAWS, range(DRAWS)).ids_B
    expected = DRAWS * die.softmax(-1)[0].double()
    chi_square = ((torch.bincount(ids, minlength=FACES) - expected).square() / expected).sum()
    degrees = torch.tensor((FACES - 1) / 2, dtype=torch.float64)
    answer, prompt = desk.completions(top_p=1.0)[0], desk.prompts[0]
    scored = desk.model(torch.tensor([prompt + answer.ids]))[0, len(prompt) - 1 : -1].log_softmax(-1)
    own = scored.gather(-1, torch.tensor(answer.ids)[:, None])[:, 0]
    return {
        "entropy_coldest": entropies[0],
        "entropy_hottest": entropies[-1],
        "entropy_smallest_rise": min(b - a for a, b in pairwise(entropies)),
        "chi_square_p": float(torch.special.gammaincc(degrees, chi_square / 2)),
        "top_p_1_gap": gap(own, torch.tensor(answer.logprobs)),
    }


def _kept(logits_BV: Tensor) -> Figures:
    """How many times as many tokens top-p and top-k keep at the highest temperature as at the lowest."""
    kept = {}
    for name, setting in (("top_p", {"top_p": NUCLEUS}), ("top_k", {"top_k": FIRST})):
        cold, hot = (
            float(process(logits_BV, Sampling(temperature=t, **setting)).isfinite().sum()) for t in TEMPERATURES[::4]
        )
        kept[f"{name}_growth"] = hot / cold
    return kept


def _limits(desk: Desk) -> Figures:
    """Maximum, minimum, total length and stop tokens, counted over several settings."""
    broken = 0
    for longest, shortest in ((1, 0), (7, 0), (ANSWER, 0), (ANSWER, 6), (9, 9)):
        for answer in desk.completions(stops=STOPS, max_new_tokens=longest, min_new_tokens=shortest):
            early = [token for token in answer.ids[:-1] if token in STOPS]
            ended = answer.ids[-1] in STOPS
            right_reason = answer.finish_reason == ("stop" if ended else "length")
            right_length = shortest <= len(answer.ids) <= longest and (ended or len(answer.ids) == longest)
            broken += bool(early) or not right_reason or not right_length
    for prompt, ids in zip(desk.prompts, desk.texts(**OMITTED["total length"]), strict=True):
        broken += len(prompt) + len(ids) != TINY.context
    return {"limits_broken": float(broken)}


def _omitted(desk: Desk) -> Figures:
    """Parameters the handbook leaves out: each must change the text. And the penalty as printed in its paper."""
    plain = desk.texts()
    changed = {name: _differing(desk.texts(**setting), plain) for name, setting in OMITTED.items()}
    for name, (search, other) in SEARCHES.items():
        changed[name] = _differing(_told(desk, name, search), _told(desk, name, other))
    changed["stop tokens"] = _differing(desk.texts(stops=STOPS), plain)
    changed["seed"] = _differing(desk.texts(seed=desk.seed + 1), plain)
    negative = torch.tensor([[-1.0, 2.0]])
    everything = torch.ones_like(negative, dtype=torch.bool)
    return {
        "silent_parameters": float(sum(not texts for texts in changed.values())),
        "parameters_tried": float(len(changed)),
        "same_seed_differs": _differing(desk.texts(), plain),
        "penalty_raises": float((penalise_repetition(negative, everything, 2.0) - negative).max()),
    }


def _told(desk: Desk, name: str, search: Search) -> list[Any]:
    """What a search says: its best text; all that it found where it is asked whether they are like one another."""
    found = desk.searched(search, stops=STOPS if name in ("length_penalty", "early_stopping") else ())
    return found if name == "groups" else [own[0] for own in found]


def _padding(desk: Desk) -> Figures:
    """A left-padded batch against each prompt alone: logits, and the texts drawn."""
    sizes = [len(prompt) for prompt in desk.prompts]
    padded = torch.tensor([[0] * (PROMPT - len(prompt)) + prompt for prompt in desk.prompts])
    together = desk.model(padded, Places.of_lengths(sizes, PROMPT, "left"))
    alone = [desk.model(torch.tensor([prompt]))[0] for prompt in desk.prompts]
    single = [generate(desk.model, [p], Sampling(max_new_tokens=ANSWER), (), [desk.seed])[0].ids for p in desk.prompts]
    return {
        "padding_gap": max(gap(row[-len(one) :], one) for row, one in zip(together, alone, strict=True)),
        "padding_differs": _differing(desk.texts(), single),
    }


def _toy(seed: int) -> Transformer:
    model = filled(TINY.build(TOY, seed), seed, "q16.toy").float()
    assert isinstance(model, Transformer)
    return model


def _toy_prompts() -> list[list[int]]:
    return [[row % TOY, row // TOY % TOY, 2] for row in range(TOY_PROMPTS)]


def _beams(seed: int) -> Figures:
    """Beam search on a toy vocabulary against greedy decoding by the engine and against all texts there are."""
    model = _toy(seed)
    out = {"beam_1_differs": 0.0, "beam_all_differs": 0.0, "greedy_misses": 0.0, "beam_2_misses": 0.0}
    for prompt in _toy_prompts():
        (greedy,) = generate(model, [prompt], Sampling(temperature=0, max_new_tokens=TOY_LENGTH), (), [seed])
        best, _ = exhaustive(model, prompt, TOY_LENGTH)
        out["beam_1_differs"] += beam(model, prompt, TOY_LENGTH, 1)[0] != greedy.ids
        out["beam_all_differs"] += beam(model, prompt, TOY_LENGTH, TOY**TOY_LENGTH)[0] != best
        out["greedy_misses"] += greedy.ids != best
        out["beam_2_misses"] += beam(model, prompt, TOY_LENGTH, 2)[0] != best
    return {name: float(count) for name, count in out.items()}


def _penalised(seed: int) -> Figures:
    """The penalty for length, with a stop token: against all texts there are, and from one penalty to the next.

    Which texts are kept does not depend on it (those of one step are of one length), and of those kept the winner
    minimises log |sum| - penalty log length: lines in the penalty, of which the steeper, longer text wins from some
    penalty on. So with nothing given up early the best text never grows shorter, however few the beams.
    """
    model = _toy(seed)
    out = {"penalised_differs": 0, "length_falls": 0, "length_rises": 0}
    for prompt in _toy_prompts():
        every, few = (
            [beam_to_stop(model, prompt, TOY_LENGTH, width, TOY_STOP, penalty)[0] for penalty in LENGTH_PENALTIES]
            for width in (TOY**TOY_LENGTH, 2)
        )
        best = [ids for ids, _ in exhaustive_to_stop(model, prompt, TOY_LENGTH, TOY_STOP, LENGTH_PENALTIES)]
        out["penalised_differs"] += sum(a != b for a, b in zip(every, best, strict=True))
        out["length_falls"] += sum(len(b) < len(a) for texts in (every, few) for a, b in pairwise(texts))
        out["length_rises"] += len(few[0]) < len(few[-1])
    return {name: float(count) for name, count in out.items()}


def _searches(desk: Desk) -> Figures:
    """How far groups of beams are apart, and contrastive search that does not contrast."""
    grouped, plain, apart = (
        [_apart(texts) for texts in desk.searched(search)] for search in (GROUPED, Beam(beams=WIDTH), APART)
    )
    contrastive = [own[0] for own in desk.searched(Contrastive(penalty_alpha=0.0))]
    return {
        "apart_groups": sum(grouped) / len(grouped),
        "apart_beams": sum(plain) / len(plain),
        "apart_smallest_gain": min(a - b for a, b in zip(grouped, plain, strict=True)),
        "apart_most_penalised": min(apart),
        "contrastive_0_differs": _differing(contrastive, desk.texts(temperature=0.0)),
    }


def _apart(texts: list[list[int]]) -> float:
    """At which share of places two texts differ, over all pairs."""
    pairs = [a != b for one, other in combinations(texts, 2) for a, b in zip(one, other, strict=True)]
    return sum(pairs) / len(pairs)
