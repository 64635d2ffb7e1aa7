"""Passes of a model become a status line: the layer, the disk's rate, the board that others wait for, what is left."""

import time
from typing import Any

from pyllama.terminal.progress import format_nbytes, format_seconds
from pyllama.terminal.status_line import StatusLine

RATE_S = 3.0  # the disk's rate is that of the last few seconds


class PassLine(StatusLine):
    """A status line that shows the passes of a model, too: watch() it, and give its loader on_layer."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._model: Any = None
        self._pass: _Pass | None = None
        self._last_pass_s: float | None = None

    def watch(self, model: Any) -> None:
        """From here on, passes of this model are shown: on_layer must be its decoder's."""
        self._model = model
        self.clear()

    def on_layer(self, layer: int) -> None:
        """A pass has come to this layer; the first one begins a pass."""
        if not self.enabled or self._model is None:
            return
        if layer == 0 or self._pass is None:
            self._end_pass()
            self._pass = _Pass(self._model, layer)
            self.show(self._line)  # the passes of one long prompt are one piece of work
        else:
            self._pass.layer = layer

    def clear(self) -> None:
        super().clear()
        self._end_pass()

    def _line(self) -> str:
        under_way = self._pass
        return under_way.line(self._last_pass_s) if under_way else ""

    def _end_pass(self) -> None:
        under_way, self._pass = self._pass, None
        if under_way is not None:
            self._last_pass_s = time.monotonic() - under_way.started_s


class _Pass:
    """A pass over the weights that is under way."""

    def __init__(self, model: Any, layer: int):
        self.model = model
        self.layer = layer
        self.layers = model.config.num_hidden_layers
        self.started_s = time.monotonic()
        self.first = model.passes == 0
        self._samples = [(self.started_s, model.bytes_read)]

    def line(self, last_pass_s: float | None) -> str:
        now = time.monotonic()
        self._samples.append((now, self.model.bytes_read))
        while len(self._samples) > 2 and self._samples[0][0] < now - RATE_S:
            del self._samples[0]
        (then, before), (_, read) = self._samples[0], self._samples[-1]
        parts = ["first pass"] if self.first else []
        parts.append(f"layer {self.layer + 1} of {self.layers}")
        if now > then and read > before:
            parts.append(f"{format_nbytes((read - before) / (now - then))}/s from disk")
        slowest = getattr(getattr(self.model, "decoder", None), "slowest", None)  # of several boards
        if slowest is not None:
            parts.append(f"waiting for {slowest}")
        left = self._left(now - self.started_s, last_pass_s)
        if left is not None:
            parts.append(f"{format_seconds(left)} left")
        return "  ".join(parts)

    def _left(self, elapsed: float, last_pass_s: float | None) -> float | None:
        """By the last pass, as long as this one has not outlived it; else by the layers done, the head as one more."""
        if last_pass_s is not None and last_pass_s > elapsed and not self.first and self.layer < self.layers // 4:
            return last_pass_s - elapsed
        if self.layer == 0:
            return None
        return elapsed / self.layer * (self.layers + 1 - self.layer)
