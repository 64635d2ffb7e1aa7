"""The engine for asyncio programs: prompts in, streams of steps out, and nothing ever blocks the loop.

engine = AsyncEngine(pyllama.load("smollm2"))
async with engine:
    async with await engine.submit("Once upon a time", max_tokens=40) as stream:
        async for step in stream:
            print(step.text, end="")
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self, Unpack

from pyllama.engine.engine import Engine, Stats
from pyllama.engine.request import Request
from pyllama.engine.turns import Turns
from pyllama.errors import PyllamaError
from pyllama.generation import Answer, AnswerOptions, Step
from pyllama.generation.prompt import Prompt, is_chat
from pyllama.generation.sampler import SamplingParams

if TYPE_CHECKING:
    from pyllama.model import Model


# Bytes of text for each thread of its own: some 0.05 s, 0.5 s, and what a whole context takes.
TEXT_LANES = (32 << 10, 512 << 10, 1 << 62)
MAX_TEXTS_WAITING = 256


class _Lane:
    """A thread for texts up to a size."""

    def __init__(self, up_to_nbytes: int):
        self.up_to_nbytes = up_to_nbytes
        self.turns = Turns(1, MAX_TEXTS_WAITING, "have their texts read")
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="pyllama-text")


class Stream:
    """One answer as it comes: an async iterator of Step, ended by its last step, by close() and by an error.

    request  prompt, tokens, text and times so far
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._events: deque[Step | PyllamaError] = deque()
        self._arrived = asyncio.Event()
        self._closed = False
        self.request: Request  # set by whoever submits it: the engine must know where to deliver first

    def deliver(self, event: Step | PyllamaError) -> None:
        """For the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._take, event)
        except RuntimeError:  # the loop is closed: nobody waits
            pass

    def _take(self, event: Step | PyllamaError) -> None:
        self._events.append(event)
        self._arrived.set()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Step:
        if self._closed and not self._events:
            raise StopAsyncIteration
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        if isinstance(event, PyllamaError):
            self._closed = True
            raise event
        if event.finish_reason:
            self._closed = True
        return event

    async def read(self) -> str:
        """Runs to the end; the whole text."""
        return "".join([step.text async for step in self])

    def place(self) -> int:
        """Its place in the queue, from 1; 0 once it runs."""
        return self._engine.place(self.request)

    def close(self) -> None:
        """Nobody wants the rest. Closing twice, or after the end, does nothing."""
        if not self._closed:
            self._closed = True
            self._events.clear()
            self._engine.cancel(self.request)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()


class AsyncEngine:
    """An Engine on its own thread, for one event loop; an async context manager.

    model    what is run; it stays the caller's to close, after the engine has stopped
    options  as in Engine: max_running, max_waiting, kv_nbytes, session_dir, ...
    """

    def __init__(self, model: "Model", **options: Any):
        self.engine = Engine(model, **options)
        self.model = model
        self._lanes = [_Lane(up_to) for up_to in TEXT_LANES]

    async def in_text_thread(
        self, function: Callable[..., Any], *arguments: Any, nbytes: int = 0, client: str = ""
    ) -> Any:
        """function(*arguments) on a thread for text: one for texts of about this size, so that the short ones never
        wait for the long ones. In each, clients take turns. Whoever is cancelled while he waits is not served.

        Raises BusyError if too many wait.
        """
        lane = next(lane for lane in self._lanes if nbytes <= lane.up_to_nbytes)
        async with lane.turns.turn(client):
            work = asyncio.get_running_loop().run_in_executor(lane.thread, function, *arguments)
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                await asyncio.wait([work])  # a thread cannot be stopped: the turn lasts until it is done
                raise

    async def submit(self, prompt: Prompt, **options: Any) -> Stream:
        """Queue a prompt: text, token ids or messages, as for Model.generate; and options, as there.

        Raises BusyError if the queue is full, and RequestError, TokenizerError or ContextOverflowError.
        """
        params = SamplingParams.from_options(**options)
        nbytes = sum(len(str(message)) for message in prompt) if is_chat(prompt) else len(prompt)
        prompt_ids = await self.in_text_thread(self.model.encode_prompt, prompt, nbytes=nbytes)
        return self.submit_ids(prompt_ids, params, continuation=not is_chat(prompt))

    def submit_ids(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        *,
        client: str = "",
        leader: Stream | None = None,
        kind: type[Answer] = Answer,
        **options: Unpack[AnswerOptions],
    ) -> Stream:
        """Queue a prompt of token ids.

        client   whose request it is: the queue takes turns among clients
        leader   the stream of a request with the same prompt, which this one need not compute again
        kind     of answer: Answer, or Embedding for a vector
        options  as in Answer: continuation, fingerprint, guide, show_special
        """
        stream = Stream(self.engine)
        stream.request = self.engine.submit(
            prompt_ids,
            params,
            stream.deliver,
            client=client,
            leader=leader.request if leader else None,
            kind=kind,
            **options,
        )
        return stream

    def stats(self) -> Stats:
        return self.engine.stats()

    async def start(self, *, warm_up: bool = False) -> None:
        self.engine.start(warm_up=warm_up)

    async def stop(self, timeout_s: float = 0.0) -> None:
        """As Engine.stop, without blocking the loop."""
        await asyncio.to_thread(self.engine.stop, timeout_s)
        for lane in self._lanes:
            lane.thread.shutdown(wait=False, cancel_futures=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()
