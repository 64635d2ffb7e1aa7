"""This machine's two ceilings beside the disk: bytes read from memory, and float32 multiply-adds in registers.

Decoding cannot beat the first, a prompt cannot beat the second (unless it computes in less than float32).
Measured by kernels of the package, so that a board without a compiler can be measured too. Knows no models.
"""

import time
from statistics import median

import numpy as np

from pyllama import _kernels
from pyllama.errors import RequestError
from pyllama.machine.memory import available_nbytes
from pyllama.measure import machine
from pyllama.measure.tree import Tree
from pyllama.streaming.memory import huge_empty

MOST_NBYTES = 1 << 30
SPIN_ROUNDS = 20_000_000  # tens of milliseconds to a second
CACHES = 4  # a buffer so many times the last-level cache is read from memory


def buffer_nbytes(most: int = MOST_NBYTES) -> int:
    """Bytes to read, whole MiB: several times the last-level cache, within a third of what is available."""
    cache = machine.last_level_cache(Tree()) or (8 << 20)
    room = min(most, available_nbytes() // 3)
    nbytes = min(room, max(CACHES * cache, 64 << 20)) >> 20 << 20
    if nbytes < 1 << 20:
        raise RequestError("bench: under 4 MB of memory are available, expected more to measure with")
    return nbytes


class Ceilings:
    """Holds the buffer, so that measuring again and again costs no page faults."""

    def __init__(self, nbytes: int | None = None):
        self.buffer = huge_empty(buffer_nbytes() if nbytes is None else nbytes)
        self.buffer[:] = 1  # written once: untouched pages would all be one zero page

    def read_gb_s(self, threads: int, passes: int = 5) -> float:
        """Median over `passes` readings of the whole buffer."""
        _kernels.set_num_threads(threads)
        rates = []
        for _ in range(passes):
            started = time.perf_counter()
            _kernels.read_memory(self.buffer)
            rates.append(self.buffer.nbytes / 1e9 / (time.perf_counter() - started))
        return median(rates)

    def peak_gflop_s(self, threads: int, repeats: int = 3, rounds: int = SPIN_ROUNDS) -> float:
        """Float32 fused multiply-adds (two operations each) of the instruction set the package chose."""
        _kernels.set_num_threads(threads)
        return median(_kernels.spin(rounds) for _ in range(repeats)) / 1e9

    def measure(self, threads: int, *, rounds: int = SPIN_ROUNDS) -> dict[str, float]:
        return {
            "read_gb_s": self.read_gb_s(threads),
            "peak_gflop_s": self.peak_gflop_s(threads, rounds=rounds),
        }


def ones(*shape: int) -> np.ndarray:
    """float32, small and not all alike."""
    return (np.arange(int(np.prod(shape)), dtype=np.float32) % 7 - 3).reshape(shape) / 8
