"""Weights are read while a person types: a pass over what every next prompt begins with, on a thread of its own."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyllama.errors import PyllamaError

if TYPE_CHECKING:
    from pyllama.generation.chat import Chat


class _EnoughError(Exception):
    """The person has typed something."""


class WarmUp(threading.Thread):
    """Begins when it is made. What was read until it is stopped stays in memory, as far as the plan allows.

    over  called at its end, on its thread
    """

    def __init__(self, chat: "Chat", over: Callable[[], None]):
        super().__init__(name="pyllama-warm-up", daemon=True)
        self._chat, self._over = chat, over
        self._stopping = False
        self.start()

    def run(self) -> None:
        try:
            self._chat.warm_up(self._on_layer)
        except (_EnoughError, PyllamaError):
            pass  # an error that matters comes again with the first message
        finally:
            self._over()

    def _on_layer(self, layer: int) -> None:
        if self._stopping:
            raise _EnoughError

    def stop(self) -> None:
        """Returns once the layer under way is done."""
        self._stopping = True
        self.join()
