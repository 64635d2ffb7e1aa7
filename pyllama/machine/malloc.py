"""What is freed goes back to the system, as far as the C library can: glibc, that is.

glibc raises the size from which an array gets a mapping of its own each time a large one is freed. From then on rows of
logits come out of the heap, and what is freed between them stays resident: 50 MB after a few hundred requests.
"""

import ctypes

_M_MMAP_THRESHOLD = -3
_NBYTES = 128 << 10  # the threshold a process starts with


def return_freed_memory() -> bool:
    """Keep the threshold where it is, for processes that stay; False where the C library has no such thing."""
    return _call("mallopt", _M_MMAP_THRESHOLD, _NBYTES)


def trim() -> bool:
    """Return what is free now, below what is in use; False where there was nothing, or the C library cannot."""
    return _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> bool:
    try:
        return getattr(ctypes.CDLL(None), name)(*arguments) == 1
    except (OSError, AttributeError):
        return False
