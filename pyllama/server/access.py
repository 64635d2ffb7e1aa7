"""Who may talk to the server: keys, host names, web pages of other origins; and a count of every answer."""

import hmac
import ipaddress
import logging
import re
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyllama.server.errors import ApiError, as_api_error
from pyllama.server.metrics import Metrics
from pyllama.server.service import Settings, end_turn

_log = logging.getLogger("pyllama")

# What anybody may see: whether the server lives, and the page that asks for the key.
OPEN_PATHS = ("/", "/health")
OPEN_PREFIXES = ("/static/",)

_TOKEN = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,100}")  # a header's name, as HTTP has it


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
        if scope["path"].endswith("/") and scope["path"].strip("/"):  # as some clients build paths
            scope = {**scope, "path": scope["path"].rstrip("/"), "raw_path": scope["raw_path"].rstrip(b"/")}
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
        foreign = self._host_refusal(headers) if self._key is None else None
        foreign = foreign or self._origin_refusal(scope["method"], headers)
        if foreign or self._key is None:
            return foreign
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

    def _origin_refusal(self, method: str, headers: Headers) -> ApiError | None:
        """A page of another origin must not make the server work, even if it never sees what comes of it.

        Browsers name a page's origin in every request that could; "null" is that of a file or a sandbox.
        """
        origin = headers.get("origin")
        if origin is None:
            elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site")
            if not elsewhere or method in ("GET", "HEAD"):
                return None
        elif self._allows(origin) or _is_own(origin, headers.get("host", "")):
            return None
        shown = repr(origin[:100]) if origin is not None else "another site's page"
        return ApiError(403, f"origin: {shown} may not use this server; see --cors", code="invalid_origin")

    def _allows(self, origin: str) -> bool:
        return origin in self._settings.cors_origins or "*" in self._settings.cors_origins

    def _cors(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Response headers that let the asking web page see the answer; none if it may not."""
        origin = headers.get("origin")
        if not origin or not self._allows(origin):
            return []
        # Clients send headers of their own (OpenAI's a dozen): what is asked for by name is allowed by name.
        asked = [name.strip() for name in headers.get("access-control-request-headers", "").lower().split(",")]
        names = dict.fromkeys(["authorization", "content-type", *filter(_TOKEN.fullmatch, asked)])
        allowed = [
            (b"access-control-allow-origin", b"*" if "*" in self._settings.cors_origins else origin.encode("latin-1")),
            (b"access-control-allow-headers", ", ".join(names).encode()),
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"access-control-max-age", b"600"),
            (b"vary", b"origin, access-control-request-headers"),
        ]
        if headers.get("access-control-request-private-network") == "true":
            allowed.append((b"access-control-allow-private-network", b"true"))
        return allowed


def _is_own(origin: str, host: str) -> bool:
    """Whether a page of this origin came from the server that this Host header names.

    The scheme is a proxy's affair, and so is a port that the scheme implies.
    """
    try:
        page, server = urlsplit(origin), urlsplit("//" + host)
        standard = {"http": 80, "https": 443}[page.scheme]
        ports = {page.port or standard, server.port or standard}
    except (KeyError, ValueError):
        return False
    return bool(page.hostname) and page.hostname == server.hostname and len(ports) == 1


async def _preflight(send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})
