"""Turns at something that few may do at a time: in the order of arrival, but one client after the other."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pyllama.errors import BusyError


class Turns:
    """So many at a time; who waits is let in by client, those first who have had the fewest turns.

    slots        turns at the same time
    max_waiting  that may wait for one; BusyError for the next
    what         is done in a turn, for the error
    """

    def __init__(self, slots: int, max_waiting: int, what: str):
        self._free = slots
        self._max_waiting = max_waiting
        self._what = what
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []  # in order of arrival
        self._running: Counter[str] = Counter()
        self._served: Counter[str] = Counter()

    async def take(self, client: str) -> None:
        """Waits for a turn. Raises BusyError if too many do."""
        if self._free and not self._waiting:
            self._begin(client)
            return
        if len(self._waiting) >= self._max_waiting:
            raise BusyError(f"too many requests wait for their turn to {self._what}: {len(self._waiting)}")
        turn = asyncio.get_running_loop().create_future()
        entry = (client, turn)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            elif turn.done() and not turn.cancelled():  # let in, and gone at the same moment
                self.give_back(client)
            raise

    def give_back(self, client: str) -> None:
        """The turn is over: the next one's begins."""
        self._free += 1
        self._running[client] -= 1
        while self._free and self._waiting:
            entry = min(self._waiting, key=lambda one: (self._running[one[0]], self._served[one[0]]))
            self._waiting.remove(entry)
            if not entry[1].done():
                self._begin(entry[0])
                entry[1].set_result(None)
        if not self._waiting:
            self._served.clear()
            self._running = +self._running

    def _begin(self, client: str) -> None:
        self._free -= 1
        self._running[client] += 1
        self._served[client] += 1

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """A turn for as long as the block lasts."""
        await self.take(client)
        try:
            yield
        finally:
            self.give_back(client)
