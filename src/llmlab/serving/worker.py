"""The worker: one thread owns the model, steps as long as somebody waits, and sleeps otherwise.

The event loop and the thread share nothing but two queues: orders go in, tokens come out, all of one step in one call.
A ticket is what a caller holds; whoever leaves closes it, and its pages are free before the next step.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from llmlab.errors import InputError, LlmlabError
from llmlab.inference.batching import Batching, Request
from llmlab.inference.engine import Token

# Requests that may be at the worker at once, those that wait included. Beyond it callers are asked to come again.
WAITING = 256

log = logging.getLogger("llmlab.serving")


class Full(LlmlabError):
    """As many requests as the worker takes are there already."""


class Dead(LlmlabError):
    """The worker has ended and answers nothing more."""


@dataclass(frozen=True)
class _Open:
    ticket: Ticket


@dataclass(frozen=True)
class _Drop:
    ticket: Ticket
    index: int


class Ticket:
    """The requests of one caller at the worker: iterate for (index of the request, token), until each has ended.

    Lives on the event loop. A context manager: what is not done when it closes is cancelled. Raises what the worker
    says of these requests: InputError, Dead, or LlmlabError for a request that failed by itself.
    """

    def __init__(self, worker: Worker, requests: Sequence[Request]) -> None:
        self.requests = tuple(requests)
        self._worker = worker
        self._arrived = asyncio.Queue[tuple[int, Token] | Exception]()
        self._left = set(range(len(self.requests)))

    def __aiter__(self) -> Ticket:
        return self

    async def __anext__(self) -> tuple[int, Token]:
        while self._left:
            item = await self._arrived.get()
            if isinstance(item, Exception):
                raise item
            index, token = item
            if index not in self._left:
                continue  # dropped in the meantime
            if token.finish_reason is not None:
                self._done(index)
            return item
        raise StopAsyncIteration

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def open(self) -> bool:
        """Whether anything is still to come."""
        return bool(self._left)

    def drop(self, index: int) -> None:
        """Have enough of one request."""
        if index in self._left:
            self._done(index)
            self._worker.order(_Drop(self, index))

    def close(self) -> None:
        """Have enough of all that is left."""
        for index in sorted(self._left):
            self.drop(index)

    def put(self, item: tuple[int, Token] | Exception) -> None:
        """What arrived from the worker."""
        self._arrived.put_nowait(item)

    def _done(self, index: int) -> None:
        self._left.remove(index)
        self._worker.left(self, last=not self._left)


class Worker:
    """Start it inside a running event loop; `submit` and everything else is called there. `open` requests are those
    that somebody waits for."""

    def __init__(self, batching: Batching, waiting: int = WAITING) -> None:
        self.batching, self.waiting = batching, waiting
        self.open = 0
        self.failure: Exception | None = None
        self._tickets = set[Ticket]()
        self._orders = queue.SimpleQueue[_Open | _Drop | None]()
        self._numbers = dict[tuple[Ticket, int], int]()  # this and the next belong to the thread
        self._owners = dict[int, tuple[Ticket, int]]()
        self._thread = threading.Thread(target=self._run, name="llmlab worker", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self.failure is None and self._thread.is_alive()

    def submit(self, requests: Sequence[Request]) -> Ticket:
        """All of them or none. Raises Full, or Dead."""
        if not self.alive:
            raise Dead(str(self.failure or "the worker does not run"))
        if self.open + len(requests) > self.waiting:
            raise Full(f"{self.open} requests are being answered, {self.waiting} is the most")
        ticket = Ticket(self, requests)
        self.open += len(requests)
        self._tickets.add(ticket)
        self.order(_Open(ticket))
        return ticket

    def order(self, order: _Open | _Drop) -> None:
        """For tickets: say something to the thread."""
        self._orders.put(order)

    def left(self, ticket: Ticket, last: bool) -> None:
        """For tickets: one request of it is over, perhaps the last."""
        self.open -= 1
        if last:
            self._tickets.discard(ticket)

    def close(self) -> None:
        """End the thread after the step it is in; who still waits is told so."""
        if self.failure is None:
            self._fail(Dead("the server is shutting down"))
        self._orders.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _fail(self, error: Exception) -> None:
        self.failure = error
        for ticket in list(self._tickets):
            ticket.put(error)

    # ------------------------------------------------------------ in the thread

    def _run(self) -> None:
        try:
            while self._obey():
                tokens = self.batching.step()
                arrived: list[tuple[Ticket, tuple[int, Token] | Exception]] = []
                for token in tokens:
                    owner = self._owners.get(token.row)
                    if owner is None:
                        continue
                    if token.finish_reason is not None:
                        self._forget(owner)
                    arrived.append((owner[0], (owner[1], token)))
                if arrived:
                    self._loop.call_soon_threadsafe(_deliver, arrived)
        except BaseException as error:
            log.exception("the worker has died")
            died = Dead(f"the worker has died of {type(error).__name__}")
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._fail, died)

    def _obey(self) -> bool:
        """Take the orders that are there, waiting for one where nothing else is to be done. False: end."""
        while True:
            try:
                order = self._orders.get(block=not self.batching.busy)
            except queue.Empty:
                return True
            match order:
                case None:
                    return False
                case _Open(ticket):
                    self._open(ticket)
                case _Drop(ticket, index):
                    number = self._forget((ticket, index))
                    if number is not None:
                        self.batching.cancel(number)

    def _open(self, ticket: Ticket) -> None:
        for index, request in enumerate(ticket.requests):
            try:
                number = self.batching.submit(request)
            except InputError as error:  # the caller closes the ticket, and so drops the others
                self._loop.call_soon_threadsafe(ticket.put, error)
                return
            self._numbers[ticket, index] = number
            self._owners[number] = (ticket, index)

    def _forget(self, owner: tuple[Ticket, int]) -> int | None:
        number = self._numbers.pop(owner, None)
        if number is not None:
            del self._owners[number]
        return number


def _deliver(arrived: Sequence[tuple[Ticket, tuple[int, Token] | Exception]]) -> None:
    for ticket, item in arrived:
        ticket.put(item)
