#!/usr/bin/env python3
"""A GGUF file and llama.cpp (xllamacpp), mapped: seconds a token, as one line of JSON.

usage: llama_once.py FILE.gguf [--tokens N] [--warm N]

The first `warm` tokens fill the page cache and do not count. Knows nothing of pyllama.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import time

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--warm", type=int, default=4)
    args = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = args.path
    params.n_ctx = 256
    params.n_batch, params.n_ubatch, params.n_parallel = 64, 1, 1  # a token a pass
    params.warmup = params.fit_params = False
    params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
    params.no_extra_bufts = True  # a copy of the weights in another order would not be what is mapped
    params.verbosity = -1
    started = time.perf_counter()
    server = xllamacpp.Server(params)
    loaded = time.perf_counter() - started

    def token_s(ids: list[int]) -> float:
        """Of its own clock, of tokens that follow no order: a prompt, a token a pass."""
        answer = server.handle_completions({"prompt": ids, "n_predict": 1, "cache_prompt": False, "temperature": 0})
        answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
        if "timings" not in answer:
            raise SystemExit(f"llama_once.py: {answer}")
        return answer["timings"]["prompt_ms"] / 1e3 / answer["timings"]["prompt_n"]

    ids = random.Random(5).sample(range(3, 150000), args.warm + args.tokens)
    if args.warm:
        token_s(ids[: args.warm])
    each = token_s(ids[args.warm :])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {"token_s": each, "load_s": loaded, "peak_rss": peak}
    print(json.dumps(result), flush=True)
    os._exit(0)  # its threads do not end by themselves


if __name__ == "__main__":
    main()
