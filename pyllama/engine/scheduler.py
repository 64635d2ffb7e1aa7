"""Which tokens of which requests share the next pass.

Requests join and leave between passes; share_out (generation/task.py) says how many tokens of each the next one takes.
Pages of the KV cache are taken as texts grow: nothing is set aside for tokens that may never be written. If there are
none left, kept texts go first (least recently used), then the youngest request gives its pages up, waits at the head
of the queue and is computed again: one pass for all it had, and the same bits. The oldest can always finish, since the
cache holds at least one whole context. Decides, and computes nothing.
"""

from collections import Counter
from collections.abc import Callable

from pyllama.decoder.kv_cache import CachedSequence
from pyllama.decoder.page_pool import POSITIONS
from pyllama.engine.prefix_cache import PrefixCache
from pyllama.engine.request import Request
from pyllama.generation import share_out

Portion = tuple[Request, int]  # who takes part in a pass, with so many tokens


class Scheduler:
    """The queue and the running requests.

    new_sequence     makes an empty sequence in the KV cache
    prefix_cache     pages kept for texts to come
    max_running      requests that share passes; one more for a short prompt of a client who has none running
    max_pass_tokens  tokens of a pass
    shared_prefill   prompt tokens of a pass in which others write: bounds how long they wait for their next token
    places           requests that there is room for at the same time, in all; None: no limit
    """

    def __init__(
        self,
        new_sequence: Callable[[], CachedSequence],
        prefix_cache: PrefixCache,
        *,
        max_running: int,
        max_pass_tokens: int,
        shared_prefill: int,
        places: int | None = None,
    ):
        self._new_sequence = new_sequence
        self._prefix_cache = prefix_cache
        self._places = min(max_running + 1, max_pass_tokens, max_pass_tokens if places is None else places)
        self._max_running = min(max_running, self._places)
        self._max_pass_tokens = max_pass_tokens
        self._shared_prefill = shared_prefill
        self.waiting: list[Request] = []
        self.running: list[Request] = []  # oldest first
        self.preemptions = 0

    def place(self, request: Request) -> int:
        """Its place among those that wait, from 1; one that has just come in is the last. For any thread."""
        queue = sorted(self.waiting, key=self._turn(Counter(r.client for r in self.running)))
        return queue.index(request) + 1 if request in queue else len(queue) + 1

    def schedule(self) -> list[Portion]:
        """Requests of the next pass and how many tokens of each, with pages reserved; none if nothing is to be done."""
        self._admit()
        batch: list[Portion] = []
        for request, count in share_out(self.running, self._max_pass_tokens, self._shared_prefill):
            sequence = request.sequence
            if sequence is None:  # preempted for an older one just now
                continue
            if not self._make_room(request, sequence, sequence.length + count):
                continue
            sequence.reserve(sequence.length + count)
            batch.append((request, count))
        return batch

    def computed(self, request: Request) -> None:
        """Part of the request's prompt was computed: other requests may share it from now on."""
        sequence = request.sequence
        if sequence is not None:
            whole = sequence.length // POSITIONS * POSITIONS  # a page that is still written is not shared
            self._insert(request, sequence, whole)

    def remove(self, request: Request, keep: bool = True) -> None:
        """The request has ended, whether done, cancelled or failed. keep: its text may be continued."""
        request.done = True
        if request in self.waiting:
            self.waiting.remove(request)
        if request in self.running:
            self.running.remove(request)
        self._give_back(request, keep)

    def _give_back(self, request: Request, keep: bool) -> None:
        sequence, request.sequence = request.sequence, None
        if sequence is None:
            return
        sequence.release_unused()
        if keep:
            self._insert(request, sequence, sequence.length)
        sequence.close()

    def _insert(self, request: Request, sequence: CachedSequence, length: int) -> None:
        states = sequence.take_states()
        self._prefix_cache.insert(request.answer.tokens(0, length), sequence.pages, states)
        sequence.give_states_back(states)

    # --- who runs ---

    def _admit(self) -> None:
        while len(self.running) < self._places:
            ready = [request for request in self.waiting if request.may_start]
            running = Counter(request.client for request in self.running)
            if len(self.running) >= self._max_running:
                # One place more, for a short prompt of a client who has none: long ones take theirs for minutes.
                ready = [r for r in ready if not running[r.client] and r.remaining <= self._shared_prefill]
            if not ready:
                return
            if not self._start(min(ready, key=self._turn(running))):
                return

    @staticmethod
    def _turn(running: Counter[str]) -> Callable[[Request], tuple[bool, int, int]]:
        """Sort key: who was preempted, then whose client has the fewest running, then who came first."""
        return lambda request: (not request.preemptions, running[request.client], request.number)

    def _start(self, request: Request) -> bool:
        """Move it from the queue to the running ones, if the cache has room for what is known of it."""
        answer = request.answer
        sequence = self._new_sequence()
        # The last token's logits are needed, so it is computed again even if the cache has it.
        ids = answer.tokens(0, answer.reusable)
        known = self._prefix_cache.begin(sequence, ids)
        needed = sequence.pages_needed(answer.length)
        # One page each, so that nobody is preempted by the very next pass.
        room = needed + len(self.running) + 1
        if self.running and not self._prefix_cache.has_room(max(0, room - self._prefix_cache.evictable())):
            sequence.close()
            return False
        if sequence.history is not None:
            sequence.mark(answer.length, common=self._prefix_cache.known(ids)[0])
        request.sequence = sequence
        if request.queue_s is None:
            request.queue_s = request.elapsed_s()
            request.cached_tokens = known
        self.waiting.remove(request)
        self.running.append(request)
        return True

    # --- pages ---

    def spare_pages(self) -> int | None:
        """Pages that branches of texts may take for one pass: free ones, and those of kept texts; None: no limit."""
        free = self._prefix_cache.free()
        return None if free is None else free + self._prefix_cache.evictable()

    def make_room(self, pages: int) -> None:
        """Have so many pages free, of those that spare_pages() counted: kept texts go for them."""
        while not self._prefix_cache.has_room(pages) and self._prefix_cache.evict():
            pass

    def _make_room(self, request: Request, sequence: CachedSequence, length: int) -> bool:
        """Free the pages the request needs to grow; False if it had to give up its own."""
        while not self._prefix_cache.has_room(sequence.pages_needed(length)):
            if self._prefix_cache.evict():
                continue
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        request.preemptions += 1
        self.preemptions += 1
        self.running.remove(request)
        self.waiting.append(request)
        self._give_back(request, keep=True)  # evict() takes as many as are needed, from the end
