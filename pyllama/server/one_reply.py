"""One answer to a conversation, in the shape of an API that has one: its blocks as they grow, or all of them.

A block is what the model thought, what it said, or a call. Each shape says what opens, extends and closes one; when
which happens is told here.
"""

from abc import abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from pyllama.server import tools
from pyllama.server.answers import merged
from pyllama.server.choice import Choice
from pyllama.server.conversation import Asked
from pyllama.server.json_object import JsonObject
from pyllama.server.reply import Reply
from pyllama.server.service import Service
from pyllama.server.usage import usage


@dataclass(slots=True)
class Block:
    """kind is "thinking", "text" or "call"; text grows, and of a call is its arguments."""

    kind: str
    text: str = ""
    call: tools.ToolCall | None = None


class OneReply(Reply):
    """asked, blocks, thinking_tokens and finish_reason: as far as the answer has come."""

    def __init__(self, service: Service, asked: Asked):
        super().__init__(service, asked.streams, asked.want)
        self.asked = asked
        self.blocks: list[Block] = []
        self.finish_reason: str | None = None
        self.thinking_tokens = 0
        self._choice = Choice(service, asked, self.request.answer.prompt_ids)

    @property
    def request(self) -> Any:
        """The engine's, with tokens and times so far."""
        return self.streams[0].request

    @property
    def times(self) -> tuple[float, float, float]:
        """Seconds in the queue, until the first token, in all."""
        request = self.request
        return request.queue_s or 0.0, request.first_token_s or 0.0, request.total_s or 0.0

    @property
    def usage(self) -> JsonObject:
        return usage(self.streams, 1)

    def opened(self, index: int, block: Block) -> bytes:
        """A block begins: it is empty yet."""
        return b""

    @abstractmethod
    def grown(self, index: int, block: Block, text: str) -> bytes:
        """So much text more of it. A call grows once, by all of its arguments."""

    def closed(self, index: int, block: Block) -> bytes:
        """No more of it comes."""
        return b""

    async def written(self, quiet_s: float | None) -> AsyncIterator[bytes | None]:
        async for arrived in merged(self.streams, quiet_s):
            if arrived is None:
                yield None
                continue
            content, calls = self._choice.take(arrived[1])
            self.thinking_tokens += self._choice.thinking
            self.finish_reason = self._choice.finish_reason
            pieces = [("thinking", self._choice.thought, None), ("text", content, None)]
            for kind, text, call in [*pieces, *(("call", call.arguments, call) for call in calls)]:
                for data in self._take(kind, text, call):
                    yield data
        if self.blocks:
            yield self.closed(len(self.blocks) - 1, self.blocks[-1])

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
