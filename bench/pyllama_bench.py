#!/usr/bin/env python3
"""pyllama's counterpart of llama-bench: loads one model, times prompts and decoding, prints one line of JSON.

usage: pyllama_bench.py MODEL [--threads N] [--prefill 64,512] [--decode 16] [--repeat 1] [--no-packing]

As in llama-bench: token ids are random, the cache starts empty, one untimed run of each kind goes first, and
sampling is not part of it; only the last token's logits are asked for. --no-packing keeps bfloat16 as it is instead of
packing it: what packing brings shows in the difference. Refuses to know other engines.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import numpy as np

import pyllama
from pyllama import _kernels
from pyllama.measure.model import time_decode, time_prefill
from pyllama.streaming import pinned


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--prefill", default="64,512", help="lengths of prompts; empty for none")
    parser.add_argument("--decode", type=int, default=16, help="tokens to decode")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--no-packing", action="store_true", help="pack nothing")
    args = parser.parse_args()
    if args.no_packing:
        pinned.PACKED_WORTH = 0.0
    lengths = [int(length) for length in args.prefill.split(",") if length]
    started = time.perf_counter()
    try:
        model = pyllama.load(args.model, threads=args.threads, context_length=max(512, args.decode, *lengths))
    except pyllama.PyllamaError as error:
        print(f"pyllama_bench: {error}", file=sys.stderr)
        return 2
    load_s = time.perf_counter() - started
    random = np.random.default_rng(1)
    result = {"load_s": load_s, "isa": _kernels.isa(), "threads": _kernels.num_threads(), "prefill_tok_s": {}}
    with model:
        for length in lengths:
            ids = random.integers(0, model.config.vocab_size, length).tolist()
            times = [time_prefill(model, ids) for _ in range(1 + args.repeat)][1:]
            result["prefill_tok_s"][str(length)] = length * args.repeat / sum(times)
        ids = random.integers(0, model.config.vocab_size, args.decode).tolist()
        time_decode(model, ids[:1])
        # Last, as in llama-bench: the DRAM ceiling is measured next.
        seconds = sum(sum(time_decode(model, ids)) for _ in range(args.repeat))
        result["decode_tok_s"] = args.decode * args.repeat / seconds
    result["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
