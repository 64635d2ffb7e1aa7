"""Messages between ranks through mpi4py. Imported by ranks alone: MPI costs 23 MB and is no friend of forks.

Whoever waits lets the others of its machine run: it looks, yields, and after a millisecond sleeps between looks, since
what a rank waits for may be a slow disk's or, between two passes, a person's.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import mpi4py
import numpy as np

mpi4py.rc.thread_level = "funneled"

from mpi4py import MPI

_PIECE, _TALK = 1, 2  # tags: pieces of a pass, and what is said besides
_SPIN_S, _SHORT_S, _LONG_S = 0.001, 0.00005, 0.002


LostError = MPI.Exception  # a peer is gone


class MpiExchange:
    """The Exchange (gathering.py) of this rank, and bytes of any length to and from single ranks.

    seconds  that pieces took so far, waiting for the slowest rank included, also for one that is not here yet
    """

    def __init__(self) -> None:
        self._world: Any = MPI.COMM_WORLD
        # Whoever loses a peer is not to end the job in its own name: mpiexec knows which rank it was, and how it ended.
        for communicator in (MPI.COMM_WORLD, MPI.COMM_SELF):
            communicator.Set_errhandler(MPI.ERRORS_RETURN)
        self.rank: int = self._world.Get_rank()
        self.size: int = self._world.Get_size()
        self._seconds = 0.0
        self._since: float | None = None
        self._others = [rank for rank in range(self.size) if rank != self.rank]

    @property
    def seconds(self) -> float:
        since = self._since
        return self._seconds + (0.0 if since is None else max(0.0, time.perf_counter() - since))

    def swap(self, mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> bool:
        self._since = time.perf_counter()
        requests = [self._world.Irecv([theirs[rank], MPI.BYTE], rank, _PIECE) for rank in self._others]
        requests += [self._world.Isend([mine[rank], MPI.BYTE], rank, _PIECE) for rank in self._others]
        statuses = [MPI.Status() for _ in requests]
        _wait(lambda: MPI.Request.Testall(requests, statuses))
        self._seconds, self._since = self.seconds, None
        return all(status.Get_count(MPI.BYTE) for status in statuses[: len(self._others)])

    def fail(self) -> None:
        """Say in place of this step's piece that there is none; take what the others give."""
        nothing = np.empty(0, np.uint8)
        requests = [self._world.Isend([nothing, MPI.BYTE], rank, _PIECE) for rank in self._others]
        for rank in self._others:
            self._receive(rank, _PIECE)
        _wait(lambda: MPI.Request.Testall(requests))

    def tell(self, rank: int, data: bytes) -> None:
        request = self._world.Isend([data, MPI.BYTE], rank, _TALK)
        _wait(request.Test)

    def hear(self, rank: int) -> bytes:
        return self._receive(rank, _TALK)

    def tell_all(self, data: bytes) -> None:
        for rank in self._others:
            self.tell(rank, data)

    def hear_all(self) -> list[bytes]:
        """What every other rank tells this one, in their order."""
        return [self.hear(rank) for rank in self._others]

    def _receive(self, rank: int, tag: int) -> bytes:
        status = MPI.Status()
        _wait(lambda: self._world.Iprobe(rank, tag, status))
        data = bytearray(status.Get_count(MPI.BYTE))
        self._world.Recv([data, MPI.BYTE], rank, tag)
        return bytes(data)


def _wait(done: Callable[[], Any]) -> None:
    if done():
        return
    started = time.perf_counter()
    while not done():
        waited = time.perf_counter() - started
        if waited < _SPIN_S:
            os.sched_yield()
        else:
            time.sleep(_SHORT_S if waited < 100 * _SPIN_S else _LONG_S)
