"""What the routes share: the engine, the model's names, the settings, and the checks every request goes through."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from pyllama.engine import AsyncEngine, Stream
from pyllama.errors import ContextOverflowError
from pyllama.server.body import read_json
from pyllama.server.errors import ApiError, too_long
from pyllama.server.grammar import Grammars
from pyllama.server.tools import ToolFormat, format_of
from pyllama.server.validate import Schema, check

if TYPE_CHECKING:
    from pyllama.generate import Guide
    from pyllama.server.metrics import Metrics
    from pyllama.server.sampling import Wanted


#: Room for tools and schemas, and for each token of the context: parsing more would cost memory for nothing.
BODY_NBYTES = 256 << 10
BODY_NBYTES_A_TOKEN = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server behaves. Sizes in bytes, times in seconds.

    api_key          what clients must send as a bearer token; None: nothing
    cors_origins     web pages that may talk to the server; ("*",) for all
    allowed_hosts    names the server answers to without a key, besides localhost and IP addresses; ("*",) for all
    max_body_nbytes  of a request; None: what a text takes that fills the context, written as wastefully as JSON can
    body_timeout_s   until a request's headers, and then its body, are here
    timeout_s        until an answer is complete, the queue included; None: no limit
    ping_s           between signs of life on a stream on which nothing else happens
    stop_timeout_s   that running answers are given to finish when the server stops
    max_connections  open at once
    max_header_nbytes
    """

    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_body_nbytes: int | None = None
    body_timeout_s: float = 30.0
    timeout_s: float | None = None
    ping_s: float = 10.0
    stop_timeout_s: float = 20.0
    max_connections: int = 256
    max_header_nbytes: int = 32 << 10


@dataclass
class Service:
    """One served model.

    names        what clients may call it; the first is what it calls itself
    fingerprint  tells one set of weights from another, for `system_fingerprint`
    """

    engine: AsyncEngine
    names: tuple[str, ...]
    settings: Settings
    metrics: "Metrics"
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.model = self.engine.model
        self.tokenizer = self.model.tokenizer
        self.grammars = Grammars(self.model)
        self.tool_format: ToolFormat | None = format_of(self.tokenizer.chat_template)
        limit = self.settings.max_body_nbytes
        if limit is None:
            limit = BODY_NBYTES + BODY_NBYTES_A_TOKEN * self.model.context_length
        self._max_body_nbytes = limit
        self.stopping = False

    @property
    def name(self) -> str:
        return self.names[0]

    async def read(self, request: Request, schema: Schema) -> dict[str, Any]:
        """The checked body of a request to this model."""
        body = await read_json(request, self._max_body_nbytes, self.settings.body_timeout_s)
        check(body, schema)
        self.check_name(body.get("model"))
        return body

    def check_name(self, name: str | None) -> None:
        if name is not None and name not in self.names:
            raise ApiError(
                404, f"model: {name[:100]!r} is not here, expected {self.name!r}", "model", "model_not_found"
            )

    def submit(
        self,
        prompts: list[list[int]],
        wanted: "Wanted",
        request: Request,
        user: str | None,
        *,
        param: str,
        continuation: bool = False,
        prompt_logprobs: int | None = None,
        guide: Any = None,
        show_special: bool = False,
    ) -> list[Stream]:
        """Queue n answers to each prompt, all or none. guide is copied for each; the first of n has the prompt's
        log-probabilities. param: the field that the prompts come from."""
        client = f"user {user}" if user else f"address {request.client.host if request.client else ''}"
        streams: list[Stream] = []
        try:
            for prompt_ids in prompts:
                leader = None
                for choice in range(wanted.n):
                    own: Guide | None = guide.copy() if guide else None
                    stream = self.engine.submit_ids(
                        prompt_ids,
                        wanted.params_of(choice),
                        continuation=continuation,
                        fingerprint=wanted.fingerprint,
                        prompt_logprobs=None if choice else prompt_logprobs,
                        guide=own,
                        show_special=show_special,
                        client=client,
                        leader=leader,
                    )
                    leader = leader or stream
                    streams.append(stream)
        except Exception as error:
            for stream in streams:
                stream.close()
            if isinstance(error, ContextOverflowError):
                raise too_long(len(prompt_ids), self.model.context_length, param) from None
            raise
        return streams
