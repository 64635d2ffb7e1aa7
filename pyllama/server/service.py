"""What the routes share: the engine, the model's names, the settings, and the checks every request goes through."""

import asyncio
import re
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from pyllama.engine import AsyncEngine, Stream
from pyllama.engine.turns import Turns
from pyllama.errors import BusyError, ContextOverflowError
from pyllama.generation.defaults import sampling_defaults
from pyllama.generation.harmony import is_harmony
from pyllama.generation.thinking import marks_of
from pyllama.server.answers import unless_hung_up
from pyllama.server.body import announced_nbytes, check_head, parse, read_body
from pyllama.server.errors import ApiError
from pyllama.server.grammar import GrammarGuide, Grammars
from pyllama.server.grammar_process import Grammar
from pyllama.server.json_object import JsonObject
from pyllama.server.openai.response_store import ResponseStore
from pyllama.server.tools import ToolFormat, format_of
from pyllama.server.validate import Schema, check

if TYPE_CHECKING:
    from typing import Unpack

    from pyllama.generation import AnswerOptions
    from pyllama.server.metrics import Metrics
    from pyllama.server.sampling import Wanted


#: Room for tools and schemas, and for each token of the context: parsing more would cost memory for nothing.
BODY_NBYTES = 256 << 10
BODY_NBYTES_A_TOKEN = 64
#: Larger bodies are taken in by turns: what JSON means takes thirty times its bytes at worst.
LARGE_BODY_NBYTES = 64 << 10
LARGE_BODIES = 4


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server behaves. Sizes in bytes, times in seconds.

    api_key          what clients must send as a bearer token; None: nothing
    cors_origins     web pages that may talk to the server; ("*",) for all
    allowed_hosts    names the server answers to without a key, besides localhost and IP addresses; ("*",) for all
    max_body_nbytes  of a request; None: what a text takes that fills the context, written as wastefully as JSON can
    body_timeout_s   until a request's headers, and then its body, are here
    send_timeout_s   in which a client must take some of what waits for it (protocol.py), or is let go
    timeout_s        until an answer is complete, the queue included; None: no limit
    ping_s           between signs of life on a stream on which nothing else happens
    stop_timeout_s   that running answers are given to finish when the server stops
    max_connections  open at once
    max_header_nbytes
    embeddings       whether vectors are made of texts, poor as they are
    warm_up          whether to run one pass at the start, so that weights which stay are there for the first request
    session_dir      where responses that others may go on after survive a restart; None: they do not
    stop             texts that end an answer whose request names none
    """

    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_body_nbytes: int | None = None
    body_timeout_s: float = 30.0
    send_timeout_s: float = 30.0
    timeout_s: float | None = None
    ping_s: float = 10.0
    stop_timeout_s: float = 20.0
    max_connections: int = 256
    max_header_nbytes: int = 32 << 10
    embeddings: bool = False
    warm_up: bool = False
    session_dir: str | None = None
    stop: tuple[str, ...] = ()


@dataclass
class Service:
    """One served model.

    names        what clients may call it; the first is what it calls itself
    patterns     the same, with those that stand for many: gpt-*
    fingerprint  tells one set of weights from another, for `system_fingerprint`
    """

    engine: AsyncEngine
    names: tuple[str, ...]
    settings: Settings
    metrics: "Metrics"
    fingerprint: str

    def __post_init__(self) -> None:
        self.patterns = (re.sub(r"[*?[]", r"[\g<0>]", self.names[0]), *self.names[1:])  # a model's own is no pattern
        told = (self.names[0], *(name for name in self.names[1:] if not re.search(r"[*?[]", name)))
        self.names = tuple(dict.fromkeys(told))  # an alias may repeat the model's name
        self.model = self.engine.model
        self.tokenizer = self.model.tokenizer
        self.grammars = Grammars(self.model)
        self.sampling_defaults = {**sampling_defaults(self.model.checkpoint), "stop": self.settings.stop}
        self.tool_format: ToolFormat | None = format_of(
            self.tokenizer.chat_template, lambda text: self.tokenizer.id_of(text) is not None
        )
        self.thinking_marks = marks_of(self.tokenizer.chat_template)
        self.has_channels = is_harmony(self.tokenizer.chat_template)
        limit = self.settings.max_body_nbytes
        if limit is None:
            limit = BODY_NBYTES + BODY_NBYTES_A_TOKEN * self.model.context_length
        self._max_body_nbytes = limit
        self._large_bodies = Turns(LARGE_BODIES, self.settings.max_connections, "send a large body")
        self.responses = ResponseStore(self.settings.session_dir)
        self.created = int(time.time())
        self.stopping = False

    @property
    def name(self) -> str:
        return self.names[0]

    async def read(self, request: Request, schema: Schema) -> JsonObject:
        """The checked body of a request to this model.

        A large one is a turn, which ends when the request is queued (submit) or answered (access.py).
        """
        client = f"address {request.client.host if request.client else ''}"
        check_head(request, self._max_body_nbytes)  # before anything is waited for
        announced = announced_nbytes(request)
        if announced is None or announced > LARGE_BODY_NBYTES:
            await self._take_large_turn(request, client)
        raw = await read_body(request, self._max_body_nbytes, self.settings.body_timeout_s)
        request.state.nbytes, request.state.client = len(raw), client
        if len(raw) <= LARGE_BODY_NBYTES:
            body = _checked(raw, schema)
        else:
            body = await self.in_text_thread(request, _checked, raw, schema)
        self.check_name(body.get("model"))
        if body.get("user"):
            request.state.client = f"user {body['user']}"
        return body

    async def _take_large_turn(self, request: Request, client: str) -> None:
        try:
            async with asyncio.timeout(self.settings.body_timeout_s):
                await self._large_bodies.take(client)
        except TimeoutError:
            raise BusyError("too many large bodies are on their way") from None
        request.state.end_turn = lambda: self._large_bodies.give_back(client)

    async def in_text_thread(self, request: Request, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments) on a thread for texts of the request's size, if the client stays for it."""
        state = request.state
        work = self.engine.in_text_thread(function, *arguments, nbytes=state.nbytes, client=state.client)
        return await unless_hung_up(request, work, self.settings.timeout_s)

    def check_name(self, name: str | None) -> None:
        """Raises ApiError 404 for another model's name. ":latest" is Ollama's way of leaving a version open."""
        if name is not None and not any(
            fnmatchcase(called, pattern) for called in (name, name.removesuffix(":latest")) for pattern in self.patterns
        ):
            raise ApiError(
                404, f"model: {name[:100]!r} is not here, expected {self.name!r}", "model", "model_not_found"
            )

    async def guide(self, request: Request, grammar: Grammar, answers: int) -> GrammarGuide:
        """The grammar, compiled for so many answers, if the client stays for it."""
        work = self.grammars.guide(grammar, request.state.client, answers)
        return await unless_hung_up(request, work, self.settings.timeout_s)

    def submit(
        self,
        prompts: list[list[int]],
        wanted: "Wanted",
        request: Request,
        user: str | None,
        param: str,
        **options: "Unpack[AnswerOptions]",
    ) -> list[Stream]:
        """Queue n answers to each prompt, all or none. Options as in Answer; the guide is for the first answer, copies
        of it for the others, and the first scores the prompt for all. param: the field that the prompts come from.
        """
        guide: Any = options.get("guide")
        options["fingerprint"] = wanted.fingerprint
        scored = options.get("prompt_logprobs")
        client = f"user {user}" if user else f"address {request.client.host if request.client else ''}"
        end_turn(request.scope)
        streams: list[Stream] = []
        try:
            for prompt_ids in prompts:
                leader = None
                for choice in range(wanted.n):
                    options["guide"] = guide.copy() if guide and choice else guide
                    options["prompt_logprobs"] = scored if leader is None else None
                    stream = self.engine.submit_ids(
                        prompt_ids, wanted.params_of(choice), client=client, leader=leader, **options
                    )
                    leader = leader or stream
                    streams.append(stream)
        except Exception as error:
            for stream in streams:
                stream.close()
            if isinstance(error, ContextOverflowError):
                raise ApiError(400, str(error), param, "context_length_exceeded") from None
            raise
        return streams


def end_turn(scope: MutableMapping[str, Any]) -> None:
    """The request's large body, if it had one, is used up."""
    end = scope.get("state", {}).pop("end_turn", None)
    if end is not None:
        end()


def _checked(raw: bytes, schema: Schema) -> JsonObject:
    body = parse(raw)
    check(body, schema)
    return body
