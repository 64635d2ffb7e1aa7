#!/usr/bin/env python3
"""Passes of a resident model over few tokens, beside a pass over one: what verifying drafted tokens costs.

usage: passes.py MODEL [--tokens 1,2,4,8,16,64] [--rounds 9] [--threads 2] [--json FILE]

All weights stay in memory, every token gets a row of logits, after PROMPT tokens in a float16 cache. Numbers of tokens
take turns; a round's ratio is the time of its pass over that of its pass with the first number of --tokens, and medians
over rounds are reported, with the least and the most.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import machine

from pyllama import _kernels
from pyllama.checkpoint import open_checkpoint
from pyllama.decoder import Decoder
from pyllama.machine.threads import default_threads
from pyllama.measure.csv_file import rounded
from pyllama.measure.others import QUIET
from pyllama.streaming import StreamedWeights

PROMPT = 16
TOKEN = 5


def measure(model: Path, tokens: list[int], rounds: int) -> tuple[list[dict[int, float]], list[float]]:
    """(seconds of a pass by its number of tokens, each round; cores busy with something else meanwhile)."""
    found, shares, others = [], [], machine.Others()
    with open_checkpoint(model) as checkpoint:
        decoder = Decoder(
            checkpoint.config,
            StreamedWeights(checkpoint),
            context_length=PROMPT + max(tokens),
            max_pass_tokens=max(PROMPT, *tokens),
            rope_interleaved=checkpoint.rope_interleaved,
        )
        for number in range(rounds + 1):  # the first is not counted
            seconds = {}
            others.share()
            for count in tokens:
                with decoder.new_sequence() as sequence:
                    decoder.forward([(sequence, [TOKEN] * PROMPT)])
                    started = time.perf_counter()
                    decoder.forward([(sequence, [TOKEN] * count)], logits="all")
                    seconds[count] = time.perf_counter() - started
            if number:
                found.append(seconds)
                shares.append(others.share())
    return found, shares


def summarize(found: list[dict[int, float]]) -> list[dict]:
    fewest = next(iter(found[0]))
    rows = []
    for count in found[0]:
        ratios = [seconds[count] / seconds[fewest] for seconds in found]
        rows.append(
            {
                "tokens": count,
                "ms": 1e3 * median(seconds[count] for seconds in found),
                "ms_least": 1e3 * min(seconds[count] for seconds in found),
                "time": median(ratios),
                "time_least": min(ratios),
                "time_most": max(ratios),
            }
        )
    return rows


def table(report: dict) -> str:
    about = report["machine"]
    lines = [
        f"{report['model']}; {about['board'] or about['cpu']}, {report['isa']}, {report['threads']} threads, "
        f"{report['rounds']} rounds, commit {about['commit']}",
        "",
        f"{'T':>3} {'ms':>9} {'least':>9}  time",
    ]
    for row in report["rows"]:
        lines.append(
            f"{row['tokens']:>3} {row['ms']:>9.1f} {row['ms_least']:>9.1f}  "
            f"{row['time']:.2f}x ({row['time_least']:.2f} to {row['time_most']:.2f})"
        )
    if report["others"] > QUIET:
        busy = f"{report['others']:.2f} cores busy"
        lines.append(f"not quiet: something else kept {busy}; run again before believing this")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", default="1,2,4,8,16,64")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--json", type=Path, help="where the seconds of every round go")
    args = parser.parse_args()
    _kernels.set_num_threads(args.threads)
    found, shares = measure(args.model, [int(count) for count in args.tokens.split(",")], args.rounds)
    report = {
        "date": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "machine": machine.describe(),
        "model": args.model.name,
        "isa": _kernels.isa(),
        "threads": args.threads,
        "rounds": args.rounds,
        "others": median(shares),
        "rows": summarize(found),
    }
    print(table(report))
    if args.json:
        args.json.write_text(json.dumps(rounded(report | {"seconds": found}), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
