"""One request inside the engine: an answer in the making, where its tokens lie, and who wants to hear of it."""

import time
from collections.abc import Callable
from itertools import count

from pyllama.errors import PyllamaError
from pyllama.generation import Answer, Step, Task

_numbers = count()

Deliver = Callable[[Step | PyllamaError], None]


class Request(Task):
    """What the scheduler moves around: a task, and who waits for it.

    number         order of arrival
    deliver        called on the engine's thread with every Step, or with the error that ended the request; after
                   a Step with finish_reason, an error or cancel() it is not called again
    client         whose request it is: the queue takes turns among clients
    leader         a request with the same prompt; this one waits until the leader's prompt is computed
    cached_tokens  prompt tokens that were in the cache already
    passes         passes it took part in
    preemptions    times it had to give its pages up and was computed again
    displaced      it lost its place in a full queue to a client who has less of it
    queue_s, first_token_s, total_s   seconds from arrival to the first pass, the first token, the end
    """

    def __init__(self, answer: Answer, deliver: Deliver, client: str = "", leader: "Request | None" = None):
        super().__init__(answer)
        self.number = next(_numbers)
        self.deliver = deliver
        self.client = client
        self.leader = leader
        self.cached_tokens = 0
        self.passes = 0
        self.preemptions = 0
        self.cancelled = False
        self.displaced = False
        self.done = False
        self.arrived = time.perf_counter()
        self.queue_s: float | None = None
        self.first_token_s: float | None = None
        self.total_s: float | None = None

    @property
    def may_start(self) -> bool:
        leader = self.leader
        return leader is None or leader.done or leader.first_token_s is not None

    def elapsed_s(self) -> float:
        return time.perf_counter() - self.arrived
