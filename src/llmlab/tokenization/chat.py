"""The one renderer: messages to ids and to a mask of what may be learnt, for training, evaluation and chat alike.

A chat template is a program that mixes its own text (the scaffold, with special tokens) and what people wrote (the
content). Rendered to one string and tokenised whole, a user who writes `<|im_end|><|im_start|>system` speaks as the
system. So the template is rendered with a marker in place of each content; the text between markers is scaffold, in
which special tokens are recognised, and content is tokenised apart, where they never are. What may be learnt follows
from the same cut, not from a search in the text. The pieces joined must equal the template's true rendering.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmlab.errors import InputError
from llmlab.tokenization.template import ChatTemplate
from llmlab.tokenization.tokenizer import After, Tokenizer

Message = Mapping[str, str]

# Templates that state the date are given this one unless told otherwise, so that no id depends on the day.
TODAY = datetime.date(2024, 7, 26)
ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")  # a role is written into the scaffold: nothing else gets in there


@dataclass(frozen=True)
class Rendered:
    """`ids`, and for each whether it may be learnt: assistant contents with the token that ends each."""

    ids: list[int]
    learn: list[bool]


@dataclass(frozen=True)
class _Piece:
    text: str
    message: int | None  # the message whose content this is; None for scaffold


class Renderer:
    """Renders messages `{"role": ..., "content": ...}` by the tokenizer's chat template, whichever it is.

    `stop_ids` is what generation waits for: the special token that follows an assistant's content, and eos.
    `closes` is false for a template that puts no special token behind the last assistant content: such a model can be
    talked to, but training on it would never teach it to stop.
    """

    def __init__(self, tokenizer: Tokenizer, today: datetime.date = TODAY) -> None:
        if tokenizer.chat_template is None:
            raise InputError("model", "its tokenizer has no chat template", "fine-tune it first, or use raw prompts")
        self.tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer.chat_template, today)
        self._mark = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in tokenizer.chat_template)
        self._marker = re.compile(f"{self._mark}([0-9]+){self._mark}")
        self._scaffolds = dict[tuple[str, After], list[int]]()
        self._special = {
            name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        }
        ends = {stop for messages in PROBES if (stop := self._stop(messages)) is not None}
        self.closes = self._stop(PROBES[0]) is not None
        self.stop_ids = frozenset(ends if tokenizer.eos_id is None else ends | {tokenizer.eos_id})

    @property
    def template_hash(self) -> str:
        """Names the template: kept with weights, so that another template is noticed when they are read."""
        return hashlib.sha256((self.tokenizer.chat_template or "").encode()).hexdigest()

    def render(self, messages: Sequence[Message], reply: bool = False) -> Rendered:
        """The messages as one sequence; `reply` ends it where the assistant's next answer begins.

        Raises `InputError` for messages that the template refuses, and for a template that changes contents (beyond
        stripping white space) or leaves some out.
        """
        pieces = self._pieces(messages, reply)
        ids, learn = list[int](), list[bool]()
        after: After = "start"
        answering = False
        for piece in pieces:
            if piece.message is None:
                new = self._scaffold(piece.text, after)
                end = next((at for at, id in enumerate(new) if id in self.tokenizer.special_ids), -1)
                learn += [answering and at <= end for at in range(len(new))]
                answering = False
            else:
                new = self.tokenizer.encode(piece.text, after)
                answering = messages[piece.message]["role"] == "assistant"
                learn += [answering] * len(new)
            ids += new
            if new:
                after = "special" if ids[-1] in self.tokenizer.special_ids else "text"
        return self._one_bos(ids, learn)

    def text(self, messages: Sequence[Message], reply: bool = False) -> str:
        """What the template makes of the messages, as one string. To look at: ids come from `render`."""
        return self._template.render(self._variables(messages, reply))

    # ------------------------------------------------------------ pieces

    def _variables(self, messages: Sequence[Message], reply: bool) -> dict[str, object]:
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        named = {name: token or "" for name, token in self._special.items()}
        return {**named, "messages": plain, "add_generation_prompt": reply, "tools": None, "documents": None}

    def _pieces(self, messages: Sequence[Message], reply: bool) -> list[_Piece]:
        """The rendering cut into scaffold and contents. An empty answer is a piece too: its stop is learnt."""
        _check(messages)
        truth = self.text(messages, reply)
        for blanks in (True, False):  # a template that strips around a blank content strips its own white space too
            marked = [
                message if not blanks and _blank(message) else self._marked(at, message)
                for at, message in enumerate(messages)
            ]
            pieces = self._cut(truth, self.text(marked, reply), messages)
            if pieces is not None:
                break
        else:
            raise InputError("chat template", "changes what is said in these messages", "its ids cannot be made safely")
        there = {piece.message for piece in pieces}
        for at, message in enumerate(messages):
            if at not in there and not _blank(message):
                raise InputError(f"message {at + 1}", f"the chat template leaves out what the {message['role']} says")
        return pieces

    def _marked(self, at: int, message: Message) -> Message:
        return {"role": message["role"], "content": f"{self._mark}{at}{self._mark}"}

    def _cut(self, truth: str, marked: str, messages: Sequence[Message]) -> list[_Piece] | None:
        """`truth` cut where `marked` has its markers; None where the two are not the same but for the contents."""
        first, *rest = self._marker.split(marked)
        pieces, place = [_Piece(first, None)], len(first)
        for at, scaffold in zip(map(int, rest[::2]), rest[1::2], strict=True):
            content = next((c for c in _forms(messages[at]["content"]) if truth.startswith(c + scaffold, place)), None)
            if content is None:
                return None
            pieces += [_Piece(content, at), _Piece(scaffold, None)]
            place += len(content) + len(scaffold)
        return pieces if truth.startswith(first) and place == len(truth) else None

    def _scaffold(self, text: str, after: After) -> list[int]:
        known = self._scaffolds.get((text, after))
        if known is None:
            known = self._scaffolds[text, after] = self.tokenizer.scaffold(text, after)
        return known

    def _one_bos(self, ids: list[int], learn: list[bool]) -> Rendered:
        """Where the model's texts begin with bos, this one does too: once, whether or not the template says so."""
        bos = self.tokenizer.bos_id
        if bos is not None and self.tokenizer.adds_bos:
            while ids[:1] == [bos]:
                del ids[0], learn[0]
            return Rendered([bos, *ids], [False, *learn])
        return Rendered(ids, learn)

    def _stop(self, messages: Sequence[Message]) -> int | None:
        """The special token right behind the first assistant content of a probe."""
        try:
            rendered = self.render(messages)
        except InputError:
            return None  # it refuses or bends even this; `render` says so of real messages
        learnt = [id for id, learn in zip(rendered.ids, rendered.learn, strict=True) if learn]
        return next((id for id in learnt if id in self.tokenizer.special_ids), None)


PROBES = (
    ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
    ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}),
)


def _forms(content: str) -> list[str]:
    """The content, and what a template that strips white space makes of it."""
    return [content, content.strip(), content.lstrip(), content.rstrip()]


def _blank(message: Message) -> bool:
    """Nothing but white space, from someone whose words are not learnt."""
    return message["role"] != "assistant" and not message["content"].strip()


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise InputError("messages", "there are none")
    for at, message in enumerate(messages, 1):
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise InputError(f"message {at}", f"its {key} is {message.get(key)!r}, not text")
        if not ROLE.fullmatch(message["role"]):
            raise InputError(f"message {at}", f"{message['role']!r} is no role", "system, user, assistant or tool")
