#!/usr/bin/env python3
"""A model, a budget: a prompt and some tokens, and what they cost. One JSON object on stdout; one process a figure.

usage: stream_once.py MODEL --memory SIZE [--context 128] [--prompt-tokens 8] [--tokens 3] [--threads N]
       stream_once.py --shared-layers FOLDER --memory SIZE ...

--shared-layers  a folder of shared_layers.py: the true sizes of a model whose layers share one file on disk

The prompt is token ids 3, 4, 5, ...; the continuation greedy. `fingerprint` is the SHA-256 of the float32 logits
of every sampled position. Run it inside board.py (memory and disk limits) or as it is.
"""

from __future__ import annotations

import argparse
import json
import time

from pyllama import _kernels
from pyllama.checkpoint import open_checkpoint
from pyllama.decoder import Decoder
from pyllama.generation import Fingerprint
from pyllama.machine.memory import parse_size, peak_resident_nbytes, resident_nbytes
from pyllama.machine.threads import default_threads
from pyllama.planning.memory import make_plan
from pyllama.streaming import StreamedWeights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--shared-layers")
    parser.add_argument("--memory", required=True)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--prompt-tokens", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=3)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--no-pinning", action="store_true", help="stream everything, whatever the budget leaves over")
    args = parser.parse_args()
    _kernels.set_num_threads(args.threads)
    if args.shared_layers:
        from shared_layers import open_shared

        checkpoint = open_shared(args.shared_layers)
    else:
        checkpoint = open_checkpoint(args.model)
    budget = parse_size(args.memory)
    plan = make_plan(checkpoint, budget, context_length=args.context, interpreter=resident_nbytes())
    pinned = 0 if args.no_pinning else plan.pinned
    weights = StreamedWeights(checkpoint, slots=plan.slots, room=plan.room, pinned_nbytes=pinned)
    decoder = Decoder(
        checkpoint.config, weights, context_length=plan.context_length, max_pass_tokens=plan.max_pass_tokens,
        rope_interleaved=checkpoint.rope_interleaved,
    )  # fmt: skip
    fingerprint, seconds, read = Fingerprint(), [], []
    with decoder.new_sequence() as sequence:
        ids: list[int] = [3 + i for i in range(args.prompt_tokens)]
        for _ in range(args.tokens + 1):
            before, start = weights.bytes_read, time.perf_counter()
            logits = decoder.prefill(sequence, ids)
            seconds.append(time.perf_counter() - start)
            read.append(weights.bytes_read - before)
            fingerprint.update(logits)
            ids = [int(logits.argmax())]
    weights.close()
    print(json.dumps({
        "model": args.model or args.shared_layers, "memory": budget, "context": args.context, "threads": args.threads,
        "pinned": weights.nbytes_pinned, "streamed_per_pass": weights.nbytes_streamed, "ring": plan.ring,
        "first_pass_s": round(seconds[0], 3), "first_pass_read": read[0], "passes": decoder.passes,
        "token_s": [round(s, 4) for s in seconds[1:]], "token_read": read[1:],
        "peak_rss": peak_resident_nbytes(), "fingerprint": fingerprint.hexdigest(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
