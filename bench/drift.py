#!/usr/bin/env python3
"""One model in memory: each decoded token beside DRAM reads just before and just after it.

usage: drift.py MODEL [--tokens 100] [--threads N]

For a machine whose memory changes its speed from one second to the next, as a virtual one's may: tokens are sorted by
the rate of the reads beside them, those between two readings that differ by more than a tenth are left out. Prints, for
each band of 10 GB/s, how many tokens there were, bytes of kept weights a second, and their ratio to the reads.
"""
from __future__ import annotations

import argparse
import time
from statistics import median

from pyllama import _kernels
from pyllama.checkpoint import open_checkpoint
from pyllama.decoder import Decoder
from pyllama.streaming import StreamedWeights
from pyllama.streaming.memory import huge_empty
from pyllama.threads import default_threads

READ_NBYTES = 1 << 30
BAND_GB_S = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--threads", type=int, default=default_threads())
    args = parser.parse_args()
    _kernels.set_num_threads(args.threads)
    buffer = huge_empty(READ_NBYTES)
    buffer.fill(1)

    def read_gb_s() -> float:
        start = time.perf_counter()
        _kernels.read_memory(buffer)
        return READ_NBYTES / (time.perf_counter() - start) / 1e9

    with open_checkpoint(args.model) as checkpoint:
        weights = StreamedWeights(checkpoint)
        decoder = Decoder(checkpoint.config, weights, context_length=args.tokens + 1,
                          rope_interleaved=checkpoint.rope_interleaved)
        bands: dict[int, list[tuple[float, float]]] = {}
        with decoder.new_sequence() as sequence:
            decoder.forward([(sequence, [1])])
            before = read_gb_s()
            for _ in range(args.tokens):
                start = time.perf_counter()
                decoder.forward([(sequence, [5])])
                rate = weights.nbytes_pinned / (time.perf_counter() - start) / 1e9
                after = read_gb_s()
                read = (before + after) / 2
                if abs(before - after) < read / 10:
                    bands.setdefault(int(read // BAND_GB_S), []).append((rate, read))
                before = after
        weights.close()
    for band, tokens in sorted(bands.items()):
        rate, ratio = median(rate for rate, _ in tokens), median(rate / read for rate, read in tokens)
        print(f"reads of {band * BAND_GB_S} to {(band + 1) * BAND_GB_S} GB/s: {len(tokens)} tokens, {rate:.1f} GB/s, "
              f"{ratio:.2f} of it")


if __name__ == "__main__":
    main()
