"""Who may talk to the server: keys, host names, web pages of other origins; and a count of every answer."""

import hmac
import ipaddress
import logging
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyllama.server.errors import ApiError, as_api_error
from pyllama.server.metrics import Metrics
from pyllama.server.service import Settings, end_turn

_log = logging.getLogger("pyllama")

# What anybody may see: whether the server lives, and the page that asks for the key.
OPEN_PATHS = ("/", "/health")
OPEN_PREFIXES = ("/static/",)


class Access:
    """ASGI middleware. Refuses before any route sees a request."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, paths: frozenset[str]):
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._paths = paths
        key = settings.api_key
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        allowed_origin = self._cors(headers)
        started, status, begun = time.perf_counter(), 500, False

        async def out(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                begun, status = True, message["status"]
                if allowed_origin:
                    message["headers"] = [*message["headers"], *allowed_origin]
            await send(message)

        try:
            if allowed_origin and scope["method"] == "OPTIONS":
                await _preflight(out)
            elif (refusal := self._refusal(scope, headers)) is not None:
                await refusal.response()(scope, receive, out)
            else:
                await self._app(scope, receive, out)
        except Exception as error:  # a bug: no traceback for clients, and none of uvicorn's
            if begun:
                _log.error("an answer broke off", exc_info=error)
                raise
            await as_api_error(error).response()(scope, receive, out)
        finally:
            end_turn(scope)
            # Paths are clients' words: unknown ones count together.
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.responded(path, status, time.perf_counter() - started)

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        path = scope["path"]
        limit = self._settings.max_header_nbytes
        if sum(len(name) + len(value) for name, value in scope["headers"]) > limit or len(scope["raw_path"]) > limit:
            return ApiError(431, f"headers: too large, expected at most {limit} bytes", code="too_large")
        if self._key is None:
            return self._host_refusal(headers)
        if path in OPEN_PATHS or path.startswith(OPEN_PREFIXES):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._key):
            return None
        return ApiError(
            401, "api key: missing or wrong, expected in 'Authorization: Bearer ...'", code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )  # fmt: skip

    def _host_refusal(self, headers: Headers) -> ApiError | None:
        """Without a key, a name that anybody may point at this machine must not open it to his web page."""
        host = headers.get("host", "").strip()
        name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
        if not name or name == "localhost" or "*" in self._settings.allowed_hosts:
            return None
        if name in self._settings.allowed_hosts:
            return None
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return ApiError(403, "host: this server does not go by that name; see --allow-host", code="invalid_host")
        return None

    def _cors(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Response headers that let the asking web page see the answer; none if it may not."""
        origin, origins = headers.get("origin"), self._settings.cors_origins
        if not origin or not (origin in origins or "*" in origins):
            return []
        return [
            (b"access-control-allow-origin", b"*" if "*" in origins else origin.encode("latin-1")),
            (b"access-control-allow-headers", b"authorization, content-type"),
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"access-control-max-age", b"600"),
            (b"vary", b"origin"),
        ]


async def _preflight(send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})
