#!/usr/bin/env python3
"""Models whose weights fit in memory: decode beside the DRAM read rate, prompts beside the float32 peak,
both beside llama.cpp, in one run.

usage: resident.py --models DIR [--gguf FILE]... [--llama-bench [LABEL=]PROGRAM]... [--rounds 7] [--no-packing]

Makes the synthetic models it needs in DIR (2.5 GB). --no-packing adds pyllama with bfloat16 weights left as they are.
Prints a table; adds bench/results/DATE-CPU.json and a line per model and engine to bench/results/CPU.csv.
The method, and how to read the figures, is in bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import llama_bench
import machine
import synthetic
from ceilings import BUFFER_NBYTES

from pyllama import PyllamaError
from pyllama.checkpoint import open_checkpoint
from pyllama.measure import csv_file, work
from pyllama.measure.ceilings import Ceilings
from pyllama.measure.csv_file import rounded

HERE = Path(__file__).resolve().parent
OURS = "pyllama"
PLAIN = "pyllama, not packed"
LLAMA_CPP = "llama.cpp"
QUIET = 0.1  # cores others may keep busy before a run's figures are of no use


@dataclass(frozen=True, slots=True)
class Subject:
    """A GGUF file, read by every engine, and what is done with it."""

    label: str
    path: Path
    compared: bool  # with other engines
    bf16: bool  # there is something to pack
    lengths: tuple[int, ...]
    decode: int
    repeat: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One process of one engine, with the ceilings measured just before and just after it."""

    round: int
    model: str
    engine: str
    rates: dict
    ceilings: list[dict]
    others: float  # cores busy with something else meanwhile

    @property
    def read_gb_s(self) -> float:
        return mean(c["read_gb_s"] for c in self.ceilings)

    @property
    def peak_gflop_s(self) -> float:
        return mean(c["peak_gflop_s"] for c in self.ceilings)


