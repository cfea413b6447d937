"""A model reads quoted passages and answers with them: what it is told, and which sources its answer names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmlab.errors import InputError
from llmlab.inference.sampling import Sampling

if TYPE_CHECKING:
    from llmlab.language_model import LanguageModel

TOKENS = 96  # of an answer
SYSTEM = (
    "Answer the question from the numbered passages only, in one or two sentences, and name the passage you used, "
    "as in [1]. If the passages do not say it, answer: not found."
)
_CITED = re.compile(r"\[(\d{1,2})\]")


def model_answer(lm: LanguageModel, question: str, texts: Sequence[str]) -> tuple[str, list[int]]:
    """What the model says (greedily) of as many passages, best first, as fit its context, and the passages it rests on
    (from 1): those that it names, else all that it was given. ("", []) where there is none.

    Errors: InputError for a question that leaves no room for a passage.
    """
    room = lm.context - TOKENS
    empty = len(_ids(lm, question, []))
    if empty >= room:
        raise InputError("--ask", f"takes {empty} tokens, and the context of {lm.context} must hold passages too")
    given = list[str]()
    for text in texts:
        ids = _ids(lm, question, [*given, text])
        if len(ids) > room:
            break
        given.append(text)
    if texts and not given:
        given = [_beginning(lm, question, texts[0], room)]
    if not given:
        return "", []
    said = lm.reply(_ids(lm, question, given), _greedy()).read().strip()
    if not said or said.lower().startswith("not found"):
        return "", []
    named = sorted({int(number) for number in _CITED.findall(said)} & {*range(1, len(given) + 1)})
    return said, named or [*range(1, len(given) + 1)]


def _beginning(lm: LanguageModel, question: str, text: str, room: int) -> str:
    """As much of a passage as fits, by halves of what is cut off."""
    fits, fails = 0, len(text)
    while fails - fits > 16:
        middle = (fits + fails) // 2
        if len(_ids(lm, question, [text[:middle]])) <= room:
            fits = middle
        else:
            fails = middle
    return text[:fits]


def _ids(lm: LanguageModel, question: str, texts: Sequence[str]) -> list[int]:
    passages = "\n\n".join(f"[{number}] {' '.join(text.split())}" for number, text in enumerate(texts, 1))
    asked = f"{passages}\n\nQuestion: {question}"
    if lm.tokenizer.chat_template is None:
        return lm.prompt(f"{SYSTEM}\n\n{asked}\nAnswer:")
    return lm.prompt([{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}])


def _greedy() -> Sampling:
    return Sampling(temperature=0.0, max_new_tokens=TOKENS)
