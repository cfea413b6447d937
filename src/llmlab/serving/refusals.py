"""What is refused, in OpenAI's layout: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmlab.errors import InputError, LlmlabError
from llmlab.serving.worker import Dead, Full

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
RETRY_AFTER = 1  # seconds; a place is free as soon as any answer ends

log = logging.getLogger("llmlab.serving")


class Refused(LlmlabError):
    """A request that is refused with a status of its own."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def layout(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, object]:
    """The body of a refusal."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A refusal as a response."""
    return JSONResponse(layout(status, message, param, code), status, headers)


def meaning(error: Exception) -> tuple[int, str, str | None, str | None]:
    """(status, message, param, code) of an error. One that is not meant for callers says nothing of itself."""
    match error:
        case Refused():
            return error.status, str(error), error.param, error.code
        case InputError():
            # A place is `body.name`, or a place inside: the first name is the field's.
            return 400, str(error), error.place.removeprefix("body.").partition(".")[0], "invalid_value"
        case Full():
            return 429, str(error), None, "queue_full"
        case Dead():
            return 503, str(error), None, "unavailable"
        case LlmlabError():
            return 500, str(error), None, "failed"
        case _:
            return 500, "an error inside the server", None, "internal"


def refused(error: Exception) -> JSONResponse:
    """The response that an error means."""
    status, message, param, code = meaning(error)
    headers = {"Retry-After": str(RETRY_AFTER)} if status == 429 else None
    return refusal(status, message, param, code, headers)


class Caught:
    """Around the routes: a defect is logged and answered as one, and the connection stays good for the next request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def heard(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, heard)
        except ClientDisconnect:  # in the middle of its own body: nobody is there to be told, and nothing is wrong here
            return
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            log.exception("a request failed")
            await refused(error)(scope, receive, send)
