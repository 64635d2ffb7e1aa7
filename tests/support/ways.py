"""The ways a kernel can be run here, between which no bit may differ: each instruction set, with one thread and three.

PYLLAMA_TEST_WAYS="neon-3 scalar-1" names those to test where others would be the same code once more, or the same
once more in an emulator (tools/boards, .ci/beside).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pyllama import _kernels as kernels

_CHOSEN = os.environ.get("PYLLAMA_TEST_WAYS", "").split()
WAYS = [
    (isa, threads)
    for isa in kernels.supported_isas()
    for threads in (1, 3)
    if not _CHOSEN or f"{isa}-{threads}" in _CHOSEN
]
if not WAYS:
    raise RuntimeError(f"PYLLAMA_TEST_WAYS={' '.join(_CHOSEN)}: this machine has {kernels.supported_isas()}")


@contextmanager
def as_before() -> Iterator[None]:
    """The instruction set and the threads afterwards are those of before."""
    before = kernels.isa(), kernels.num_threads()
    try:
        yield
    finally:
        kernels.set_isa(before[0])
        kernels.set_num_threads(before[1])


def every_way() -> Iterator[tuple[str, int]]:
    """(isa, threads) pairs, set one after the other."""
    with as_before():
        for isa, threads in WAYS:
            kernels.set_isa(isa)
            kernels.set_num_threads(threads)
            yield isa, threads