def run_pyllama(engine: str, subject: Subject, threads: int) -> dict:
    command = [
        sys.executable,
        HERE / "pyllama_bench.py",
        subject.path,
        "--threads",
        threads,
        "--prefill",
        ",".join(map(str, subject.lengths)),
        "--decode",
        subject.decode,
        "--repeat",
        subject.repeat,
        *["--no-packing"] * (engine == PLAIN),
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{engine}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return json.loads(done.stdout)


def measure(
    subjects: list[Subject], ours: list[str], programs: dict[str, Path], threads: int, rounds: int
) -> list[Sample]:
    """Every engine on every model, once a round, so that the machine's drift meets all of them alike."""
    ceilings, samples, failed = Ceilings(BUFFER_NBYTES), [], set()
    before = ceilings.measure(threads)
    others = machine.Others()
    for number in range(rounds):
        for subject in subjects:
            for engine in [*ours, *programs]:
                wanted = engine == OURS or subject.compared and (engine != PLAIN or subject.bf16)
                if not wanted or (subject.label, engine) in failed:
                    continue
                note(f"round {number + 1}/{rounds}: {subject.label}, {engine}")
                others.share()
                try:
                    if engine in ours:
                        rates = run_pyllama(engine, subject, threads)
                    else:
                        rates = llama_bench.run(
                            programs[engine],
                            subject.path,
                            threads=threads,
                            lengths=list(subject.lengths),
                            decode=subject.decode,
                            repeat=subject.repeat,
                        )
                except RuntimeError as error:
                    failed.add((subject.label, engine))
                    note(f"{subject.label}: {error}\n")
                    continue
                share = others.share()
                after = ceilings.measure(threads)
                samples.append(Sample(number, subject.label, engine, rates, [before, after], share))
                before = after
    note("")
    return samples


def note(text: str) -> None:
    """A line that stays if it says something went wrong, else the sign of life on a terminal."""
    if text.endswith("\n"):
        print("\r\033[K" * sys.stderr.isatty() + text, end="", file=sys.stderr)
    elif sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# -- from samples to figures


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def summarize(samples: list[Sample], costs: dict[str, dict]) -> list[dict]:
    """A row per model and engine; every ratio is the median over rounds of a ratio within one round."""
    rows = []
    for model, engine in dict.fromkeys((s.model, s.engine) for s in samples):
        own = [s for s in samples if (s.model, s.engine) == (model, engine)]
        cost = costs[model]
        decode = [s.rates["decode_tok_s"] * cost["decode_nbytes"] / 1e9 for s in own]
        row = {
            "model": model,
            "engine": engine,
            "rounds": len(own),
            "others": median(s.others for s in own),
            "read_gb_s": spread([s.read_gb_s for s in own]),
            "peak_gflop_s": spread([s.peak_gflop_s for s in own]),
            "decode_tok_s": spread([s.rates["decode_tok_s"] for s in own]),
            "decode_gb_s": spread(decode),
            "decode_of_read": median(rate / s.read_gb_s for rate, s in zip(decode, own, strict=True)),
            "prefill": {},
        }
        for length, flop in cost["prefill_flop"].items():
            rates = [s.rates["prefill_tok_s"][length] * flop / int(length) / 1e9 for s in own]
            row["prefill"][length] = {
                "gflop_s": spread(rates),
                "tok_s": median(s.rates["prefill_tok_s"][length] for s in own),
                "of_peak": median(rate / s.peak_gflop_s for rate, s in zip(rates, own, strict=True)),
            }
        if engine in (OURS, PLAIN):
            row["against"] = against(own, samples)
        rows.append(row)
    return rows


def against(own: list[Sample], samples: list[Sample]) -> dict[str, dict[str, float]]:
    """How many times as fast as each other engine, round by round."""
    out = {}
    for other in dict.fromkeys(s.engine for s in samples if s.engine not in (OURS, PLAIN)):
        theirs = {s.round: s.rates for s in samples if s.model == own[0].model and s.engine == other}
        pairs = [(s.rates, theirs[s.round]) for s in own if s.round in theirs]
        if pairs:
            out[other] = {"decode": median(a["decode_tok_s"] / b["decode_tok_s"] for a, b in pairs)}
            for length in own[0].rates["prefill_tok_s"]:
                out[other][f"prefill_{length}"] = median(
                    a["prefill_tok_s"][length] / b["prefill_tok_s"][length] for a, b in pairs
                )
    return out


def interpreter_share(samples: list[Sample], wide: str, narrow: str) -> float | None:
    """Time per token of as many layers with next to no arithmetic, over the model's time per token."""
    tok_s = {(s.model, s.round): s.rates["decode_tok_s"] for s in samples if s.engine == OURS}
    shares = [
        rate / tok_s[narrow, number]
        for (model, number), rate in tok_s.items()
        if model == wide and (narrow, number) in tok_s
    ]
    return median(shares) if shares else None


# -- for people and for files


def table(report: dict) -> str:
    about, ceilings = report["machine"], report["ceilings"]
    one, all_threads = ceilings["1"], ceilings[str(report["threads"])]
    lines = [
        f"{about['board'] or about['cpu']}, {report['threads']} of {about['cores']} cores"
        f"{', virtual' if about['virtual'] else ''}, {about['memory_gb']} GB, kernel {about['kernel']}, "
        f"pyllama {about['pyllama']} ({about['commit']}, {about['isa']}), {report['date']}",
        f"DRAM read {all_threads['read_gb_s']:.1f} GB/s (one thread {one['read_gb_s']:.1f}), float32 peak "
        f"{all_threads['peak_gflop_s']:.0f} GFLOP/s (one thread {one['peak_gflop_s']:.0f}); medians of "
        f"{report['rounds']} rounds",
        "",
    ]
    lengths = list(dict.fromkeys(length for row in report["rows"] for length in row["prefill"]))
    head = ["model", "engine", "tok/s", "GB/s", "of read"]
    for length in lengths:
        head += [f"prompt {length} tok/s", "GFLOP/s", "of peak"]
    cells = [[*head, "others"]]
    for row in report["rows"]:
        line = [
            row["model"],
            row["engine"],
            f"{row['decode_tok_s']['median']:.2f}",
            f"{row['decode_gb_s']['median']:.2f}",
            f"{row['decode_of_read']:.2f}",
        ]
        for length in lengths:
            prompt = row["prefill"].get(length)
            line += (
                [f"{prompt['tok_s']:.1f}", f"{prompt['gflop_s']['median']:.1f}", f"{prompt['of_peak']:.2f}"]
                if prompt
                else ["-"] * 3
            )
        cells.append([*line, f"{row['others']:.2f}"])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        lines.append(
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
        )
    lines.append("")
    for row in report["rows"]:
        for other, ratios in row.get("against", {}).items():
            shown = ", ".join(f"{what.replace('_', ' ')} {ratio:.2f}x" for what, ratio in ratios.items())
            lines.append(f"{row['model']}: {row['engine']} / {other}  {shown}")
    if report["interpreter_share"] is not None:
        lines.append(f"interpreter: {report['interpreter_share']:.1%} of a token of 135m bf16")
    busiest = max(row["others"] for row in report["rows"])
    if busiest > QUIET:
        lines.append(f"not quiet: something else kept {busiest:.2f} cores busy; run again before believing this")
    return "\n".join(lines)


def save(report: dict, samples: list[Sample], folder: Path) -> list[Path]:
    """The whole run as JSON, and a line per row in the machine's CSV; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    about = report["machine"]
    name = f"{about['board'] or about['cpu']} {about['cores']} cores"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    rounds = [
        {"round": s.round, "model": s.model, "engine": s.engine, "others": s.others, "ceilings": s.ceilings, **s.rates}
        for s in samples
    ]
    full = folder / f"{report['date'].replace(':', '')}-{slug}.json"
    full.write_text(json.dumps(rounded(report | {"samples": rounds}), indent=1) + "\n")
    lines = folder / f"{slug}.csv"
    rows = []
    for row in report["rows"]:
        line = {
            "date": report["date"],
            "commit": about["commit"],
            "isa": about["isa"],
            "kernel": about["kernel"],
            "threads": report["threads"],
            "rounds": row["rounds"],
            "others": row["others"],
            "model": row["model"],
            "engine": row["engine"],
            "read_gb_s": row["read_gb_s"]["median"],
            "peak_gflop_s": row["peak_gflop_s"]["median"],
            "decode_tok_s": row["decode_tok_s"]["median"],
            "decode_gb_s": row["decode_gb_s"]["median"],
            "decode_of_read": row["decode_of_read"],
        }
        for length in (64, 512):
            prompt = row["prefill"].get(str(length))
            line[f"prefill_{length}_tok_s"] = prompt["tok_s"] if prompt else ""
            line[f"prefill_{length}_gflop_s"] = prompt["gflop_s"]["median"] if prompt else ""
            line[f"prefill_{length}_of_peak"] = prompt["of_peak"] if prompt else ""
        rows.append(line)
    csv_file.append(lines, rows)
    return [full, lines]


# -- command line


def labelled(text: str) -> tuple[str, Path]:
    label, found, path = text.rpartition("=")
    return (f"{LLAMA_CPP} {label}" if found else LLAMA_CPP), Path(path)


def subjects_of(args: argparse.Namespace) -> list[Subject]:
    subjects = []
    for shape in args.shapes.split(","):
        if shape not in synthetic.SHAPES:
            raise SystemExit(f"resident.py: --shapes {shape}: expected {', '.join(synthetic.SHAPES)}")
        path = synthetic.make(synthetic.SHAPES[shape], args.models / shape, formats=("gguf",))["gguf"]
        if shape == "narrow":  # only for the interpreter's share
            subjects.append(Subject(f"{shape} bf16", path, False, True, (), args.decode, 20))
            continue
        repeat = 1 if path.stat().st_size > 1e9 else 5  # a small model's run is over too soon
        subjects.append(Subject(f"{shape} bf16", path, True, True, args.prefill, args.decode, repeat))
    for path in args.gguf:
        with open_checkpoint(path) as checkpoint:
            bf16 = checkpoint.config.dtype == "BF16"
        subjects.append(Subject(path.stem, path, True, bf16, args.prefill, args.decode, 5))
    return subjects


def costs_of(subjects: list[Subject]) -> dict[str, dict]:
    costs = {}
    for subject in subjects:
        with open_checkpoint(subject.path) as checkpoint:
            costs[subject.label] = {
                "decode_nbytes": work.decode_nbytes(checkpoint),
                "prefill_flop": {str(n): work.prefill_flop(checkpoint, n) for n in subject.lengths},
            }
    return costs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--models", type=Path, required=True, help="where the synthetic models are, or are made")
    add("--shapes", default="1.1b,135m,narrow", help="synthetic models to measure")
    add("--gguf", type=Path, action="append", default=[], help="a model both engines read")
    add("--llama-bench", type=labelled, action="append", default=[], metavar="[LABEL=]PROGRAM")
    add("--no-packing", action="store_true", help="pyllama with packing off as well")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--rounds", type=int, default=7)
    add("--prefill", default="64,512", help="lengths of prompts")
    add("--decode", type=int, default=16, help="tokens to decode")
    add("--results", type=Path, default=HERE / "results")
    add("--dry", action="store_true", help="print the table, write nothing")
    args = parser.parse_args()
    args.prefill = tuple(int(length) for length in args.prefill.split(",") if length)
    programs = dict(args.llama_bench)
    for label, program in programs.items():
        if not os.access(program, os.X_OK):
            parser.error(f"--llama-bench: {label}: {program} is no program")

    date = time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime())
    subjects = subjects_of(args)
    costs = costs_of(subjects)
    one_thread = Ceilings(BUFFER_NBYTES).measure(1)
    samples = measure(subjects, [OURS, *[PLAIN] * args.no_packing], programs, args.threads, args.rounds)
    if not samples:
        return 1
    rows = summarize(samples, costs)
    every = [ceiling for sample in samples for ceiling in sample.ceilings]
    report = {
        "date": date,
        "machine": machine.describe(),
        "threads": args.threads,
        "rounds": args.rounds,
        "ceilings": {
            "1": one_thread,
            str(args.threads): {name: median(c[name] for c in every) for name in one_thread},
        },
        "costs": costs,
        "rows": rows,
        "interpreter_share": interpreter_share(samples, "135m bf16", "narrow bf16"),
    }
    print(table(report))
    if not args.dry:
        print("", *save(report, samples, args.results), sep="\n")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a running engine is ended too
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except PyllamaError as error:
        sys.exit(f"resident.py: {error}")
