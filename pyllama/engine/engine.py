"""Requests in, steps out: one thread that runs passes for all of them, for as long as there is something to do.

step() = take what came in, schedule, run a pass, hand out. Other threads talk to it through submit(), cancel() and
stats(), all of which return at once; asyncio programs use AsyncEngine. What a request is answered depends on the
request alone, never on its company: the decoder sees to that.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

from pyllama.decoder.page_pool import POSITIONS
from pyllama.engine.page_store import PageStore, pages_name
from pyllama.engine.prefix_cache import PrefixCache
from pyllama.engine.request import Deliver, Request
from pyllama.engine.scheduler import Portion, Scheduler
from pyllama.errors import BoardError, BudgetError, BusyError, PyllamaError, RequestError, StoppingError
from pyllama.generation import Answer, AnswerOptions, Found, Step, run_pass
from pyllama.generation.sampler import SamplingParams

if TYPE_CHECKING:
    from pyllama.model import Model

SHARED_PREFILL = 128
MAX_RUNNING = 8
MAX_WAITING = 64
SESSION_NBYTES = 2 << 30
SMALL_STATE = 16  # pages: a state of no more bytes is saved as soon as there is nothing to do, others at the end

_log = logging.getLogger("pyllama")


class _Abandoned(Exception):
    """Nobody wants the pass any more."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What the engine is doing and has done. `..._tokens` and `requests` count since the start.

    waiting, running    requests
    requests            ended ones, by how: "stop", "length", "cancelled", "error"
    passes              passes over the weights
    layer, layers       where the present pass is; layer is 0 between passes
    prompt_tokens       of requests that were started; cached_tokens of them were not computed
    completion_tokens   sampled
    drafter             who proposes tokens, by name, or None
    drafted_passes      of the passes, those with proposals; draft_s: seconds spent on proposing
    proposed_tokens     that a drafter proposed and passes computed; accepted_tokens of them became part of an answer
    preemptions         times a request gave its pages up
    pages_used, pages_kept   pages of the KV cache held by anybody, and of those, kept for texts to come
    pages_allocated, max_pages   pages there is memory for already, and at most
    page_nbytes         bytes of one
    """

    waiting: int
    running: int
    requests: dict[str, int]
    passes: int
    layer: int
    layers: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    drafter: str | None
    drafted_passes: int
    draft_s: float
    proposed_tokens: int
    accepted_tokens: int
    preemptions: int
    pages_used: int
    pages_kept: int
    pages_allocated: int
    max_pages: int
    page_nbytes: int

    @property
    def tokens_a_pass(self) -> float:
        """That an answer took of each pass for its next token, on average: 1 where nobody drafts."""
        own = self.completion_tokens - self.accepted_tokens
        return self.completion_tokens / own if own > 0 else 1.0


class Engine:
    """Runs a model for many requests at once. start() it, or call step() yourself.

    The model's decoder is the engine's from now on: nothing else may compute with it.
    """

    def __init__(
        self,
        model: "Model",
        *,
        max_running: int = MAX_RUNNING,
        max_waiting: int = MAX_WAITING,
        kv_nbytes: int | None = None,
        shared_prefill: int = SHARED_PREFILL,
        session_dir: str | None = None,
        session_nbytes: int = SESSION_NBYTES,
    ):
        """Computes nothing yet.

        max_running     requests that share passes
        max_waiting     requests that wait beyond them
        kv_nbytes       bytes for keys and values, of running requests and kept texts together; default: what the
                        model's memory plan has for them (pyllama.load's contexts)
        shared_prefill  prompt tokens in a pass that others share for their next token
        session_dir     where kept texts survive a restart; None: they do not
        session_nbytes  bytes they may take there

        Raises RequestError for numbers out of range, and BudgetError if kv_nbytes is too small for one request.
        """
        for name, value in (("max_running", max_running), ("shared_prefill", shared_prefill)):
            if not 1 <= value <= 4096:
                raise RequestError(f"{name}: got {value}, expected 1 to 4096")
        if not 0 <= max_waiting <= 100_000:
            raise RequestError(f"max_waiting: got {max_waiting}, expected 0 to 100000")
        self.model = model
        self.max_running = max_running
        self.max_waiting = max_waiting
        self._decoder = model.decoder
        self._drafting = model.drafting
        self._cache = cache = model.decoder.cache
        self._max_pages = _max_pages(model, max_running, kv_nbytes)
        slots = _state_slots(model, max_running)
        cache.limit(self._max_pages, slots)
        store, self._small_states = None, False
        if session_dir is not None:
            boards = [(host.place, host.share) for host in getattr(model.decoder, "hosts", ())]
            name = pages_name(model.checkpoint, cache.dtype, boards)
            state_nbytes = cache.state_pool.slot_nbytes if cache.state_pool else 0
            store = PageStore(session_dir, name, cache.page_nbytes, session_nbytes, state_nbytes)
            self._small_states = 0 < state_nbytes <= SMALL_STATE * cache.page_nbytes
        self._prefix_cache = PrefixCache(cache, store)
        self._scheduler = Scheduler(
            model.decoder.new_sequence,
            self._prefix_cache,
            max_running=max_running,
            max_pass_tokens=model.decoder.max_pass_tokens,
            shared_prefill=shared_prefill,
            places=slots and slots // 2,
        )
        # What other threads leave for the engine's, under the lock.
        self._wake = threading.Condition()
        self._inbox: deque[Request] = deque()
        self._cancelled: deque[Request] = deque()
        self._stopping = False
        self._deadline: float | None = None
        self._thread: threading.Thread | None = None
        # Counters, written by the engine's thread alone.
        self._ended: Counter[str] = Counter()
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0
        self._drafted_passes = self._proposed_tokens = self._accepted_tokens = 0
        self._layer = 0
        self._mean_s = 1.0  # how long a request runs, the last ones counting most
        self._in_pass: list[Request] = []
        self._progress_at = time.monotonic()
        self._idle = True

    # --- for any thread ---

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        deliver: Deliver,
        *,
        client: str = "",
        leader: Request | None = None,
        kind: type[Answer] = Answer,
        **options: Unpack[AnswerOptions],
    ) -> Request:
        """Queue a request. `deliver` hears of it on the engine's thread; the rest is as in Request and Answer.

        kind  of answer: Answer, or Embedding for a vector

        In a full queue the last request of the client who has most of it makes room for one who has less.

        Raises BusyError if the queue is full or the engine is stopping, and what Answer raises.
        """
        answer = kind(
            self.model.tokenizer,
            prompt_ids,
            params,
            vocab_size=self.model.config.vocab_size,
            context_length=self.model.context_length,
            **options,
        )
        request = Request(answer, deliver, client, leader)
        with self._wake:
            if self._stopping:
                raise StoppingError("the engine is stopping")
            free = self.max_running - len(self._scheduler.running)
            waiting = [r for r in (*self._scheduler.waiting, *self._inbox) if not r.displaced]
            if len(waiting) >= self.max_waiting + max(0, free):
                last = _last_of_most(waiting, client)
                if last is None:
                    raise BusyError(f"the queue is full: {len(waiting)} requests are waiting")
                last.displaced = True
            self._inbox.append(request)
            self._wake.notify()
        return request

    def cancel(self, request: Request) -> None:
        """Nobody wants the request any more. Its slot is free within one pass; at once if no other shares the pass."""
        with self._wake:
            if not request.done:
                request.cancelled = True
                self._cancelled.append(request)
                self._wake.notify()

    def place(self, request: Request) -> int:
        """Its place in the queue, from 1; 0 once it runs."""
        return 0 if request.sequence is not None or request.done else self._scheduler.place(request)

    def retry_after_s(self) -> int:
        """A guess at when a place in the queue is free, for those who found none."""
        waiting = len(self._scheduler.waiting) + 1
        return int(min(600, max(1, self._mean_s * waiting / self.max_running)))

    def stalled_s(self) -> float:
        """Seconds since a layer was reached or a page saved while there is something to do: for a watchdog."""
        return 0.0 if self._idle else time.monotonic() - self._progress_at

    def stats(self) -> Stats:
        scheduler, cache = self._scheduler, self._cache
        return Stats(
            waiting=len(scheduler.waiting) + len(self._inbox),
            running=len(scheduler.running),
            requests=dict(self._ended),
            passes=self._decoder.passes,
            layer=self._layer,
            layers=self.model.config.num_hidden_layers,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
            drafter=self._drafting.name if self._drafting else None,
            drafted_passes=self._drafted_passes,
            draft_s=self._drafting.draft_s if self._drafting else 0.0,
            proposed_tokens=self._proposed_tokens,
            accepted_tokens=self._accepted_tokens,
            preemptions=scheduler.preemptions,
            pages_used=cache.pages.used,
            pages_kept=self._prefix_cache.pages,
            pages_allocated=len(cache.pages),
            max_pages=self._max_pages,
            page_nbytes=cache.page_nbytes,
        )

    # --- the thread ---

    def start(self, *, warm_up: bool = False) -> None:
        """Run passes on a thread of its own until stop(). warm_up: first one for nobody, in which weights that stay are
        read; it is given up as soon as somebody asks."""
        if self._thread is not None:
            raise PyllamaError("engine: started twice")
        self._thread = threading.Thread(target=self._run, args=(warm_up,), name="pyllama-engine", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 0.0) -> None:
        """Refuse what comes, let what runs finish for so long, end the rest with BusyError, save what is kept."""
        with self._wake:
            self._stopping = True
            self._deadline = time.monotonic() + timeout_s
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        else:
            self._shut_down()

    def _run(self, warm_up: bool) -> None:
        if warm_up:
            self._warm_up()
        while True:
            with self._wake:
                if self._deadline is not None and (
                    time.monotonic() >= self._deadline or not (self._inbox or self._scheduler.running)
                ):
                    break
            self._progress_at, self._idle = time.monotonic(), False
            try:
                if self.step():
                    continue
                saved = not self._stopping and self._prefix_cache.save_one()
                if not saved and not self._stopping and self._small_states:
                    saved = self._prefix_cache.save_state()
            except BoardError as error:  # between passes; what was kept went with it
                _log.error("engine: %s", error)
                self._fail_all(error)
                self._forget_kept()
                continue
            except Exception as error:  # noqa: BLE001 - a bug: what runs is lost, what comes may do better
                _log.exception("engine: a pass failed")
                self._fail_all(PyllamaError(f"internal error: {type(error).__name__}"))
                continue
            with self._wake:
                if not (saved or self._inbox or self._cancelled or self._stopping):
                    self._idle = True
                    self._wake.wait()
        self._shut_down()
        self._idle = True

    def _warm_up(self) -> None:
        def unless_asked(layer: int) -> None:
            self._progress_at, self._idle = time.monotonic(), False
            if self._inbox or self._stopping:
                raise _Abandoned

        sequence = self._decoder.new_sequence()
        try:
            self._decoder.extend([(sequence, [0])], [1], unless_asked)
        except _Abandoned:
            pass
        except Exception:  # noqa: BLE001 - whoever asks will hear of it
            _log.exception("engine: the first pass failed")
        finally:
            sequence.close()

    def _shut_down(self) -> None:
        self._take_in()
        self._fail_all(StoppingError("the engine is stopping"))
        try:
            while self._prefix_cache.save_one() or self._prefix_cache.save_state():
                self._progress_at = time.monotonic()
        except BoardError as error:
            _log.error("engine: %s", error)
        self._prefix_cache.close()

    def step(self) -> bool:
        """One pass, and one of those that want hidden states; False if there was nothing to run."""
        self._take_in()
        batch = self._scheduler.schedule()
        for hidden in (False, True):  # what wants hidden states has a pass of its own
            self._pass([part for part in batch if part[0].answer.hidden is hidden])
        return bool(batch)

    def _pass(self, batch: list[Portion]) -> None:
        if not batch:
            return
        self._in_pass = [request for request, _ in batch]
        try:
            passed = run_pass(self._decoder, batch, self._drafting, self._scheduler, self._between_layers)
        except _Abandoned:
            return  # all of them are in the list of cancelled ones
        except Exception as error:  # noqa: BLE001 - a bug is told to those in the pass, and the others go on
            self._fail(batch, error)
            return
        finally:
            self._in_pass = []
            self._layer = 0
        before = self._completion_tokens
        self._drafted_passes += any(request.tree for request, _ in batch)
        for (request, count), found in zip(batch, passed.found, strict=True):
            self._hand_out(request, count, found)
        if self._drafting is not None:
            steps = self._completion_tokens - before
            self._drafting.passed([request for request, _ in batch], passed.tokens, passed.seconds, steps)

    def _between_layers(self, layer: int) -> None:
        """Called by the decoder before each layer: a pass that nobody wants ends here."""
        self._layer = layer + 1
        self._progress_at = time.monotonic()
        if self._in_pass and all(request.cancelled for request in self._in_pass):
            raise _Abandoned

    def _take_in(self) -> None:
        with self._wake:
            arrived, self._inbox = self._inbox, deque()
            cancelled, self._cancelled = self._cancelled, deque()
            self._scheduler.waiting += arrived
        for request in cancelled:
            if not request.done:
                self._end(request, "cancelled")
        for request in [request for request in self._scheduler.waiting if request.displaced]:
            self._end(request, "error", BusyError("the queue is full: others, who have less of it, are waiting"))
        if self._stopping:
            for request in list(self._scheduler.waiting):
                self._end(request, "error", StoppingError("the engine is stopping"))

    def _hand_out(self, request: Request, count: int, found: Found) -> None:
        """What the pass means for one of its requests: tokens of its answer, or one more piece of its prompt."""
        request.passes += 1
        new = request.first_token_s is None
        if request.cancelled:
            request.discard(found)
            return  # the next _take_in() ends it
        last: Step | PyllamaError | None = None
        how = "error"
        before = request.proposed, request.accepted
        try:
            with closing(request.accept(found)) as steps:
                for step in steps:
                    if request.first_token_s is None:
                        request.first_token_s = request.elapsed_s()
                        self._prompt_tokens += len(request.answer.prompt_ids)
                        self._cached_tokens += request.cached_tokens
                    self._completion_tokens += step.token_id >= 0
                    if step.finish_reason:
                        last, how = step, step.finish_reason
                    else:
                        self._deliver(request, step)
        except PyllamaError as error:
            last = error
        except Exception:  # noqa: BLE001 - the request is lost, the others go on
            _log.exception("engine: a token could not be chosen")
            last = PyllamaError("internal error")
        self._proposed_tokens += request.proposed - before[0]
        self._accepted_tokens += request.accepted - before[1]
        if count > 1 or new:
            self._scheduler.computed(request)
        if last is not None:
            self._end(request, how, last)

    def _end(self, request: Request, how: str, last: Step | PyllamaError | None = None) -> None:
        self._scheduler.remove(request, keep=how != "error")
        if self._drafting is not None:
            self._drafting.forget(request)
        request.total_s = request.elapsed_s()
        self._ended[how] += 1
        if how != "cancelled" and request.queue_s is not None:
            self._mean_s += 0.2 * (request.total_s - request.queue_s - self._mean_s)
        if last is not None:
            self._deliver(request, last)
        # Whoever listens holds the request: a circle of them would wait for the garbage collector, tables and all.
        request.deliver, request.leader = _to_nobody, None

    @staticmethod
    def _deliver(request: Request, event: Step | PyllamaError) -> None:
        if request.cancelled:
            return
        try:
            request.deliver(event)
        except Exception:  # noqa: BLE001 - whoever listened is gone; the others must not suffer
            _log.exception("engine: a step could not be delivered")

    def _fail(self, batch: list[Portion], error: Exception) -> None:
        """A pass failed: the requests in it are lost, and so are their positions."""
        if isinstance(error, PyllamaError):
            _log.error("engine: a pass failed: %s", error)
        else:
            _log.error("engine: a pass failed", exc_info=error)
            error = PyllamaError(f"internal error: {type(error).__name__}")
        for request, _ in batch:
            self._end(request, "error", error)
        if isinstance(error, BoardError):  # positions of all texts went with it
            for request in list(self._scheduler.running):
                self._end(request, "error", error)
            self._forget_kept()

    def _forget_kept(self) -> None:
        while self._prefix_cache.evict():
            pass

    def _fail_all(self, error: PyllamaError) -> None:
        for request in [*self._scheduler.running, *self._scheduler.waiting]:
            self._end(request, "error", error)


def _last_of_most(waiting: list[Request], client: str) -> Request | None:
    """The last request of the client who has most of a queue; None if that is not more than `client` would have."""
    counts = Counter(request.client for request in waiting)
    most, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
    if count <= counts[client] + 1:
        return None
    return next((r for r in reversed(waiting) if r.client == most and not r.preemptions), None)


def _to_nobody(event: Step | PyllamaError) -> None:
    pass


def _state_slots(model: "Model", max_running: int) -> int | None:
    """States that there is room for, two of each request; None in a model whose layers carry none."""
    if model.decoder.cache.states is None:
        return None
    return max(2, model.plan.state_slots if model.plan else 2 * (max_running + 1) + MAX_RUNNING)


def _max_pages(model: "Model", max_running: int, kv_nbytes: int | None) -> int:
    page_nbytes: int = model.decoder.cache.page_nbytes
    context = -(-model.context_length // POSITIONS)
    least = context + 1  # one more while a shared page is copied
    if kv_nbytes is None:
        planned = model.plan.cache if model.plan else max_running * context * page_nbytes
        return max(least, planned // page_nbytes)
    if kv_nbytes < least * page_nbytes:
        raise BudgetError(
            f"kv cache: {kv_nbytes} bytes, expected at least {least * page_nbytes} for a context of"
            f" {model.context_length}; give it more, or shorten the context"
        )
    return kv_nbytes // page_nbytes
