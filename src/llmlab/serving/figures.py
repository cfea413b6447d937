"""What the server counts, in Prometheus' format. Labels are routes and statuses, never what a caller wrote."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import fields

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmlab.inference.batching import Counts
from llmlab.serving.worker import Worker

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Figures:
    """Counters of one server, in a registry of its own."""

    def __init__(self, worker: Worker) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "llmlab_http_requests", "Requests answered", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "llmlab_http_seconds", "From a request to the end of its answer", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "llmlab_first_token_seconds", "From submission to the first token of any choice",
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.prompt_tokens = Counter("llmlab_prompt_tokens", "Tokens of prompts", registry=self.registry)
        self.answer_tokens = Counter("llmlab_answer_tokens", "Tokens drawn", registry=self.registry)
        self.left = Counter("llmlab_clients_gone", "Requests whose client left first", registry=self.registry)
        Gauge("llmlab_open_requests", "Sequences at the worker", registry=self.registry).set_function(
            lambda: worker.open
        )
        Gauge("llmlab_worker_alive", "1 while the worker lives", registry=self.registry).set_function(
            lambda: worker.alive
        )
        self.registry.register(_Batching(worker.batching.counts))

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


class _Batching(Collector):
    """The counts that the batching keeps anyway."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[CounterMetricFamily]:
        for field in fields(self._counts):
            name = f"llmlab_batching_{field.name}"
            yield CounterMetricFamily(name, f"Batching: {field.name}", value=getattr(self._counts, field.name))


class Counted:
    """Around everything: each answer with its route and status."""

    def __init__(self, app: ASGIApp, figures: Figures) -> None:
        self.app, self.figures = app, figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def heard(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, heard)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.figures.requests.labels(route, str(status)).inc()
            self.figures.seconds.labels(route).observe(time.perf_counter() - began)
