"""One answer to a conversation, in the shape of an API that has one: its blocks as they grow, or all of them.

A block is what the model thought, what it said, or a call. Each shape says what opens, extends and closes one; when
which happens is told here.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pyllama.generation import Step
from pyllama.server import tools
from pyllama.server.answers import PING, EventStream, merged, unless_hung_up
from pyllama.server.choice import Choice
from pyllama.server.conversation import Asked
from pyllama.server.errors import ApiError
from pyllama.server.json_object import JsonObject
from pyllama.server.service import Service
from pyllama.server.usage import usage


@dataclass(slots=True)
class Block:
    """kind is "thinking", "text" or "call"; text grows, and of a call is its arguments."""

    kind: str
    text: str = ""
    call: tools.ToolCall | None = None


class OneReply(ABC):
    """service, asked, blocks, thinking_tokens and finish_reason: as far as the answer has come."""

    media_type = "text/event-stream"
    ping = PING

    def __init__(self, service: Service, asked: Asked):
        self.service, self.asked = service, asked
        self.blocks: list[Block] = []
        self.finish_reason: str | None = None
        self.thinking_tokens = 0
        self._choice = Choice(service, asked, self.request.answer.prompt_ids)

    @property
    def request(self) -> Any:
        """The engine's, with tokens and times so far."""
        return self.asked.streams[0].request

    @property
    def usage(self) -> JsonObject:
        return usage(self.asked.streams, 1)

    @abstractmethod
    def whole(self) -> JsonObject:
        """The answer, once it is complete."""

    def begin(self) -> bytes:
        """What a stream begins with."""
        return b""

    def opened(self, index: int, block: Block) -> bytes:
        """A block begins: it is empty yet."""
        return b""

    @abstractmethod
    def grown(self, index: int, block: Block, text: str) -> bytes:
        """So much text more of it. A call grows once, by all of its arguments."""

    def closed(self, index: int, block: Block) -> bytes:
        """No more of it comes."""
        return b""

    @abstractmethod
    def end(self) -> bytes:
        """What a stream ends with."""

    @abstractmethod
    def failed(self, error: ApiError) -> bytes:
        """What it ends with after an error."""

    async def response(self, request: Request) -> Response:
        timeout_s = self.service.settings.timeout_s
        if self.asked.want.stream:
            return EventStream(self.events(), self.asked.streams, timeout_s, self.failed, self.media_type)

        async def all_of_it() -> JsonObject:
            async for _ in self._written(None):
                pass
            return self.whole()

        return JSONResponse(await unless_hung_up(request, all_of_it(), timeout_s))

    async def events(self) -> AsyncIterator[bytes]:
        """The stream, in pieces."""
        yield self.begin()
        async for data in self._written(self.service.settings.ping_s):
            yield self.ping if data is None else data
        yield self.end()

    async def _written(self, quiet_s: float | None) -> AsyncIterator[bytes | None]:
        """Takes the answer as it comes; events of its blocks, None whenever nothing came for quiet_s."""
        async for arrived in merged(self.asked.streams, quiet_s):
            if arrived is None:
                yield None
                continue
            for kind, text, call in self._pieces(arrived[1]):
                for data in self._take(kind, text, call):
                    yield data
        if self.blocks:
            yield self.closed(len(self.blocks) - 1, self.blocks[-1])

    def _pieces(self, step: Step) -> list[tuple[str, str, tools.ToolCall | None]]:
        content, calls = self._choice.take(step)
        self.thinking_tokens += self._choice.thinking
        self.finish_reason = self._choice.finish_reason
        return _pieces(self._choice.thought, content, calls)

    def _take(self, kind: str, text: str, call: tools.ToolCall | None) -> list[bytes]:
        if not text:
            return []
        last = self.blocks[-1] if self.blocks else None
        out = []
        if call is not None or last is None or last.kind != kind:
            if last is not None:
                out.append(self.closed(len(self.blocks) - 1, last))
            last = Block(kind, call=call)
            self.blocks.append(last)
            out.append(self.opened(len(self.blocks) - 1, last))
        last.text += text
        return [*out, self.grown(len(self.blocks) - 1, last, text)]


def _pieces(thought: str, said: str, calls: list[tools.ToolCall]) -> list[tuple[str, str, tools.ToolCall | None]]:
    return [("thinking", thought, None), ("text", said, None), *(("call", call.arguments, call) for call in calls)]
