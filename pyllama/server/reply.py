"""Sends what is asked for, whole or in pieces as it comes, and closes its streams: what replies of all APIs share."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from pyllama.engine import Stream
from pyllama.server.answers import PING, event, unless_hung_up
from pyllama.server.errors import ApiError, as_api_error, openai_body
from pyllama.server.json_object import JsonObject
from pyllama.server.sampling import Wanted
from pyllama.server.service import Service


class Reply(ABC):
    """streams and want: of the answers that are queued."""

    media_type = "text/event-stream"

    def __init__(self, service: Service, streams: list[Stream], want: Wanted):
        self.service, self.streams, self.want = service, streams, want

    @abstractmethod
    def whole(self) -> JsonObject:
        """All of it, once it is written."""

    def begin(self) -> bytes:
        """What a stream begins with."""
        return b""

    @abstractmethod
    def written(self, quiet_s: float | None) -> AsyncIterator[bytes | None]:
        """Takes the answer as it comes; events of it, None whenever nothing came for quiet_s."""

    @property
    def quiet_s(self) -> float:
        return self.service.settings.ping_s

    def ping(self) -> bytes:
        """What a stream has when nothing came for quiet_s."""
        return PING

    @abstractmethod
    def end(self) -> bytes:
        """What a stream ends with."""

    def failed(self, error: ApiError) -> bytes:
        """What it ends with after an error."""
        return event(openai_body(error))

    async def response(self, request: Request) -> Response:
        """As the client wants it: events, or all at once if it stays for it."""
        if self.want.stream:
            return _Pieces(self)
        return JSONResponse(await unless_hung_up(request, self._complete(), self.service.settings.timeout_s))

    async def _complete(self) -> JsonObject:
        async for _ in self.written(None):
            pass
        return self.whole()

    async def events(self) -> AsyncIterator[bytes]:
        """The stream, in pieces."""
        yield self.begin()
        async for data in self.written(self.quiet_s):
            yield self.ping() if data is None else data
        yield self.end()


class _Pieces(Response):
    """A response in pieces: server-sent events, or lines of JSON. The reply and its streams are closed when it ends,
    fails, or the client hangs up."""

    def __init__(self, reply: Reply):
        self._reply = reply
        self.media_type = reply.media_type
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # At once, before the first token is there: it may take long, and the client should know it was heard.
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        reply = self._reply

        async def out(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        async def all_events() -> None:
            async with aclosing(reply.events()) as events:  # type: ignore[type-var]
                async for data in events:
                    await out(data)

        try:
            await unless_hung_up(Request(scope, receive), all_events(), reply.service.settings.timeout_s)
        except Exception as error:  # noqa: BLE001 - told to the client in the stream
            await out(reply.failed(as_api_error(error)))
        finally:
            for stream in reply.streams:  # also if the reply never began
                stream.close()
        await out(b"", more=False)
