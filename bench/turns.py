#!/usr/bin/env python3
"""One model in memory, engines taking turns, a token or a few each, every turn between two reads of DRAM.

usage: turns.py MODEL.gguf [--engines pyllama,llama.cpp] [--turns 100] [--burst 1] [--apart] [--threads N] [--json FILE]

For a machine whose memory changes its speed from one second to the next, as a virtual one's does: engines that are
loaded at the same time meet the same speed, and each token can be told by the reads beside it. Engines are pyllama,
plain (pyllama with nothing packed) and llama.cpp (the package llama-cpp-python). --burst: a small model's token is
over too soon; a turn is then the average of several. --apart: a model may not fit twice; engines are then loaded one
after another, and only tokens of the same band of 10 GB/s compared.

Tokens between two reads that differ by more than a tenth are left out. For each band: how many tokens there were, the
median rate, weights' bytes a second as kept, their ratio to the reads beside them, and how many times as fast as
llama.cpp: by those ratios, and turn by turn.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import mean, median

import machine

from pyllama import _kernels
from pyllama.bench.csv_file import rounded
from pyllama.streaming.memory import huge_empty
from pyllama.threads import default_threads

ENGINES = ("pyllama", "plain", "llama.cpp")
THEIRS = "llama.cpp"
READ_NBYTES = 256 << 20  # several times a last-level cache; two models may leave no more
REST_S = 0.03            # for another engine's threads to stop spinning
BAND_GB_S = 10
STEADY = 0.1


@dataclass(frozen=True, slots=True)
class Token:
    turn: int
    engine: str
    seconds: float
    nbytes: int
    before_gb_s: float
    after_gb_s: float

    @property
    def read_gb_s(self) -> float:
        return (self.before_gb_s + self.after_gb_s) / 2

    @property
    def steady(self) -> bool:
        return abs(self.before_gb_s - self.after_gb_s) < STEADY * self.read_gb_s

    @property
    def of_read(self) -> float:
        return self.nbytes / self.seconds / 1e9 / self.read_gb_s


class Engine:
    """A process with the model in its memory."""

    def __init__(self, name: str, model: Path, threads: int):
        self.name = name
        command = [sys.executable, Path(__file__).with_name("one_token.py"), name, model, threads]
        self._process = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         text=True)
        self.nbytes = int(self._answer())

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"turns.py: {self.name} ended with code {self._process.wait()}")
        return line

    def token_s(self, burst: int) -> float:
        self._process.stdin.write("\n" * burst)
        self._process.stdin.flush()
        return mean(float(self._answer()) for _ in range(burst))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


class Reads:
    def __init__(self, threads: int):
        _kernels.set_num_threads(threads)
        self._buffer = huge_empty(READ_NBYTES)
        self._buffer[:] = 1

    def gb_s(self, passes: int = 3) -> float:
        time.sleep(REST_S)
        rates = []
        for _ in range(passes):
            started = time.perf_counter()
            _kernels.read_memory(self._buffer)
            rates.append(READ_NBYTES / (time.perf_counter() - started) / 1e9)
        return median(rates)


def measure(groups: list[list[str]], model: Path, threads: int, turns: int, burst: int) -> list[Token]:
    reads, tokens = Reads(threads), []
    for group in groups:
        engines = [Engine(name, model, threads) for name in group]
        before = reads.gb_s()
        for turn in range(turns):
            if sys.stderr.isatty():
                print(f"\r{', '.join(group)}: {turn}/{turns}\033[K", end="", file=sys.stderr, flush=True)
            for engine in engines:
                seconds = engine.token_s(burst)
                after = reads.gb_s()
                tokens.append(Token(turn, engine.name, seconds, engine.nbytes, before, after))
                before = after
        for engine in engines:
            engine.close()
    return tokens


def against(own: list[Token], theirs: list[Token], together: bool) -> dict[str, float]:
    """How many times as fast: the median over turns in which both were steady; of all, by the reads beside them."""
    theirs_of_turn = {token.turn: token.seconds for token in theirs} if together else {}
    pairs = [theirs_of_turn[token.turn] / token.seconds for token in own if token.turn in theirs_of_turn]
    by_reads = median(t.of_read / t.nbytes for t in own) / median(t.of_read / t.nbytes for t in theirs)
    return {"by_reads": by_reads} | ({"by_turn": median(pairs), "turns": len(pairs)} if pairs else {})


def summarize(tokens: list[Token], together: bool) -> list[dict]:
    """A row per band and engine, and one for all bands."""
    rows = []
    steady = [token for token in tokens if token.steady]
    bands = {f"{low} to {low + BAND_GB_S}": [token for token in steady if low <= token.read_gb_s < low + BAND_GB_S]
             for low in sorted({int(token.read_gb_s // BAND_GB_S) * BAND_GB_S for token in steady})}
    for band, here in (bands | {"all": steady}).items():
        theirs = [token for token in here if token.engine == THEIRS]
        for engine in dict.fromkeys(token.engine for token in here):
            own = [token for token in here if token.engine == engine]
            rows.append({
                "reads_gb_s": band, "engine": engine, "tokens": len(own),
                "tok_s": median(1 / token.seconds for token in own),
                "gb_s": median(token.nbytes / token.seconds / 1e9 for token in own),
                "of_read": median(token.of_read for token in own),
                "against": against(own, theirs, together) if theirs and engine != THEIRS else {},
            })
    return rows


def table(rows: list[dict]) -> str:
    lines = [f"{'reads, GB/s':<12} {'engine':<10} {'tokens':>6} {'tok/s':>7} {'GB/s':>6} {'of read':>7}  / {THEIRS}"]
    for row in rows:
        ratios = row["against"]
        shown = f"{ratios['by_reads']:.2f}x by reads" if ratios else ""
        if "by_turn" in ratios:
            shown += f", {ratios['by_turn']:.2f}x in {ratios['turns']} turns"
        lines.append(f"{row['reads_gb_s']:<12} {row['engine']:<10} {row['tokens']:>6} {row['tok_s']:>7.2f} "
                     f"{row['gb_s']:>6.1f} {row['of_read']:>7.2f}  {shown}".rstrip())
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--engines", default=f"pyllama,{THEIRS}")
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--burst", type=int, default=1)
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--json", type=Path, help="write every token there")
    args = parser.parse_args()
    engines = args.engines.split(",")
    if unknown := [name for name in engines if name not in ENGINES]:
        parser.error(f"--engines: {', '.join(unknown)}: expected some of {', '.join(ENGINES)}")
    groups = [[name] for name in engines] if args.apart else [engines]
    tokens = measure(groups, args.model, args.threads, args.turns, args.burst)
    rows = summarize(tokens, not args.apart)
    print(table(rows))
    if args.json:
        report = {
            "date": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()), "machine": machine.describe(),
            "model": args.model.name, "threads": args.threads, "burst": args.burst, "apart": args.apart,
            "rows": rows, "columns": [field.name for field in fields(Token)],
            "tokens": [list(astuple(token)) for token in tokens],
        }
        args.json.write_text(json.dumps(rounded(report)) + "\n")


if __name__ == "__main__":
    main()
