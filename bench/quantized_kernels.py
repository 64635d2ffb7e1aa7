#!/usr/bin/env python3
"""The product of quantized weights with one token, by type, beside the DRAM read rate and beside what a core computes.

usage: quantized_kernels.py [--types Q4_0,Q8_0,Q4_K,Q6_K] [--rounds 15] [--threads 2] [--json FILE]

A sample is: DRAM read, a product with several matrices of 4096 x 11008, DRAM read again; `of read` is the median of
samples' rates over the means of their two reads. `one core` is a product on one thread with a matrix that stays in the
second-level cache, the fastest of many, so that memory and other processes have no part in it: what a faster memory
would find. Types take turns. PYLLAMA_ISA chooses the instruction set.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median

import machine
import numpy as np

from pyllama import _kernels
from pyllama.machine.threads import default_threads
from pyllama.measure.ceilings import Ceilings, ones
from pyllama.measure.csv_file import rounded
from pyllama.measure.others import QUIET
from pyllama.streaming.memory import huge_empty

ROWS, COLS = 4096, 11008
SMALL_ROWS, SMALL_COLS = 256, 2048  # 300 KB of Q4_0
NBYTES = 256 << 20  # of matrices, and of what is read: several times a last-level cache
SMALL_TIMES = 16  # that a call multiplies the small matrix, and
SMALL_CALLS = 20  # that a sample calls


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn of one type. core_gb_s: the fastest of SMALL_CALLS products on one thread."""

    type: str
    gb_s: float
    read_gb_s: float
    core_gb_s: float
    others: float  # cores busy with something else meanwhile


class Weights:
    """Matrices of one type in panels, and what multiplies them; of their bytes a pattern, which no rate depends on."""

    def __init__(self, dtype: str, rows: int, cols: int, count: int, times: int = 1):
        each = _kernels.panels_nbytes(dtype, rows, cols)
        data = huge_empty(each * count)
        data[:] = np.resize(np.arange(1, 120, dtype=np.uint8), len(data))
        matrices = [_kernels.Matrix(dtype, rows, cols, data[i * each : (i + 1) * each], "panels") for i in range(count)]
        self.nbytes = data.nbytes * times
        self._blocks = _kernels.Blocks(matrices * times)
        self._x, self._out = ones(1, cols), np.empty((1, rows * count * times), np.float32)
        self._input = _kernels.Input(1, cols)

    def multiply(self) -> None:
        _kernels.matmul(self._blocks, self._input.take(self._x), self._out)


def gb_s(call: Callable[[], object], nbytes: int) -> float:
    started = time.perf_counter()
    call()
    return nbytes / 1e9 / (time.perf_counter() - started)


def measure(types: list[str], threads: int, rounds: int) -> list[Sample]:
    ceilings, others, samples = Ceilings(NBYTES), machine.Others(), []
    large = {t: Weights(t, ROWS, COLS, -(-NBYTES // _kernels.panels_nbytes(t, ROWS, COLS))) for t in types}
    small = {t: Weights(t, SMALL_ROWS, SMALL_COLS, 1, SMALL_TIMES) for t in types}
    for number in range(rounds + 1):  # the first is not counted
        for name, weights in large.items():
            others.share()
            before = ceilings.read_gb_s(threads, passes=1)
            rate = gb_s(weights.multiply, weights.nbytes)
            after = ceilings.read_gb_s(threads, passes=1)
            share = others.share()
            _kernels.set_num_threads(1)
            core = max(gb_s(small[name].multiply, small[name].nbytes) for _ in range(SMALL_CALLS))
            if number:
                samples.append(Sample(name, rate, mean((before, after)), core, share))
    return samples


def summarize(samples: list[Sample]) -> list[dict]:
    rows = []
    for name in dict.fromkeys(s.type for s in samples):
        own = [s for s in samples if s.type == name]
        ratios = [s.gb_s / s.read_gb_s for s in own]
        rows.append(
            {
                "type": name,
                "gb_s": median(s.gb_s for s in own),
                "read_gb_s": median(s.read_gb_s for s in own),
                "of_read": median(ratios),
                "of_read_least": min(ratios),
                "of_read_most": max(ratios),
                "core_gb_s": max(s.core_gb_s for s in own),
                "others": median(s.others for s in own),
            }
        )
    return rows


def table(report: dict) -> str:
    about = report["machine"]
    lines = [
        f"{about['board'] or about['cpu']}, {report['isa']}, {report['threads']} threads, {report['rounds']} rounds, "
        f"commit {about['commit']}",
        "",
        f"{'type':<8} {'GB/s':>6} {'DRAM GB/s':>9}  {'of read':<22} {'one core, GB/s':>14}",
    ]
    for row in report["rows"]:
        of_read = f"{row['of_read']:.2f} ({row['of_read_least']:.2f} to {row['of_read_most']:.2f})"
        lines.append(
            f"{row['type']:<8} {row['gb_s']:>6.1f} {row['read_gb_s']:>9.1f}  {of_read:<22} {row['core_gb_s']:>14.1f}"
        )
    busiest = max(row["others"] for row in report["rows"])
    if busiest > QUIET:
        lines.append(f"not quiet: something else kept {busiest:.2f} cores busy; run again before believing this")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", default="Q4_0,Q8_0,Q4_K,Q6_K")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--json", type=Path, help="where every sample goes")
    args = parser.parse_args()
    samples = measure(args.types.split(","), args.threads, args.rounds)
    report = {
        "date": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "machine": machine.describe(),
        "isa": _kernels.isa(),
        "threads": args.threads,
        "rounds": args.rounds,
        "rows": summarize(samples),
    }
    print(table(report))
    if args.json:
        args.json.write_text(json.dumps(rounded(report | {"samples": [asdict(s) for s in samples]}), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
