#!/usr/bin/env python3
"""This machine's two ceilings, as rates: bytes read from DRAM, and float32 multiply-adds in registers.

usage: ceilings.py [--threads N]

Decoding cannot beat the first, a prompt cannot beat the second (unless it computes in less than float32, as
llama.cpp does where the CPU has bfloat16 instructions). Measured by kernels of the package, so that a board
without a compiler can be measured too. Refuses to know models.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import time
from statistics import median

import numpy as np

from pyllama import _kernels

BUFFER_NBYTES = 1 << 30        # many times any last-level cache
SPIN_ROUNDS = 20_000_000       # tens of milliseconds to a second


class Ceilings:
    """Holds the buffer, so that measuring again and again costs no page faults."""

    def __init__(self, nbytes: int = BUFFER_NBYTES):
        self.buffer = np.ones(nbytes, np.uint8)  # written once: untouched pages would all be one zero page

    def read_gb_s(self, threads: int, passes: int = 5) -> float:
        """Median over `passes` readings of the whole buffer."""
        _kernels.set_num_threads(threads)
        rates = []
        for _ in range(passes):
            started = time.perf_counter()
            _kernels.read_memory(self.buffer)
            rates.append(self.buffer.nbytes / 1e9 / (time.perf_counter() - started))
        return median(rates)

    def peak_gflop_s(self, threads: int, repeats: int = 3) -> float:
        """Float32 fused multiply-adds (two operations each) of the instruction set the package chose."""
        _kernels.set_num_threads(threads)
        return median(_kernels.spin(SPIN_ROUNDS) for _ in range(repeats)) / 1e9

    def measure(self, threads: int) -> dict[str, float]:
        return {"read_gb_s": self.read_gb_s(threads), "peak_gflop_s": self.peak_gflop_s(threads)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    threads = parser.parse_args().threads
    ceilings = Ceilings()
    for n in sorted({1, threads}):
        rates = {name: round(rate, 2) for name, rate in ceilings.measure(n).items()}
        print(json.dumps({"threads": n, "isa": _kernels.isa(), **rates}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
