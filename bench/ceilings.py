#!/usr/bin/env python3
"""This machine's two ceilings, as rates: bytes read from DRAM, and float32 multiply-adds in registers.

usage: ceilings.py [--threads N]

A line of JSON for 1 thread and one for all. What is measured, and how, is in pyllama/measure/ceilings.py; `pyllama
bench` does this and more.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from pyllama import _kernels
from pyllama.measure.ceilings import Ceilings

BUFFER_NBYTES = 1 << 30  # many times any last-level cache


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    threads = parser.parse_args().threads
    ceilings = Ceilings(BUFFER_NBYTES)
    for n in sorted({1, threads}):
        rates = {name: round(rate, 2) for name, rate in ceilings.measure(n).items()}
        print(json.dumps({"threads": n, "isa": _kernels.isa(), **rates}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
