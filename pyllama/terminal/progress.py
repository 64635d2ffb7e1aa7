"""Counts of work done become one line on a terminal: percent, rate, time left.

Knows nothing of what the work is; whoever does it says how much there is and
how much was done. Writes nothing when the stream is no terminal.
"""

import time
from collections import deque
from typing import TextIO

from pyllama.printable import one_line
from pyllama.terminal.line import Line

REDRAW_S = 0.2
RATE_WINDOW_S = 10.0  # long enough to be calm on a stuttering link, short enough to follow it
_DECIMAL = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB"))


def format_nbytes(nbytes: float) -> str:
    """A size in decimal units, three digits: 513 MB, 1.61 GB."""
    for scale, unit in _DECIMAL:
        if nbytes >= scale * 0.9995:
            value = nbytes / scale
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{nbytes:.0f} B"


def format_seconds(seconds: float) -> str:
    """A span of time as a clock shows it: 0:07, 12:30, 3:02:59."""
    whole = int(seconds + 0.5)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class Progress(Line):
    """One line, redrawn in place, for one piece of work; a context manager.

    label   what is going on, free to change while it goes on
    total   how much there is in all, or None when nobody knows; free to change
    unit    "B" for bytes (shown as MB, GB), else the plural of what is counted
    quiet   True draws nothing, as does a stream that is no terminal
    stream  standard error unless told otherwise

    Made to be called for every block: a call costs one look at the clock.
    """

    def __init__(
        self,
        label: str = "",
        total: int | None = None,
        *,
        unit: str = "B",
        quiet: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.done = 0
        self._note = ""
        super().__init__(stream, quiet=quiet)
        self._started_s = time.monotonic()
        self._worked = 0  # done, less what was there before: only that says how fast it goes
        self._samples: deque[tuple[float, int]] = deque([(self._started_s, 0)])
        self._drawn_s = 0.0
        self._drawn = False

    def advance(self, count: int) -> None:
        """`count` more are done."""
        self.done += count
        self._worked += count
        if self.enabled:
            self._redraw()

    def skip(self, count: int) -> None:
        """`count` were done before (or, negative, have to be done again): counted, but not in the rate."""
        self.done += count
        if self.enabled:
            self._redraw()

    def note(self, text: str) -> None:
        """Show `text` in place of the time left, at once; an empty text takes it away."""
        if self.enabled and text != self._note:
            self._note = text
            self._redraw(at_once=True)

    def close(self) -> None:
        """Draw the last state and leave the line on the screen; draws nothing if nothing was drawn so far."""
        if self.enabled and self._drawn:
            self._redraw(at_once=True)
            self._write("\n")
        self.enabled = False

    def line(self) -> str:
        """The line as it would be drawn now, however wide."""
        parts = [self.label] if self.label else []
        rate = self._rate()
        if self.total:
            parts.append(f"{min(100, 100 * self.done // self.total):3d}%")
        parts.append(self._amount())
        if rate > 0:
            parts.append(f"{format_nbytes(rate)}/s" if self.unit == "B" else f"{rate:.3g}/s")
        if self._note:
            parts.append(self._note)
        elif self.total and self.done >= self.total:
            parts.append(f"in {format_seconds(time.monotonic() - self._started_s)}")
        elif self.total and rate > 0:
            parts.append(f"{format_seconds((self.total - self.done) / rate)} left")
        return "  ".join(parts)

    def _amount(self) -> str:
        if self.unit != "B":
            return f"{self.done} of {self.total} {self.unit}" if self.total else f"{self.done} {self.unit}"
        if self.total:
            return f"{format_nbytes(self.done)} of {format_nbytes(self.total)}"
        return format_nbytes(self.done)

    def _rate(self) -> float:
        now_s = time.monotonic()
        then_s, then = self._samples[0]
        if self.total and self.done >= self.total:  # the closing line tells the mean, not the last seconds
            then_s, then = self._started_s, 0
        return (self._worked - then) / (now_s - then_s) if now_s > then_s else 0.0

    def _redraw(self, at_once: bool = False) -> None:
        now_s = time.monotonic()
        if not at_once and now_s - self._drawn_s < REDRAW_S:
            return
        self._drawn_s = now_s
        self._samples.append((now_s, self._worked))
        while len(self._samples) > 2 and self._samples[0][0] < now_s - RATE_WINDOW_S:
            self._samples.popleft()
        self._drawn = True
        self._write("\r\x1b[K" + self._fit(one_line(self.line())))

    def _fit(self, line: str) -> str:
        columns = self._columns()
        # A line that wraps cannot be redrawn in place, so the label gives way to the figures.
        over = len(line) - max(columns - 1, 20)
        if over <= 0:
            return line
        kept = len(self.label) - over - 2
        return self.label[:kept] + ".." + line[len(self.label) :] if kept > 0 else line[over:]
