"""Long documents with made-up facts in them: a stretch of the bundled book, ten facts at known depths, one question
each. A question is the beginning of its fact's sentence, which the model goes on with.

In its chat form SmolLM2 misses some of these facts in short texts already; where it goes on with plain text it finds
nearly all. So it is not asked, it continues: what is measured is reaching a fact, not talking about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llmlab.data import bundled
from llmlab.runtime import generator
from llmlab.tokenization.tokenizer import Tokenizer

FIFTHS = 5  # of a document, by which recall is told
STEMS: tuple[tuple[str, tuple[str, ...]], ...] = (  # beginnings of sentences, and how they may end; none: four digits
    ("The secret code of the lighthouse is", ()),
    ("The password of the bakery is", ("mango", "apricot", "cherry", "papaya", "walnut", "ginger", "pepper", "onion")),
    ("The favourite colour of the mayor is", ("purple", "orange", "turquoise", "scarlet", "silver", "pink", "indigo")),
    ("The name of the dentist's parrot is", ("Oscar", "Felix", "Bruno", "Hugo", "Leo", "Max", "Otto", "Rex")),
    ("The hometown of the violinist is", ("Vienna", "Lisbon", "Oslo", "Cairo", "Madrid", "Warsaw", "Athens", "Berlin")),
    ("The birthday of the gardener is in", ("January", "March", "April", "July", "August", "October", "November")),
    ("The winner of the chess tournament was", ("Anderson", "Kowalski", "Tanaka", "Moreau", "Silva", "Novak", "Weber")),
    ("The animal on the flag of the school is a", ("tiger", "rabbit", "camel", "turtle", "falcon", "beaver", "zebra")),
    ("The spare key of the locksmith lies under the", ("carpet", "sofa", "piano", "bucket", "pillow", "ladder")),
    ("The train to the mountains leaves from platform", ()),
)


@dataclass(frozen=True)
class Fact:
    """A sentence as its beginning and its end; `place` is the first of its `width` tokens in the document."""

    stem: str
    answer: str
    place: int
    width: int


@dataclass(frozen=True)
class Document:
    ids: list[int]
    facts: list[Fact]

    def fifth(self, fact: Fact) -> int:
        return fact.place * FIFTHS // len(self.ids)


def document(tokenizer: Tokenizer, tokens: int, seed: int, edges: int | None = None) -> Document:
    """So many tokens of the book, with every fact as a paragraph of its own, in an order and with ends that the seed
    chooses, evenly over the length. `edges`: each is moved so that the nearest multiple of it lies before its
    answer."""
    draws = generator(seed, "handbook", "needles")
    count = len(STEMS)
    book = bundled.path("moby_dick").read_text(encoding="utf-8")
    letters = 6 * tokens  # more than so many tokens
    start = int(torch.randint(len(book) - letters, (), generator=draws))
    filler = tokenizer.encode(book[start : start + letters])
    ids, facts = list[int](), list[Fact]()
    gap = tokenizer.encode("\n\n")
    for turn, which in enumerate(torch.randperm(count, generator=draws).tolist()):
        stem, ends = STEMS[which]
        digits = torch.randint(1, 10, (4,), generator=draws).tolist()
        chosen = int(torch.randint(max(1, len(ends)), (), generator=draws))
        answer = ends[chosen] if ends else "".join(map(str, digits))
        sentence = tokenizer.encode(f"{stem} {answer}.")
        place = round((turn + 0.5) * tokens / count)
        if edges is not None:
            place = max(1, round(place / edges)) * edges - len(tokenizer.encode(stem))
        taken, filler = filler[: place - len(gap) - len(ids)], filler[place - len(gap) - len(ids) :]
        ids += taken + gap + sentence + gap
        facts.append(Fact(stem, answer, place, len(sentence)))
    return Document(ids + filler[: tokens - len(ids)], facts)


def recalled(document: Document, answers: Sequence[str]) -> dict[str, float]:
    """`recall`: the share of answers, one a fact, that hold what the fact says; `recall_1` to `recall_5` by fifth of
    the document, -1 where no fact stands."""
    right = [fact.answer in answer for fact, answer in zip(document.facts, answers, strict=True)]
    told = {"recall": sum(right) / len(right)}
    for fifth in range(FIFTHS):
        here = [one for one, fact in zip(right, document.facts, strict=True) if document.fifth(fact) == fifth]
        told[f"recall_{fifth + 1}"] = sum(here) / len(here) if here else -1.0
    return told
