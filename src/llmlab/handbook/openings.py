"""Beginnings of texts for a model to go on with, each seed its own: passages of a book, of which is known how a person
went on; sentences of every day; and prompts that repeat themselves, which ask for a copy.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

import torch

from llmlab.data import bundled
from llmlab.runtime import generator

WORDS, LONG = 24, 180  # of a beginning; of a paragraph that is long enough
COPIED, RESUMED, TIMES = 60, 12, 4  # words of a passage that is begun again, words of its second beginning; sayings

EVERYDAY = (
    "The neighbours had been arguing about the hedge for most of the summer, and on Saturday morning one of them",
    "To make a good soup you do not need much. Start with two onions and a little butter, and then",
    "My grandmother kept a small shop at the corner of the street, where she sold",
    "When the train finally stopped between two stations, nobody in the carriage said anything at first. Then",
    "The first thing I learned at my new job was that the coffee machine on the third floor",
    "Our town has a river, two bridges and a market on Thursdays. Visitors usually ask",
    "Last winter the heating in our building broke down for nine days, and we all",
    "A bicycle is easy to repair if you know what to look at. Before anything else,",
    "The children had found a wooden boat behind the school, and after lunch they decided",
    "It was the kind of rain that does not seem to fall at all. By the evening the garden",
    "Most people who move to the country think that it will be quiet. What they hear instead is",
    "The library closes at six, but the woman at the desk always lets me stay until",
    "I had never planned to keep a dog. It came with the house, like the old piano, and",
    "There are three ways to cross the mountains from here. The shortest of them",
    "On the day of the wedding the baker called to say that the cake",
)


class Opening(NamedTuple):
    """A prompt, and how a person went on; empty where nobody did."""

    prompt: str
    onward: str = ""


@cache
def paragraphs() -> tuple[str, ...]:
    """The long paragraphs of the bundled book, each on one line, in an order of their own."""
    blocks = re.split(r"\n\s*\n", bundled.path("moby_dick").read_text(encoding="utf-8"))
    found = [words for block in blocks if len(words := block.split()) >= LONG]
    order = torch.randperm(len(found), generator=generator(0, "handbook", "openings")).tolist()
    return tuple(" ".join(found[place]) for place in order)


def slice_of(seed: int, count: int) -> list[str]:
    """So many paragraphs that no other seed has, as long as there are enough of them."""
    every = paragraphs()
    return [every[(seed * count + place) % len(every)] for place in range(count)]


def cut(paragraph: str, words: int = WORDS) -> Opening:
    """What goes on begins with its space, as a tokenizer wants it."""
    spoken = paragraph.split()
    return Opening(" ".join(spoken[:words]), " " + " ".join(spoken[words:]))


def everyday(seed: int, count: int) -> list[Opening]:
    return [Opening(EVERYDAY[(seed * count + place) % len(EVERYDAY)]) for place in range(count)]


def begun_again(paragraph: str) -> Opening:
    """A passage and its beginning once more: whoever copies goes on with the passage, and does not loop."""
    spoken = paragraph.split()[:COPIED]
    return Opening(f"{' '.join(spoken)}\n\n{' '.join(spoken[:RESUMED])}", " " + " ".join(spoken[RESUMED:]))


def said_often(paragraph: str) -> Opening:
    """The passage's first words as one sentence, said four times: whoever copies loops."""
    sentence = " ".join(paragraph.split()[:RESUMED]).rstrip(".,;:!?—-") + "."
    return Opening(" ".join([sentence] * TIMES))
