"""The bytes of a request to the JSON value in them, within bounds: size, time, depth, numbers, characters."""

import asyncio
import json
import re
from typing import Any

from starlette.requests import ClientDisconnect, Request

from pyllama.server.errors import ApiError
from pyllama.server.json_object import JsonObject, no_constant

MAX_DEPTH = 64
_TOO_DEEP = f"nested more than {MAX_DEPTH} deep"
# Of these a browser sends at least one with whatever a page posts.
_PAGE_HEADERS = {"origin", "referer", "sec-fetch-site", "sec-fetch-mode"}
_SURROGATE = re.compile("[\ud800-\udfff]")


def check_head(request: Request, max_nbytes: int) -> None:
    """Refuse what its head tells. Raises ApiError: 415 for no JSON, 413 for a body that will be too large."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if not kind and request.scope["path"].startswith("/api/") and not _PAGE_HEADERS & set(request.headers):
        kind = "application/json"  # programs written for Ollama leave it out (litellm)
    if kind != "application/json":
        # Also what keeps other web pages out: a browser sends JSON for them only after it has asked, but without a
        # type, or with that of a form or of plain text, it does not ask.
        got = f"got {kind[:60]!r}" if kind else "missing"
        raise ApiError(415, f"content-type: {got}, expected 'application/json'; curl sends it with --json or -H")
    announced = announced_nbytes(request)
    if announced is not None and announced > max_nbytes:
        raise _too_large(max_nbytes)


async def read_body(request: Request, max_nbytes: int, timeout_s: float) -> bytes:
    """A request's body. Raises ApiError: 413 for one that is too large, 408 too slow, 400 for one that does not end."""
    chunks, size = [], 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_nbytes:
                    raise _too_large(max_nbytes)
                chunks.append(chunk)
    except TimeoutError:
        raise ApiError(
            408, f"body: not here within {timeout_s:g} s", code="timeout", headers={"connection": "close"}
        ) from None
    except ClientDisconnect:
        raise ApiError(400, "body: the connection ended before it") from None
    return b"".join(chunks)


def announced_nbytes(request: Request) -> int | None:
    """How large the body is to be; None if the client does not say."""
    length = request.headers.get("content-length", "" if "transfer-encoding" in request.headers else "0")
    return int(length) if length.isdecimal() else None


def _too_large(max_nbytes: int) -> ApiError:
    # Clients that cut a conversation when it is too long look for these words.
    return ApiError(
        413, f"body: too large, expected at most {max_nbytes} bytes; the prompt is too long", code="too_large"
    )


def parse(raw: bytes) -> JsonObject:
    """JSON text as an object. Raises ApiError 400."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"body: byte {error.start} is not UTF-8") from None
    try:
        value = json.loads(text, parse_constant=no_constant)
    except RecursionError:
        raise _unfit(_TOO_DEEP) from None
    except ValueError as error:  # also for an integer of thousands of digits
        raise _unfit(f"not JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise _unfit("expected a JSON object")
    _check(value)
    return value


def _check(value: Any) -> None:
    """Bounds that the parser does not keep; without recursion, since depth is one of them."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str) and _SURROGATE.search(item):
                raise _unfit("half a surrogate pair, expected Unicode text")
            elif isinstance(item, float) and item in (float("inf"), float("-inf")):
                raise _unfit("a number beyond all bounds")
        if not below:
            return
        level = below
    raise _unfit(_TOO_DEEP)


def _unfit(what: str) -> ApiError:
    return ApiError(400, f"body: {what}", code="invalid_json")
