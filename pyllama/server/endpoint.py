"""A row of the table that a wing's endpoints are: the route, and what /openapi.json says of it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllama.server.service import Service
from pyllama.server.validate import Schema

JSON, EVENTS, LINES = "application/json", "text/event-stream", "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path, and what answers there.

    handle  called with the service, the request and, where there is a schema, the checked body
    schema  of the body; None where there is none
    kinds   of what it answers with
    """

    method: str
    path: str
    handle: Callable[..., Awaitable[Response]]
    summary: str
    schema: Schema | None = None
    kinds: tuple[str, ...] = (JSON,)

    def route(self) -> Route:
        return Route(self.path, self._answer, methods=[self.method])

    async def _answer(self, request: Request) -> Response:
        service: Service = request.app.state.service
        if self.schema is None:
            return await self.handle(service, request)
        # Not in a name: whoever handles it may let go of the body while an answer is written.
        return await self.handle(service, request, await service.read(request, self.schema))
