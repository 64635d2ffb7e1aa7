"""What is going on becomes one line on a terminal, drawn once it has taken a second, gone before anything is printed.

A thread draws, so that a single slow layer, or a slow load, shows signs of life too. Where text and line share a
terminal the line stands below the text and leaves the cursor where it was: an answer may be half a line long.
Nothing is drawn, and no thread started, where standard error is no terminal.
"""

import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from pyllama.printable import one_line
from pyllama.terminal.line import Line

PATIENCE_S = 1.0  # what is over sooner is not mentioned
REDRAW_S = 0.25

_ERASE_LINE = "\r\x1b[K"
# Index (down, scrolling if need be, same column), up again, save the cursor, down to the line's start.
_BELOW = "\x1bD\x1b[A\x1b7\x1b[B\r\x1b[K"
_BACK = "\x1b8"


class StatusLine(Line):
    """A context manager.

    quiet   True shows nothing
    stream  standard error unless told otherwise
    below   whether the line goes below the cursor's; default: if standard output is a terminal too
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None, below: bool | None = None):
        super().__init__(stream, quiet=quiet)
        self._below = below if below is not None else sys.stdout is not None and sys.stdout.isatty()
        self._lock = threading.Lock()
        self._text: Callable[[], str] | None = None
        self._since = 0.0
        self._drawn = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def show(self, text: str | Callable[[], str]) -> None:
        """This is going on from now on; a callable is asked every time the line is drawn."""
        if not self.enabled:
            return
        with self._lock:
            if self._text is None:  # the patience is with all of the work, not with each part of it
                self._since = time.monotonic()
            self._text = text if callable(text) else lambda: text
        self._start()

    def clear(self) -> None:
        """Nothing is going on, or something else is about to be printed. On return the line has gone."""
        if not self.enabled:
            return
        with self._lock:
            self._erase()
            self._text = None

    def close(self) -> None:
        """Take the line away, for good."""
        self.clear()
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.enabled = False

    def _start(self) -> None:
        if self._thread is None and not self._stopping.is_set():
            self._thread = threading.Thread(target=self._run, name="pyllama-signs", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(REDRAW_S):
            self.redraw()

    def redraw(self) -> None:
        """Draw the line as it is now, if it is time to."""
        with self._lock:
            if self._text is None or time.monotonic() - self._since < PATIENCE_S:
                return
            line = one_line(self._text())[: max(self._columns() - 1, 1)]
            self._write(f"{_BELOW}{line}{_BACK}" if self._below else f"{_ERASE_LINE}{line}")
            self._drawn = True

    def _erase(self) -> None:
        if self._drawn:
            self._write(f"{_BELOW}{_BACK}" if self._below else _ERASE_LINE)
            self._drawn = False
