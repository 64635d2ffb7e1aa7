"""One line of a terminal that is drawn again and again, and what a terminal that goes away means: nothing."""

import os
import sys
from typing import TextIO

from pyllama.closing import Closing


class Line(Closing):
    """What progress and the status line have in common: a stream that may be no terminal, or cease to be one."""

    def __init__(self, stream: TextIO | None, *, quiet: bool):
        self._stream = sys.stderr if stream is None else stream
        self.enabled = not quiet and self._stream is not None and self._stream.isatty()

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80  # a serial line says 0
        except (OSError, ValueError):
            return 80

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self.enabled = False  # the terminal went away; the work goes on
