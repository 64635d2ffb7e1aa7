#!/usr/bin/env python3
"""A GGUF file in the memory of several engines at once, which take turns: decoding and prompts, side by side.

usage: quantized.py MODEL.gguf [--peer LABEL=PYTHON]... [--rounds 7] [--threads 2] [--prefill 64,512] [--decode 16]
                    [--json FILE]

Each peer is a Python that has xllamacpp, llama-cpp-python or another pyllama (an older one's, say) installed. A round
is: for decoding and for each length of prompt, every engine once, DRAM read before and after each. Ratios are formed
within a round; medians over rounds are reported. Before the first round, every engine does everything once, untimed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import mean, median

import machine

from pyllama import PyllamaError
from pyllama.checkpoint import open_checkpoint
from pyllama.machine.threads import default_threads
from pyllama.measure import work
from pyllama.measure.ceilings import Ceilings
from pyllama.measure.csv_file import rounded

OURS = "pyllama"
READ_NBYTES = 256 << 20  # several times a last-level cache
REST_S = 0.03  # for another engine's threads to stop spinning
QUIET = 0.1  # cores that others may keep busy before figures are of no use


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn of one engine. task: "decode" or "prefill N"; read_gb_s: the mean of the reads before and after."""

    round: int
    task: str
    engine: str
    tok_s: float
    read_gb_s: float
    others: float  # cores busy with something else meanwhile


class Engine:
    """A process with the model in its memory."""

    def __init__(self, label: str, python: str, model: Path, threads: int):
        self.label = label
        command = [python, Path(__file__).with_name("engine.py"), model, threads]
        if label == OURS:  # its Python may have a peer as well
            command.append(OURS)
        self._process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self.build = json.loads(self._answer())["build"]

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"quantized.py: {self.label} ended with code {self._process.wait()}")
        return line

    def tok_s(self, task: dict) -> float:
        print(json.dumps(task), file=self._process.stdin, flush=True)
        seconds = float(self._answer())
        return (task["decode"] if "decode" in task else len(task["prefill"])) / seconds

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def measure(engines: list[Engine], tasks: dict[str, dict], threads: int, rounds: int) -> list[Sample]:
    for engine in engines:
        for task in tasks.values():
            engine.tok_s(task)
    ceilings, samples = Ceilings(READ_NBYTES), []
    others = machine.Others(running=[engine.pid for engine in engines])

    def read_gb_s() -> float:
        time.sleep(REST_S)
        return ceilings.read_gb_s(threads, passes=3)

    before = read_gb_s()
    for number in range(rounds):
        for name, task in tasks.items():
            for place in range(len(engines)):
                engine = engines[(place + number) % len(engines)]  # no one is always the first
                note(f"round {number + 1}/{rounds}: {name}, {engine.label}")
                others.share()
                rate = engine.tok_s(task)
                share = others.share()
                after = read_gb_s()
                samples.append(Sample(number, name, engine.label, rate, mean((before, after)), share))
                before = after
    note("")
    return samples


def note(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def summarize(samples: list[Sample], decode_nbytes: int) -> list[dict]:
    """A row per task and engine; `ratio` is pyllama's rate over the engine's, round by round."""
    rows = []
    ours = {(s.task, s.round): s.tok_s for s in samples if s.engine == OURS}
    for task, engine in dict.fromkeys((s.task, s.engine) for s in samples):
        own = [s for s in samples if (s.task, s.engine) == (task, engine)]
        ratios = [ours[task, s.round] / s.tok_s for s in own]
        of_read = [s.tok_s * decode_nbytes / 1e9 / s.read_gb_s for s in own]
        rows.append(
            {
                "task": task,
                "engine": engine,
                "tok_s": median(s.tok_s for s in own),
                "tok_s_least": min(s.tok_s for s in own),
                "tok_s_most": max(s.tok_s for s in own),
                "ratio": median(ratios),
                "ratio_least": min(ratios),
                "ratio_most": max(ratios),
                "read_gb_s": median(s.read_gb_s for s in own),
                "of_read": median(of_read) if task == "decode" else None,
                "others": median(s.others for s in own),
            }
        )
    order = list(dict.fromkeys(s.engine for s in samples if s.round == 0))
    return sorted(rows, key=lambda row: ([s.task for s in samples].index(row["task"]), order.index(row["engine"])))


def table(report: dict) -> str:
    about = report["machine"]
    lines = [
        f"{report['model']}, {report['decode_nbytes'] / 1e6:.0f} MB a token; {about['board'] or about['cpu']}, "
        f"{report['threads']} threads, {report['rounds']} rounds, commit {about['commit']}",
        *(f"{label}: {build}" for label, build in report["builds"].items()),
        "",
        f"{'task':<12} {'engine':<12} {'tok/s':>8} {'least':>8} {'most':>8} {'DRAM GB/s':>9} {'of read':>7}  {OURS} /",
    ]
    for row in report["rows"]:
        of_read = "-" if row["of_read"] is None else f"{row['of_read']:.2f}"
        ratio = f"{row['ratio']:.2f}x ({row['ratio_least']:.2f} to {row['ratio_most']:.2f})"
        lines.append(
            f"{row['task']:<12} {row['engine']:<12} {row['tok_s']:>8.2f} {row['tok_s_least']:>8.2f} "
            f"{row['tok_s_most']:>8.2f} {row['read_gb_s']:>9.1f} {of_read:>7}  {ratio if row['engine'] != OURS else ''}"
        )
    busiest = max(row["others"] for row in report["rows"])
    if busiest > QUIET:
        lines.append(f"not quiet: something else kept {busiest:.2f} cores busy; run again before believing this")
    return "\n".join(line.rstrip() for line in lines)


def labelled(text: str) -> tuple[str, str]:
    label, found, python = text.partition("=")
    if not found or not label or label == OURS:
        raise argparse.ArgumentTypeError(f"{text}: expected LABEL=PYTHON")
    return label, python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer", type=labelled, action="append", default=[], metavar="LABEL=PYTHON")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--prefill", default="64,512", help="lengths of prompts, at most 512; empty for none")
    parser.add_argument("--decode", type=int, default=16, help="tokens to decode in a turn")
    parser.add_argument("--json", type=Path, help="where every sample goes")
    args = parser.parse_args()
    with open_checkpoint(args.model) as checkpoint:
        decode_nbytes = work.decode_nbytes(checkpoint)
        vocab_size = checkpoint.config.vocab_size
    random = Random(1)
    tasks: dict[str, dict] = {"decode": {"decode": args.decode}} if args.decode else {}
    for length in (int(length) for length in args.prefill.split(",") if length):
        tasks[f"prefill {length}"] = {"prefill": [random.randrange(vocab_size) for _ in range(length)]}
    engines: list[Engine] = []
    try:
        for label, python in [(OURS, sys.executable), *args.peer]:
            note(f"loading {label}")
            engines.append(Engine(label, python, args.model, args.threads))
        samples = measure(engines, tasks, args.threads, args.rounds)
    finally:
        for engine in engines:
            engine.close()
    report = {
        "date": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "machine": machine.describe(),
        "model": args.model.name,
        "threads": args.threads,
        "rounds": args.rounds,
        "decode_nbytes": decode_nbytes,
        "builds": {engine.label: engine.build for engine in engines},
        "rows": summarize(samples, decode_nbytes),
    }
    print(table(report))
    if args.json:
        every = [asdict(sample) for sample in samples]
        args.json.write_text(json.dumps(rounded(report | {"samples": every}), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except PyllamaError as error:
        sys.exit(f"quantized.py: {error}")
