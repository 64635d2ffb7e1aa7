#!/usr/bin/env python3
"""A model and types to quantize it to -> docs/quantize.md's table: bytes, perplexity, KL divergence, rates.

usage: quantized_types.py MODEL TEXT --results FILE.jsonl [--types q8_0,q4_k_m] [--also LABEL=FILE.gguf]...
                          [--chunks 16] [--context 512] [--folder DIR] [--memory 4G] [--threads N] [--rounds N]

Makes MODEL-TYPE.gguf in DIR for every type, with `pyllama quantize`, unless it is there; --also takes a file that
something else made of the same model. The text is scored as `pyllama perplexity FILE TEXT --against MODEL --kv-dtype
f32` scores it, but the source computes its logits once for all, into DIR. Tokens a second on boards are `pyllama
plan`'s, with all weights in memory. --rounds: then all files are kept in memory and decode 8 tokens in turns, so often;
the table has the median of the rounds' ratios to the source, of which the least and the most are in FILE.jsonl.

A line is added to FILE.jsonl for every file as its score comes, under the checksums of source, file and text: the same
command goes on where it was ended, and several may run at once once the source is there. The table of all that FILE
knows of this source, text and windows goes to standard output.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import machine
import numpy as np
from quantized import Engine

import pyllama
from pyllama.machine.threads import default_threads
from pyllama.measure.perplexity import Estimate, estimates, text_tokens
from pyllama.measure.windows import Windows
from pyllama.printable import one_line

SOURCE = "source"
DECODE = 8  # tokens of a turn
BOARDS = ("pi4", "pi5")


def checksum(path: Path) -> str:
    """The first 16 digits of a file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


class Results:
    """The lines of a file that are about one source, text and windows; new ones go to its end."""

    def __init__(self, path: Path, about: dict[str, Any]):
        self._path, self._about = path, about

    def rows(self, kind: str) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        found = [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]
        return [row for row in found if row["kind"] == kind and self._about.items() <= row.items()]

    def has(self, label: str, file: str) -> bool:
        return any((row["type"], row["file"]) == (label, file) for row in self.rows("score"))

    def add(self, kind: str, row: dict[str, Any]) -> None:
        line = json.dumps({"kind": kind, **self._about, "commit": machine.commit(), **row})
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")  # one write: others may be adding too


class Recorded:
    """A reference whose logits were computed once and lie in a file: what estimates() asks of a model, replayed.

    Every pass over it is to be the same as the first time.
    """

    def __init__(self, path: Path, windows: Windows, model: pyllama.Model):
        self._file, self._vocab_size = open(path, "rb"), model.config.vocab_size
        self.tokenizer = model.tokenizer
        self.decoder = SimpleNamespace(max_pass_tokens=windows.context, extend=self._replay)

    def new_sequence(self) -> Any:
        return SimpleNamespace(close=lambda: None)

    def close(self) -> None:
        self._file.close()

    def _replay(self, batch: Any, wanted: list[int]) -> tuple[np.ndarray, None]:
        shape = sum(wanted), self._vocab_size
        data = self._file.read(4 * shape[0] * shape[1])
        return np.frombuffer(data, np.float32).reshape(shape), None


def record(model: pyllama.Model, ids: np.ndarray, windows: Windows, path: Path) -> Estimate:
    """The source's logits -> `path`."""
    extend = model.decoder.extend
    with open(path, "wb") as file:

        def recorded(*arguments: Any) -> tuple[np.ndarray, list[np.ndarray]]:
            logits, rows = extend(*arguments)
            file.write(logits.tobytes())
            return logits, rows

        model.decoder.extend = recorded  # type: ignore[method-assign]
        for result in estimates(model, ids, windows):
            note(f"{SOURCE}: {result.chunks}/{windows.count}, perplexity {result.perplexity:.4f}")
    return result


