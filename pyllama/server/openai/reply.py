"""An answer of several choices, as one object or as events: what chat completions and completions share."""

import secrets
import time
from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import Any

from pyllama.engine import Stream
from pyllama.generation import Step
from pyllama.server.answers import DONE, PROGRESS_S, event, merged
from pyllama.server.json_object import JsonObject
from pyllama.server.reply import Reply
from pyllama.server.sampling import Wanted
from pyllama.server.service import Service
from pyllama.server.usage import details, progress, usage

ChoiceObject = JsonObject  # a choice, or what is new of it: an element of `choices` in a chunk


class OpenAIReply(Reply):
    """sampled: whether what was sampled is reported."""

    def __init__(
        self, service: Service, streams: list[Stream], want: Wanted, prefix: str, kind: str, *, sampled: bool = True
    ):
        super().__init__(service, streams, want)
        self._sampled = sampled
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": service.fingerprint,
        }

    def opening(self) -> list[ChoiceObject]:
        """What a stream begins with, before the first step is there."""
        return []

    @abstractmethod
    def take(self, index: int, step: Step) -> list[ChoiceObject]:
        """Note a step of a choice; what is new with it."""

    @abstractmethod
    def choices(self) -> list[ChoiceObject]:
        """The choices as they are once all steps are taken."""

    def whole(self) -> JsonObject:
        return {**self._head, "choices": self.choices(), **self._cost()}

    def begin(self) -> bytes:
        return b"".join(self._chunk([part]) for part in self.opening())

    async def written(self, quiet_s: float | None) -> AsyncIterator[bytes | None]:
        async for arrived in merged(self.streams, quiet_s):
            if arrived is None:
                yield None
                continue
            for part in self.take(*arrived):
                yield self._chunk([part])

    def end(self) -> bytes:
        return (self._chunk([], **self._cost()) if self.want.include_usage else b"") + DONE

    @property
    def quiet_s(self) -> float:
        return PROGRESS_S if self.want.include_progress else super().quiet_s

    def ping(self) -> bytes:
        if not self.want.include_progress:
            return super().ping()
        stats = self.service.engine.stats()
        return self._chunk([], progress=[progress(stream, stats.layer, stats.layers) for stream in self.streams])

    def _cost(self) -> JsonObject:
        return {"usage": usage(self.streams, self.want.n, written=self._sampled), "pyllama": details(self.streams)}

    def _chunk(self, choices: list[ChoiceObject], **more: Any) -> bytes:
        nothing = {"usage": None} if self.want.include_usage else {}
        return event({**self._head, "choices": choices, **nothing, **more})
