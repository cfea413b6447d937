"""A conversation: what is kept, what is forgotten, and how it behaves in a terminal and from a pipe."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from llmlab import talk as module
from llmlab.checkpoints.bundle import Bundle
from llmlab.errors import InputError
from llmlab.inference.sampling import Sampling
from llmlab.language_model import LanguageModel
from llmlab.model.transformer import Architecture, Transformer
from llmlab.talk import ChatSession, talk
from llmlab.tokenization.train import BPE, train_tokenizer

TOKENIZER = train_tokenizer(BPE(vocab_size=260), iter(["a"]))
END = TOKENIZER.token_id("<|im_end|>") or 0
SHORT = Sampling(max_new_tokens=8, temperature=0)


def tiny(context: int = 400) -> LanguageModel:
    architecture = Architecture(layers=2, dim=32, context=context, initial_std=0.3)
    return LanguageModel(Bundle(architecture.build(260, seed=5), TOKENIZER, architecture, "tiny"))


def saying(*answers: str, context: int = 400) -> LanguageModel:
    """A model that gives these answers in turn."""
    lm = tiny(context)
    script = iter([token for answer in answers for token in [*TOKENIZER.encode(answer), END]])

    def logits(hidden: Tensor) -> Tensor:
        out = torch.zeros(*hidden.shape[:-1], 260)
        out[..., next(script)] = 100.0
        return out

    lm.model.logits = logits  # type: ignore[method-assign]
    return lm


def say(session: ChatSession, text: str) -> str:
    return "".join(session.say(text))


def counting(lm: LanguageModel) -> list[int]:
    """How many tokens each forward pass computes."""
    computed: list[int] = []
    run = Transformer.hidden

    def hidden(ids: Any, *rest: Any) -> Any:
        computed.append(ids.shape[1])
        return run(lm.model, ids, *rest)

    lm.model.hidden = hidden  # type: ignore[method-assign]
    return computed


# ---------------------------------------------------------------- the session


def test_a_turn_is_what_chat_answers_to_all_that_was_said() -> None:
    lm = tiny()
    session = ChatSession(lm, SHORT, system="be kind")
    messages = [{"role": "system", "content": "be kind"}]
    for question in ("hello", "and then?", "三国 😀"):
        messages.append({"role": "user", "content": question})
        answer = say(session, question)
        assert answer == lm.chat(messages, **SHORT.model_dump())
        messages.append({"role": "assistant", "content": answer})


def test_what_was_said_is_computed_once() -> None:
    lm = saying("hi there", "once more")
    session = ChatSession(lm)
    computed = counting(lm)
    say(session, "hello")
    before = sum(computed)
    computed.clear()
    say(session, "again")
    new = TOKENIZER.scaffold("<|im_end|>\n<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n")
    assert computed[0] == len(new)  # the end of the first answer, then what is new
    assert before > 0


def test_reset_forgets_the_talk_and_system_changes_the_prompt() -> None:
    lm = tiny()
    session = ChatSession(lm, SHORT, system="be kind")
    first = say(session, "hello")
    assert say(session, "hello") != first
    assert session.command("/reset") == "(forgotten)"
    assert say(session, "hello") == first
    assert "new system prompt" in session.command("/system be brief")
    assert (session.system, session.turns) == ("be brief", [])
    assert say(session, "hello") == lm.chat(
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}], **SHORT.model_dump()
    )
    assert "no system prompt" in session.command("/system")
    assert session.system is None
    assert "/reset" in session.command("/help")
    assert "no command /halp" in session.command("/halp me")


def test_a_full_context_forgets_the_oldest_turns_and_says_so_in_one_line() -> None:
    lm = saying(*["answer"] * 20, context=200)
    session = ChatSession(lm, Sampling(max_new_tokens=20, temperature=0), system="SYSTEM")
    notices = []
    for number in range(8):
        assert say(session, f"question {number}") == "answer"
        assert session.reply is not None
        prompt = TOKENIZER.decode(session.reply.prompt)
        assert prompt.startswith("<|im_start|>system\nSYSTEM<|im_end|>")
        assert f"question {number}" in prompt
        assert len(session.reply.prompt) + 20 <= 200
        notices.append(session.notice)
    assert notices[0] == ""
    assert notices[-1] == "(the context of 200 tokens is full: the oldest turn forgotten)"
    assert "question 0" not in prompt
    assert "question 6" in prompt  # no more is forgotten than need be


def test_several_turns_may_have_to_go_for_one_long_message() -> None:
    session = ChatSession(saying(*["answer"] * 4, context=300), Sampling(max_new_tokens=20))
    for _ in range(3):
        say(session, "short")
    say(session, "a" * 200)
    assert session.notice == "(the context of 300 tokens is full: the 2 oldest turns forgotten)"
    assert len(session.turns) == 2


def test_a_message_longer_than_the_context_is_refused_and_nothing_is_lost() -> None:
    session = ChatSession(saying("one", "two", context=100), SHORT)
    say(session, "hello")
    turns = list(session.turns)
    with pytest.raises(InputError, match=r"message: is too long: \d+ tokens, the context holds 100"):
        session.say("a" * 200)
    assert session.turns == turns
    assert say(session, "hello") == "two"
    with pytest.raises(InputError, match="system: is too long"):
        session.command("/system " + "a" * 200)
    with pytest.raises(InputError, match="system: is too long"):
        ChatSession(tiny(100), SHORT, system="a" * 200)


def test_a_message_that_barely_fits_gets_what_room_there_is() -> None:
    session = ChatSession(saying("a long answer", context=100), Sampling(max_new_tokens=50))
    around = len(session._prompt([], {"role": "user", "content": ""}))
    assert say(session, "a" * (100 - around - 4)) == "a lo"
    assert session.reply is not None
    assert session.reply.finish_reason == "length"


def test_who_stops_listening_keeps_what_was_said() -> None:
    session = ChatSession(saying("a long answer", "yes"))
    answer = session.say("hello")
    heard = [next(answer) for _ in range(6)]
    answer.close()
    assert session.turns == [({"role": "user", "content": "hello"}, {"role": "assistant", "content": "".join(heard)})]


def test_an_interrupt_before_the_first_word_takes_the_question_back() -> None:
    lm = saying("never")
    session = ChatSession(lm)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    lm.model.hidden = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        list(session.say("hello"))
    assert session.turns == []
    del lm.model.hidden
    assert say(session, "hello") == "never"


# ---------------------------------------------------------------- a terminal, a pipe


class Pipe:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)

    def isatty(self) -> bool:
        return False


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", Pipe(content))


def terminal(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    left = list(lines)

    def read(prompt: str) -> str:
        assert prompt == "> "
        if not left:
            raise EOFError
        return left.pop(0)

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", read)


def test_a_pipe_gets_answers_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, "hello\r\n\n  \n你好\n/reset\nagain".encode())
    turns = talk(saying("hi", "三国 😀", "new"), Sampling())
    out, err = capsys.readouterr()
    assert out == "hi\n三国 😀\nnew\n"
    assert err == "(forgotten)\n"
    assert [turn["user"] for turn in turns] == ["hello", "你好", "again"]
    assert [turn["assistant"] for turn in turns] == ["hi", "三国 😀", "new"]
    assert {turn["finish_reason"] for turn in turns} == {"stop"}


def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pipe(monkeypatch, b"hello\n")
    assert talk(saying("hi"), Sampling(), quiet=True)[0]["assistant"] == "hi"
    assert capsys.readouterr().out == ""


def test_exit_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"hello\n/exit\nnever\n")
    assert len(talk(saying("hi", "x"), Sampling(), quiet=True)) == 1


def test_a_pipe_ends_at_its_first_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"hello\n" + b"a" * 500 + b"\nnever\n")
    with pytest.raises(InputError, match="too long"):
        talk(saying("hi"), Sampling(), quiet=True)
    pipe(monkeypatch, b"hello\n\xff\xfe\n")
    with pytest.raises(InputError, match="standard input, line 2: byte 0 is not UTF-8"):
        talk(saying("hi"), Sampling(), quiet=True)


def test_a_terminal_goes_on_after_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal(monkeypatch, "a" * 500, " /etc is a folder?", "/help")
    turns = talk(saying("yes"), Sampling())
    out, err = capsys.readouterr()
    assert out == "yes\n"
    assert "message: is too long" in err
    assert module.HELP in err
    assert [turn["user"] for turn in turns] == ["/etc is a folder?"]


def test_a_notice_goes_beside_the_answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pipe(monkeypatch, b"a question of some length\n" * 2 + b"and another\n")
    talk(saying("one", "two", "three", context=140), Sampling(max_new_tokens=20))
    out, err = capsys.readouterr()
    assert out == "one\ntwo\nthree\n"
    assert err == "(the context of 140 tokens is full: the oldest turn forgotten)\n"


@pytest.mark.parametrize("where", ["model", "printing"])
def test_ctrl_c_stops_the_answer_and_keeps_the_talk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    lm = saying("abcdef", "second")
    script = lm.model.logits
    calls = 0

    def interrupted(*args: Any, **rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return script(*args) if where == "model" else print(*args, **rest)

    terminal(monkeypatch, "one", "two")
    if where == "model":
        lm.model.logits = interrupted  # type: ignore[method-assign]
    else:
        monkeypatch.setattr(module, "print", interrupted, raising=False)
    turns = talk(lm, Sampling())
    assert turns[0]["finish_reason"] == "stopped"
    assert turns[0]["assistant"] == "abc"
    assert len(turns) == 2
    assert " (stopped)\n" in capsys.readouterr().out


def test_ctrl_c_in_a_pipe_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = saying("abc")

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    lm.model.hidden = interrupted  # type: ignore[method-assign]
    pipe(monkeypatch, b"hello\n")
    with pytest.raises(KeyboardInterrupt):
        talk(lm, Sampling(), quiet=True)
