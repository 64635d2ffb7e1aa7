"""An answer of several choices in one of OpenAI's shapes, as one object or as events: what all of the shapes share."""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pyllama.engine import Stream
from pyllama.generation import Step
from pyllama.server.answers import DONE, PING, PROGRESS_S, EventStream, event, merged, unless_hung_up
from pyllama.server.json_object import JsonObject
from pyllama.server.sampling import Wanted
from pyllama.server.service import Service
from pyllama.server.usage import details, progress, usage

Part = JsonObject  # of a choice: an element of `choices` in a chunk


class Reply(ABC):
    """written: whether what was sampled is reported."""

    def __init__(
        self, service: Service, streams: list[Stream], want: Wanted, prefix: str, kind: str, *, written: bool = True
    ):
        self._service, self._streams, self._want, self._written = service, streams, want, written
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": service.fingerprint,
        }

    def opening(self) -> list[Part]:
        """What a stream begins with, before the first step is there."""
        return []

    @abstractmethod
    def take(self, index: int, step: Step) -> list[Part]:
        """Note a step of a choice; what is new with it."""

    @abstractmethod
    def choices(self) -> list[Part]:
        """The choices as they are once all steps are taken."""

    async def response(self, request: Request) -> Response:
        """As the client wants it: events, or all at once if it stays for it."""
        timeout_s = self._service.settings.timeout_s
        if self._want.stream:
            return EventStream(self.events(), self._streams, timeout_s)
        return JSONResponse(await unless_hung_up(request, self.whole(), timeout_s))

    async def whole(self) -> JsonObject:
        async for arrived in merged(self._streams, None):
            if arrived is not None:
                self.take(*arrived)
        return {**self._head, "choices": self.choices(), **self._cost()}

    async def events(self) -> AsyncIterator[bytes]:
        for part in self.opening():
            yield self._chunk([part])
        quiet_s = PROGRESS_S if self._want.include_progress else self._service.settings.ping_s
        async for arrived in merged(self._streams, quiet_s):
            if arrived is None:
                yield self._progress() if self._want.include_progress else PING
                continue
            for part in self.take(*arrived):
                yield self._chunk([part])
        if self._want.include_usage:
            yield self._chunk([], **self._cost())
        yield DONE

    def _cost(self) -> JsonObject:
        return {"usage": usage(self._streams, self._want.n, written=self._written), "pyllama": details(self._streams)}

    def _chunk(self, choices: list[Part], **more: Any) -> bytes:
        nothing = {"usage": None} if self._want.include_usage else {}
        return event({**self._head, "choices": choices, **nothing, **more})

    def _progress(self) -> bytes:
        stats = self._service.engine.stats()
        return self._chunk([], progress=[progress(stream, stats.layer, stats.layers) for stream in self._streams])
