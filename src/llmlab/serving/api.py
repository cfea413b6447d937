"""The application: one model's routes, behind the doors. OpenAI's API with what vLLM and llama.cpp have beside it.

What comes later has its place here: a router of its own joined in `create` (a playground, an audit) is behind the key
and counted without a further word; what guards requests stands between `read_body` and `Asking`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from llmlab.errors import InputError, LlmlabError
from llmlab.inference.plain_step import unpaged
from llmlab.language_model import LanguageModel
from llmlab.serving.answering import Answering
from llmlab.serving.bodies import Body, ChatBody, CompletionBody, DetokenizeBody, Generation, TokenizeBody
from llmlab.serving.figures import Counted, Figures
from llmlab.serving.keys import Doors, Keys
from llmlab.serving.layouts import ChatLayout, Layout, TextLayout
from llmlab.serving.reading import read_body
from llmlab.serving.refusals import Caught, Refused, refusal, refused
from llmlab.serving.wanted import Asking, Wanted
from llmlab.serving.worker import WAITING, Worker


def create(
    lm: LanguageModel,
    name: str,
    keys: Keys | None,
    names: Collection[str] | None = (),
    waiting: int = WAITING,
) -> FastAPI:
    """The application of one model, known as `name`. `keys` None asks for none; `names` are the hosts it answers to
    beside loopback ones, None any. InputError for a model without continuous batching or without a tokenizer."""
    if lm.batching is None:
        raise InputError(lm.bundle.origin, f"cannot be served: {unpaged(lm.model)}")
    lm.stop_ids  # noqa: B018  (a model without a tokenizer is refused now, not at the first request)
    worker = Worker(lm.batching, waiting)
    figures = Figures(worker)

    @contextlib.asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.close()

    # The pages of /docs load scripts from elsewhere and know no key: there are none. /openapi.json is behind the key.
    app = FastAPI(title="llmlab", lifespan=living, docs_url=None, redoc_url=None)
    app.state.worker = worker
    routes = Routes(lm, name, worker, figures)
    app.include_router(routes.router)
    app.add_exception_handler(LlmlabError, _refused)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_middleware(Caught)
    app.add_middleware(Doors, keys=keys, names=names)
    app.add_middleware(Counted, figures=figures)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    return refused(error)


async def _of_http(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    told = {404: "no such route", 405: "not with this method"}.get(status, str(getattr(error, "detail", "")))
    return refusal(status, f"{request.method} {request.url.path}: {told}"[:200], None, "no_such_route")


def _shown(kind: type[Body]) -> dict[str, Any]:
    """A body in /openapi.json: it is read by `read_body`, of which FastAPI knows nothing."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


class Routes:
    """The routes of one model."""

    def __init__(self, lm: LanguageModel, name: str, worker: Worker, figures: Figures) -> None:
        self.lm, self.name, self.worker, self.figures = lm, name, worker, figures
        self.asking = Asking(lm, worker.batching.model.vocab_size)
        self.answering = Answering(worker, lm.tokenizer, figures)
        self.started = int(time.time())
        self.router = APIRouter()
        post, get = self.router.post, self.router.get
        post("/v1/chat/completions", openapi_extra=_shown(ChatBody))(self.chat)
        post("/v1/completions", openapi_extra=_shown(CompletionBody))(self.completions)
        get("/v1/models")(self.models)
        get("/v1/models/{model:path}")(self.model)
        post("/tokenize", openapi_extra=_shown(TokenizeBody))(self.tokenize)
        post("/detokenize", openapi_extra=_shown(DetokenizeBody))(self.detokenize)
        get("/health")(self.health)
        get("/metrics")(self.metrics)

    async def chat(self, request: Request) -> Response:
        """The assistant's answer to messages."""
        body = await read_body(request, ChatBody)
        self._known(body.model)
        return await self._answer(request, body, await self.asking.chat(body), ChatLayout)

    async def completions(self, request: Request) -> Response:
        """How texts go on."""
        body = await read_body(request, CompletionBody)
        self._known(body.model)
        return await self._answer(request, body, await self.asking.completion(body), TextLayout)

    async def _answer(self, request: Request, body: Generation, wanted: Wanted, kind: type[Layout]) -> Response:
        scored = wanted.likeliest is not None
        layout = kind(self.lm.tokenizer, self.name, self.lm.why, wanted.seed, scored)
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            return await self.answering.stream(request, wanted, layout, with_usage)
        return await self.answering.whole(request, wanted, layout)

    def _known(self, model: str | None) -> None:
        if model is not None and model != self.name:
            told = InputError("model", f"there is no {model[:100]!r} here", f"this server has {self.name!r}")
            raise Refused(404, str(told), "model", "model_not_found")

    async def models(self) -> Response:
        """The one model."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, model: str) -> Response:
        """The model by name."""
        self._known(model)
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self.started,
            "owned_by": "llmlab",
            "max_model_len": self.lm.context,
            "weights": self.lm.why,
        }

    async def tokenize(self, request: Request) -> Response:
        """A text or messages as ids."""
        body = await read_body(request, TokenizeBody)
        self._known(body.model)
        ids = await self.asking.tokens(body)
        tokenizer = self.lm.tokenizer
        found: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": self.lm.context}
        if body.return_token_strs:
            found["token_strs"] = [tokenizer.token(id) for id in ids]
        if body.with_pieces:
            layout = TextLayout(tokenizer, self.name, "", 0, True)
            found["tokens"] = [{"id": id, "piece": layout.spelled(id)} for id in ids]
        return JSONResponse(found)

    async def detokenize(self, request: Request) -> Response:
        """The text of ids, special tokens by their names."""
        body = await read_body(request, DetokenizeBody)
        self._known(body.model)
        vocabulary = self.lm.tokenizer.vocab_size
        wrong = next((id for id in body.tokens if not 0 <= id < vocabulary), None)
        if wrong is not None:
            raise InputError("body.tokens", f"{str(wrong)[:20]} is outside the vocabulary of {vocabulary}")
        text = await asyncio.to_thread(self.lm.tokenizer.decode, body.tokens)
        return JSONResponse({"content": text, "prompt": text})  # llama.cpp's name for it, and vLLM's

    async def health(self) -> Response:
        """200 while the worker lives."""
        if not self.worker.alive:
            return refusal(503, str(self.worker.failure or "the worker does not run"), None, "unavailable")
        return JSONResponse({"status": "ok"})

    async def metrics(self) -> Response:
        """Prometheus' format."""
        return Response(self.figures.text(), media_type=CONTENT_TYPE_LATEST)
