#!/usr/bin/env python3
"""memopro beside bench/drafts.py: one answer of a Hugging Face folder within a budget, seconds a token.

usage: memopro_once.py FOLDER --budget 900MB [--tokens 12] [--threads 2] [--prompt TEXT]

Needs memopro (0.1.10 was tried), torch and transformers. Memory and disk are the caller's to limit: started in the
control groups that drafts.py makes, it meets the same limits. Prints one JSON object.
"""

import argparse
import json
import time

import memopro
import torch

PROMPT = "Explain how a hash table works to someone who knows arrays."


class Clock:
    """A streamer that notes when tokens come; the prompt comes first."""

    def __init__(self):
        self.times = []

    def put(self, _tokens):
        self.times.append(time.perf_counter())

    def end(self):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--budget", default="auto")
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", default=PROMPT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock, started = Clock(), time.perf_counter()
    text = memopro.generate(
        args.folder, args.prompt, budget=args.budget, max_new_tokens=args.tokens, streamer=clock, device="cpu"
    )
    first, *rest = clock.times[1:]
    token_s = (rest[-1] - first) / len(rest)
    print(json.dumps({"text": text, "first_s": first - started, "token_s": token_s, "tokens": len(rest) + 1}))


if __name__ == "__main__":
    main()
