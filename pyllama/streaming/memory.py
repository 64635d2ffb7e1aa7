"""Large anonymous memory: aligned, in huge pages where the kernel has them, backed only where touched."""

import mmap

import numpy as np

from pyllama.errors import PyllamaError, reason_of

HUGE_PAGE = 2 << 20


def huge_empty(nbytes: int) -> np.ndarray:
    """`nbytes` zeroed bytes, uint8, from a 2 MB boundary.

    A scan of weights is one long TLB miss without huge pages, and a direct read into them takes a segment of the
    request for 2 MB instead of 4 KB. Pages count as resident once they are written. Raises PyllamaError where the
    address space or the limits on it do not allow as much.
    """
    whole = -(-max(nbytes, 1) // HUGE_PAGE) * HUGE_PAGE
    try:
        memory = mmap.mmap(-1, whole + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise PyllamaError(f"no memory for {nbytes} bytes of weights: {reason_of(error)}") from None
    if nbytes >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without transparent huge pages: slower, not wrong
            pass
    view = np.frombuffer(memory, np.uint8)
    start = -view.ctypes.data % HUGE_PAGE
    return view[start : start + nbytes]
