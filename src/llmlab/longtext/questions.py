"""What a question looks for: its words without those by which it asks.

English function words (the closed classes: articles, pronouns, prepositions, auxiliaries, conjunctions, question words)
and the Chinese words of asking. What a text is about is seldom in them, and a long question is half made of them.
"""

from __future__ import annotations

import re

from llmlab.errors import InputError

LONGEST = 2000  # characters: what is longer is a text and no question
FUNCTION = frozenset((
    "a", "an", "the", "this", "that", "these", "those", "it", "its", "he", "his", "him", "she", "her", "hers",
    "they", "them", "their", "we", "us", "our", "i", "me", "my", "you", "your", "of", "to", "in", "on", "at", "by",
    "for", "from", "with", "into", "onto", "upon", "about", "over", "under", "after", "before", "during", "between",
    "through", "against", "is", "are", "was", "were", "be", "been", "being", "am", "do", "does", "did", "done",
    "has", "have", "had", "having", "can", "could", "will", "would", "shall", "should", "may", "might", "must",
    "and", "or", "but", "nor", "not", "no", "so", "if", "then", "than", "there", "here", "as", "when", "while",
    "where", "why", "how", "what", "which", "who", "whom", "whose", "any", "some", "all", "one", "ones", "other",
    "s", "t",
))  # fmt: skip
_ASKING = re.compile(
    "为什么|什么样|什么|怎么样|怎么|怎样|如何|为何|哪里|哪儿|哪一|哪些|哪个|哪|多少|几|谁|何|是|的|了|吗|呢|在|把|被|和|与|这|那|有"
)
_WORD = re.compile(r"\w+")


def checked(question: str, place: str = "--ask") -> str:
    """The question without blanks around. Errors: InputError where it is empty or longer than `LONGEST`."""
    asked = question.strip()
    if not _WORD.search(asked):
        raise InputError(place, "is empty" if not asked else f"{asked!r} has no word", "ask a question")
    if len(asked) > LONGEST:
        raise InputError(place, f"has {len(asked)} characters, more than a question has", f"at most {LONGEST}")
    return asked


def telling(question: str) -> str:
    """The words of a question that tell what it is about; all of them where none does.

    >>> telling("What was the name of the captain's ship?"), telling("曹操的马叫什么？")
    ('name captain ship', '曹操 马叫')
    """
    said = _WORD.findall(question.lower())
    left = [word for part in said if part not in FUNCTION for word in _ASKING.sub(" ", part).split()]
    return " ".join(left or said)
