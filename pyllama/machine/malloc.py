"""What is freed goes back to the system: for processes that stay.

glibc raises the size from which an array gets a mapping of its own each time a large one is freed. From then on rows of
logits come out of the heap, and what is freed between them stays resident: 50 MB after a few hundred requests.
"""

import ctypes

_M_MMAP_THRESHOLD = -3
_NBYTES = 128 << 10  # the threshold a process starts with


def return_freed_memory() -> bool:
    """Keep the threshold where it is; False where the C library has no such thing."""
    try:
        return ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _NBYTES) == 1
    except (OSError, AttributeError):
        return False
