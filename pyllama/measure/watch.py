"""Resident memory and bytes read over time, sampled by a thread while something else runs; events marked."""

import threading
import time
from collections.abc import Callable
from typing import Any, Self

from pyllama.machine.memory import resident_nbytes

INTERVAL_S = 0.05
MOST_SAMPLES = 2000  # then every other one goes, and the interval doubles: any run fits


class Watch:
    """A context manager; started at once.

    bytes_read  asked for in every sample
    """

    def __init__(self, bytes_read: Callable[[], int] = lambda: 0, interval_s: float = INTERVAL_S):
        self.bytes_read = bytes_read
        self._interval_s = interval_s
        self._started = time.perf_counter()
        self._samples: list[tuple[float, int, int]] = []  # seconds, resident bytes, bytes read so far
        self._events: list[tuple[float, str]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pyllama-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def mark(self, event: str) -> None:
        """Something happened now: "token", "prompt"."""
        self._events.append((time.perf_counter() - self._started, event))

    def series(self) -> dict[str, Any]:
        """Lists of equal length: time_s, rss_bytes, bytes_read; events: [seconds, what]."""
        times, resident, read = zip(*self._samples, strict=True) if self._samples else ((), (), ())
        return {
            "time_s": [round(t, 4) for t in times],
            "rss_bytes": list(resident),
            "bytes_read": list(read),
            "events": [[round(t, 4), what] for t, what in self._events],
        }

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._sample()
            if len(self._samples) >= MOST_SAMPLES:
                del self._samples[1::2]
                self._interval_s *= 2

    def _sample(self) -> None:
        self._samples.append((time.perf_counter() - self._started, resident_nbytes(), self.bytes_read()))
