"""A conversation: what is remembered, what is forgotten when the context is full, and the lines of a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from llmlab.errors import InputError
from llmlab.inference.cache import PromptCache
from llmlab.inference.sampling import Sampling
from llmlab.language_model import LanguageModel, Reply, Ways, conversation
from llmlab.tokenization.chat import Message

HELP = """\
/reset          forget the conversation (the system prompt stays)
/system TEXT    set the system prompt and forget the conversation; without TEXT: no system prompt
/help           this
/exit           leave (Ctrl-D does too); Ctrl-C stops an answer"""


class ChatSession:
    """A conversation with a model. Keys and values of what is already said are kept between turns.

    When the context is full the oldest turns are forgotten, never the system prompt, and `notice` says so.
    """

    def __init__(
        self,
        lm: LanguageModel,
        sampling: Sampling | None = None,
        system: str | None = None,
        ways: Ways | None = None,
    ) -> None:
        self.lm = lm
        self.sampling = sampling or Sampling()
        self.system, self.ways = system, ways
        self.turns: list[tuple[Message, ...]] = []  # each a question with its answer
        self.notice = ""  # what to tell the user about the last turn, beside the answer
        self.reply: Reply | None = None  # the last answer
        self._memory = PromptCache(lm.context)
        self._check_system(system)

    def say(self, text: str) -> Generator[str]:
        """The answer in pieces. Who stops listening, or is interrupted, keeps what was said so far; a question that has
        no answer at all is taken back.

        Errors: InputError for a message that does not fit into the context on its own, before anything is changed.
        """
        question: Message = {"role": "user", "content": text}
        ids = self._fit(question)
        return self._answer(question, ids)

    def _answer(self, question: Message, ids: list[int]) -> Generator[str]:
        reply = self.reply = self.lm.reply(ids, self.sampling, self._memory, self.ways)
        try:
            yield from reply
        finally:
            if reply.finish_reason is not None or reply.text:
                self.turns.append((question, {"role": "assistant", "content": reply.text}))

    def command(self, line: str) -> str:
        """What a line that begins with a slash does; the answer is for the user. `/exit` is the caller's."""
        name, _, rest = line.strip().partition(" ")
        match name:
            case "/help":
                return HELP
            case "/reset":
                self.turns.clear()
                return "(forgotten)"
            case "/system":
                system = rest.strip() or None
                self._check_system(system)
                self.system = system
                self.turns.clear()
                return (
                    "(new system prompt; conversation forgotten)"
                    if system
                    else "(no system prompt; conversation forgotten)"
                )
        return f"(no command {name}; /help lists them, and a message may begin with a space)"

    # ------------------------------------------------------------ what fits

    def _prompt(self, turns: Sequence[tuple[Message, ...]], question: Message) -> list[int]:
        *system, last = conversation(question["content"], self.system)
        return self.lm.prompt([*system, *(message for turn in turns for message in turn), last])

    def _fit(self, question: Message) -> list[int]:
        """The prompt, after forgetting as many of the oldest turns as needed. A quarter of the context, or
        `max_new_tokens` where that is less, is kept free for the answer as long as there is something to forget."""
        context = self.lm.context
        room = min(self.sampling.max_new_tokens, context // 4)
        for forgotten in range(len(self.turns) + 1):
            ids = self._prompt(self.turns[forgotten:], question)
            if len(ids) + room <= context:
                break
        if len(ids) >= context:
            alone = f"{len(ids)} tokens with the system prompt" if self.system else f"{len(ids)} tokens"
            raise InputError("message", f"is too long: {alone}, the context holds {context}", "shorten it")
        del self.turns[:forgotten]
        turns = "oldest turn" if forgotten == 1 else f"{forgotten} oldest turns"
        self.notice = f"(the context of {context} tokens is full: the {turns} forgotten)" if forgotten else ""
        return ids

    def _check_system(self, system: str | None) -> None:
        """Said at once and not at the first message: a model without a chat template, a system prompt too long."""
        size = len(self.lm.prompt(conversation("", system)))
        if size >= self.lm.context:
            raise InputError("system", f"is too long: {size} tokens, the context holds {self.lm.context}", "shorten it")


def talk(
    lm: LanguageModel,
    sampling: Sampling,
    system: str | None = None,
    quiet: bool = False,
    ways: Ways | None = None,
) -> list[dict[str, Any]]:
    """Talk on standard input and output until it ends; every turn as {user, assistant, finish_reason}.

    In a terminal: prompts, commands, Ctrl-C to stop an answer; errors are said and the talk goes on. From a pipe: one
    message (or command) a line, answers only on standard output, and the first error ends it. `quiet`: no answers.
    """
    session = ChatSession(lm, sampling, system, ways)
    terminal = sys.stdin.isatty()
    if terminal:
        print(f"{lm.bundle.origin}: /help lists the commands, Ctrl-D leaves.", file=sys.stderr)
    said = []
    for line in _lines(terminal):
        if not line.strip():
            continue
        try:
            if line.startswith("/"):
                if line.split()[0] == "/exit":
                    break
                print(session.command(line), file=sys.stderr)
            else:
                said.append(_turn(session, line.strip(), quiet))
        except InputError as error:
            if not terminal:
                raise
            print(error, file=sys.stderr)
    return said


def _turn(session: ChatSession, text: str, quiet: bool) -> dict[str, Any]:
    answer = session.say(text)
    if session.notice:
        print(session.notice, file=sys.stderr)
    reason: str | None = "stopped"
    # `closing`: an interrupt outside of the generator must end the turn as well.
    with contextlib.closing(answer):
        try:
            for piece in answer:
                if not quiet:
                    print(piece, end="", flush=True)
            assert session.reply is not None
            reason = session.reply.finish_reason
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
    if not quiet:
        print("" if reason != "stopped" else " (stopped)", flush=True)
    return {"user": text, "assistant": session.reply.text if session.reply else "", "finish_reason": reason}


def _lines(terminal: bool) -> Iterator[str]:
    """Lines of standard input, without their ends."""
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (editing and history for input())
        while True:
            try:
                yield input("> ")
            except EOFError:
                print(file=sys.stderr)
                return
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"standard input, line {number}", f"byte {error.start} is not UTF-8") from None
