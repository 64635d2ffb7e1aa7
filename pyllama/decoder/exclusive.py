"""One pass at a time: a decoder that refuses whoever comes while a pass is under way.

A pass writes activations, takes blocks out of the ring and writes positions into pages. Two at once would mix theirs
and say nothing, so the second gets an error: another thread's, or this one's own, from a callback or a signal handler.
Threads may take turns; whether they do is not watched.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyllama.decoder.decoder import Decoder
from pyllama.decoder.extending import Extender
from pyllama.decoder.kv_cache import CachedSequence
from pyllama.decoder.passes import Segment
from pyllama.errors import BusyError, PyllamaError, RequestError
from pyllama.machine import forked


class Turn(forked.ForkAware):
    """A lock that is asked before it is taken: `turn.refuse("what for")`, then `with turn.lock:`.

    Two steps and a plain lock, since a signal may come between any two steps of Python: nothing but a lock's own
    `with` leaves none unlocked. Threads that ask at the same moment, and are both let through, wait for each other.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holder = 0  # the thread of the last who took it
        forked.register(self)

    def refuse(self, what: str) -> None:
        """Raises BusyError while somebody has it."""
        if self.lock.locked():
            if self.holder == threading.get_ident():
                raise BusyError(f"{what}: called in the midst of a pass, by a callback or a signal handler")
            raise BusyError(f"{what}: another thread computes with this model; take turns, or load it twice")

    def renew_in_child(self) -> None:
        if self.holder != threading.get_ident():
            self.lock = threading.Lock()  # whoever has it is not here


class ExclusiveSequence(CachedSequence):
    """A sequence that is neither cut nor filled while a pass writes into its pages."""

    def __init__(self, decoder: "Exclusive"):
        super().__init__(decoder.cache)
        self.decoder = decoder
        self.last_pass: object = None
        self.changing = threading.Lock()

    def _another(self) -> "ExclusiveSequence":
        return ExclusiveSequence(self.decoder)

    def commit(self, branch: CachedSequence) -> None:
        self._refuse_another("commit")
        self._refuse_in_pass("commit")
        super().commit(branch)  # which truncates this one

    def adopt(self, pages: Sequence[int], length: int, state: int | None = None) -> None:
        self._refuse_another("adopt")
        with self.changing:
            self._refuse_in_pass("adopt")
            super().adopt(pages, length, state)

    def truncate(self, length: int) -> None:
        self._refuse_another("truncate")
        with self.changing:
            self._refuse_in_pass("truncate")
            super().truncate(length)

    def begin(self, running: object) -> None:
        """It takes part in this pass. Raises BusyError while another thread changes it."""
        # The mark first, then the look: adopt() and truncate() do it the other way round, so one of two sees the other.
        self.last_pass = running
        self._refuse_another("forward")

    def _refuse_another(self, what: str) -> None:
        if self.changing.locked():
            raise BusyError(f"{what}: another thread changes this sequence")

    def _refuse_in_pass(self, what: str) -> None:
        if self.last_pass is not None and self.last_pass is self.decoder.running:
            raise BusyError(f"{what}: a pass computes with this sequence")


class Exclusive(Extender):
    """A decoder for any thread, but for one at a time. Refuses with BusyError, and has computed nothing then.

    turn     to be taken by whoever wants no pass meanwhile
    running  a mark of the pass under way, or None
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.turn = Turn()
        self.running: object = None  # or a mark of the pass under way
        self._retired = False

    def new_sequence(self) -> ExclusiveSequence:
        return ExclusiveSequence(self)

    def extend(
        self,
        batch: Sequence[Segment],
        wanted: Sequence[int],
        on_layer: Callable[[int], None] | None = None,
        hidden: bool = False,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        self.turn.refuse("model")
        with self.turn.lock:
            self.turn.holder = threading.get_ident()
            if self._retired:
                raise PyllamaError("model: closed, load it again")
            try:
                self.running = object()
                for sequence, _ in batch:
                    # Another model's pages have another layout.
                    if not isinstance(sequence, ExclusiveSequence) or sequence.decoder is not self:
                        raise RequestError("forward: a sequence of another model, expected one of this model's")
                    sequence.begin(self.running)
                # Extender's, after whatever class stands beside this one (Decoder): that one's run() is called there.
                return super().extend(batch, wanted, on_layer, hidden)
            finally:
                self.running = None

    def retire(self) -> None:
        """Computes nothing from now on. Raises BusyError while a pass is under way."""
        self.turn.refuse("close")
        with self.turn.lock:
            self._retired = True


class ExclusiveDecoder(Exclusive, Decoder):
    """A decoder of this process, for any thread, but for one at a time."""
