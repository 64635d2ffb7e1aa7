#!/usr/bin/env python3
"""One model in memory, engines taking turns, a token or a few each, every turn between two reads of DRAM.

usage: turns.py MODEL.gguf [--engines pyllama,llama.cpp] [--turns 100] [--burst 1] [--apart] [--threads N] [--json FILE]
       turns.py SAMPLES.json... [--bands 30,50,70]

For a machine whose memory changes its speed from one second to the next, as a virtual one's does: engines that are
loaded at the same time meet the same speed, and each token can be told by the reads beside it. Engines are pyllama,
plain (pyllama with nothing packed) and llama.cpp (the package llama-cpp-python). --burst: a small model's token is
over too soon; a turn is then the average of several. --apart: a model may not fit twice; engines are then loaded one
after another, and only tokens of the same band compared. The second form prints the table of what --json wrote.

Tokens between two reads that differ by more than a tenth are left out. For each band of reads: how many turns there
were, the median rate, weights' bytes a second as kept, their ratio to the reads beside them, and how many times as fast
as llama.cpp: by the median rates, by their ratios to the reads, and turn by turn.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import astuple, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import machine

from pyllama.machine.threads import default_threads
from pyllama.measure.ceilings import Ceilings
from pyllama.measure.csv_file import rounded

ENGINES = ("pyllama", "plain", "llama.cpp")
THEIRS = "llama.cpp"
READ_NBYTES = 256 << 20  # several times a last-level cache; two models may leave no more
REST_S = 0.03  # for another engine's threads to stop spinning
BANDS_GB_S = tuple(range(0, 500, 10))
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
        self._process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        first = json.loads(self._answer())
        self.nbytes, self.build = first["nbytes"], first["build"]

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


def measure(
    groups: list[list[str]], model: Path, threads: int, turns: int, burst: int
) -> tuple[list[Token], dict[str, str]]:
    """The turns, and what each engine says of its build."""
    ceilings, tokens, builds = Ceilings(READ_NBYTES), [], {}

    def read_gb_s() -> float:
        time.sleep(REST_S)
        return ceilings.read_gb_s(threads, passes=3)

    for group in groups:
        engines = [Engine(name, model, threads) for name in group]
        builds |= {engine.name: engine.build for engine in engines}
        before = read_gb_s()
        for turn in range(turns):
            if sys.stderr.isatty():
                print(f"\r{', '.join(group)}: {turn}/{turns}\033[K", end="", file=sys.stderr, flush=True)
            for engine in engines:
                seconds = engine.token_s(burst)
                after = read_gb_s()
                tokens.append(Token(turn, engine.name, seconds, engine.nbytes, before, after))
                before = after
        for engine in engines:
            engine.close()
    return tokens, builds


def against(own: list[Token], theirs: list[Token], together: bool) -> dict[str, float]:
    """How many times as fast, three ways; turn by turn, where both were steady, only for engines loaded together."""
    by_rate = median(1 / t.seconds for t in own) * median(t.seconds for t in theirs)
    by_reads = median(t.of_read / t.nbytes for t in own) / median(t.of_read / t.nbytes for t in theirs)
    theirs_of_turn = {token.turn: token.seconds for token in theirs} if together else {}
    pairs = [theirs_of_turn[token.turn] / token.seconds for token in own if token.turn in theirs_of_turn]
    ratios = {"by_rate": by_rate, "by_reads": by_reads}
    return ratios | ({"by_turn": median(pairs), "turns": len(pairs)} if pairs else {})


def summarize(tokens: list[Token], bands: tuple[int, ...], together: bool) -> list[dict]:
    """A row per band and engine."""
    rows = []
    for low, high in pairwise(bands):
        here = [token for token in tokens if token.steady and low <= token.read_gb_s < high]
        theirs = [token for token in here if token.engine == THEIRS]
        for engine in dict.fromkeys(token.engine for token in here):
            own = [token for token in here if token.engine == engine]
            rows.append(
                {
                    "reads_gb_s": f"{low} to {high}",
                    "engine": engine,
                    "turns": len(own),
                    "tok_s": median(1 / token.seconds for token in own),
                    "gb_s": median(token.nbytes / token.seconds / 1e9 for token in own),
                    "of_read": median(token.of_read for token in own),
                    "against": against(own, theirs, together) if theirs and engine != THEIRS else {},
                }
            )
    return rows


def table(rows: list[dict]) -> str:
    lines = [f"{'reads, GB/s':<12} {'engine':<10} {'turns':>6} {'tok/s':>7} {'GB/s':>6} {'of read':>7}  / {THEIRS}"]
    for row in rows:
        ratios = row["against"]
        shown = f"{ratios['by_rate']:.2f}x by rate, {ratios['by_reads']:.2f}x by reads" if ratios else ""
        if "by_turn" in ratios:
            shown += f", {ratios['by_turn']:.2f}x in {ratios['turns']} turns"
        lines.append(
            f"{row['reads_gb_s']:<12} {row['engine']:<10} {row['turns']:>6} {row['tok_s']:>7.2f} "
            f"{row['gb_s']:>6.1f} {row['of_read']:>7.2f}  {shown}".rstrip()
        )
    return "\n".join(lines)


def saved(paths: list[Path]) -> tuple[list[Token], bool]:
    """The tokens of runs that --json wrote, and whether all of these had their engines loaded together."""
    reports = [json.loads(path.read_text()) for path in paths]
    turns, tokens = 0, []
    for report in reports:  # turns of different runs are not the same turn
        own = [Token(**dict(zip(report["columns"], values, strict=True))) for values in report["tokens"]]
        tokens += [replace(token, turn=token.turn + turns) for token in own]
        turns += 1 + max(token.turn for token in own)
    return tokens, not any(report["apart"] for report in reports)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", type=Path, nargs="+", metavar="MODEL.gguf | SAMPLES.json...")
    parser.add_argument("--engines", default=f"pyllama,{THEIRS}")
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--burst", type=int, default=1)
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument(
        "--bands",
        type=lambda text: tuple(map(int, text.split(","))),
        default=BANDS_GB_S,
        help="GB/s where one ends and the next begins",
    )
    parser.add_argument("--json", type=Path, help="write every token there")
    args = parser.parse_args()
    if all(path.suffix == ".json" for path in args.paths):
        tokens, together = saved(args.paths)
        print(table(summarize(tokens, args.bands, together)))
        return
    if len(args.paths) > 1:
        parser.error("one model, or files of samples")
    engines = args.engines.split(",")
    if unknown := [name for name in engines if name not in ENGINES]:
        parser.error(f"--engines: {', '.join(unknown)}: expected some of {', '.join(ENGINES)}")
    groups = [[name] for name in engines] if args.apart else [engines]
    tokens, builds = measure(groups, args.paths[0], args.threads, args.turns, args.burst)
    rows = summarize(tokens, args.bands, not args.apart)
    print(table(rows))
    if args.json:
        report = {
            "date": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
            "machine": machine.describe(),
            "builds": builds,
            "model": args.paths[0].name,
            "threads": args.threads,
            "burst": args.burst,
            "apart": args.apart,
            "rows": rows,
            "columns": [field.name for field in fields(Token)],
            "tokens": [list(astuple(token)) for token in tokens],
        }
        args.json.write_text(json.dumps(rounded(report)) + "\n")


if __name__ == "__main__":
    main()
