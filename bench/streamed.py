#!/usr/bin/env python3
"""Models larger than memory: seconds per token on a small board played by control groups, beside llama.cpp.

usage: streamed.py --board board.py --gguf 7b.gguf --packed 7b.packed --llama-bench PROGRAM
                   [--memory 1G,2G,4G,8G] [--disk 450e6] [--tokens 2] [--no-pinning]
                   [--out bench/results/FILE.json]

Each engine runs in a fresh control group of that much memory (page cache included, as on a board) with the disk
throttled to so many bytes a second, from a cold page cache, one after the other, and the table gives seconds per
token and their ratio. pyllama gets a budget of 15/16 of the group. `--disk 0` is the disk as it is; the plain
direct-read rate of the same file is then taken in the same run, as the ceiling.

board.py is any program that takes --memory, --disk, --evict and a command after --, runs it inside such limits and
prints one JSON line after the command's own output. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import machine

from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.index import Span
from pyllama.machine.memory import parse_size
from pyllama.streaming.direct import DirectFile
from pyllama.streaming.memory import huge_empty

HERE = Path(__file__).resolve().parent


def on_board(args: argparse.Namespace, memory: int, evict: str, command: list[str]) -> tuple[str, dict[str, Any]]:
    """The command's own output and what it used."""
    limits = ["--memory", str(memory)] + (["--disk", str(args.disk)] if args.disk else [])
    done = subprocess.run(
        [sys.executable, args.board, *limits, "--evict", evict, "--", *command], capture_output=True, text=True
    )
    lines = done.stdout.strip().splitlines()
    used = json.loads(lines[-1])
    if used["exit"]:
        raise SystemExit(f"{' '.join(command)}: exit {used['exit']}\n{done.stderr[-2000:]}")
    return "\n".join(lines[:-1]), used


def run_pyllama(args: argparse.Namespace, model: str, memory: int, tokens: int) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "stream_once.py"), model, "--memory", str(memory * 15 // 16)]
    command += ["--tokens", str(tokens), *["--no-pinning"] * args.no_pinning]
    out, used = on_board(args, memory, model, command)
    got = json.loads(out.splitlines()[-1])
    engine = f"pyllama {Path(model).name}" + ", nothing pinned" * args.no_pinning
    return {
        "engine": engine, "memory": memory, "token_s": median(got["token_s"]),
        "token_read": max(got["token_read"]), "first_pass_s": got["first_pass_s"], "peak_rss": got["peak_rss"],
        "fingerprint": got["fingerprint"], "samples": got["token_s"], "used": used,
    }  # fmt: skip


def run_llama_cpp(args: argparse.Namespace, memory: int, tokens: int) -> dict[str, Any]:
    command = [args.llama_bench, "-m", args.gguf, "-p", "0", "-n", str(tokens), "-r", "1", "--no-warmup"]
    command += ["-t", str(os.cpu_count()), "-lm", "mmap", "-o", "json"]
    out, used = on_board(args, memory, args.gguf, command)
    got = json.loads(out[out.index("[") :])[0]
    return {
        "engine": "llama.cpp mmap", "memory": memory, "token_s": got["avg_ns"] / 1e9 / tokens,
        "peak_rss": used["peak_rss_bytes"], "used": used,  # what it read for a token and for loading is one sum
    }  # fmt: skip


def direct_rate(path: str, nbytes: int = 4 << 30) -> float:
    """Bytes a second of plain direct reads of 4 MB, three in flight, into huge pages: the ceiling."""
    from concurrent.futures import ThreadPoolExecutor

    block, file, size = 4 << 20, DirectFile(Path(path)), min(nbytes, os.path.getsize(path))
    memory = huge_empty(3 * block)

    def reader(lane: int) -> None:
        for offset in range(lane * block, size - block, 3 * block):
            file.read(Span(Path(path), offset, block), memory[lane * block : (lane + 1) * block])

    start = time.perf_counter()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(reader, range(3)))
    seconds = time.perf_counter() - start
    file.close()
    return size / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--board", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--packed")
    parser.add_argument("--llama-bench")
    parser.add_argument("--memory", default="1G,2G,4G,8G")
    parser.add_argument("--disk", type=float, default=450e6)
    parser.add_argument("--tokens", type=int, default=2)
    parser.add_argument("--plain", action="store_true", help="pyllama reads the GGUF as well")
    parser.add_argument("--no-pinning", action="store_true", help="pyllama keeps no weights, whatever the memory")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with open_checkpoint(args.gguf) as checkpoint:
        pass_nbytes = checkpoint.nbytes
    rows = []
    for memory in map(parse_size, args.memory.split(",")):
        group = []
        if args.llama_bench:
            group.append(run_llama_cpp(args, memory, args.tokens))
        if args.packed:
            group.append(run_pyllama(args, args.packed, memory, args.tokens))
        if args.plain or not args.packed:
            group.append(run_pyllama(args, args.gguf, memory, args.tokens))
        if not args.disk:
            rate = direct_rate(args.gguf)
            group.append({"engine": "direct reads", "memory": memory, "token_s": pass_nbytes / rate,
                          "token_read": pass_nbytes})  # fmt: skip
        for row in group:
            row["ratio"] = group[0]["token_s"] / row["token_s"]
            read = row.get("token_read")
            rate = f"{read / 1e9:6.2f} GB {read / row['token_s'] / 1e6:6.0f} MB/s" if read else " " * 21
            print(f"{memory / 2**30:5.2f} G  {row['engine']:32} {row['token_s']:8.2f} s a token {rate}"
                  f" {row['ratio']:5.2f}x", flush=True)  # fmt: skip
        rows += group
    if args.out:
        record = {"machine": machine.describe(), "disk": args.disk, "rows": rows}
        args.out.write_text(json.dumps(record, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
