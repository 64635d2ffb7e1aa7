#!/usr/bin/env python3
"""Products of quantized weights with a few tokens, by type, beside the DRAM read rate and what a core computes.

usage: quantized_kernels.py [--types Q4_0,Q8_0,Q4_K,Q6_K] [--tokens 1,2,4,8,16,64] [--rounds 15] [--threads 2]
                            [--json FILE]

A sample is: DRAM read, a product of several matrices of 4096 x 11008 with T tokens, DRAM read again; `of read` is the
median of samples' rates over the means of their two reads, weights counted once a pass. `one core` is a product on one
thread with a matrix that stays in the second-level cache, the fastest of many, so that memory and other processes have
no part in it: what a faster memory would find. Beside both, `time` is what T tokens take over what the first number of
--tokens does, of the same round. Types and numbers of tokens take turns. PYLLAMA_ISA chooses the instruction set.
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
    """One turn of one type and number of tokens. core_gb_s: the fastest of SMALL_CALLS products on one thread."""

    round: int
    type: str
    tokens: int
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
        self._rows, self._cols = rows * count * times, cols

    def multiply(self, tokens: int) -> Callable[[], None]:
        """A product with so many tokens, to be called."""
        x, out = ones(tokens, self._cols), np.empty((tokens, self._rows), np.float32)
        made = _kernels.Input(tokens, self._cols)
        return lambda: _kernels.matmul(self._blocks, made.take(x), out)


def gb_s(call: Callable[[], object], nbytes: int) -> float:
    started = time.perf_counter()
    call()
    return nbytes / 1e9 / (time.perf_counter() - started)


def measure(types: list[str], tokens: list[int], threads: int, rounds: int) -> list[Sample]:
    ceilings, others, samples = Ceilings(NBYTES), machine.Others(), []
    large = {t: Weights(t, ROWS, COLS, -(-NBYTES // _kernels.panels_nbytes(t, ROWS, COLS))) for t in types}
    small = {t: Weights(t, SMALL_ROWS, SMALL_COLS, 1, SMALL_TIMES) for t in types}
    turns = [(t, n, large[t].multiply(n), small[t].multiply(n)) for t in types for n in tokens]
    for number in range(rounds + 1):  # the first is not counted
        for name, n, many, one in turns:
            others.share()
            before = ceilings.read_gb_s(threads, passes=1)
            rate = gb_s(many, large[name].nbytes)
            after = ceilings.read_gb_s(threads, passes=1)
            share = others.share()
            _kernels.set_num_threads(1)
            core = max(gb_s(one, small[name].nbytes) for _ in range(SMALL_CALLS))
            if number:
                samples.append(Sample(number, name, n, rate, mean((before, after)), core, share))
    return samples


def summarize(samples: list[Sample]) -> list[dict]:
    rows = []
    fewest = samples[0].tokens
    first = {(s.type, s.round): s.gb_s for s in samples if s.tokens == fewest}
    first_core = {s.type: max(o.core_gb_s for o in samples if (o.type, o.tokens) == (s.type, fewest)) for s in samples}
    for name, tokens in dict.fromkeys((s.type, s.tokens) for s in samples):
        own = [s for s in samples if (s.type, s.tokens) == (name, tokens)]
        ratios = [s.gb_s / s.read_gb_s for s in own]
        core = max(s.core_gb_s for s in own)
        rows.append(
            {
                "type": name,
                "tokens": tokens,
                "gb_s": median(s.gb_s for s in own),
                "read_gb_s": median(s.read_gb_s for s in own),
                "of_read": median(ratios),
                "of_read_least": min(ratios),
                "of_read_most": max(ratios),
                "time": median(first[name, s.round] / s.gb_s for s in own),
                "core_gb_s": core,
                "core_time": first_core[name] / core,
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
        f"{'type':<8} {'T':>3} {'GB/s':>6} {'DRAM GB/s':>9}  {'of read':<20} {'time':>6} "
        f"{'one core, GB/s':>15} {'time':>6}",
    ]
    for row in report["rows"]:
        of_read = f"{row['of_read']:.2f} ({row['of_read_least']:.2f} to {row['of_read_most']:.2f})"
        lines.append(
            f"{row['type']:<8} {row['tokens']:>3} {row['gb_s']:>6.1f} {row['read_gb_s']:>9.1f}  {of_read:<20} "
            f"{row['time']:>5.2f}x {row['core_gb_s']:>15.1f} {row['core_time']:>5.2f}x"
        )
    busiest = max(row["others"] for row in report["rows"])
    if busiest > QUIET:
        lines.append(f"not quiet: something else kept {busiest:.2f} cores busy; run again before believing this")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", default="Q4_0,Q8_0,Q4_K,Q6_K")
    parser.add_argument("--tokens", default="1,2,4,8,16,64")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--json", type=Path, help="where every sample goes")
    args = parser.parse_args()
    tokens = [int(n) for n in args.tokens.split(",")]
    samples = measure(args.types.split(","), tokens, args.threads, args.rounds)
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
