#!/usr/bin/env python3
"""What choosing a token costs among many candidates, beside reading their logits once and beside a model's pass.

usage: draw.py [MODEL] [--candidates N] [--rounds N]

Everything takes its turn in each round, and ratios are formed within a round; the median over rounds is printed.
`sums` is the draw that pyllama had before it drew by Gumbel noise: exp of all, running sums, one random number.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import engine
import numpy as np

from pyllama import _kernels
from pyllama.generation.sampler import Sampler, SamplingParams

PASS_TOKENS = 4


def sums(logits: np.ndarray) -> int:
    weights = np.empty_like(logits)
    _kernels.exp(logits, weights)
    running = np.cumsum(weights.astype(np.float64))
    return int(np.searchsorted(running, 0.37 * running[-1], side="right"))


def choices(candidates: int) -> dict[str, Callable[[int], object]]:
    """By name, what is called with the number of the round."""
    logits = np.random.default_rng(0).standard_normal(candidates).astype(np.float32) * np.float32(3)
    below = (logits - logits.max()) / np.float32(0.7)
    ids = np.arange(candidates, dtype=np.int64)
    best, scores = np.empty(1, np.int64), np.empty(1)
    flat = np.zeros_like(logits)

    def sampler(**options: float) -> Callable[[int], object]:
        sample = Sampler(SamplingParams(seed=1, **options), candidates)
        return lambda index: sample(logits, (), range(index))

    return {
        "logits read once": lambda _: logits.max(),
        "draw": lambda index: _kernels.draw(ids, below, 1, index, best, scores),
        "draw, all alike": lambda index: _kernels.draw(ids, flat, 1, index, best, scores),
        "sums": lambda _: sums(below),
        "sampler, greedy": sampler(),
        "sampler, temperature": sampler(temperature=0.7),
        "sampler, top_k": sampler(temperature=0.7, top_k=40),
        "sampler, top_p": sampler(temperature=0.7, top_p=0.95),
    }


def seconds(call: Callable[[int], object], index: int) -> float:
    """Of the fastest of five calls."""
    taken = []
    for i in range(5):
        start = time.perf_counter()
        call(5 * index + i)
        taken.append(time.perf_counter() - start)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a GGUF file or folder that fits in memory")
    parser.add_argument("--candidates", type=int, default=150_000)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    calls = choices(args.candidates)
    columns = ["logits read once", "sums"]
    decode = None
    if args.model:
        _, _, decode = engine.load_pyllama(args.model, os.cpu_count() or 1)
        columns.append("pass")
    samples: dict[str, list[float]] = {name: [] for name in [*calls, *columns]}
    for index in range(args.rounds):
        for name, call in calls.items():
            samples[name].append(seconds(call, index))
        if decode:
            samples["pass"].append(decode(PASS_TOKENS) / PASS_TOKENS)
    print(f"{args.candidates} candidates, isa {_kernels.isa()}, median of {args.rounds} rounds")
    print(f"{'':22}{'us':>8}" + "".join(f"{'/ ' + name:>20}" for name in columns))
    for name, taken in samples.items():
        ratios = [statistics.median(a / b for a, b in zip(taken, samples[of])) for of in columns]
        print(f"{name:22}{1e6 * statistics.median(taken):8.1f}" + "".join(f"{ratio:20.4f}" for ratio in ratios))


if __name__ == "__main__":
    main()
