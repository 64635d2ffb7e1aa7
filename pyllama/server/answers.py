"""Streams of steps to HTTP answers: whole or as server-sent events, and nothing for those who have hung up."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pyllama.engine import Stream
from pyllama.generation import Step
from pyllama.server.errors import ApiError, as_api_error, openai_body
from pyllama.server.json_object import JsonObject

PROGRESS_S = 1.0
#: Steps that a client may be behind: with 20 log-probabilities each takes some 3 KB. Who reads a little, and for ever
#: too slowly, is not let go by protocol.py.
MAX_BEHIND = 4096

T = TypeVar("T")


async def merged(streams: list[Stream], quiet_s: float | None) -> AsyncIterator[tuple[int, Step] | None]:
    """(index of the stream, step) as they come; None whenever nothing came for quiet_s. Closes the streams."""
    queue: asyncio.Queue[tuple[int, Step | Exception]] = asyncio.Queue()

    async def pump(index: int, stream: Stream) -> None:
        try:
            async for step in stream:
                if queue.qsize() >= MAX_BEHIND:
                    stream.close()
                    raise ApiError(408, f"stream: the client is {MAX_BEHIND} tokens behind", code="too_slow")
                queue.put_nowait((index, step))
        except Exception as error:  # noqa: BLE001 - raised by whoever waits for it
            queue.put_nowait((index, error))

    pumps = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        running = len(streams)
        while running:
            try:
                # Not wait_for: before Python 3.12 it may swallow the cancellation of one who has hung up
                # (test_hanging_up_frees_the_slot, now and then).
                async with asyncio.timeout(quiet_s):
                    index, event = await queue.get()
            except TimeoutError:
                yield None
                continue
            if isinstance(event, Exception):
                raise event
            yield index, event
            running -= event.finish_reason is not None
    finally:
        for task in pumps:
            task.cancel()
        for stream in streams:
            stream.close()


async def hung_up(receive: Receive) -> None:
    """Returns when the client is gone. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_hung_up(request: Request, answer: Awaitable[T], timeout_s: float | None) -> T:
    """The answer, if the client stays for it; else it is cancelled, and nobody will see the error."""
    task = asyncio.ensure_future(answer)
    gone = asyncio.create_task(hung_up(request.receive))
    try:
        await asyncio.wait({task, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ApiError(499, "the client is gone")
        raise ApiError(504, f"timeout: no answer within {timeout_s:g} s", code="timeout")
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"


def typed_event(data: JsonObject) -> bytes:
    """An event that says its type twice, as Anthropic's and those of OpenAI's responses do."""
    return f"event: {data['type']}\n".encode() + event(data)


PING = b": still here\n\n"
DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """A response in pieces: server-sent events, or lines of JSON. Source and streams are closed when it ends, fails, or
    the client hangs up.

    failed  an error as the last of them
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        streams: list[Stream],
        timeout_s: float | None,
        failed: Callable[[ApiError], bytes] = lambda error: event(openai_body(error)),
        media_type: str | None = None,
    ):
        self._events = events
        self._streams = streams
        self._timeout_s = timeout_s
        self._failed = failed
        self.media_type = media_type or self.media_type
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # At once, before the first token is there: it may take long, and the client should know it was heard.
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        sending = asyncio.create_task(self._send(send))
        gone = asyncio.create_task(hung_up(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            for stream in self._streams:  # also if the source never began
                stream.close()

    async def _send(self, send: Send) -> None:
        async def out(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            async with asyncio.timeout(self._timeout_s), aclosing(self._events) as events:  # type: ignore[type-var]
                async for data in events:
                    await out(data)
        except TimeoutError:
            await out(self._failed(ApiError(504, f"timeout: no answer within {self._timeout_s:g} s", code="timeout")))
        except Exception as error:  # noqa: BLE001 - told to the client in the stream
            await out(self._failed(as_api_error(error)))
        await out(b"", more=False)
