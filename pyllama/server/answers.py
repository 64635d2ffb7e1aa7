"""Streams of steps merged, events, and nothing for those who have hung up."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from starlette.requests import Request

from pyllama.engine import Stream
from pyllama.generation import Step
from pyllama.server.errors import ApiError
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


async def unless_hung_up(request: Request, answer: Awaitable[T], timeout_s: float | None) -> T:
    """The answer, if the client stays for it; else it is cancelled, and nobody will see the error.

    The request's body must have been read.
    """

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(answer)
    gone = asyncio.create_task(hung_up())
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