def note(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def pyllama_command(*words: object) -> str:
    command = [sys.executable, "-m", "pyllama", *map(str, words)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def tok_s(path: Path | str, board: str, memory: str) -> float:
    report = json.loads(pyllama_command("plan", path, "--board", board, "--memory", memory, "--json"))
    if report["plan"]["streamed"]:
        raise SystemExit(f"quantized_types.py: --memory {memory}: {path} does not fit into it")
    return 1 / report["forecast"]["token_s"]


def decoding(files: dict[str, Path], rounds: int, threads: int) -> list[dict[str, Any]]:
    """Tokens a second of each file over the source's, in turns: the median over rounds, the least and the most."""
    engines = [Engine(label, sys.executable, path, threads) for label, path in files.items()]
    ratios: dict[str, list[float]] = {label: [] for label in files}
    rates: dict[str, list[float]] = {label: [] for label in files}
    try:
        for number in range(rounds):
            note(f"decoding: {number + 1}/{rounds}")
            took = {}
            for place in range(len(engines)):
                engine = engines[(place + number) % len(engines)]  # no one is always the first
                took[engine.label] = engine.tok_s({"decode": DECODE})
            for label, rate in took.items():
                rates[label].append(rate)
                ratios[label].append(rate / took[SOURCE])
    finally:
        for engine in engines:
            engine.close()
    note("")
    return [
        {
            "type": label,
            "file": checksum(files[label]),
            "tok_s": median(rates[label]),
            "ratio": median(ratio),
            "ratio_least": min(ratio),
            "ratio_most": max(ratio),
            "rounds": rounds,
        }
        for label, ratio in ratios.items()
    ]


def table(scores: list[dict[str, Any]], rates: list[dict[str, Any]]) -> str:
    lines = [
        "| type | MB | perplexity | more than the source's | KL divergence | same best token | "
        + "tok/s, of the source's | "
        + " | ".join(f"{board}, modelled" for board in BOARDS)
        + " |",
        "|---|---|---|---|---|---|---|" + "---|" * len(BOARDS),
    ]
    ratio_of = {(row["type"], row["file"]): row["ratio"] for row in rates}
    for one in scores:
        against = one["against"]
        figures = (
            [
                f"{np.exp(against['log_ratio']) - 1:+.2%}",
                f"{against['kl']:.4f} +/- {against['kl_error']:.4f}",
                f"{against['same_best']:.1%}",
            ]
            if against
            else ["", "", ""]
        )
        ratio = ratio_of.get((one["type"], one["file"]))
        cells = [
            f"`{one['type']}`" if against else one["type"],
            f"{one['nbytes'] / 1e6:.0f}",
            f"{one['perplexity']:.3f}",
            *figures,
            "" if ratio is None or not against else f"{ratio:.2f}",
            *(f"{rate:.1f}" for rate in one["boards"].values()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def labelled(text: str) -> tuple[str, Path]:
    label, found, path = text.partition("=")
    if not found or not label or label == SOURCE:
        raise argparse.ArgumentTypeError(f"{text}: expected LABEL=FILE.gguf")
    return label, Path(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("text", type=Path)
    parser.add_argument("--results", type=Path, required=True, help="lines of JSON; what is there is not done again")
    parser.add_argument("--types", default="", help="of pyllama quantize, with commas between")
    parser.add_argument("--also", type=labelled, action="append", default=[], metavar="LABEL=FILE")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--folder", type=Path, default=Path("."), help="where quantized files are, or are made")
    parser.add_argument("--memory", default="4G", help="of the boards")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=0, help="of decoding in turns")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    how = {"context_length": args.context, "kv_dtype": "f32", "threads": args.threads}

    source = checksum(args.model)
    about = {"model": args.model.name, "source": source, "text": checksum(args.text)}
    results = Results(args.results, about | {"context": args.context, "chunks": args.chunks})
    logits = args.folder / f"{'-'.join([args.model.stem, source, about['text']])}-{args.context}x{args.chunks}.logits"

    def add(label: str, file: str, path: Path, result: Estimate) -> None:
        boards = {board: tok_s(path, board, args.memory) for board in BOARDS}
        nbytes = path.stat().st_size
        results.add("score", {"type": label, "file": file, "nbytes": nbytes, **asdict(result), "boards": boards})

    with pyllama.load(args.model, **how) as model:
        ids = text_tokens(model.tokenizer, args.text.read_text(encoding="utf-8").removesuffix("\n"))
        windows = Windows(len(ids), args.context, most=args.chunks)
        if not logits.exists() or not results.has(SOURCE, source):
            making = logits.with_name(logits.name + ".making")
            add(SOURCE, source, args.model, record(model, ids, windows, making))
            making.rename(logits)  # only now: whoever finds it need not do it again
        reference = model  # of which only the tokenizer and the configuration are used from here on
    files = {SOURCE: args.model}
    for name in filter(None, args.types.split(",")):
        files[name] = args.folder / f"{args.model.stem}-{name}.gguf"
        if not files[name].exists():
            pyllama_command("quantize", args.model, files[name], "--type", name, "--quiet")
    files |= dict(args.also)
    for label, path in files.items():
        if results.has(label, file := checksum(path)):
            continue
        replayed = Recorded(logits, windows, reference)
        with pyllama.load(path, **how) as model:
            for result in estimates(model, ids, windows, against=replayed):  # type: ignore[arg-type]
                note(f"{label}: {result.chunks}/{windows.count}, perplexity {result.perplexity:.4f}")
        replayed.close()
        note("")
        add(label, file, path, result)
    if args.rounds:
        for row in decoding(files, args.rounds, args.threads):
            results.add("rate", row)
    print(table(results.rows("score"), results.rows("rate")))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except pyllama.PyllamaError as error:
        sys.exit(one_line(f"quantized_types.py: {error}"))
