"""Items in, what was read for each out, in order: several reads run ahead of whoever consumes them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from pyllama.streaming.ring import Ring

SLOTS = 5  # three reads in flight, one item in use, one ready

Item = TypeVar("Item")


def read_ahead(items: Iterable[Item], room: int, fill: Callable[[Item, np.ndarray], Any]) -> Iterator[tuple[Item, Any]]:
    """Yield (item, fill(item, memory)) for each item; what fill returned is valid until the next is asked for.

    room  bytes of memory each fill gets, from a page boundary. fill runs on several threads at once; its errors
          are raised here.
    """
    left = list(items)
    count = len(left)
    left.reverse()
    ring = Ring(min(SLOTS, max(count, 1)), room, lambda: left.pop() if left else None, fill)
    try:
        for _ in range(count):
            yield ring.take()
            ring.give_back()
    finally:
        ring.close()
