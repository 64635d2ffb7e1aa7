"""Whether a drafter pays: what the passes with its proposals took, against what as many tokens take without."""

from collections import deque
from typing import NamedTuple

_WINDOW = 16
_LEAST_PASSES = 3
_LEAST_RESIDENT = 4
_FIRST_PAUSE, _LAST_PAUSE = 16, 512
_TRIES = 3
_TRIES_UNPAID = 2


class _Entry(NamedTuple):
    seconds: float
    passes: float  # that would have given as many tokens


class Account:
    """Of one drafter, over a sliding window.

    Where weights are streamed, what it holds in memory lengthens every pass, also those in which it proposes nothing.
    So one that has not paid yet is tried twice without a pause between; one that has, more often, after pauses that
    grow. Where weights are in memory, reading what it missed in a pause costs more than the next try can bring: the
    pause is long at once.

    open     whether it may propose now
    hopeless whether it has been tried often enough
    """

    def __init__(self) -> None:
        self._window: deque[_Entry] = deque(maxlen=_WINDOW)
        self._pause = _FIRST_PAUSE
        self._left = 0
        self._failures = 0
        self._has_paid = False
        self._streamed = False

    @property
    def _unpaid(self) -> bool:
        return self._streamed and not self._has_paid

    @property
    def open(self) -> bool:
        return self._left == 0

    @property
    def hopeless(self) -> bool:
        return self._failures >= (_TRIES_UNPAID if self._unpaid else _TRIES)

    def skipped(self) -> None:
        """A pass went by without it."""
        self._left = max(0, self._left - 1)

    def book(self, seconds: float, passes: float, base_s: float | None, streamed: bool) -> None:
        """A pass with proposals took `seconds`, drafting included, and gave what `passes` passes of base_s give."""
        self._streamed = streamed
        self._window.append(_Entry(seconds, passes))
        if base_s is None or len(self._window) < (_LEAST_PASSES if streamed else _LEAST_RESIDENT):
            return
        if sum(e.seconds for e in self._window) > base_s * sum(e.passes for e in self._window):
            self._window.clear()
            self._failures += 1
            if not self._unpaid:
                self._left = self._pause if streamed else _LAST_PAUSE
                self._pause = min(_LAST_PAUSE, 4 * self._pause)
        elif len(self._window) == _WINDOW:
            self._failures, self._pause, self._has_paid = 0, _FIRST_PAUSE, True
