"""One buffer of a few slots, filled by reader threads in execution order and emptied in the same order.

The readers run ahead by as many slots as there are, over the end of a pass into the next, so the disk is idle
only when every slot is full. What to read next is asked of the owner, one item at a time; what the bytes mean
is not known here.
"""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from pyllama.machine import forked
from pyllama.streaming.memory import huge_empty
from pyllama.streaming.readers import Readers

PENDING = object()  # from next_item: not known before the consumer has given back more
READERS = 3  # direct reads in flight; one leaves the disk idle between two requests


class Ring(Readers):
    """`slots` slots of `room` bytes.

    next_item()         the next item to read, by one reader at a time; PENDING where that depends on what the
                        consumer has yet to do; None where nothing is left to read, ever
    fill(item, memory)  read the item into a slot's memory; called on several threads at once; what it returns
                        comes out of take()
    """

    def __init__(self, slots: int, room: int, next_item: Callable[[], Any], fill: Callable[[Any, np.ndarray], Any]):
        self.slots = slots
        self.room = room
        self._memory = huge_empty(slots * room)
        self._next_item = next_item
        self._fill = fill
        super().__init__()
        self._order = threading.Lock()  # held while the next item is chosen: it has its own number
        self._claimed = 0  # items handed to readers
        self._taken = 0  # items given back by the consumer
        self._ready: dict[int, tuple[Any, Any]] = {}
        self._error: BaseException | None = None
        forked.register(self)
        self._begin(READERS, self._read, "pyllama-read")

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes

    def _read(self) -> None:
        try:
            while True:
                with self._order:
                    number = self._claimed
                    item = self._choose(number)
                    if item is None:
                        return
                    self._claimed += 1
                at = number % self.slots * self.room
                result = self._read_item(item, self._memory[at : at + self.room])
                with self._changed:
                    self._ready[number] = (item, result)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - the consumer raises it
            with self._changed:
                self._error = self._error or error
                self._stopping = True
                self._changed.notify_all()

    def _read_item(self, item: Any, memory: np.ndarray) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: not self._forks)
            self.reading += 1
        try:
            return self._fill(item, memory)
        finally:
            with self._changed:
                self.reading -= 1
                self._changed.notify_all()

    def _choose(self, number: int) -> Any:
        """The item with this number, once it has a slot; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: number < self._taken + self.slots or self._stopping)
        while not self._stopping:
            taken = self._taken
            item = self._next_item()
            if item is not PENDING:
                return item
            with self._changed:
                self._changed.wait_for(lambda: self._taken != taken or self._stopping)  # noqa: B023 - waited for here
        return None

    def take(self) -> tuple[Any, Any]:
        """The next (item, what fill returned). Its slot stays as it is until give_back(). Raises a reader's error."""
        with self._changed:
            number = self._taken
            self._changed.wait_for(lambda: number in self._ready or self._error)
            if number not in self._ready and self._error is not None:
                raise self._error
            return self._ready.pop(number)

    def give_back(self) -> None:
        """The slot of the item last taken may be filled again."""
        with self._changed:
            self._taken += 1
            self._changed.notify_all()
