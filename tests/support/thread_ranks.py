"""Ranks that are threads of one process: the decoder's pass over shares of a model, without MPI."""

import queue
import threading
from collections.abc import Callable, Sequence

import numpy as np

from pyllama.cluster.dealing import deal
from pyllama.cluster.gathering import GatheringRanks, PeerFailedError

PATIENCE_S = 120  # a busy machine's time is not its ranks'


class ThreadExchange:
    """The Exchange of one rank: a queue to each other one."""

    def __init__(self, rank: int, queues: list[list[queue.Queue[bytes]]]):
        self.rank = rank
        self.queues = queues  # from, to

    def swap(self, mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> bool:
        sound = True
        for rank in self._give(mine):  # of each one message, whatever the others say
            sound &= self._take(rank, theirs[rank])
        return sound

    def _give(self, mine: Sequence[np.ndarray]) -> list[int]:
        others = [rank for rank in range(len(self.queues)) if rank != self.rank]
        for rank in others:
            self.queues[self.rank][rank].put(mine[rank].tobytes())
        return others

    def _take(self, rank: int, theirs: np.ndarray) -> bool:
        message = self.queues[rank][self.rank].get(timeout=PATIENCE_S)
        if message:
            theirs[:] = np.frombuffer(message, np.uint8)
        return bool(message)

    def fail(self) -> None:
        empty = [np.empty(0, np.uint8)] * len(self.queues)
        for rank in self._give(empty):
            self.queues[rank][self.rank].get(timeout=PATIENCE_S)


def run_ranks(config, shares: Sequence[float], work: Callable[[GatheringRanks], object]) -> list[object]:
    """What work(ranks) returns, or raises, on each rank."""
    dealt = deal(config, shares)
    queues = [[queue.Queue() for _ in dealt] for _ in dealt]
    results: list[object] = [None] * len(dealt)

    def run(rank: int) -> None:
        ranks = GatheringRanks(dealt, rank, ThreadExchange(rank, queues))
        try:
            results[rank] = work(ranks)
        except PeerFailedError as error:
            results[rank] = error
        except BaseException as error:
            results[rank] = error
            ranks.fail()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(len(dealt))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
        assert not thread.is_alive(), "a rank hangs"
    return results
