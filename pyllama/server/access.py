"""Who may talk to the server: keys, host names, web pages of other origins; and a count of every answer."""

import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyllama.server import origin
from pyllama.server.errors import ApiError, as_api_error
from pyllama.server.metrics import Metrics
from pyllama.server.service import Settings, end_turn

_log = logging.getLogger("pyllama")
_requests = logging.getLogger("pyllama.requests")

# What anybody may see: whether the server lives, and the page that asks for the key.
OPEN_PATHS = ("/", "/health")
OPEN_PREFIXES = ("/static/",)
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:@/\[\]]+))(?::[0-9]*)?")
_FIELD_NAMES = re.compile(r"[\w!#$%&'*+.^`|~, -]{1,2000}", re.ASCII)
_NO_SNIFFING = (b"x-content-type-options", b"nosniff")


class Access:
    """ASGI middleware. Refuses before any route sees a request."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, paths: frozenset[str]):
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._paths = paths
        key = settings.api_key
        self._key = None if key is None else key.encode()
        self._origins = frozenset(map(origin.canonical, settings.cors_origins))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = _plain_path(scope["path"])
        headers = Headers(scope=scope)
        may_see = self._may_see(headers.get("origin"))
        cors = self._cors(headers) if may_see else []
        started, status, begun = time.perf_counter(), 500, False

        async def out(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                begun, status = True, message["status"]
                message["headers"] = _with(message["headers"], [_NO_SNIFFING, *cors])
            await send(message)

        try:
            answer = self._app
            if may_see and scope["method"] == "OPTIONS":
                answer = _preflight(headers)
            elif (refusal := self._refusal(scope, headers)) is not None:
                answer = refusal.response(scope["path"])
            await answer(scope, receive, out)
        except Exception as error:  # a bug: no traceback for clients, and none of uvicorn's
            if begun:
                _log.error("an answer broke off", exc_info=error)
                raise
            await as_api_error(error).response(scope["path"])(scope, receive, out)
        finally:
            end_turn(scope)
            # Paths are clients' words: unknown ones count together.
            path = scope["path"] if scope["path"] in self._paths else "other"
            seconds = time.perf_counter() - started
            self._metrics.responded(path, status, seconds)
            if _requests.isEnabledFor(logging.INFO):
                client = (scope.get("client") or ("?",))[0]
                _requests.info("%s %s %s %d %.2f s", client, scope["method"], scope["path"][:200], status, seconds)

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        path = scope["path"]
        limit = self._settings.max_header_nbytes
        if sum(len(name) + len(value) for name, value in scope["headers"]) > limit or len(scope["raw_path"]) > limit:
            return ApiError(431, f"headers: too large, expected at most {limit} bytes", code="too_large")
        if self._key is None:
            return self._host_refusal(headers) or self._page_refusal(scope, headers)
        if path in OPEN_PATHS or path.startswith(OPEN_PREFIXES):
            return None
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer if scheme.lower() == "bearer" else headers.get("x-api-key", "")  # Anthropic's
        if hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._key):
            return None
        return ApiError(
            401, "api key: missing or wrong, expected in 'Authorization: Bearer ...'", code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )  # fmt: skip

    def _host_refusal(self, headers: Headers) -> ApiError | None:
        """Without a key, a name that anybody may point at this machine must not open it to his web page."""
        host = headers.get("host", "").strip().lower()
        if not host or "*" in self._settings.allowed_hosts:
            return None
        found = _HOST.fullmatch(host)
        name = (found[1] or found[2]).removesuffix(".") if found else ""
        if name == "localhost" or name in (allowed.lower() for allowed in self._settings.allowed_hosts):
            return None
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return ApiError(403, "host: this server does not go by that name; see --allow-host", code="invalid_host")
        return None

    def _page_refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        """Without a key, a web page must not use what its reader may: whatever it sends is refused unread."""
        page = origin.foreign(headers, scope["method"], self._origins)
        if page is None:
            return None
        return ApiError(403, f"origin: {page} may not use this server; see --cors", code="invalid_origin")

    def _may_see(self, asking: str | None) -> bool:
        """Whether the web page that asks may see the answers."""
        return bool(asking) and (origin.ANY in self._origins or origin.canonical(asking or "") in self._origins)

    def _cors(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Response headers that let the asking web page see the answer."""
        asking = b"*" if origin.ANY in self._origins else headers["origin"].encode("latin-1")
        return [
            (b"access-control-allow-origin", asking),
            (b"access-control-expose-headers", b"retry-after"),
            (b"vary", b"origin"),
        ]


def _plain_path(path: str) -> str:
    """The path as the routes have it: clients put a slash at its end, or two where a base URL ends in one."""
    return re.sub("/{2,}", "/", path).rstrip("/") or "/"


def _with(headers: Iterable[tuple[bytes, bytes]], more: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers, and those of the others that they do not have."""
    given = list(headers)
    names = {name for name, _ in given}
    return [*given, *((name, value) for name, value in more if name not in names)]


def _preflight(asked: Headers) -> Response:
    """Yes to whatever headers the page's client means to send: which they are is its own affair, and every one new."""
    names = asked.get("access-control-request-headers", "")
    if not _FIELD_NAMES.fullmatch(names):
        names = "authorization, content-type"
    headers = {
        "access-control-allow-headers": names,
        "access-control-allow-methods": "GET, HEAD, POST, DELETE, OPTIONS",
        "access-control-max-age": "600",
        "vary": "origin, access-control-request-headers",
    }
    if asked.get("access-control-request-private-network") == "true":
        headers["access-control-allow-private-network"] = "true"
    return Response(None, 204, headers)
