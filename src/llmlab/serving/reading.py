"""A body as a checked value: bounded in size and time, JSON and nothing else, refused by the name of what is wrong."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from starlette.requests import Request

from llmlab.errors import InputError
from llmlab.recipe import parse
from llmlab.serving.bodies import HARMLESS, Body
from llmlab.serving.refusals import Refused

B = TypeVar("B", bound=Body)

BODY_BYTES, BODY_SECONDS = 4 << 20, 20.0
NAMES = 16_384  # in one object; each that is wrong costs microseconds to say so
DRAIN_BYTES = 16 << 20  # of a body that is too long, read and forgotten so that its sender hears why


async def read_body(request: Request, kind: type[B]) -> B:
    """The request's body as `kind`. Raises Refused or InputError."""
    return checked(kind, await read_json(request))


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object that a request bears.

    A browser may send any other content type to any server without asking; JSON it may not.
    """
    content = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content != "application/json":
        raise Refused(415, f"content-type: is {content or 'missing'!r} (send application/json)", None, "not_json")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await _bytes(request)
    except TimeoutError:
        raise Refused(408, f"the body did not come within {BODY_SECONDS:g} seconds", None, "too_slow") from None
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_number, object_pairs_hook=_object)
    except RecursionError:
        raise Refused(400, "the body is nested too deep", None, "not_json") from None
    except ValueError as error:  # of JSON, of UTF-8, and of integers that are too long
        raise Refused(400, f"the body is not JSON: {error}", None, "not_json") from None
    if not isinstance(value, dict):
        raise Refused(400, f"the body is a JSON {type(value).__name__}, not an object", None, "not_json")
    return value


async def _bytes(request: Request) -> bytes:
    told = request.headers.get("content-length", "")
    size, pieces = 0, list[bytes]()
    too_long = told.isdecimal() and int(told[:20]) > BODY_BYTES
    if not too_long or int(told[:20]) <= DRAIN_BYTES:
        async for piece in request.stream():
            size += len(piece)
            too_long = too_long or size > BODY_BYTES
            if size > DRAIN_BYTES:
                break
            if too_long:
                pieces.clear()
            else:
                pieces.append(piece)
    if too_long:
        raise Refused(413, f"the body is longer than {BODY_BYTES} bytes", None, "body_too_large")
    return b"".join(pieces)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > NAMES:
        raise ValueError(f"an object has {len(pairs)} names, {NAMES} is the most")
    made = dict(pairs)
    if len(made) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{_short(twice)} is there twice, and one of its values would be lost")
    return made


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def checked(kind: type[B], values: Mapping[str, Any]) -> B:
    """`values` as a body. A null means: not given. Fields that change nothing are taken out, where their value asks for
    nothing; every other field that is not offered is an InputError."""
    kept = {}
    for name, value in values.items():
        if name in kind.model_fields:
            if value is not None:
                kept[name] = value
        elif name in HARMLESS:
            if value is not None and not HARMLESS[name](value):
                raise InputError(f"body.{name}", f"{_short(value)} is not offered here", "leave it out")
        else:
            kept[name] = value
    return parse(kind, kept, "body")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
