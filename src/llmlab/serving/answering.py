"""From what is wanted to an answer: at once or in pieces, given up as soon as nobody waits for it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from llmlab.errors import LlmlabError
from llmlab.inference.batching import NO_ID
from llmlab.serving.choice import Choice, Told
from llmlab.serving.figures import Figures
from llmlab.serving.layouts import Layout
from llmlab.serving.refusals import layout as error_layout
from llmlab.serving.refusals import meaning
from llmlab.serving.wanted import Wanted
from llmlab.serving.worker import Ticket, Worker
from llmlab.tokenization.tokenizer import Tokenizer

T = TypeVar("T")
log = logging.getLogger("llmlab.serving")
GONE = 499  # nginx' name of a client that left; nobody reads it


class _Gone(Exception):
    """The client left."""


class Answering:
    """Answers of one model by one worker."""

    def __init__(self, worker: Worker, tokenizer: Tokenizer, figures: Figures) -> None:
        self.worker, self.tokenizer, self.figures = worker, tokenizer, figures

    async def whole(self, request: Request, wanted: Wanted, layout: Layout) -> Response:
        """The answer at once."""
        choices = self._choices(wanted)
        with self.worker.submit(wanted.requests) as ticket:
            try:
                await while_there(request, self._all(ticket, choices))
            except _Gone:
                self.figures.left.inc()
                return Response(status_code=GONE)
        return JSONResponse(layout.answer(best(choices, wanted), usage(wanted, choices)))

    async def stream(self, request: Request, wanted: Wanted, layout: Layout, with_usage: bool) -> Response:
        """The answer as server-sent events. The first token is waited for, so that what fails before it has a status
        of its own."""
        choices = self._choices(wanted)
        ticket = self.worker.submit(wanted.requests)
        try:
            told = self._told(ticket, choices)
            first = await while_there(request, anext(told))
        except _Gone:
            ticket.close()
            self.figures.left.inc()
            return Response(status_code=GONE)
        except BaseException:
            ticket.close()
            raise
        return _Events(self._events(first, told, choices, wanted, layout, with_usage), ticket, self.figures)

    async def _all(self, ticket: Ticket, choices: Sequence[Choice]) -> None:
        async for _ in self._told(ticket, choices):
            pass

    async def _told(self, ticket: Ticket, choices: Sequence[Choice]) -> AsyncGenerator[tuple[int, Told]]:
        """Each token of the ticket as a piece of its choice."""
        began: float | None = time.perf_counter()
        async for index, token in ticket:
            if began is not None:
                self.figures.first_token.observe(time.perf_counter() - began)
                began = None
            if token.finish_reason == "error":
                raise LlmlabError(token.error or "the request failed")
            choice = choices[index]
            told = choice.push(token)
            self.figures.answer_tokens.inc(token.id != NO_ID)
            if told.finish_reason is not None:  # of a stop text the worker knows nothing
                ticket.drop(index)
            yield index, told

    def _choices(self, wanted: Wanted) -> list[Choice]:
        self.figures.prompt_tokens.inc(sum(len(request.prompt) for request in wanted.requests[:: wanted.tried]))
        return [Choice(self.tokenizer, one, wanted.stops, wanted.echo) for one in wanted.requests]

    async def _events(
        self,
        first: tuple[int, Told],
        told: AsyncGenerator[tuple[int, Told]],
        choices: Sequence[Choice],
        wanted: Wanted,
        layout: Layout,
        with_usage: bool,
    ) -> AsyncGenerator[str]:
        for index in range(len(choices)):
            if opening := layout.opening(index):
                yield layout.chunk(opening, None, with_usage)
        try:
            index, piece = first
            while True:
                # a token that tells nothing yet (half a character, perhaps a stop text) is no event
                if piece.text or piece.entries or piece.finish_reason is not None:
                    yield layout.chunk([layout.part(index, piece)], None, with_usage)
                try:
                    index, piece = await anext(told)
                except StopAsyncIteration:
                    break
        except Exception as error:
            if not isinstance(error, LlmlabError):
                log.exception("a stream failed")
            yield f"data: {json.dumps(error_layout(*meaning(error)))}\n\n"
            return
        if with_usage:
            yield layout.chunk([], usage(wanted, choices), with_usage)
        yield "data: [DONE]\n\n"


class _Events(StreamingResponse):
    """A stream whose ticket is closed however it ends."""

    def __init__(self, events: AsyncGenerator[str], ticket: Ticket, figures: Figures) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._ticket, self._figures = ticket, figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._ticket.open:
                self._figures.left.inc()
            self._ticket.close()


async def while_there(request: Request, work: Awaitable[T]) -> T:
    """What `work` answers, which is cancelled where the client leaves first: then _Gone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise _Gone
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def best(choices: Sequence[Choice], wanted: Wanted) -> list[Choice]:
    """Of each prompt's candidates the likeliest by id, as many as were asked for."""
    found: list[Choice] = []
    for start in range(0, len(choices), wanted.tried):
        candidates = choices[start : start + wanted.tried]
        if wanted.kept < wanted.tried:
            candidates = sorted(candidates, key=lambda choice: -choice.mean_logprob)[: wanted.kept]
        found += candidates
    return found


def usage(wanted: Wanted, choices: Sequence[Choice]) -> dict[str, int]:
    """Tokens: prompts once each, and all that was drawn, candidates of `best_of` included."""
    prompts = sum(len(request.prompt) for request in wanted.requests[:: wanted.tried])
    drawn = sum(choice.drawn for choice in choices)
    return {"prompt_tokens": prompts, "completion_tokens": drawn, "total_tokens": prompts + drawn}
