"""A row of the table that a wing's endpoints are: the route, and what /openapi.json says of it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllama.server.validate import Schema

JSON, EVENTS, LINES = "application/json", "text/event-stream", "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """handle answers requests; schema is of their body, None where there is none; kinds of what it answers with."""

    method: str
    path: str
    handle: Callable[[Request], Awaitable[Response]]
    summary: str
    schema: Schema | None = None
    kinds: tuple[str, ...] = (JSON,)

    def route(self) -> Route:
        return Route(self.path, self.handle, methods=[self.method])
